"""The text that a model is trained on holds nothing by which it is judged."""

import json
from pathlib import Path

import pytest

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks.corpus import HELDOUT, Judged, is_heldout, key, split
from flashelmo.benchmarks.tasks import read_labelled, read_senses, read_tagged
from flashelmo.engine.errors import FlashElmoError

SENTENCES = {
    "text": "the life in the oceans",
    "hard": "it is hard to say",
    "dev": "Yes ,",
    "test": "a waste of good time",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of one text, in which every sentence of SENTENCES stands in some form."""
    (tmp_path / "text").mkdir()
    (tmp_path / "tasks").mkdir()
    for file, name, index in (("text/senses.json", "text", 1), ("tasks/senses_hard_line.json", "hard", 2)):
        tokens = SENTENCES[name].split()
        senses = {sense: [{"index": index, "tokens": tokens}] for sense in ("A", "B")}
        (tmp_path / file).write_text(json.dumps([{"lemma": tokens[index], "pos": "n", "senses": senses}]), "utf-8")
    tagged = "\n".join(f"{token}\tX" for token in SENTENCES["dev"].split())
    for part in ("train", "dev", "test"):
        (tmp_path / f"tasks/pos_masc_{part}.txt").write_text(f"{tagged}\n\n{tagged}\n", "utf-8")
    (tmp_path / "tasks/polarity_test.tsv").write_text(f"neg\t{SENTENCES['test']}\n", "utf-8")
    lines = [f"number {k} ." for k in range(500)]
    lines += ["The life in the oceans .", "it is hard to say", "it is hard to say why", "yes", "say yes\u2028, always"]
    lines += ["such a waste of good time !", "number 3", ""]
    (tmp_path / "text/novel.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return tmp_path


def test_training_text_holds_no_sentence_by_which_models_are_judged(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command.main(["corpus", "--data", str(data), "--out", str(out)]) == 0
    training = (out / "novel.txt").read_text("utf-8").split("\n")[:-1]
    heldout = (out / HELDOUT).read_text("utf-8").splitlines()
    assert [line for line in training if not line.startswith("number")] == ["say yes\u2028, always"]  # a line
    assert {f"number {k} ." for k in range(500)} <= {*training, *heldout}
    assert 0 < len(heldout) == len({key(line) for line in heldout}) < 20
    assert not {*map(key, training)} & {*map(key, heldout)}


def test_lines_that_are_alike_lie_on_one_side() -> None:
    held = next(line for line in (f"Line {k} , that's all" for k in range(10_000)) if is_heldout(key(line)))
    other = next(line for line in (f"line {k}" for k in range(100)) if not is_heldout(key(line)))
    lines = [held, held.upper(), held.replace(",", ""), other, f"{other} ."]
    assert split(lines, Judged([])) == ([other, f"{other} ."], [held])


@pytest.mark.parametrize(
    ("read", "text", "line"),
    [
        (
            read_senses,
            '[{"lemma": "a", "senses": {"x": [{"index": 3, "tokens": ["a"]}]}}]',
            "words with examples by sense",
        ),
        (read_senses, "{", "words with examples by sense"),
        (read_tagged, "word\nother\n", "a token and its tag a line"),
        (read_labelled, "no tab here\n", "a class, a tab and tokens a line"),
        (read_labelled, "", "a class, a tab and tokens a line"),
    ],
)
def test_other_data_gets_one_line(read: object, text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(FlashElmoError, match=rf"data\.txt: expected {line}"):
        read(path)  # type: ignore[operator]
    with pytest.raises(FlashElmoError, match="cannot be read"):
        read(tmp_path / "absent")  # type: ignore[operator]


def test_an_absent_folder_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["corpus", "--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert command.main(["corpus"]) == 1
    said = capsys.readouterr().err
    assert "expected text/*.txt, found none" in said and "--out: expected a folder" in said
