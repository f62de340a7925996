"""What the CUDA runtime gives of a window: arrays that belong to the caller, or views of a tensor on the device."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import AHEAD, ONE_LAYER, TORCH_DEVICE, assert_close, on_cuda, on_host
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import MODELS, with_tensors

from flashelmo.engine.cuda import executor as executor_module
from flashelmo.engine.cuda import results as results_module
from flashelmo.engine.cuda import transfer as transfer_module
from flashelmo.engine.cuda.results import Callbacks, Results
from flashelmo.engine.cuda.transfer import Staging, Transfers
from flashelmo.engine.embed_file import embed_file
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.text.windows import Window

pytestmark = pytest.mark.usefixtures("little_padding")

SENTENCES = [["the", "cat"], [], ["sat"], ["é", "cat", "the"], ["cat"]]
WINDOWS = [Window.from_sentences(SENTENCES[:3]), Window.from_sentences(SENTENCES[3:])]
OUTPUTS = [Output(), Output("top"), Output(pool="mean"), Output(0, pool="mean")]


def results_of(
    values: torch.Tensor, offsets: list[int], output: Output, *, as_numpy: bool = True, lent: bool = False
) -> Results:
    """Results of made-up values [O, rows, 2P], which are overwritten where they are lent."""
    transfers = Transfers(TORCH_DEVICE)
    with transfers.computing():
        values = values.to(TORCH_DEVICE, copy=True)
        callbacks = Callbacks(overflowed=lambda: False, refuse=lambda b: FlashElmoError(f"sentence {b}"))
        results = Results(values, np.array(offsets), output, transfers, callbacks, as_numpy=as_numpy, lent=lent)
        if lent:
            values.fill_(torch.nan)
        return results


def made_up(output: Output, offsets: list[int]) -> torch.Tensor:
    rows = len(offsets) - 1 if output.pool else offsets[-1]
    n_layers = 3 if output.layers == "all" else 1
    return torch.arange(n_layers * rows * 4, dtype=torch.float32).reshape(n_layers, rows, 4)


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
@pytest.mark.parametrize("as_numpy", [True, False])
@given(lengths=st.lists(st.integers(0, 3), max_size=20), piece=st.integers(1, 400), by_threads=st.booleans())
def test_every_sentence_has_its_rows(
    output: Output, as_numpy: bool, lengths: list[int], piece: int, by_threads: bool
) -> None:
    offsets = [0, *np.cumsum(lengths, dtype=int).tolist()]
    values = made_up(output, offsets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_module, "PIECE_BYTES", piece)
        patch.setattr(results_module, "COPIED_BYTES", 0 if by_threads else 1 << 30)
        found = on_host(results_of(values, offsets, output, as_numpy=as_numpy))
    expected = [values[:, start:stop] for start, stop in pairwise(offsets)]
    if output.pool:
        expected = list(values.unbind(1))
    if output.layers != "all":
        expected = [one[0] for one in expected]
    assert len(found) == len(expected) == len(lengths)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and np.array_equal(a, b.numpy())


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_lent_values_are_copied_at_once(output: Output) -> None:
    """With rows beyond the last token, which no sentence gets and nobody looks at."""
    offsets = [0, 2, 2, 5]
    values = made_up(output, offsets)
    padded = torch.cat([values, torch.full((len(values), 3, 4), torch.inf)], dim=1).half()
    found = on_host(results_of(padded, offsets, output, lent=True))
    expected = on_host(results_of(values, offsets, output))
    assert len(found) == 3
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and np.array_equal(a, b)


def test_pieces_of_a_staging_come_in_turn() -> None:
    """So that one may be filled while another is on its way."""
    tensor = torch.zeros(5, dtype=torch.int32, device=TORCH_DEVICE)
    staging, addresses = Staging(tensor), []
    for k in range(7):

        def fill(array: Any, k: int = k) -> None:
            addresses.append(array.ctypes.data)
            array[:] = range(k, k + 5)

        staging.upload(fill)
        assert tensor.tolist() == [*range(k, k + 5)]
    assert addresses[:3] == addresses[3:6] and len(set(addresses)) == 3 == transfer_module.PIECES_IN_TURN


@given(lengths=st.lists(st.integers(0, 9), max_size=30), row_bytes=st.integers(1, 40))
def test_pieces_are_bounded_and_whole(lengths: list[int], row_bytes: int) -> None:
    """Of a sentence that is larger than a piece by itself, one at a time."""
    offsets = np.array([0, *np.cumsum(lengths, dtype=int)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_module, "PIECE_BYTES", 100)
        cuts = results_module._cuts(offsets, row_bytes)
    assert [cut[0] for cut in cuts] == [0, *(cut[1] for cut in cuts[:-1])] and cuts[-1][1] == len(lengths)
    longest = row_bytes * max(lengths, default=0)
    assert all((offsets[last] - offsets[first]) * row_bytes < 100 + longest for first, last in cuts)
    assert len(cuts) <= 1 + offsets[-1] * row_bytes / 100


def test_only_two_pieces_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is read while the next one is copied; the first is begun before anyone asks."""
    monkeypatch.setattr(results_module, "PIECE_BYTES", 16)
    begun: list[int] = []
    download = Transfers.download

    def count(self: Transfers, tensor: torch.Tensor, made: Any) -> Any:
        begun.append(tensor.shape[1])
        return download(self, tensor, made)

    monkeypatch.setattr(Transfers, "download", count)
    results = results_of(made_up(OUTPUTS[1], [0, 1, 2, 3, 4]), [0, 1, 2, 3, 4], OUTPUTS[1])
    assert begun == [1]
    given_so_far = []
    for k, array in enumerate(results):
        given_so_far.append(array)
        assert len(begun) == min(4, k + 2)
    assert np.concatenate(given_so_far).ravel().tolist() == list(range(16))


