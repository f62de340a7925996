"""Which requests become one window, and what becomes of them when a worker fails: with a worker that does as told."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from serving import FakeWorker, asynchronous, fake_service, settle

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.serve.errors import Refused
from flashelmo.serve.limits import Limits
from flashelmo.serve.service import FEW_BYTES, Service, ServiceSettings, Wanted

MEAN, MAX = Wanted(Output("average", pool="mean")), Wanted(Output("average", pool="max"))


Scene = Callable[[Service, FakeWorker, Callable[..., "asyncio.Task[Any]"]], Coroutine[Any, Any, None]]


def scene(**settings: Any) -> Callable[[Scene], Callable[[Path], None]]:
    """A test with a service of one fake worker, and with what starts a request of sentences of so many tokens."""

    def of(test: Scene) -> Callable[[Path], None]:
        @asynchronous
        async def run(model: Path) -> None:
            service, worker = fake_service(model, **settings)

            def ask(*lengths: int, wanted: Wanted = MEAN, word: str = "a") -> "asyncio.Task[Any]":
                return asyncio.create_task(service.embed([[word] * n for n in lengths], wanted))

            await test(service, worker, ask)

        return run

    return of


async def finish(worker: FakeWorker, error: str = "") -> None:
    """It answers its oldest window, and everybody takes note."""
    worker.finish(error)
    await settle()


def lengths(worker: FakeWorker) -> list[int]:
    return [len(tokens) for tokens in worker.sentences()]


def figure(service: Service, name: str) -> float:
    """One of the metrics."""
    (found,) = re.findall(rf"^flashelmo_{name} (\S+)", service.metrics.text().decode(), flags=re.MULTILINE)
    return float(found)


def waiting(service: Service) -> float:
    """Requests in line."""
    return figure(service, "queue_size")


def answered(task: "asyncio.Task[Any]") -> list[int]:
    return [int(vector[0]) for vector in task.result().vectors]


@scene()
async def test_only_many_vectors_are_scaled_in_a_thread(service: Service, worker: FakeWorker, ask: Any) -> None:
    for n, in_thread in ((1, False), (FEW_BYTES // (4 * worker.size) + 1, True)):
        task = ask(n, wanted=Wanted(Output("top"), normalize=True))
        await settle()
        worker.finish()
        with patch.object(asyncio, "to_thread", wraps=asyncio.to_thread) as to_thread:
            (found,) = (await task).vectors
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.ones(n), rtol=1e-6)
        assert to_thread.called == in_thread


@scene()
async def test_what_waits_is_one_window(service: Service, worker: FakeWorker, ask: Any) -> None:
    first = ask(1)
    await settle()
    assert lengths(worker) == [1], "a request by itself waits for nobody"
    others = [ask(2, 3), ask(0), ask(4)]
    await settle()
    assert lengths(worker) == [1]
    await finish(worker)
    assert sorted(lengths(worker)) == [0, 2, 3, 4]
    await finish(worker)
    assert [*map(answered, [first, *others])] == [[1], [2, 3], [0], [4]]
    for name, value in {
        "request_queue_duration_count": 4,
        "request_inference_duration_count": 2,
        "batch_next_size_sum": 4,
        "batch_next_tokens_sum": 10,
        "token_count_total": 10,
    }.items():
        assert figure(service, name) == value, name


@scene(max_batch_tokens=10)
async def test_a_small_request_does_not_wait_for_a_large_one(service: Service, worker: FakeWorker, ask: Any) -> None:
    """A request of 100 windows' sentences is under way: a small one is in the next window, which both share."""
    large = ask(*[5] * 200)
    await settle()
    assert lengths(worker) == [5, 5]
    small = ask(3)
    await settle()
    await finish(worker)
    assert sorted(lengths(worker)) == [3, 5]
    await finish(worker)
    assert small.done() and not large.done()
    while not large.done():
        assert 0 < sum(lengths(worker)) <= 10
        await finish(worker)
    assert answered(large) == [5] * 200


