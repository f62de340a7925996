"""A corpus into a folder of shards: what is written, read back, resumed, refused and found damaged."""

import copy
import errno
import gc
import gzip
import json
import os
import pickle
import shutil
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_corpora import LINES, contents
from safetensors.numpy import load_file
from tiny_models import MODELS

from flashelmo import open_embeddings
from flashelmo.cli import main
from flashelmo.cli.bulk import check_beside
from flashelmo.engine.bulk import parquet_shard
from flashelmo.engine.bulk import run as run_module
from flashelmo.engine.bulk.folder import first_difference, verify
from flashelmo.engine.bulk.locks import locked
from flashelmo.engine.bulk.parts import Part, Place, Reader
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.report import Report
from flashelmo.engine.bulk.run import embed_corpus
from flashelmo.engine.bulk.shard_writer import ShardWriter
from flashelmo.engine.bulk.shards import Rows, Shard, Target
from flashelmo.engine.bulk.source import default_shard_records
from flashelmo.engine.bulk.stages import Stage
from flashelmo.engine.bulk.units import Corpus, make_plan
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.named.locate import bundled
from flashelmo.engine.output import Output
from flashelmo.engine.sinks.files import NewFile

TEXT = "\n".join(LINES) + "\n"
OUTPUTS = [Output(), Output("top", "float16"), Output((0, 2), pool="mean"), Output("average", pool="mean")]
Run = Callable[..., Report]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def embedder() -> ElmoEmbedder:
    return ElmoEmbedder(MODELS["skip"], device="cpu", threads=1, window_tokens=7)


@pytest.fixture
def run(embedder: ElmoEmbedder, text_file: Path, tmp_path: Path) -> Run:
    """Embed the text into the folder of a name, five records a shard."""

    def embed(name: str = "out", output: Output | None = None, reader: Reader | None = None, **options: Any) -> Report:
        reader = reader or open_reader(text_file, errors=options.pop("errors", "strict"))
        options = {"shard_records": 5, **options}
        return embed_corpus(options.pop("embedder", embedder), reader, tmp_path / name, output, **options)

    return embed


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "RETRY_SECONDS", (0.0, 0.0))


def vectors(embedder: ElmoEmbedder, output: Output) -> list[Any]:
    return [output.choose(found).astype(output.dtype) for found in embedder.embed(line.split() for line in LINES)]


# -------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
@pytest.mark.parametrize("shard_format", ["native", "parquet"])
@pytest.mark.parametrize("boundaries", [False, True])
def test_what_is_read_back_is_what_the_embedder_gives(
    tmp_path: Path, run: Run, output: Output, shard_format: str, boundaries: bool
) -> None:
    embedder = ElmoEmbedder(
        MODELS["skip"], device="cpu", threads=1, window_tokens=7, keep_sentence_boundaries=boundaries
    )
    report = run(output=output, format=shard_format, embedder=embedder)
    expected = vectors(embedder, output)
    found = open_embeddings(tmp_path / "out")
    assert len(found) == len(expected) == report.records and report.shards == 5
    for b, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=1e-6 if output.dtype == "float32" else 1e-3)
        for key in (b, str(b), b - len(LINES), np.int64(b)):
            np.testing.assert_array_equal(found[key], one)
        assert found.tokens(b) == LINES[b].split()
    for part in (slice(3, 11), slice(None, None, 5), slice(-2, None), slice(30, 40)):
        assert [each.tolist() for each in found[part]] == [each.tolist() for each in list(found)[part]]
    assert list(found.ids()) == [str(b) for b in range(len(LINES))] and "7" in found and "x" not in found
    for key in (7, -1, np.int64(7), -len(LINES)):
        assert key in found and found[key] is not None
    for wrong in (True, 7.0, None, len(LINES), -len(LINES) - 1, np.array([1, 2])):
        assert wrong not in found
        with pytest.raises((FlashElmoError, IndexError)):
            found[wrong]  # type: ignore[index]
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("shard_format", ["native", "parquet"])
def test_a_copy_in_another_process_opens_the_folder_itself(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, shard_format: str
) -> None:
    run(format=shard_format)
    monkeypatch.chdir(tmp_path)
    found = open_embeddings("out")
    values = list(found)  # all files are open now
    pickled = pickle.dumps(found)
    assert len(pickled) < sum(each.nbytes for each in values) / 10
    monkeypatch.chdir("/")
    for other in (pickle.loads(pickled), copy.deepcopy(pickle.loads(pickled))):
        assert repr(other) == f"Embeddings({str(tmp_path / 'out')!r}, {len(LINES)} records)"
        for one, each in zip(values, other, strict=True):
            np.testing.assert_array_equal(one, each)


