"""ElmoEmbedder's own methods: loading, names from AllenNLP and sentence-transformers, threads, errors."""

import gc
import json
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny_models import MODELS, SENTENCES

from flashelmo import ElmoEmbedder, FlashElmoError, MissingExtraError, batch_to_ids, find_neighbours
from flashelmo.engine.output import Output
from flashelmo.engine.precision import tolerance
from flashelmo.engine.settings import RuntimeName
from flashelmo.engine.system.processor import multiplies_bf16

MODEL = MODELS["skip"]
FLOAT32_RUNTIMES = ["ort", "openvino", "reference"]


@pytest.fixture(scope="module")
def embedder() -> ElmoEmbedder:
    return ElmoEmbedder(MODEL)


@pytest.mark.parametrize("runtime", FLOAT32_RUNTIMES)
@pytest.mark.parametrize("method", ["embed_sentence", "embed_batch", "embed", "embed_sentences"])
@pytest.mark.parametrize("name", ["bilm_skip", "manylangs"])
def test_golden_stateless(golden: Path, name: str, method: str, runtime: RuntimeName) -> None:
    sentences = json.loads((golden / name / "sentences.json").read_text(encoding="utf-8"))
    file = "expected_layers.hdf5"
    if name == "bilm_skip":
        sentences = [line.split() for stream in sentences[:2] for line in stream]
        file = "expected_stateless.hdf5"
    embedder = ElmoEmbedder.load(golden / name, runtime=runtime)
    if method == "embed_sentence":
        found = [embedder.embed_sentence(sentence) for sentence in sentences]
    else:
        found = list(getattr(embedder, method)(sentences))
    with h5py.File(golden / name / file) as expected:
        assert len(found) == len(expected)
        for i, vectors in enumerate(found):
            assert np.abs(vectors - expected[str(i)][()]).max() < tolerance("fp32")


@pytest.mark.parametrize("runtime", FLOAT32_RUNTIMES)
@pytest.mark.parametrize(("name", "streams"), [("bilm_skip", (0, 1)), ("bilm_noskip", (0,))])
def test_golden_streams_need_the_state(golden: Path, name: str, streams: tuple[int, ...], runtime: RuntimeName) -> None:
    """TensorFlow's bilm ran sentence i of all streams as batch i and carried each row's state on."""
    rows = json.loads((golden / name / "sentences.json").read_text(encoding="utf-8"))
    embedder = ElmoEmbedder.load(golden / name, runtime=runtime, stateful=True, batch_size=len(rows))
    batches = [embedder.embed_batch([row[i].split() for row in rows]) for i in range(len(rows[0]))]
    for stream in streams:
        with h5py.File(golden / name / f"lm_embeddings_{stream}.hdf5") as expected:
            for i, batch in enumerate(batches):
                top = np.concatenate(list(expected[str(i)]), axis=-1)
                assert np.abs(batch[stream][-1] - top).max() < tolerance("fp32")


def test_an_embedder_that_is_closed_lets_go_and_refuses() -> None:
    with ElmoEmbedder(MODEL, device="cpu") as embedder:
        pipeline = weakref.ref(embedder._pipeline)
        begun = embedder.embed([["a"], ["b", "c"]])
        first = next(begun)
    assert [first.shape[1], *(vectors.shape[1] for vectors in begun)] == [1, 2]
    del begun
    gc.collect()
    assert pipeline() is None and embedder.statistics.tokens == 3
    embedder.close()
    for call in (lambda: embedder.embed_sentence(["a"]), embedder.reset_state, lambda: embedder.encode("a")):
        with pytest.raises(FlashElmoError, match=r"^embedder: expected an open one, found one that was closed$"):
            call()


def test_strings_are_split_on_white_space(embedder: ElmoEmbedder) -> None:
    assert np.array_equal(embedder.embed_sentence("  the cat\tsat "), embedder.embed_sentence(["the", "cat", "sat"]))


def test_empty_input(embedder: ElmoEmbedder) -> None:
    assert list(embedder.embed([])) == []
    assert embedder.embed_sentence([]).shape == (3, 0, 8)
    assert embedder.encode([]).shape == (0, 8)
    assert embedder.encode("").tolist() == [0.0] * 8