@scene(max_batch_tokens=8)
async def test_requests_for_other_vectors_take_turns(service: Service, worker: FakeWorker, ask: Any) -> None:
    first, second = ask(*[4] * 6), ask(*[4] * 6, wanted=MAX)
    await settle()
    while not (first.done() and second.done()):
        await finish(worker)
    assert [len(window) for window in worker.order] == [2] * 6
    mean, most = MEAN.output, MAX.output
    assert worker.outputs == [mean, mean, most, mean, most, most], "the first was sent before the other came"


@scene(max_batch_tokens=10)
async def test_a_long_sentence_is_a_window_by_itself(service: Service, worker: FakeWorker, ask: Any) -> None:
    tasks = [ask(50), ask(1), ask(60)]
    await settle()
    seen = []
    while worker.held:
        seen.append(sorted(lengths(worker)))
        await finish(worker)
    assert seen == [[50], [1], [60]] and all(task.done() for task in tasks)


@scene(max_wait_ms=30)
async def test_after_a_full_window_others_are_waited_for_a_moment(
    service: Service, worker: FakeWorker, ask: Any
) -> None:
    tasks = [ask(1) for _ in range(9)]
    await settle()
    await finish(worker)
    await finish(worker)
    assert all(task.done() for task in tasks) and not worker.held
    late = ask(1)
    await settle()
    assert not worker.held, "half as many as before are not there"
    more = [ask(1) for _ in range(3)]
    await settle()
    assert len(lengths(worker)) == 4
    await finish(worker)
    assert late.done() and all(task.done() for task in more)
    late = ask(1)
    await asyncio.sleep(0.1)
    assert len(lengths(worker)) == 1, "nobody else came in time"
    worker.finish()
    await late


@scene()
async def test_a_request_that_is_cancelled_leaves_the_line(service: Service, worker: FakeWorker, ask: Any) -> None:
    first, second, third = ask(1), ask(2), ask(3)
    await settle()
    assert waiting(service) == 2, "one was sent"
    first.cancel()
    second.cancel()
    await settle()
    assert waiting(service) == 1
    while worker.held:
        await finish(worker)
    assert third.done() and len(worker.order) <= 2


@scene()
async def test_a_worker_that_dies_once_costs_nothing(service: Service, worker: FakeWorker, ask: Any) -> None:
    task = ask(1, 2)
    await settle()
    worker.die()
    await settle()
    assert lengths(worker) == [1, 2]
    await finish(worker)
    assert answered(task) == [1, 2] and figure(service, "request_queue_duration_count") == 1


@scene()
async def test_a_window_that_kills_twice_is_refused_and_others_are_not(
    service: Service, worker: FakeWorker, ask: Any
) -> None:
    bad = ask(7)
    await settle()
    good = ask(1)
    worker.die()
    await settle()
    worker.die()
    await settle()
    assert lengths(worker) == [1]
    await finish(worker)
    assert answered(good) == [1]
    with pytest.raises(Refused, match="worker: died twice on this request") as refused:
        await bad
    assert refused.value.status_code == 503 and (refused.value.headers or {})["Retry-After"]


@scene()
async def test_what_shares_a_worker_with_what_kills_it_is_answered(
    service: Service, worker: FakeWorker, ask: Any
) -> None:
    """In its window, or in the other one that a card has at hand."""
    worker.limit = 2
    good = [ask(9), ask(8)]
    await settle()
    bad = ask(7)
    good.append(ask(1))
    await settle()
    await finish(worker)
    assert lengths(worker) == [8, 7, 1]
    for _ in range(6):
        await settle()
        if 7 in lengths(worker):
            worker.die()
        elif worker.held:
            worker.finish()
    assert [answered(task) for task in good] == [[9], [8], [1]]
    with pytest.raises(Refused, match="worker: died twice on this request"):
        await bad


@scene()
async def test_an_overflow_is_the_error_of_its_request_alone(service: Service, worker: FakeWorker, ask: Any) -> None:
    first = ask(1)
    await settle()
    tasks = [ask(2), ask(3), ask(4)]
    await settle()
    await finish(worker)
    await finish(worker, "an overflow")
    while worker.held:
        await finish(worker, "an overflow" if lengths(worker) == [3] else "")
    assert [answered(task) for task in (first, tasks[0], tasks[2])] == [[1], [2], [4]]
    with pytest.raises(Refused, match="an overflow") as refused:
        await tasks[1]
    assert refused.value.status_code == 424