def test_others_read_the_files(tmp_path: Path, run: Run, embedder: ElmoEmbedder) -> None:
    run()
    run("parquet", Output("top"), format="parquet")
    expected = vectors(embedder, Output())
    tensors = [load_file(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    values = np.concatenate([each["values"] for each in tensors])
    np.testing.assert_allclose(values, np.concatenate(expected, axis=1).transpose(1, 0, 2), atol=1e-6)
    assert np.diff(tensors[0]["offsets"]).tolist() == [3, 1, 0, 6, 2]
    index = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))  # all shards at once
    assert index["tokens"].to_pylist() == [line.split() for line in LINES]
    assert index["record"].to_pylist() == list(range(len(LINES)))
    table = pq.read_table(sorted((tmp_path / "parquet").glob("*.parquet")))
    assert table.schema.field("values").type == pa.list_(pa.list_(pa.float32(), 8))
    for row, each in zip(table["values"].to_pylist(), expected, strict=True):
        np.testing.assert_allclose(np.array(row).reshape(-1, 8), each[2], atol=1e-6)


def test_row_groups_are_bounded(
    tmp_path: Path, run: Run, embedder: ElmoEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_shard, "GROUP_BYTES", 4 * 3 * 8 * 4)
    run(format="parquet", shard_records=24)
    metadata = pq.ParquetFile(tmp_path / "out" / "shard-00000000.parquet").metadata
    assert [metadata.row_group(k).num_rows for k in range(4)] == [3, 1, 1, 1]
    for one, other in zip(open_embeddings(tmp_path / "out"), vectors(embedder, Output()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_is_not_finished_is_told(tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run()
    assert len(open_embeddings(tmp_path / "out")) == len(LINES) and not caplog.records
    for number in (4, 1):  # the end, and a gap
        (tmp_path / "out" / f"shard-0000000{number}.json").unlink()
        open_embeddings(tmp_path / "out")
        (message,) = caplog.messages
        there = 4 if number == 4 else 3
        assert message.endswith(f"out: not finished: {there} shards are there, and records are missing")
        caplog.clear()
    with pytest.raises(FlashElmoError, match=r"text\.txt: expected a folder of shards, found a file"):
        open_embeddings(tmp_path / "text.txt")
    for use in (open_embeddings, verify, lambda path: run(path)):  # pyarrow takes no other bytes in names
        with pytest.raises(FlashElmoError, match=r"^(path|folder): expected a path in UTF-8, found '"):
            use(tmp_path / "o\udcff")


def test_of_records_with_one_id_the_first_is_found(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": "a"}) + "\n" for text in ("the cat", "cat sat on")))
    for size in (1, 5):
        run(f"out{size}", reader=open_reader(path, id_field="id"), shard_records=size)
        assert open_embeddings(tmp_path / f"out{size}").tokens("a") == ["the", "cat"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_pipe_is_read_to_its_end(tmp_path: Path, embedder: ElmoEmbedder, run: Run, suffix: str) -> None:
    """By a name of its own, as a shell's <(...) has; it cannot be read again, so that nobody looks at its beginning."""
    run("whole", shard_records=None)
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    data = TEXT.encode()
    writing = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(data) if suffix else data,))
    writing.start()
    report = embed_corpus(embedder, open_reader(pipe), tmp_path / "out")
    writing.join()
    assert report.records == len(LINES)
    found, whole = open_embeddings(tmp_path / "out"), open_embeddings(tmp_path / "whole")
    for b in range(len(LINES)):
        np.testing.assert_array_equal(found[b], whole[b])
    reader = open_reader(os.devnull)
    assert reader.take(1) is None
    reader.close()
    with pytest.raises(FlashElmoError, match=f"{os.devnull}: expected an input that can be read again, found"):
        reader.take(1)


def test_a_file_that_the_shell_opened_is_read_once(
    embedder: ElmoEmbedder, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: opening /dev/stdin gives the open file again, which goes on where it has been read to."""
    with text_file.open("rb") as standard_input:
        name, opened = f"/dev/fd/{standard_input.fileno()}", Path.open

        def open_again(path: Path, *arguments: Any, **options: Any) -> Any:
            found = os.dup(standard_input.fileno()) if str(path) == name else None
            return opened(path, *arguments, **options) if found is None else os.fdopen(found, "rb")

        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(Path, "open", open_again)
        assert embed_corpus(embedder, open_reader(name), tmp_path / "out").records == len(LINES)


@pytest.mark.parametrize("n_lines", [0, 5, 10, 11])
def test_inputs_of_any_length_come_to_an_end(tmp_path: Path, text_file: Path, run: Run, n_lines: int) -> None:
    text_file.write_text("a b\n" * n_lines)
    report = run()
    assert (report.records, report.shards) == (n_lines, max(1, -(-n_lines // 5)))
    assert len(open_embeddings(tmp_path / "out")) == n_lines and verify(tmp_path / "out") == []
    before = contents(tmp_path / "out")
    assert run(resume=True).kept == report.shards and contents(tmp_path / "out") == before


def test_skipped_records_are_told_and_counted(tmp_path: Path, text_file: Path, run: Run) -> None:
    text_file.write_bytes(b"a\nb\xff\nc\nd\n\xff\n\xff\n\xff\n\xff\n\xff\n\xff\ne\n")
    report = run(errors="skip")
    report.write(tmp_path / "report.json", tmp_path / "out")
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["records"], told["skipped"], told["shards"]) == (4, 7, 3)
    assert len(told["skipped_records"]) == 7 and "line 2, byte 2: expected UTF-8" in told["skipped_records"][0]
    found = open_embeddings(tmp_path / "out")
    assert list(found.ids()) == ["0", "2", "3", "10"] and len(list(found)) == len(found) == len(found[:]) == 4
    assert found[-1].shape == (3, 1, 8) and 1 not in found and verify(tmp_path / "out") == []
    for absent in (1, 4, 11, -12):
        with pytest.raises(IndexError, match="there is no record"):
            found[absent]
    with pytest.raises(KeyError):
        found["1"]
    with pytest.raises(FlashElmoError, match=r"record: expected its number or its id, found 1\.5"):
        found[1.5]  # type: ignore[call-overload]


def test_tokens_may_be_left_out(tmp_path: Path, run: Run) -> None:
    run(keep_tokens=False)
    assert pq.read_schema(tmp_path / "out" / "shard-00000000.parquet").names == ["record", "id", "n_tokens", "row"]
    with pytest.raises(FlashElmoError, match=r"shard-00000000.parquet: expected a column tokens, found record, id"):
        open_embeddings(tmp_path / "out").tokens(0)


def test_the_report_tells_what_was_done(run: Run) -> None:
    places: list[tuple[float, float]] = []
    report = run(on_progress=lambda n_bytes, n_tokens: places.append((n_bytes, n_tokens)))
    assert (report.tokens, report.skipped, report.kept) == (len(TEXT.split()), 0, 0)
    assert report.steps > 0 and report.steps_saved > 0 and report.bytes_written > report.tokens * 96
    assert set(report.busy) == {"reading", "computing", "writing"} and report.bottleneck in report.busy
    assert report.to_dict()["waited"].keys() == report.busy.keys() and report.tokens_per_second > 0
    assert places == sorted(places) and places[-1] == pytest.approx((len(TEXT.encode()), report.tokens))


@pytest.mark.parametrize(
    ("line", "shape", "pooled", "expected"),
    [
        ("a " * 25, (3, 1024), False, 4096),
        ("a " * 400, (3, 1024), False, 256),
        ("a " * 100_000, (3, 1024), False, 64),
        ("a " * 1000, (8,), True, 4096),  # that many are read at once
        ("", (8,), True, 65536),
    ],
)
def test_shards_are_of_a_size(text_file: Path, line: str, shape: tuple[int, ...], pooled: bool, expected: int) -> None:
    text_file.write_text(f"{line}\n" * 4)
    reader = open_reader(text_file)
    assert default_shard_records(reader, Rows(shape, "float32", pooled)) == expected
    part = reader.take(9)
    assert part is not None and (part.begin, part.n_records) == (Place(), 4)


# ---------------------------------------------------------------------------------------------- going on, and arrays


def without_sum(content: bytes) -> dict[str, Any]:
    """The values of a file of JSON without their checksum, so that each has to be right by itself."""
    values: dict[str, Any] = json.loads(content)
    return {name: value for name, value in values.items() if name != "sha256"}


@pytest.mark.parametrize("shard_format", ["native", "parquet"])
def test_damage_is_found_and_mended(tmp_path: Path, run: Run, shard_format: str) -> None:
    out, options = tmp_path / "out", {"format": shard_format}
    run(**options)
    before = contents(out)
    data = "shard-00000001.safetensors" if shard_format == "native" else "shard-00000001.parquet"
    one = "shard-00000001.json"
    entry = before[one]

    def changed(content: bytes) -> bytes:
        return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]

    no_entry = f"{one}: expected a finished shard's entry, found something else"
    damages: list[tuple[dict[str, bytes | None], str]] = [
        ({data: changed(before[data])}, f"{data}: expected sha256"),
        ({data: before[data][:-1]}, f"{data}: expected {len(before[data])} bytes, found {len(before[data]) - 1}"),
        ({data: None}, f"{data}: expected a file, found none"),
        ({"shard-00000002.json": None}, "shard-00000002: expected a finished shard, found none"),
        ({"shard-00000004.json": None}, "shard-00000004: expected a shard at the input's end, found none; resume=True"),
        ({one: b"{"}, no_entry),
        ({one: entry.replace(b'"last"', b'"least"')}, no_entry),
        ({one: entry.replace(b'"skipped": []', b'"skipped": 0')}, no_entry),
        ({one: before["shard-00000002.json"]}, f"{one}: expected the entry of shard 1"),
        ({one: entry.replace(b'"rows": 14', b'"rows": 15')}, no_entry),
        ({one: entry.replace(b'"skipped": []', b'"skipped": ["x"]')}, no_entry),
        (
            {one: json.dumps(without_sum(entry)).encode().replace(b'"shard-00000001.parquet"', b'"../text.txt"')},
            f"{one}: expected the entry of shard 1, found another",
        ),
        (
            {one: json.dumps({**without_sum(entry), "tokens": 15}).encode()},
            "shard-00000001.parquet: expected 5 records of 15 tokens, found 5 of 14",
        ),
    ]
    assert all(content != before[name] for changes, _ in damages for name, content in changes.items())
    for changes, problem in damages:
        for name, content in changes.items():
            (out / name).unlink() if content is None else (out / name).write_bytes(content)
        assert [each[: len(problem)] for each in verify(out)] == [problem]
        if "tokens" not in problem:  # sums are right there
            assert run(resume=True, **options).shards == 1
        else:
            (out / one).write_bytes(entry)
        assert contents(out) == before and verify(out) == []


@pytest.mark.parametrize("options", [{}, {"output": Output("top", pool="mean")}, {"format": "parquet"}], ids=str)
def test_who_reads_a_damaged_file_names_it(tmp_path: Path, run: Run, options: dict[str, Any]) -> None:
    run(**options)
    out = tmp_path / "out"
    before = contents(out)
    entry, begun = (without_sum(before[name]) for name in ("shard-00000001.json", "run.json"))
    without = [{key: entry[key] for key in entry if key != absent} for absent in entry]
    entries = [*({**entry, key: None} for key in entry), *without, {**entry, "records": -1}, {**entry, "tokens": "14"}]
    damages = [("shard-00000001.json", json.dumps(each).encode()) for each in entries]
    damages.append(("shard-00000001.json", before["shard-00000001.json"].replace(b'"line": 6', b'"line": 7')))
    damages.append(("run.json", before["run.json"].replace(b'"ort"', b'"orr"')))
    for rows in ({"shape": [None]}, {"shape": "x"}, {"shape": [-8]}, {"dtype": "x"}):
        damages.append(("run.json", json.dumps({**begun, "rows": {**begun["rows"], **rows}}).encode()))
    for name in set(before) - {"run.json"}:
        damages += [(name, b""), (name, before[name][:20]), (name, before[name][: len(before[name]) // 2])]
    if (name := "shard-00000001.safetensors") in before:
        offsets = load_file(out / name)["offsets"]
        assert before[name].count(offsets.tobytes()) == 1
        for other in (0 * offsets, offsets[::-1], offsets + (offsets == offsets[-1])):
            damages.append((name, before[name].replace(offsets.tobytes(), other.tobytes())))
    for name, content in damages:
        (out / name).write_bytes(content)
        with pytest.raises(FlashElmoError) as error:
            list(open_embeddings(out))
        assert str(error.value).startswith(str(out / name.partition(".")[0])) and "\n" not in str(error.value)
        (out / name).write_bytes(before[name])


def test_a_number_of_records_that_no_shard_has_is_refused(tmp_path: Path, text_file: Path, run: Run) -> None:
    run()
    for found in (None, "5", 0, -5, 5.0, True):
        (tmp_path / "out" / "run.json").write_text(json.dumps({"shard_records": found}), encoding="utf-8")
        with pytest.raises(FlashElmoError, match=r"run.json: shard_records: expected 1 or more, found"):
            run(shard_records=None, resume=True)
        with pytest.raises(FlashElmoError, match=r"run.json: shard_records: expected 1 or more, found"):
            make_plan(Corpus(bundled(), str(text_file), tmp_path / "out"), resume=True)


def test_a_gap_is_told_by_its_ends(tmp_path: Path, run: Run) -> None:
    run()
    for number in (1, 2, 3):
        (tmp_path / "out" / f"shard-0000000{number}.json").unlink()
    assert verify(tmp_path / "out") == ["shard-00000001 to shard-00000003: expected finished shards, found none"]
    with pytest.raises(FlashElmoError, match=r"run.json: expected a file, found none"):
        verify(tmp_path)
    (tmp_path / "run.json").mkdir()
    with pytest.raises(FlashElmoError, match=r"run.json: expected an object of JSON, found something else"):
        verify(tmp_path)


def test_entries_that_do_not_go_together_are_told(tmp_path: Path, run: Run) -> None:
    run()
    for number, changes, problems in (
        (
            4,
            {"begin": {"record": 21, "line": 22}, "end": {"record": 25}},
            ["shard-00000004: expected record 20 first, found 21"],
        ),
        (2, {"last": True}, ["shard-00000003: expected no shard behind the input's end, found one"]),
        (
            4,
            {"last": False},
            [
                "shard-00000004: expected 5 records, found 4",
                "shard-00000005: expected a shard at the input's end, found none; resume=True goes on",
            ],
        ),
    ):
        path = tmp_path / "out" / f"shard-0000000{number}.json"
        before = path.read_bytes()
        entry = without_sum(before)
        for name, value in changes.items():
            entry[name] = entry[name] | value if isinstance(value, dict) else value
        path.write_text(json.dumps(entry))
        assert verify(tmp_path / "out") == problems
        path.write_bytes(before)


def test_jobs_of_an_array_write_one_jobs_files(tmp_path: Path, run: Run) -> None:
    run()
    reports = [run("array", num_shards=3, shard_id=shard_id) for shard_id in (2, 0, 1)]
    assert contents(tmp_path / "array") == contents(tmp_path / "out")
    assert [report.shards for report in reports] == [1, 2, 2]
    with pytest.raises(FlashElmoError, match="array: exists already; resume=True goes on with it"):
        run("array", num_shards=3, shard_id=0)
    assert run("array", num_shards=2, shard_id=1, resume=True).kept == 2
    with pytest.raises(FlashElmoError, match=r"output\.dtype: expected"):
        run("array", Output(dtype="float16"), num_shards=3, shard_id=0)


def test_two_runs_cannot_write_the_same(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    with locked(out, 1, 0):
        for options in ({}, {"num_shards": 2, "shard_id": 1}, {"overwrite": True}):
            with pytest.raises(FlashElmoError, match="out: another run is writing here"):
                run(**options)
    with locked(out, 2, 0):
        for options in ({}, {"num_shards": 2, "shard_id": 0}, {"num_shards": 3, "shard_id": 1}):
            with pytest.raises(FlashElmoError, match="another run is writing here"):
                run(**options)
        assert run(num_shards=2, shard_id=1).shards == 2  # the other job of the same array
    assert run(num_shards=3, shard_id=0, resume=True).shards == 1


# ------------------------------------------------------------------------------------------------------ what is refused


def test_another_model_option_or_input_is_refused(
    tmp_path: Path, text_file: Path, run: Run, embedder: ElmoEmbedder
) -> None:
    run()
    before = contents(tmp_path / "out")
    other = ElmoEmbedder(MODELS["no skip"], device="cpu", threads=1)
    boundaries = ElmoEmbedder(MODELS["skip"], device="cpu", threads=1, keep_sentence_boundaries=True)

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(FlashElmoError, match=message):
            run(resume=True, **options)
        assert contents(tmp_path / "out") == before

    refused(
        r"run.json: model.skip_connections: expected true, with which this output was begun, found false",
        embedder=other,
    )
    refused("model.keep_sentence_boundaries: expected false", embedder=boundaries)
    refused('model.runtime: expected "ort"', embedder=ElmoEmbedder(MODELS["skip"], device="cpu", runtime="reference"))
    refused('output.layers: expected "all", with which this output was begun, found "top"', output=Output("top"))
    refused('format: expected "native"', format="parquet")
    refused("shard_records: expected 5, with which this output was begun, found 6", shard_records=6)
    refused("tokens: expected true", keep_tokens=False)
    text_file.write_text(TEXT + "more\n", encoding="utf-8")
    refused(f"input.bytes: expected {len(TEXT.encode())}, with which")
    text_file.write_text(TEXT.replace("mat", "rat", 1), encoding="utf-8")
    refused("input.sha256_of_first_mib: expected")
    assert first_difference({"a": 1}, {"a": 1, "b": [2]}) == ("b", "null", "[2]")


def test_a_change_in_the_middle_of_a_large_input_is_refused(
    tmp_path: Path, text_file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashelmo.engine.bulk.source.END_BYTES", 8)
    run()
    (tmp_path / "out" / "shard-00000004.json").unlink()
    text_file.write_text(TEXT[:60] + TEXT[60:].replace("mat", "rat", 1), encoding="utf-8")
    with pytest.raises(FlashElmoError, match=r"text.txt: records 5 to 9 are not those of shard 1;"):
        run(resume=True)


def test_what_is_there_is_not_overwritten_by_mistake(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()  # macOS leaves it in any folder that someone looks at
    (out / "notes.txt").write_text("precious")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(FlashElmoError, match=r"expected an empty folder or one of shards, found notes\.txt"):
            run(**options)
    (out / "notes.txt").unlink()
    run()
    (out / "notes.txt").write_text("precious")
    with pytest.raises(
        FlashElmoError, match="out: exists already; resume=True goes on with it, overwrite=True replaces it"
    ):
        run()
    assert run(output=Output("top"), overwrite=True).shards == 5
    assert (out / "notes.txt").read_text() == "precious" and open_embeddings(out)[0].shape == (3, 8)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"resume": True, "overwrite": True}, "resume, overwrite: expected one of them"),
        ({"overwrite": True, "num_shards": 2}, "overwrite: not allowed for a job of an array"),
        ({"num_shards": 2, "shard_id": 2}, "shard_id: expected 0 to 1, found 2"),
        ({"format": "csv"}, "format: expected native or parquet, found 'csv'"),
        ({"shard_records": 0}, "shard_records: expected 1 or more, found 0"),
        ({"name": "text.txt"}, "text.txt: expected a folder for shards, found a file"),
        ({"name": "absent/out"}, "absent/out: there is no folder"),
        ({"output": Output(3)}, "layers: expected a layer from 0 to 2, found 3"),
        ({"embedder": ElmoEmbedder(MODELS["skip"], device="cpu", stateful=True)}, "stateful: expected an embedder"),
    ]
    for arguments, message in bad:
        with pytest.raises(FlashElmoError, match=message):
            run(**arguments)


def test_a_fingerprint_tells_models_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_native(MODELS["skip"], tmp_path / "model")
    loaded = ElmoEmbedder.load(tmp_path / "model", device="cpu").fingerprint()
    assert loaded == ElmoEmbedder(MODELS["skip"], device="cpu").fingerprint()
    others = [ElmoEmbedder(MODELS[name], device="cpu").fingerprint() for name in ("no projection", "manylangs")]
    assert len({each["sha256"] for each in (loaded, *others)}) == 3
    in_8_bits = ElmoEmbedder(MODELS["skip"], device="cpu", runtime="ort", precision="int8")
    for levels, told in ((127, None), (63, 63)):  # of a processor with VNNI, and of one without
        monkeypatch.setattr("flashelmo.engine.embedder.int8_levels", lambda levels=levels: levels)
        assert in_8_bits.fingerprint().get("int8_levels") == told


# ------------------------------------------------------------------------------------------------ disks and inputs fail


@pytest.mark.parametrize(
    ("shard_format", "suffixes"),
    [("native", (".safetensors", ".parquet", ".json")), ("parquet", (".parquet", ".json"))],
)
def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(
    shard_format: str,
    suffixes: tuple[str, ...],
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    no_waiting: None,
) -> None:
    run = partial(run, format=shard_format)
    run("whole")
    write, full = NewFile.write, {"suffix": ""}
    tried: list[str] = []

    def fill(file: NewFile, data: Any) -> int:
        if file.path.name == f"shard-00000002{full['suffix']}" and (file.tell() or full["suffix"] == ".json"):  # begun
            tried.append(file.path.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(NewFile, "write", fill)
    for suffix in suffixes:
        full["suffix"] = suffix
        tried.clear()
        with pytest.raises(FlashElmoError) as caught:
            run(resume=True)
        told = (
            "out: shard-00000002: No space left on device; tried 3 times. "
            "resume=True goes on: finished shards are kept, 2"
        )
        assert str(caught.value).endswith(told) and set(tried) == {f"shard-00000002{suffix}"}
        assert not list((tmp_path / "out").glob(".*.tmp"))
        found = verify(tmp_path / "out")
        assert found == ["shard-00000002: expected a shard at the input's end, found none; resume=True goes on"]
    full["suffix"] = ""
    assert run(resume=True).kept == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_abandoned_shard_leaves_nothing_and_says_nothing(tmp_path: Path, text_file: Path) -> None:
    """PyArrow's writer would write the end of the file when it is freed."""
    part = open_reader(text_file).take(5)
    assert part is not None
    shard, output = Shard.of(0, part, False), Output("top")
    writer = ShardWriter(Target(tmp_path, output, Rows((8,), "float32", False), "parquet", True), shard)
    writer.write(np.zeros((3, 8), np.float32))
    assert [path.name for path in tmp_path.glob(".*")] == [".shard-00000000.parquet.tmp"]
    writer.abort()
    del writer
    gc.collect()
    assert not list(tmp_path.glob(".*"))


def test_a_shard_is_tried_again(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    run("whole")
    left, write = {"shard-00000001.safetensors": 1, "shard-00000003.parquet": 2}, NewFile.write

    def fail_at_times(file: NewFile, data: Any) -> int:
        if left.get(file.path.name):
            left[file.path.name] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return write(file, data)

    monkeypatch.setattr(NewFile, "write", fail_at_times)
    seen: list[float] = []
    report = run(on_progress=lambda n_bytes, n_tokens: seen.append(n_tokens))
    assert report.shards == 5 and set(left.values()) == {0} and seen[-1] == report.tokens
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_no_shard_is_lost_that_was_read_when_the_disk_failed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    """It fails before anything is written, and then twice at one shard, behind which all others have been read."""
    left, usage, write = [1, 2], shutil.disk_usage, NewFile.write

    def fail(k: int) -> None:
        if left[k]:
            left[k] -= 1
            time.sleep(0.2 * k)
            raise OSError(errno.EIO, "Input/output error")

    def fail_at_first(path: Path) -> Any:
        fail(0)
        return usage(path)

    def fail_twice(file: NewFile, data: Any) -> int:
        fail(1) if file.path.name == "shard-00000001.safetensors" else None
        return write(file, data)

    monkeypatch.setattr(shutil, "disk_usage", fail_at_first)
    monkeypatch.setattr(NewFile, "write", fail_twice)
    assert run(shard_records=1).shards == len(LINES) and left == [0, 0]
    assert verify(tmp_path / "out") == []


class Unsteady:
    """A reader whose input is lost at some calls."""

    def __init__(self, reader: Reader, failing: set[int]) -> None:
        self.name, self.options, self.n_bytes = reader.name, reader.options, reader.n_bytes
        self._reader, self._failing, self._n_calls = reader, failing, 0

    def take(self, n: int) -> Part | None:
        self._n_calls += 1
        if self._n_calls in self._failing:
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        return self._reader.take(n)

    def seek(self, place: Place) -> None:
        self._reader.seek(place)

    def close(self) -> None:
        self._reader.close()


def test_an_input_that_is_lost_is_tried_again(tmp_path: Path, text_file: Path, run: Run, no_waiting: None) -> None:
    run("whole")
    assert run(reader=Unsteady(open_reader(text_file), {1, 2, 5, 9})).shards == 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(FlashElmoError, match=r"shard-00000001: Connection timed out; tried 3 times. .* are kept, 1"):
        run("lost", reader=Unsteady(open_reader(text_file), {3, 4, 5, 6}))
    assert run("lost", resume=True).shards == 4 and contents(tmp_path / "lost") == contents(tmp_path / "whole")


def test_a_record_that_cannot_be_read_stops_the_run_behind_what_is_finished(
    tmp_path: Path, text_file: Path, run: Run
) -> None:
    text_file.write_bytes(b"a b\n" * 12 + b"a \xff\n")
    with pytest.raises(FlashElmoError, match=r"text.txt: line 13, byte 3: expected UTF-8, found 0xff"):
        run()
    assert [path.name for path in sorted((tmp_path / "out").glob("*.json"))][1:] == [
        "shard-00000000.json",
        "shard-00000001.json",
    ]
    assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.parametrize("shard_records", [5, None])
def test_a_run_that_fails_before_its_first_shard_leaves_no_folder(
    tmp_path: Path, run: Run, shard_records: int | None
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\n")
    for name, there in (("new", False), ("mine", True)):
        if there:
            (tmp_path / name).mkdir()
        with pytest.raises(FlashElmoError, match="line 1, byte 1"):
            run(name, reader=open_reader(bad), shard_records=shard_records)
        assert (tmp_path / name).exists() == there
    with locked(tmp_path / "new", 1, 0), pytest.raises(FlashElmoError, match="another run"):
        run("new")
    assert (tmp_path / "new").exists()


def test_nothing_is_removed_for_an_input_that_cannot_be_read(tmp_path: Path, text_file: Path, run: Run) -> None:
    run()
    before = contents(tmp_path / "out")
    for name in ("jsonl", "parquet"):
        with pytest.raises(FlashElmoError, match=r"text.txt: (line 1, byte 1: )?expected (JSON|Parquet), found"):
            run(reader=open_reader(text_file, format=name), overwrite=True)
        assert contents(tmp_path / "out") == before


def test_a_folder_without_a_finished_shard_is_begun_anew(tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FlashElmoError, match="records 0 to 4: expected values within float16's range"):
        run(output=Output(mix=(1e6, 1e6, 1e6), dtype="float16"))
    assert not list((tmp_path / "out").glob("*shard*")) and (tmp_path / "out" / "run.json").exists()
    assert run().shards == 5 and verify(tmp_path / "out") == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, text_file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Any = open_reader(text_file)
    reader.n_bytes = len(TEXT.encode()) * 1000
    needed = len(TEXT.split()) * 3 * 8 * 4 * 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed * 0.8))
    with pytest.raises(
        FlashElmoError, match=r"out: expected about [0-9,]+ bytes of free disk, found [0-9,]+; layers=\"top\""
    ):
        run(reader=reader)
    assert not list((tmp_path / "out").glob("*shard*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed * 1.5))
    assert run(reader=reader, resume=True).shards == 5


def test_the_disk_is_judged_by_a_compressed_text_too(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode() * 100))
    needed = len(TEXT.split()) * 3 * 8 * 4 * 100
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed * 0.8))
    with pytest.raises(FlashElmoError, match=r"out: expected about [0-9,]+ bytes of free disk, found [0-9,]+"):
        run(reader=open_reader(path))
    assert not list((tmp_path / "out").glob("*shard*"))


def test_a_stage_calls_in_order_and_holds_no_more_than_it_may() -> None:
    done: list[int] = []
    stage: Stage[None] = Stage(most=10)
    for k in range(20):
        stage.add(lambda k=k: done.append(k), weight=4)  # type: ignore[misc]
        assert len(stage) <= 2
    stage.finish()
    assert done == list(range(20)) and stage.busy >= 0 and len(stage) == 0
    stage.add(lambda: done.append(1 // 0))
    with pytest.raises(ZeroDivisionError):
        stage.add(lambda: done.append(-1))
        stage.finish()
    stage.stop()
    assert done == list(range(20))


# ------------------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def here(here: Path, text_file: Path) -> Path:
    """It has a model and a text."""
    write_native(MODELS["skip"], here / "model")
    return here


def test_commands(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["embed", "text.txt", "out", "--model", "model", "--shard-records", "7"]
    assert main([*command, "--report", "report.json", "--layers", "top"]) == 0
    said = capfd.readouterr().err
    assert f"24 records, {len(TEXT.split())} tokens, 10 words computed\n" in said and "saved by sharing" in said
    assert "computing" in said and "out: 4 shards written" in said
    assert json.loads((here / "report.json").read_text())["records"] == 24
    assert main(["verify", "out"]) == 0 and capfd.readouterr().out == "out: whole, 24 records\n"
    (here / "out" / "shard-00000001.safetensors").write_bytes(b"")
    assert main(["verify", "out"]) == 1
    assert capfd.readouterr().out.startswith("shard-00000001.safetensors: expected ")
    assert main([*command, "--layers", "top", "--resume", "-q"]) == 0 and main(["verify", "out"]) == 0
    capfd.readouterr()
    assert main([*command, "--layers", "top", "--resume"]) == 0
    assert capfd.readouterr().err == "out: 0 shards written, 0 bytes; 4 finished before\n"
    assert main([*command, "--resume"]) == 1
    capfd.readouterr()
    assert main([*command[:2], "v.x", *command[3:], "--format", "parquet", "--num-shards", "2", "--shard-id", "1"]) == 0
    assert sorted(path.name for path in (here / "v.x").glob("*.parquet")) == [
        "shard-00000001.parquet",
        "shard-00000003.parquet",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["v.h5", "--resume"],
            "--resume: expected a folder of shards as output (no suffix,",
        ),
        (
            ["v.npz", "--shard-id", "0"],
            "--shard-id: expected a folder of shards as output (no suffix,",
        ),
        (["out", "--use-sentence-keys"], "--use-sentence-keys: requires a single file as output"),
        (["out", "--shard-id", "1"], "--num-shards: required with --shard-id"),
        (["out", "--num-shards", "2"], "--shard-id: required with --num-shards"),
        (["out", "--num-shards", "2", "--shard-id", "2"], "shard_id: expected 0 to 1, found 2"),
        (["out", "--stateful"], "stateful: expected an embedder that carries no state"),
        (["model"], "model: expected an empty folder or one of shards, found config.json"),
        (["out", "--report", "absent/r.json"], "--report: expected a file name in an existing folder"),
        (["out", "--report", "./out"], "--report: out: is the output, or a file of it"),
        (["out", "--report", "out/run.json"], "--report: out/run.json: is the output, or a file of it"),
        *(
            (["out", "--report", f"out/{name}"], f"--report: out/{name}: is the output, or a file of it")
            for name in (".lock", ".lock-1", ".run.json.tmp", ".shard-00000000.json.tmp")
        ),
        (["out", "--word-cache", "out"], "--word-cache: out: is the output, or a file of it"),
        (["out", "--word-cache", "out/run.json"], "--word-cache: out/run.json: is the output, or a file of it"),
        (["v.h5", "--word-cache", "./v.h5"], "--word-cache: v.h5: is the output, or a file of it"),
        (
            ["out", "--format", "seqvec", "--word-cache", "out/embeddings_file.h5"],
            "--word-cache: out/embeddings_file.h5: is the output, or a file of it",
        ),
        (["out", "--word-cache", "r.json", "--report", "r.json"], "--report: r.json: is the word cache"),
        (["out", "--report", "model"], "--report: expected a file name in an existing folder, found model"),
        (
            ["out", "--report", "./text.txt"],
            "--report: text.txt: is the input text itself",
        ),
        (["out", "--report", "/dev/fd/r.json"], "/dev/fd/r.json: cannot write: "),
        (["out", "--report", "r.json", "--stateful"], "stateful: expected an embedder that carries no state"),
    ],
)
def test_bad_arguments_of_the_command(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["embed", "text.txt", *arguments, "--model", "model", "-q"]) == 1
    assert message in capfd.readouterr().err and not (here / "out").exists() and not (here / "r.json").exists()


def test_a_report_is_no_shard_where_case_is_ignored(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There one folder has two paths, which a link stands for here."""
    (here / "out").mkdir()
    (here / "Out").symlink_to("out")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    with pytest.raises(FlashElmoError, match=r"^--report: Out/run\.json: is the output, or a file of it$"):
        check_beside("--report", Path("Out/run.json"), Path("out"))


@pytest.mark.parametrize(
    ("name", "told"), [("absent.txt", "absent.txt: No such file"), ("model", "model: Is a directory")]
)
def test_an_input_that_is_not_there(
    here: Path, run: Run, capfd: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    assert main(["embed", name, "out", "--model", "model", "-q"]) == 1
    assert capfd.readouterr().err.startswith(f"flashelmo: {told}") and not (here / "out").exists()
    for options in ({}, {"shard_records": None}):
        with pytest.raises(OSError, match=told.partition(": ")[2]):  # at once
            run(reader=open_reader(name), **options)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells files by /proc")
def test_a_files_name_stands_for_what_is_on_the_disk(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("whole")
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").resolve().name.removeprefix(".").removesuffix(".tmp")

    def told_fsync(file: int) -> None:
        done.append(f"sync {name_of(file)}")
        fsync(file)

    def told_replace(old: Path, new: Path) -> None:
        done.append(f"name {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(os, "replace", told_replace)
    run(shard_records=24)
    names = [f"shard-00000000{suffix}" for suffix in (".safetensors", ".parquet", ".json")]
    data, index, last = ([f"sync {name}", f"name {name}"] for name in names)
    assert done[-8:] == [*data, *index, "sync out", *last, "sync out"]
