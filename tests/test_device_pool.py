"""A pool of devices gives what one device gives, whatever happens to its processes."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from device_pipelines import MadeUp, cpu_pipeline, lengths, repaired
from tiny_models import MODELS

from flashelmo.engine.devices.pool import DevicePool
from flashelmo.engine.devices.process import Embedded
from flashelmo.engine.devices.shared_arrays import read_object, write_object
from flashelmo.engine.devices.stream import Arrived, WindowStream
from flashelmo.engine.devices.worker import Flush, WindowTask
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import read_native, write_native
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import Statistics
from flashelmo.engine.precision import tolerance
from flashelmo.engine.settings import Settings
from flashelmo.engine.text.windows import Window

Arrays = list[npt.NDArray[Any]]

ALL = Output()
ENDS = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into Linux's /proc")


def ignore(share: float) -> None:
    """Progress that nobody looks at."""


def window(*sentences: str) -> Window:
    return Window.from_sentences([sentence.split() for sentence in sentences])


def numbered(n: int) -> list[Window]:
    """Windows of ragged sentences, no two alike, of which one holds no sentence and one no token."""
    windows = [window(*("x" * (1 + i) + " y" * (k % 7) for k in range(i % 5))) for i in range(n)]
    return [*windows, window(), window("", "")]


def collect(stream: Iterable[tuple[Window, Iterator[Any]]]) -> tuple[list[Window], list[Arrays]]:
    pairs = [(given, list(results)) for given, results in stream]
    return [given for given, _ in pairs], [arrays for _, arrays in pairs]


def run(pool: DevicePool, windows: Iterable[Window], output: Output = ALL) -> tuple[list[Window], list[Arrays]]:
    return collect(pool.stream(windows, output, ignore))


def assert_whole(pool: DevicePool, windows: list[Window], dtype: str = "float32") -> None:
    """Every window is given once, in order, with its own results."""
    given, results = run(pool, iter(windows), Output(dtype=dtype))
    assert list(map(id, given)) == list(map(id, windows))
    for arrays, expected in zip(results, map(lengths, windows), strict=True):
        for a, b in zip(arrays, expected, strict=True):
            assert a.dtype == dtype and a.shape == b.shape and (a == b).all()


def running(pids: Iterable[int]) -> set[int]:
    """Those that have not ended."""
    return {pid for pid in pids if status(pid) not in ("", "Z")}


def status(pid: int) -> str:
    """A process's state as Linux names it: Z where it only waits to be cleared away; nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def pids(pool: DevicePool) -> list[int]:
    return [process.pid for process in pool._processes]


def shared_memory() -> int:
    """How many pieces of it this process has mapped or open, but for those that only errors' tracebacks hold."""
    gc.collect()
    mapped = Path("/proc/self/maps").read_text().count("memfd:flashelmo")
    links = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return mapped + sum("memfd:flashelmo" in str(fd.readlink()) for fd in links if fd.is_symlink())