def test_encode_pools_the_average_of_the_layers(embedder: ElmoEmbedder) -> None:
    layers = embedder.embed_batch(SENTENCES)
    found = embedder.encode(SENTENCES)
    assert found.shape == (len(SENTENCES), 8)
    for vector, expected in zip(found, layers, strict=True):
        mean = expected.mean(axis=(0, 1)) if expected.shape[1] else np.zeros(8)
        assert np.abs(vector - mean).max() < tolerance("fp32")
    assert np.array_equal(embedder.encode("the cat sat"), found[0])


def test_encode_normalizes_and_leaves_zeros(embedder: ElmoEmbedder) -> None:
    norms = np.linalg.norm(embedder.encode(SENTENCES, normalize_embeddings=True), axis=1)
    assert np.abs(norms - [1, 1, 0, 1, 1]).max() < 1e-6


@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_encode_gives_normalized_tensors(embedder: ElmoEmbedder, output_value: Any) -> None:
    given: dict[str, Any] = {"output_value": output_value, "normalize_embeddings": True}
    expected = embedder.encode(SENTENCES, **given)
    found = embedder.encode(SENTENCES, convert_to_numpy=False, **given)
    assert isinstance(found, torch.Tensor if output_value == "sentence_embedding" else list)
    assert len(found) == len(expected) == len(SENTENCES)
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, torch.Tensor) and a.dtype == torch.float32
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-6, atol=1e-7)


def test_what_is_given_of_nothing_has_the_type_of_others() -> None:
    embedder = ElmoEmbedder(MODEL, precision="fp64", device="cpu")
    assert embedder.encode([]).dtype == embedder.encode(["a"]).dtype == np.float64
    assert repr(embedder) == f"ElmoEmbedder({str(MODEL.path)!r}, device='cpu', runtime='reference', precision='fp64')"


def test_encode_gives_one_tensor_for_one_string_and_none_for_none(embedder: ElmoEmbedder) -> None:
    one = embedder.encode("the cat", convert_to_numpy=False)
    assert np.array_equal(one.numpy(), embedder.encode("the cat"))
    none = embedder.encode([], convert_to_numpy=False)
    assert isinstance(none, torch.Tensor) and none.shape == (0, 8)
    assert embedder.encode([], convert_to_numpy=False, output_value="token_embeddings") == []


@pytest.mark.parametrize(
    "kept", [{"layers": "top"}, {"layers": "average"}, {"layers": 1}, {"mix": [0.5, 0.3, -0.2]}], ids=str
)
@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_encode_is_what_embed_gives(embedder: ElmoEmbedder, output_value: Any, kept: dict[str, Any]) -> None:
    pool = "mean" if output_value == "sentence_embedding" else None
    expected = list(embedder.embed(SENTENCES, pool=pool, **kept))
    found = embedder.encode(SENTENCES, output_value=output_value, **kept)
    assert len(found) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("runtime", ["ort", "reference"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mix": [1.0, 2.0]}, "mix: expected 3 coefficients, one a layer, found 2"),
        ({"mix": [1.0, float("nan"), 2.0]}, "mix: expected a finite number for each layer, found"),
        ({"mix": [1e39, 1, 1]}, "mix: expected numbers that float32 can hold, found 1e"),
        ({"mix": []}, "mix: expected a finite number for each layer, found"),
        ({"layers": [0, 3]}, "layers: expected a layer from 0 to 2, found 3"),
        ({"layers": 3}, "layers: expected a layer from 0 to 2, found 3"),
        ({"layers": -1}, "layers: expected a layer from 0 to 2, found -1"),
        (
            {"layers": "last"},
            r"layers: expected all, top, average, a layer's number or several different ones .*, found 'last'",
        ),
        ({"pool": "sum"}, "pool: expected mean, max or nothing, found 'sum'"),
    ],
)
def test_embed_refuses_before_it_reads(runtime: Any, arguments: dict[str, Any], message: str) -> None:
    embedder = ElmoEmbedder(MODEL, runtime=runtime)

    def never() -> Iterator[str]:
        raise AssertionError("a sentence was read")
        yield ""

    with pytest.raises(FlashElmoError, match=message):
        embedder.embed(never(), **arguments)
    if arguments == {"layers": 3}:
        with pytest.raises(FlashElmoError, match=message):
            embedder.embed_windows(iter([]), output=Output(3))
    assert embedder.statistics.sentences == 0


