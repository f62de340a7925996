"""The loop from a text to a file of vectors."""

import io
from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo.engine.embed_file import embed_file
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Stream, WindowPipeline
from flashelmo.engine.sinks import open_sink
from flashelmo.engine.text.windows import Window

TEXT = b"the cat sat\ncat\n\nthe cat  sat on\r\n sat cat the cat \n" * 3
LINES = TEXT.decode().split("\n")[:-1]


@pytest.mark.parametrize("window_tokens", [1, 7, None])
def test_file_holds_every_sentence_in_order(tmp_path: Path, window_tokens: int | None) -> None:
    embedder = ElmoEmbedder(MODELS["skip"], window_tokens=window_tokens)
    with open_sink(tmp_path / "v.h5") as sink:
        summary = embed_file(embedder, io.BytesIO(TEXT), sink)
    with h5py.File(tmp_path / "v.h5") as file:
        assert len(file) == len(LINES) + 1
        for i, line in enumerate(LINES):
            np.testing.assert_allclose(file[str(i)][()], embedder.embed_sentence(line.split()), atol=1e-6)
    assert (summary.sentences, summary.tokens) == (len(LINES), sum(len(line.split()) for line in LINES))
    assert summary.tokens_per_second == pytest.approx(summary.tokens / summary.seconds)


def test_summary_counts_this_file_alone(tmp_path: Path) -> None:
    embedder = ElmoEmbedder(MODELS["skip"])
    summaries = []
    for name in "ab":
        with open_sink(tmp_path / name) as sink:
            summaries.append(embed_file(embedder, io.BytesIO(TEXT), sink))
    first, second = summaries
    assert first.sentences == second.sentences and first.steps == second.steps > 0
    assert first.steps_saved == second.steps_saved > 0  # the text repeats
    assert first.words_computed > 0 and second.words_computed == 0  # all cached


def test_progress_grows_to_the_end(tmp_path: Path) -> None:
    reports: list[tuple[float, float]] = []
    embedder = ElmoEmbedder(MODELS["skip"], window_tokens=5)
    with open_sink(tmp_path / "v.h5") as sink:
        summary = embed_file(
            embedder, io.BytesIO(TEXT), sink, on_progress=lambda n_bytes, n_tokens: reports.append((n_bytes, n_tokens))
        )
    assert reports == sorted(reports) and len(set(reports)) > 6
    assert reports[-1] == (len(TEXT), summary.tokens)


@pytest.mark.parametrize(
    "output", [Output("top"), Output("average", "float16"), Output(0, pool="mean"), Output(pool="mean")], ids=str
)
def test_file_holds_what_was_asked_for(tmp_path: Path, output: Output) -> None:
    embedder = ElmoEmbedder(MODELS["skip"], window_tokens=7)
    with open_sink(tmp_path / "v.h5", output) as sink:
        embed_file(embedder, io.BytesIO(TEXT), sink)
    with h5py.File(tmp_path / "v.h5") as file:
        for i, line in enumerate(LINES):
            expected = output.choose(embedder.embed_sentence(line.split())).astype(output.dtype)
            found = file[str(i)][()]
            assert found.dtype == expected.dtype and found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-6 if output.dtype == "float32" else 1e-3)


class LookingAhead:
    """A pipeline that reads two windows beyond the one it gives, and tells in between how far that one is."""

    ahead = 2

    def __init__(self, pipeline: WindowPipeline) -> None:
        self._pipeline = pipeline
        self.statistics = pipeline.statistics

    def reset_state(self) -> None:
        self._pipeline.reset_state()

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        windows = iter(windows)
        waiting = deque(islice(windows, 1 + self.ahead))
        while waiting:
            on_progress(0.5)
            yield from self._pipeline.stream([waiting.popleft()], output, lambda share: None, as_numpy=as_numpy)
            waiting.extend(islice(windows, 1))