def eventually(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


@pytest.fixture(scope="module")
def real() -> Iterator[DevicePool]:
    with closing(DevicePool(partial(cpu_pipeline, MODELS["skip"]), ["cpu:0", "cpu:1"])) as pool:
        yield pool


@pytest.fixture(scope="module")
def made_up() -> Iterator[DevicePool]:
    """One device is slower, so that results come out of order."""
    with closing(DevicePool(MadeUp, ["slow:0.02", "fast"])) as pool:
        yield pool


@pytest.fixture
def faulty() -> Iterator[Callable[..., DevicePool]]:
    pools: list[DevicePool] = []

    def make(*devices: str) -> DevicePool:
        pools.append(DevicePool(MadeUp, devices))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def windows(text: list[list[str]]) -> list[Window]:
    """Ragged real text."""
    sentences = [*text[:60], [], *text[3:5]]
    return [Window.from_sentences(sentences[start : start + 7]) for start in range(0, len(sentences), 7)]


@pytest.mark.parametrize(
    "output", [Output(), Output("top", "float16"), Output("average", pool="mean")], ids=["all", "top", "pooled"]
)
def test_values_are_those_of_one_device(real: DevicePool, windows: list[Window], output: Output) -> None:
    given, results = run(real, windows, output)
    alone = cpu_pipeline(MODELS["skip"], "cpu")
    expected_windows, expected = collect(alone.stream(windows, output, ignore))
    assert [id(w) for w in given] == [id(w) for w in expected_windows]
    assert [len(arrays) for arrays in results] == [len(w) for w in windows]
    for a, b in zip(chain(*results), chain(*expected), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b) and np.isfinite(a).all()


class Prompt:
    """A process that is done with a window as soon as it gets it, but keeps the first until it is flushed."""

    max_windows, cause = 2, None

    def __init__(self, streams: list[WindowStream]) -> None:
        self.last: WindowTask | Flush | None = None
        self._streams = streams
        self._kept: list[int] = []

    def send(self, message: WindowTask | Flush) -> None:
        (stream,) = self._streams
        self.last = message
        if isinstance(message, WindowTask) and message.position == 0:
            self._kept.append(0)
        elif isinstance(message, WindowTask):
            self._deliver(stream, message.position)
        else:
            while self._kept:
                self._deliver(stream, self._kept.pop())

    def _deliver(self, stream: WindowStream, position: int) -> None:
        stream.sent[self].remove(position)  # type: ignore[index]
        stream.events.put(Arrived(position, Embedded(iter(()), Statistics(position))))


class Events(deque[Any]):
    """A queue that raises where a real one would wait for ever."""

    put, get = deque.append, deque.popleft


def test_runs_end_where_all_windows_are_done_before_the_last_is_known_to_be_the_last() -> None:
    """The stream waits for nothing more, and no process is left waiting for more of it."""
    streams: list[WindowStream] = []
    processes: Any = [Prompt(streams), Prompt(streams)]
    stream = WindowStream(0, processes, [window("a")] * 3, ALL, 3, "")  # none is taken beyond the third at first
    stream.events = Events()  # type: ignore[assignment]
    streams.append(stream)
    assert [embedded.added.sentences for _, embedded in stream.results()] == [0, 1, 2]
    assert [process.last for process in processes] == [Flush()] * 2


def test_kernels_run_in_a_process_of_their_own(device: str, text: list[list[str]]) -> None:
    """On the card where there is one; otherwise the process repairs Triton's interpreter, as the tests do."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from flashelmo.engine.cuda.pipeline import make_cuda_pipeline

    make = partial(make_cuda_pipeline, model=MODELS["skip"], precision="fp32", settings=Settings())
    windows = [Window.from_sentences(text[start : start + 2]) for start in range(0, 6, 2)]
    name = "cuda:0" if device == "cuda" else "interpreter"
    with closing(DevicePool(partial(repaired, make), [name])) as pool:
        _, results = run(pool, windows)
    _, expected = collect(cpu_pipeline(MODELS["skip"], "cpu").stream(windows, ALL, ignore))
    for a, b in zip(chain(*results), chain(*expected), strict=True):
        assert a.shape == b.shape and np.abs(a - b).max() < tolerance("fp32", "cuda")


def test_results_belong_to_the_caller(real: DevicePool, windows: list[Window]) -> None:
    _, [(first, *_), *_] = run(real, windows[:1])
    assert first.flags.owndata and first.flags.writeable and first.flags.c_contiguous


def test_statistics_add_up(windows: list[Window], made_up: DevicePool) -> None:
    before = replace(made_up.statistics)
    run(made_up, windows)
    sentences, tokens = sum(map(len, windows)), sum(len(w.word_ids) for w in windows)
    assert made_up.statistics - before == Statistics(sentences=sentences, tokens=tokens)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("n", [0, 1, 2, 40])
def test_windows_come_in_order(made_up: DevicePool, n: int, dtype: str) -> None:
    assert_whole(made_up, numbered(n), dtype)


def test_no_windows_give_nothing(made_up: DevicePool) -> None:
    assert run(made_up, []) == ([], [])


def test_devices_work_at_the_same_time(faulty: Callable[..., DevicePool], tmp_path: Path) -> None:
    """Each waits for the other before it gives its first window."""
    assert_whole(faulty(f"meet:{tmp_path / 'a'}", f"meet:{tmp_path / 'b'}"), numbered(4))


def test_windows_are_taken_as_they_are_needed(made_up: DevicePool) -> None:
    taken = 0

    def source() -> Iterator[Window]:
        nonlocal taken
        for made in numbered(60):
            taken += 1
            yield made

    assert made_up.ahead == 2 * (1 + 3) - 1
    for k, (_, results) in enumerate(made_up.stream(source(), ALL, ignore)):
        assert k < taken <= k + 1 + made_up.ahead
        list(results)
    assert taken == 62


def test_progress_ends_at_the_whole(made_up: DevicePool) -> None:
    shares: list[float] = []
    for n, _ in enumerate(made_up.stream(numbered(5), ALL, shares.append), 1):
        assert shares == [1.0] * n
    assert len(shares) == 7


def test_streams_may_be_interleaved(made_up: DevicePool) -> None:
    """By one thread or several: none waits for another to end."""
    numbers, reals = numbered(9), [window("a b"), *numbered(9), window("c")]
    a, b = made_up.stream(numbers, ALL, ignore), made_up.stream(reals, Output(dtype="float16"), ignore)
    for (window_a, results_a), (window_b, results_b) in zip(a, b, strict=False):
        assert [x.tolist() for x in results_a] == [x.tolist() for x in lengths(window_a)]
        assert [x.tolist() for x in results_b] == [x.tolist() for x in lengths(window_b)]


def test_a_stream_that_ends_keeps_nothing_of_its_caller(made_up: DevicePool) -> None:
    """Not even until cycles are looked for: a caller's vectors, and other streams, whose windows devices hold."""

    def call() -> None:
        other = made_up.stream(numbered(9), ALL, ignore)
        next(other)
        for _ in made_up.stream(numbered(3), ALL, ignore):
            pass

    gc.disable()
    try:
        call()
        assert not made_up._dispatcher._streams
    finally:
        gc.enable()


def test_an_abandoned_stream_leaves_the_pool_whole(made_up: DevicePool) -> None:
    stream = made_up.stream(numbered(30), ALL, ignore)
    next(stream)
    del stream
    assert not made_up._dispatcher._streams
    assert_whole(made_up, numbered(10))


def test_errors_of_the_input_stand_in_their_place(made_up: DevicePool) -> None:
    def source() -> Iterator[Window]:
        yield from numbered(4)
        raise FlashElmoError("text: line 7")

    given = []
    with pytest.raises(FlashElmoError, match="text: line 7"):
        for each, _ in made_up.stream(source(), ALL, ignore):
            given.append(each)
    assert len(given) == 6
    assert_whole(made_up, numbered(3))


def test_an_interrupt_leaves_the_pool_whole(made_up: DevicePool) -> None:
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(made_up.stream(numbered(9), ALL, interrupt))
    assert_whole(made_up, numbered(9))


@pytest.mark.parametrize("token", ["refuse", "late"])
@pytest.mark.parametrize("place", [0, 5, 8])
def test_a_bad_window_is_an_error_in_its_place(made_up: DevicePool, token: str, place: int) -> None:
    """Where it names a sentence, by its number in the call."""
    windows = numbered(7)
    windows[place:place] = [window("a b", f"c {token}")]
    given: list[Window] = []
    number = sum(map(len, windows[:place])) + 1
    text = f"sentence {number}: expected another token" if token == "late" else "token: expected another"
    with pytest.raises(FlashElmoError, match=f"^{text}, found '{token}'$"):
        for each, results in made_up.stream(windows, ALL, ignore):
            given.append(each)
            assert len(list(results)) == len(each)
    assert list(map(id, given)) == list(map(id, windows[:place]))
    assert_whole(made_up, numbered(3))


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("kill:3", "killed by SIGKILL"), ("raise:3", "RuntimeError: CUDA error: an illegal memory access")],
)
def test_others_do_what_a_device_leaves_undone(
    faulty: Callable[..., DevicePool], fault: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = faulty("slow:0.01", fault)
    assert_whole(pool, numbered(30))
    [record] = caplog.records
    assert (record.name, record.levelno) == ("flashelmo", logging.WARNING)
    text, _, lost = record.getMessage().rpartition(" ")
    assert text == f"device {fault}: {cause}; windows done again:"
    assert 1 <= int(lost) <= MadeUp.ahead + 2
    assert_whole(pool, numbered(5))  # by the one that is left
    assert len(caplog.records) == 1


@ENDS
def test_a_process_may_be_killed_at_any_time(
    faulty: Callable[..., DevicePool], caplog: pytest.LogCaptureFixture
) -> None:
    pool, windows = faulty("slow:0.01", "slow:0.02", "slow:0.03"), numbered(40)
    first, second, third = pids(pool)
    given = []
    for k, (each, results) in enumerate(pool.stream(windows, ALL, ignore)):
        given.append((each, [*results]))
        if k in (0, 9):
            os.kill(first if k else third, signal.SIGKILL)
    assert [id(each) for each, _ in given] == list(map(id, windows))
    for each, arrays in given:
        assert [x.tolist() for x in arrays] == [x.tolist() for x in lengths(each)]
    messages = [record.getMessage().partition(";")[0] for record in caplog.records]
    assert messages == [f"device slow:{seconds}: killed by SIGKILL" for seconds in (0.03, 0.01)]
    assert eventually(lambda: running([first, second, third]) == {second})


@pytest.mark.parametrize("others", [[], ["a"]], ids=["alone", "one of two"])
def test_what_a_device_has_given_stands_though_it_fails_then(
    faulty: Callable[..., DevicePool], others: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    pool = faulty("end", *others)
    assert_whole(pool, numbered(0))
    assert eventually(lambda: bool(caplog.records))
    [record] = caplog.records
    assert record.getMessage() == "device end: RuntimeError: driver shutting down; windows done again: 0"
    if others:
        assert_whole(pool, numbered(9))
    else:
        with pytest.raises(FlashElmoError, match=r"is still running; end: RuntimeError: driver shutting down$"):
            run(pool, numbered(9))
    assert len(caplog.records) == 1


def test_no_device_is_left(faulty: Callable[..., DevicePool], caplog: pytest.LogCaptureFixture) -> None:
    pool, windows = faulty("a", "b"), numbered(20)
    windows[12:12] = [window("kill")]
    given = []
    message = r"^device: none is still running; [ab]: killed by SIGKILL$"
    with pytest.raises(FlashElmoError, match=message):
        for each, _ in pool.stream(windows, ALL, ignore):
            given.append(id(each))
    assert given == list(map(id, windows[: len(given)])) and len(given) <= 12
    with pytest.raises(FlashElmoError, match=message):
        run(pool, numbered(3))
    assert len(caplog.records) == 2


@ENDS
def test_nothing_is_left_in_memory(faulty: Callable[..., DevicePool]) -> None:
    pool = faulty("a", "kill:9")
    stream = pool.stream([window("a b c", "d")] * 30, ALL, ignore)
    _, results = next(stream)
    next(results)
    assert shared_memory() > 0  # what is looked for is there
    del stream, results
    assert eventually(lambda: shared_memory() == 0)
    run(pool, [window("a")] * 30)  # a process dies
    assert eventually(lambda: shared_memory() == 0)
    assert eventually(lambda: running(pids(pool)) == {pids(pool)[0]})
    pool.close()
    assert eventually(lambda: not running(pids(pool)))


@ENDS
def test_a_pool_that_nobody_needs_ends(faulty: Callable[..., DevicePool]) -> None:
    started = len(os.listdir("/proc/self/fd"))
    pool = DevicePool(MadeUp, ["a", "b"])
    stream = pool.stream(numbered(9), ALL, ignore)
    next(stream)
    processes = pids(pool)
    del pool
    next(stream)  # which still needs it
    assert running(processes) == set(processes)
    del stream
    assert eventually(lambda: not running(processes))
    assert len(os.listdir("/proc/self/fd")) == started


def test_a_closed_pool_says_so(faulty: Callable[..., DevicePool], caplog: pytest.LogCaptureFixture) -> None:
    pool = faulty("a")
    stream = pool.stream(numbered(30), ALL, ignore)
    next(stream)
    pool.close()
    pool.close()
    with pytest.raises(FlashElmoError, match="none is still running"):
        collect(stream)
    assert not caplog.records


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "device: expected at least one, found none"),
        (["a", "b", "a"], "device: expected each device once, found 'a' 2 times"),
        (["a", "absent"], "device absent: expected a device that is there, found none"),
        (["broken", "b"], "device broken: RuntimeError: driver too old"),
    ],
)
def test_devices_that_cannot_be_used(devices: list[str], message: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FlashElmoError) as error:
        DevicePool(MadeUp, devices)
    assert str(error.value) == message
    assert not caplog.records