@scene(max_batch_tokens=6)
async def test_an_overflow_names_the_requests_sentence(service: Service, worker: FakeWorker, ask: Any) -> None:
    task = ask(3, 3, 3, 3)
    await settle()
    await finish(worker)
    assert lengths(worker) == [3, 3]
    worker.finish("sentence 1 ('a a a'): an overflow")
    with pytest.raises(Refused, match=r"^424: sentence 3 \('a a a'\): an overflow$"):
        await task


@scene()
async def test_a_card_has_its_next_window_at_hand(service: Service, worker: FakeWorker, ask: Any) -> None:
    worker.limit = 2
    tasks = []
    for n in (1, 2, 3):
        tasks.append(ask(n))
        await settle()
    assert lengths(worker) == [1, 2]
    await finish(worker)
    assert lengths(worker) == [2, 3]
    worker.finish()
    worker.finish()
    await asyncio.gather(*tasks)


@scene(max_batch_tokens=4)
async def test_two_devices_share_a_request_and_one_does_what_the_other_lost(
    service: Service, worker: FakeWorker, ask: Any
) -> None:
    other = FakeWorker(service)
    service.workers.append(other)  # type: ignore[arg-type]
    task = ask(4, 4, 4)
    await settle()
    assert lengths(worker) == lengths(other) == [4]
    other.is_ready = False
    other.die()
    while worker.held:
        await finish(worker)
    assert answered(task) == [4, 4, 4] and len(worker.order) == 3 and not other.held


def test_what_a_request_may_hold(model: Path) -> None:
    limits = Limits(sentences=3, sentence_tokens=2)
    service, worker = fake_service(model, limits=limits)
    assert service.split("inputs", ["a b", ["c d"]]) == [["a", "b"], ["c d"]]
    assert service.split("inputs", ["a b c"], "Right") == [["a", "b"]]
    assert service.split("inputs", [["a", "b", "c"]], "Left") == [["b", "c"]]
    with pytest.raises(Refused, match=r"inputs\[1\]: expected 2 tokens at most, found 3"):
        service.split("inputs", ["a", "a b c"])
    with pytest.raises(Refused, match=r"inputs: expected 3 sentences at most, found 4"):
        service.split("inputs", ["a"] * 4)
    assert service.result_bytes([["a"], ["b", "c"]], Output("all")) == 3 * 3 * 8 * 4
    assert service.result_bytes([["a"], ["b", "c"]], Output("top", pool="mean")) == 2 * 8 * 4
    worker.precision = "fp64"
    assert service.result_bytes([["a"], ["b", "c"]], Output("top")) == 3 * 8 * 8


def test_texts_are_split_by_the_tokenizer_that_was_chosen(model: Path) -> None:
    service, _ = fake_service(model, tokenizer="characters")
    assert service.split("inputs", ["a é\nb", ["a b"]]) == [["a", "é", "b"], ["a b"]]
    with pytest.raises(FlashElmoError, match="tokenizer: expected whitespace, characters"):
        fake_service(model, tokenizer="words")


def test_a_name_that_is_no_utf8_can_be_answered(model: Path) -> None:
    """As a folder's may be, which is the service's by default."""
    assert fake_service(model, name="b\udcff")[0].name == "b\ufffd"


def test_what_cannot_be_served(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FlashElmoError, match="stateful: expected an embedder that carries no state, as a request"):
        Service(ServiceSettings(model, {"stateful": True}))
    with pytest.raises(FlashElmoError, match="nothing"):
        Service(ServiceSettings(tmp_path / "nothing", {"device": "cpu"}))
    with pytest.raises(FlashElmoError, match="sentences: expected 1 or more, found 0"):
        Limits(sentences=0)


@scene()
async def test_a_result_is_the_callers_own(service: Service, worker: FakeWorker, ask: Any) -> None:
    task = ask(1, 2)
    await settle()
    worker.finish()
    answer = await task
    assert [each.shape for each in answer.vectors] == [(8,), (8,)]
    assert np.array_equal(answer.vectors[1], np.full(8, 2, np.float32))