def test_windows_may_be_read_ahead(tmp_path: Path) -> None:
    def run(name: str, embedder: ElmoEmbedder) -> tuple[bytes, list[tuple[float, float]]]:
        reports: list[tuple[float, float]] = []
        with open_sink(tmp_path / name) as sink:
            embed_file(embedder, io.BytesIO(TEXT), sink, on_progress=lambda *report: reports.append(report))
        return (tmp_path / name).read_bytes(), reports

    embedder = ElmoEmbedder(MODELS["skip"], window_tokens=5)
    run("warm", embedder)  # a word's vector may differ in the last bit by the words it was computed with
    expected, _ = run("a", embedder)
    embedder._pipeline = LookingAhead(embedder._pipeline)
    found, reports = run("b", embedder)
    assert found == expected
    assert reports == sorted(reports) and len(set(reports)) == len(reports) > 10
    assert reports[-1] == (len(TEXT), len(TEXT.split()))


def test_no_sentences(tmp_path: Path) -> None:
    with open_sink(tmp_path / "v.h5") as sink:
        summary = embed_file(ElmoEmbedder(MODELS["skip"]), io.BytesIO(b""), sink)
    assert summary.sentences == summary.tokens == 0
    with h5py.File(tmp_path / "v.h5") as file:
        assert list(file) == ["sentence_to_index"] and file["sentence_to_index"][0] == b"{}"


def test_a_layer_too_high_is_told_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(FlashElmoError, match="expected a layer from 0 to 2, found 3"),
        open_sink(tmp_path / "v.h5", Output(3)) as sink,
    ):
        embed_file(ElmoEmbedder(MODELS["skip"]), io.BytesIO(b""), sink)


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        (b">sp|P00000|X\nMKVLA\nAGIV\n>b\nMM\n", "p.fa", "FASTA; leave out the headers"),
        (b"# text = Dogs bark\n1\tDogs" + 8 * b"\t_" + b"\n2-3\tbark" + 8 * b"\t_" + b"\n\n", "t", "CoNLL-U; put"),
        (b'{"text": "a b"}\n{"text": "c"}\n', "t", "JSON lines; take the field"),
        (9 * b"a\tDT\nb\tNN\n\n", "t", "tokens with tags; put"),
        (b"id\ttext\n1\tAnd God said\n2\tLet there be\n", "t.txt", "a table; `cut -f`"),
        (b"id,text\n1,And God said\n", "t.csv", "a table; take the column"),
        (b"id;text\n1;And God said\n", "t.csv", "a table; take the column"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, text: bytes, name: str, found: str) -> None:
    (tmp_path / name).write_bytes(text)
    embedder = ElmoEmbedder(MODELS["skip"])
    with (
        pytest.raises(FlashElmoError, match=f"{name}: expected a sentence a line, found {found}"),
        open_sink(tmp_path / "v.h5") as sink,
    ):
        embed_file(embedder, tmp_path / name, sink)
    assert [path.name for path in tmp_path.iterdir()] == [name] and embedder.statistics.sentences == 0


@pytest.mark.parametrize(
    "text",
    [
        b"> And God said\n> Let there be\n",
        b">quoted\nAnd God said\n",
        b">one\n",
        b"the\tcat\nthe\tdog\n",
        6 * b"red\tcar\nold\tcar\n",
        6 * b"the\tcat\n" + b"\na\tb\nc\td\ne\tf\ng\th\ni\tj\nk\tl\n",
        b"the cat\tsat\non a mat\n",
        b"the cat\t\nthe dog\t\n",
        b"1\t2\t3\t4\t5\t6\t7\t8\t9\n",
        b"id,text\n1,And God said\n",
    ],
)
def test_texts_that_look_like_tables_are_embedded(tmp_path: Path, text: bytes) -> None:
    with open_sink(tmp_path / "v.h5") as sink:
        embed_file(ElmoEmbedder(MODELS["skip"]), io.BytesIO(text), sink)
    with h5py.File(tmp_path / "v.h5") as file:
        assert [file[str(i)].shape[1] for i in range(len(file) - 1)] == [
            len(line.split()) for line in text.splitlines()
        ]