def test_precision_is_what_the_devices_chose(
    real: DevicePool, made_up: DevicePool, faulty: Callable[..., DevicePool]
) -> None:
    assert faulty("in:bf16").precision == "bf16"
    assert made_up.precision == "fp32"
    assert real.precision == ""  # pipelines that do not say


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (["in:bf16", "b"], "found bf16 on in:bf16 and fp32 on b; pass one that both have"),
        (["a", "in:fp16", "c"], "found fp32 on a, fp16 on in:fp16 and fp32 on c; pass one that all have"),
    ],
)
def test_devices_that_chose_different_precisions(
    devices: list[str], message: str, faulty: Callable[..., DevicePool], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FlashElmoError) as error:
        faulty(*devices)
    assert str(error.value) == f"precision: expected one for all devices, {message}"
    assert not caplog.records


def test_tensors_stay_in_their_process(made_up: DevicePool) -> None:
    with pytest.raises(FlashElmoError, match="expected True with several devices"):
        made_up.stream([], ALL, ignore, as_numpy=False)


def test_models_are_shared_outside_the_pickle(tmp_path: Path) -> None:
    """Those in memory and those that are memory-mapped."""
    write_native(MODELS["manylangs"], tmp_path / "model")
    for model in (MODELS["manylangs"], read_native(tmp_path / "model")):
        descriptor, pickled = write_object(model)
        n_bytes = sum(tensor.nbytes for _, tensor in model.weights.named_tensors())
        assert sum(size for _, size in pickled.spans) == n_bytes
        assert len(pickled.pickle) < n_bytes // 2
        found = read_object(descriptor, pickled)
        assert (found.config, found.lexicon) == (model.config, model.lexicon)
        for (name, a), (_, b) in zip(found.weights.named_tensors(), model.weights.named_tensors(), strict=True):
            assert np.array_equal(a, b) and a.ctypes.data % 64 == 0, name