@pytest.fixture
def expected() -> list[Any]:
    return ReferenceRuntime(ONE_LAYER).embed_batch(SENTENCES)


@pytest.mark.parametrize("output", OUTPUTS[::3], ids=str)
def test_tensors_are_views_of_one_tensor_a_window(output: Output, expected: list[Any]) -> None:
    stream = on_cuda(ONE_LAYER, cuda=AHEAD).embed_windows(WINDOWS, output=output, convert_to_numpy=False)
    found = [list(results) for _, results in stream]
    storages = [{tensor.untyped_storage().data_ptr() for tensor in part if tensor.numel()} for part in found]
    assert [len(storage) for storage in storages] == [1, 1] and storages[0] != storages[1]
    tensors = [tensor for part in found for tensor in part]
    assert all(tensor.device.type == TORCH_DEVICE.type and not tensor.requires_grad for tensor in tensors)
    assert_close(on_host(tensors), [output.choose(vectors) for vectors in expected])


@pytest.mark.parametrize("lends", [True, False])
@pytest.mark.parametrize("output", OUTPUTS[:3:2], ids=str)
def test_arrays_belong_to_the_caller(
    output: Output, lends: bool, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has memory of its own: they may be written to and kept while the stream goes on, through replays too."""
    if not lends:
        monkeypatch.setattr(executor_module, "LENT_BYTES", -1)
    embedder = on_cuda(ONE_LAYER)
    kept: list[Any] = []

    def windows() -> Iterator[Window]:
        for _ in range(3):
            for array in kept:
                array[...] = np.nan
            yield WINDOWS[0]

    for _, results in embedder.embed_windows(windows(), output=output):
        arrays = list(results)
        assert all(array.base is None and array.flags.owndata and array.flags.writeable for array in arrays)
        assert_close(arrays, [output.choose(vectors) for vectors in expected[:3]])
        kept += arrays


def test_results_may_be_read_late_and_in_turns(expected: list[Any]) -> None:
    """All windows first, the second before the first; a graph's replays don't touch what was given."""
    embedder = on_cuda(ONE_LAYER)
    for as_numpy in (True, False):
        pairs = list(embedder.embed_windows([*WINDOWS] * (1 + as_numpy), convert_to_numpy=as_numpy))
        found = [on_host(results) for _, results in pairs[::-1]][::-1]
        assert_close([array for part in found for array in part], expected * (1 + as_numpy))


def test_a_stream_that_is_given_up_leaves_the_embedder_whole(expected: list[Any]) -> None:
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    stream = embedder.embed_windows(iter(WINDOWS * 3))
    next(stream)
    del stream
    with pytest.raises(ZeroDivisionError):
        list(embedder.embed([str(1 // 0)] for _ in range(3)))
    assert_close(embedder.embed_batch(SENTENCES), expected)


def text_of(path: Path) -> Path:
    path.write_text("".join(" ".join(sentence) + "\n" for sentence in SENTENCES), encoding="utf-8")
    return path


@pytest.mark.parametrize("output", [Output(dtype="float16"), Output("top", "float16", "mean")], ids=str)
def test_float16_files(output: Output, tmp_path: Path, expected: list[Any]) -> None:
    """The device rounds, so that half as much is copied."""
    embedder = on_cuda(ONE_LAYER, window_tokens=3, cuda=AHEAD)
    with open_sink(tmp_path / "vectors.h5", output) as sink:
        summary = embed_file(embedder, text_of(tmp_path / "text"), sink)
    assert (summary.sentences, summary.tokens) == (5, 7)
    with h5py.File(tmp_path / "vectors.h5") as file:
        for i, vectors in enumerate(expected):
            found = file[str(i)][()]
            assert found.dtype == np.float16
            np.testing.assert_allclose(found, output.choose(vectors), rtol=2**-11, atol=1e-5)


def with_bias(value: float) -> ElmoModel:
    """A model whose word vectors are about that large."""
    tensors = dict(MODELS["skip"].weights.named_tensors())
    return with_tensors(MODELS["skip"], tensors | {"projection.bias": np.full_like(tensors["projection.bias"], value)})


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    embedder = on_cuda(with_bias(1e5), cuda=AHEAD)
    text = text_of(tmp_path / "text")
    output = Output(0, "float16")
    with (
        np.errstate(over="ignore"),  # of the interpreter, where a card rounds to infinity in silence
        pytest.raises(
            FlashElmoError,
            match=r"sentence 0 \('the cat'\): expected finite values within float16's range, found others; use float32",
        ),
        open_sink(tmp_path / "vectors.h5", output) as sink,
    ):
        embed_file(embedder, text, sink)
    assert not (tmp_path / "vectors.h5").exists()
    found = embedder.embed_batch(SENTENCES[:1])[0]
    assert np.isfinite(found).all() and found[0].max() > 65504