@pytest.mark.parametrize("runtime", ["ort", "reference"])
def test_tensors_need_torch(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = ElmoEmbedder(MODEL, runtime=runtime)
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (embedder.embed, embedder.encode):
        with pytest.raises(
            MissingExtraError, match=r"convert_to_numpy=False needs .* pip install 'flashelmo\[torch\]'"
        ):
            call(SENTENCES, convert_to_numpy=False)
    assert embedder.statistics.sentences == 0


def test_encode_shows_progress(
    embedder: ElmoEmbedder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.encode(SENTENCES, show_progress_bar=True)
    assert "5/5" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr", None)  # as of a program without a window or a console
    embedder.encode(SENTENCES, show_progress_bar=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_value": "tokens"}, "output_value: expected"),
        ({"layers": "all"}, "layers: expected 'average', 'top' or a layer's number, found 'all'"),
        ({"layers": [0, 1]}, "layers: expected 'average', 'top' or a layer's number, found \\[0, 1\\]"),
        ({"layers": "top", "mix": [1, 2, 3]}, "layers: expected none together with mix, found 'top'"),
        ({"layers": 3}, "layers: expected a layer from 0 to 2, found 3"),
        ({"layers": "last"}, "layers: expected"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, found 0"),
    ],
)
def test_encode_refuses(embedder: ElmoEmbedder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashElmoError, match=message):
        embedder.encode(SENTENCES, **arguments)


class Table:
    """As a DataFrame of pandas, iterating gives the names of columns; as of a lazy one of polars, asking warns."""

    @property
    def columns(self) -> Any:
        raise UserWarning("determining the names is expensive")

    def __iter__(self) -> Iterator[str]:
        return iter(("text",))


NO_SENTENCES: list[tuple[Any, str]] = [
    ("And God said", "expected several, found one text; put it into a list"),
    (b"And God said", "expected several, found one text; put it into a list"),
    ({"And God": 1, "said": 2}, "expected a list, found a dict, of which only the keys are iterated"),
    ({"And God", "said"}, "expected a list, found a set, which has no order"),
    (Table(), r"expected a list, found a table \(Table\); give one of its columns"),
    (None, "expected a list, found None"),
    (7, "expected a list, found 7"),
]


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("method", ["embed", "embed_batch", "embed_sentences", "encode"])
@pytest.mark.parametrize(("given", "message"), NO_SENTENCES, ids=lambda value: type(value).__name__)
def test_what_is_iterated_by_letters_or_keys_is_refused(given: Any, message: str, method: str, stateful: bool) -> None:
    embedder = ElmoEmbedder(MODEL, stateful=stateful)
    if method == "encode" and isinstance(given, str):
        return  # one sentence
    name = "batch" if method == "embed_batch" else "sentences"
    with pytest.raises(FlashElmoError, match=rf"^{name}: {message}$"):
        getattr(embedder, method)(given)
    assert embedder.statistics.sentences == 0


@pytest.mark.parametrize("given", [b"cat", {"cat": 1}], ids=["bytes", "dict"])
def test_a_sentence_of_another_type_is_refused(embedder: ElmoEmbedder, given: Any) -> None:
    with pytest.raises(FlashElmoError, match=r"^sentence: expected text or a list of tokens, found "):
        embedder.embed_sentence(given)
    stateful = ElmoEmbedder(MODEL, stateful=True, batch_size=2)
    many = [["the", "cat"], "the cat", ("cat",), [], given]
    calls: list[Callable[[], Any]] = [
        lambda: embedder.encode(many),
        lambda: embedder.embed_batch(many),
        lambda: list(stateful.embed(many)),
        lambda: list(stateful.embed_sentences(many)),
        lambda: find_neighbours(embedder, many, "the cat", "cat"),
        lambda: batch_to_ids(many),
    ]
    for call in calls:
        with pytest.raises(FlashElmoError, match=r"^sentence 4: expected text or a list of tokens, found "):
            call()


@pytest.mark.parametrize("runtime", FLOAT32_RUNTIMES)
@pytest.mark.parametrize("n", [1, 2000])
def test_a_lone_surrogate_is_an_unknown_character_to_elmoformanylangs(n: int, runtime: RuntimeName) -> None:
    """And AllenNLP leaves it out."""
    for name, same in (("manylangs", "c€t"), ("skip", "ct")):
        embedder = ElmoEmbedder(MODELS[name], runtime=runtime)
        expected = embedder.embed_sentence([same, "cat"])
        found = embedder.embed_batch([["c\udc80t", "cat"]] * n)[-1]
        assert np.abs(found - expected).max() < tolerance("fp32")
        assert np.abs(found[0, 0] - embedder.embed_sentence(["ct" if "€" in same else "c€t"])[0, 0]).max() > 1e-3
    with pytest.raises(FlashElmoError, match="token 1: expected text, found None"):
        embedder.embed_batch([["c\udc80t", None]])  # type: ignore[list-item]


def test_several_threads_share_an_embedder(text: list[list[str]]) -> None:
    embedder = ElmoEmbedder(MODEL, cache_bytes=1 << 10)
    parts = [text[i::8] for i in range(8)]
    expected = [embedder.embed_batch(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, right in zip(pool.map(embedder.embed_batch, parts), expected, strict=True):
                assert all(np.abs(a - b).max(initial=0) < tolerance("fp32") for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("stateful", [False, True])
def test_threads_that_share_a_stream_get_each_result_once_or_an_error(stateful: bool) -> None:
    """It ended the process where `itertools.chain` gave the results."""
    stream, found = ElmoEmbedder(MODEL, stateful=stateful).embed_sentences([["cat"]] * 2000), list[Any]()

    def take() -> None:
        try:
            for vectors in stream:
                found.append(vectors.shape)
        except ValueError as error:
            found.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(take)
    assert found.count((MODEL.config.n_layers + 1, 1, MODEL.config.output_size)) == 2000
    assert {each for each in found if isinstance(each, str)} <= {"generator already executing"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device: expected"),
        ({"device": "gpu"}, "device: expected auto, cpu, cuda or cuda:N, found 'gpu'"),
        ({"precision": "fp8"}, "precision: expected one of auto, fp32, bf16, fp16, tf32, int8, fp64, found 'fp8'"),
        ({"runtime": "onnx"}, "runtime: expected one of auto, ort, avx512, openvino, reference, cuda, found 'onnx'"),
        ({"runtime": "ort", "precision": "fp64"}, "runtime 'ort' has no precision 'fp64'; expected reference"),
        ({"runtime": "reference", "precision": "int8"}, "expected avx512 or ort"),
        ({"threads": 0}, "threads: expected 1 to "),
        ({"batch_size": 0}, "batch_size: expected 1 or more"),
        ({"window_tokens": 0}, "window_tokens: expected 1 or more"),
        ({"cache_bytes": -1}, "cache_bytes: expected 0 or more"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashElmoError, match=message):
        ElmoEmbedder(MODEL, **settings)


def test_bf16_runs_where_the_processor_has_it_and_says_so_where_not() -> None:
    if not multiplies_bf16():
        with pytest.raises(FlashElmoError, match="precision 'bf16': this processor has no bfloat16"):
            ElmoEmbedder(MODEL, precision="bf16")
        return
    found = np.concatenate(ElmoEmbedder(MODEL, precision="bf16").embed_batch(SENTENCES), axis=1)
    expected = np.concatenate(ElmoEmbedder(MODEL).embed_batch(SENTENCES), axis=1)
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < tolerance("bf16")


@pytest.mark.parametrize(
    ("runtime", "package", "extra"),
    [("ort", "onnxruntime", "cpu"), ("openvino", "openvino", "openvino"), ("reference", "torch", "torch")],
)
def test_an_absent_package_names_its_extra(
    runtime: RuntimeName, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [
        name for name in sys.modules if name.startswith(("flashelmo.engine.cpu.", "flashelmo.engine.reference"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf"{package}, which is not installed: pip install 'flashelmo\[{extra}\]"
    ):
        ElmoEmbedder(MODEL, runtime=runtime)  # type: ignore[arg-type]