PROGRAM = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in a background that ignores Ctrl-C
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
print("program", flush=True)
from device_pipelines import MadeUp, NotReady
from flashelmo.engine.devices.pool import DevicePool
from flashelmo.engine.output import Output
from flashelmo.engine.text.windows import Window
"""


def start(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """Run a program, without a guard around anything, as a user would."""
    (tmp_path / "program.py").write_text(PROGRAM + code)
    return subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


USE = """
pool = DevicePool(MadeUp, ["slow:0.05", "b"])
print(*(process.pid for process in pool._processes), flush=True)
"""


@ENDS
def test_a_program_needs_no_guard_and_ends_without_a_word(tmp_path: Path) -> None:
    """One stream is whole, one half read when the program ends."""
    program = start(
        tmp_path,
        USE
        + "windows = [Window.from_sentences([['a'] * n]) for n in range(9)]\n"
        + "print(*(next(r).shape[1] for _, r in pool.stream(windows, Output(), lambda share: None)))\n"
        + "stream = pool.stream(windows, Output(), lambda share: None)\n"
        + "next(stream)\n",
    )
    out, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, "")
    said, processes, lengths = out.splitlines()
    assert (said, lengths) == ("program", "0 1 2 3 4 5 6 7 8")
    assert eventually(lambda: not running(map(int, processes.split())))


@ENDS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_processes_end_with_the_program(tmp_path: Path, number: int) -> None:
    program = start(
        tmp_path,
        USE
        + "windows = (Window.from_sentences([['a'] * 9]) for n in range(10**9))\n"
        + "for k, _ in enumerate(pool.stream(windows, Output(), lambda share: None)):\n"
        + "    print(k, flush=True) if k == 5 else None\n",
    )
    assert program.stdout is not None
    _, processes, _ = (program.stdout.readline() for _ in range(3))
    assert running(map(int, processes.split()))
    began = time.monotonic()
    program.send_signal(number)
    _, err = program.communicate(timeout=60)
    assert eventually(lambda: not running(map(int, processes.split())))
    assert time.monotonic() - began < 5
    assert program.returncode == -number
    assert err.count("Traceback") == err.count("KeyboardInterrupt\n") == (number == signal.SIGINT)
    assert "devices.worker" not in err and "resource_tracker" not in err


@ENDS
def test_a_start_can_be_interrupted(tmp_path: Path) -> None:
    program = start(tmp_path, "DevicePool(NotReady, ['a'])\n")
    assert program.stdout is not None
    assert [program.stdout.readline() for _ in range(2)] == ["program\n", "waiting\n"]
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    assert children
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=60)
    assert err.count("Traceback") == 1 and program.returncode == -signal.SIGINT
    assert eventually(lambda: not running(list(map(int, children))))
