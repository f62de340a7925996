"""Neighbours of a word in context."""

import gzip
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo.cli import main
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.model.named.locate import bundled
from flashelmo.engine.neighbours import Use, find_neighbours, neighbours_of

TEXT = ["the light of day", "", "a light load", "The Light !", "no such word", "light"]
NAME = next(iter(MODELS))


@pytest.fixture(scope="module")
def elmo() -> ElmoEmbedder:
    return ElmoEmbedder(MODELS[NAME], device="cpu")


@pytest.mark.parametrize("layers", ["average", "top", 0, 1])
@pytest.mark.parametrize("same_word", [True, False])
def test_they_are_those_that_comparing_all_finds(elmo: ElmoEmbedder, layers: Any, same_word: bool) -> None:
    def unit(sentence: str) -> Any:
        (vectors,) = elmo.embed([sentence], layers=layers)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    query, position = unit("a light load")[1], 1
    expected = []
    for number, sentence in enumerate(TEXT):
        tokens = sentence.split()
        places = [k for k, token in enumerate(tokens) if not same_word or token.lower() == "light"]
        if places and sentence != "a light load":
            similarities = unit(sentence)[places] @ query
            best = int(similarities.argmax())
            expected.append((float(similarities[best]), number, places[best]))
    expected.sort(reverse=True)
    for word in ("light", position):
        found = find_neighbours(elmo, iter(TEXT), "a light load", word, n=3, layers=layers, same_word=same_word)
        if layers != 0:  # where one word is like itself everywhere
            assert [(each.sentence, each.position) for each in found] == [each[1:] for each in expected[:3]]
        assert np.allclose([each.similarity for each in found], [each[0] for each in expected[:3]], atol=1e-5)
        assert all(each.word == TEXT[each.sentence].split()[each.position] for each in found)


@pytest.mark.parametrize("same_word", [True, False])
def test_the_boundaries_of_sentences_are_no_words(elmo: ElmoEmbedder, same_word: bool) -> None:
    with_boundaries = ElmoEmbedder(MODELS[NAME], device="cpu", keep_sentence_boundaries=True)
    for query, word in (("a light load", "light"), ("light", 0), ("the light", "light")):
        expected, found = (
            find_neighbours(each, TEXT, query, word, n=9, same_word=same_word) for each in (elmo, with_boundaries)
        )
        assert [each[1:] for each in found] == [each[1:] for each in expected]
        assert np.allclose([each.similarity for each in found], [each.similarity for each in expected], atol=1e-5)


def test_a_text_is_embedded_once_for_all_uses(elmo: ElmoEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = ["a light load", "the light of day", "light"]
    expected = [find_neighbours(elmo, TEXT, query, "light", n=2) for query in queries]
    calls: list[Any] = []

    def embed(sentences: Any, **options: Any) -> Any:
        calls.append(list(sentences))
        return ElmoEmbedder.embed(elmo, calls[-1], **options)

    monkeypatch.setattr(elmo, "embed", embed)
    found = neighbours_of(elmo, iter(TEXT), [Use.of(query, "light") for query in queries], n=2)
    assert [[each[1:] for each in some] for some in found] == [[each[1:] for each in some] for some in expected]
    assert calls == [[query.split() for query in queries], [line.split() for line in TEXT if line]]


@pytest.mark.parametrize(
    ("query", "word", "layers", "message"),
    [
        ("a load", "light", "average", "word: expected a word of 'a load', found 'light'"),
        (
            "no load, sir",
            "load",
            "average",
            "word: expected a word of 'no load, sir', found 'load'; 'load,' is one word",
        ),
        ("a load", 2, "average", "word: expected 0 to 1, found 2"),
        ("", 0, "average", "query: expected a sentence with a word in it, found ''"),
        ("a load", "load", "all", "layers: expected a layer's number, 'top' or 'average', found 'all'"),
    ],
)
def test_what_is_wrong_is_said(elmo: ElmoEmbedder, query: str, word: Any, layers: Any, message: str) -> None:
    with pytest.raises(FlashElmoError, match=f"^{message}$"):
        find_neighbours(elmo, TEXT, query, word, layers=layers)


def test_an_embedder_that_carries_a_state_is_refused() -> None:
    """Its vectors of a sentence depend on what it embedded before."""
    stateful = ElmoEmbedder(MODELS[NAME], device="cpu", stateful=True)
    with pytest.raises(FlashElmoError, match=r"^stateful: expected an embedder that carries no state, .*, found True$"):
        find_neighbours(stateful, TEXT, "a light load", "light")


def test_what_is_no_embedder_is_refused() -> None:
    """Though it embeds: an exported file's layers are chosen when it is exported."""

    class Exported:
        def embed(self, sentences: Any, *, batch_size: int = 32) -> list[Any]:
            return []

    with pytest.raises(FlashElmoError, match=r"^elmo: expected an ElmoEmbedder, found <"):
        find_neighbours(Exported(), TEXT, "a light load", "light")  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["caf\xe9", "cafe\u0301"])
@pytest.mark.parametrize("asked", ["caf\xe9", "cafe\u0301"])
def test_accents_apart_from_their_letters_make_no_other_word(elmo: ElmoEmbedder, written: str, asked: str) -> None:
    """The vectors are those of what is written."""
    query = "a cafe\u0301 , a light"
    (found,) = find_neighbours(elmo, [f"the {written.capitalize()}", "the cafe"], query, asked, same_word=True)
    assert found.word == written.capitalize()
    vectors, others = (
        elmo.embed_sentence(query)[:, 1].mean(axis=0),
        elmo.embed_sentence(found.tokens)[:, 1].mean(axis=0),
    )
    np.testing.assert_allclose(
        found.similarity, vectors @ others / np.linalg.norm(vectors) / np.linalg.norm(others), rtol=1e-5
    )


@pytest.mark.parametrize("same_word", [True, False])
def test_a_token_that_is_no_text_is_told(elmo: ElmoEmbedder, same_word: bool) -> None:
    text: Any = [["the", "light"], ["a", 1]]
    with pytest.raises(FlashElmoError, match=r"^sentence \['a', 1\]: token 1: expected text, found 1$"):
        find_neighbours(elmo, text, "a light load", "light", same_word=same_word)


def test_no_cosine_is_beyond_one() -> None:
    """Of equal vectors, whose product is beyond it by a rounding."""
    elmo = ElmoEmbedder.load(device="cpu")
    words = " ".join({word for line in TEXT for word in line.split()})
    for word in words.split():
        (found,) = find_neighbours(elmo, [f"{words} ."], words, word, layers=0)
        assert 0.9999 < found.similarity <= 1


def test_the_command_prints_each_sentence_and_its_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_native(MODELS[NAME], tmp_path / "model")
    text = tmp_path / "text"
    text.write_text("\n".join(TEXT), encoding="utf-8")
    arguments = [
        "neighbours",
        str(text),
        "light",
        "a light load",
        "the light of day",
        "--model",
        str(tmp_path / "model"),
    ]
    assert main([*arguments, "--same-word", "-n", "2", "--device", "cpu", "--precision", "fp32", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "light in: a light load",
        "light in: the light of day",
    ]
    assert len(lines) == 6 and all("[light]" in line.lower() for line in lines if line.startswith(" "))
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(text.read_bytes(),))
    writing.start()
    assert main(["neighbours", str(tmp_path / "pipe"), *arguments[2:], "--same-word", "-n", "2"]) == 0
    writing.join()
    assert capsys.readouterr().out.splitlines() == lines
    assert main(["neighbours", os.devnull, *arguments[2:]]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "light in: a light load",
        "  none found",
        "light in: the light of day",
        "  none found",
    ]
    assert main([*arguments[:2], "dark", *arguments[3:]]) == 1
    assert capsys.readouterr().err == "flashelmo: word: expected a word of 'a light load', found 'dark'\n"
    assert main([*arguments[:4], "no such word", "--model", str(tmp_path / "model")]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "flashelmo: word: expected a word of 'no such word', found 'light'\n")


def test_the_command_reads_what_embed_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sacremoses", reason="the extra [bulk] is not installed")
    write_native(MODELS[NAME], tmp_path / "model")
    (tmp_path / "text.csv.gz").write_bytes(gzip.compress(b'id,title\n1,"The light, of day."\n'))
    arguments = ["neighbours", str(tmp_path / "text.csv.gz"), "light", "A light, load.", "--field", "title"]
    assert main([*arguments, "--model", str(tmp_path / "model"), "--tokenizer", "moses"]) == 0
    assert "The [light] , of day ." in capsys.readouterr().out
    assert main([*arguments, "--model", str(tmp_path / "model")]) == 1
    assert "found 'light'; 'light,' is one word" in capsys.readouterr().err


def test_words_are_in_utf8_whatever_the_locale_says(tmp_path: Path) -> None:
    write_native(MODELS[NAME], tmp_path / "model")
    (tmp_path / "text").write_text("un café noir\nun cafe noir\n", encoding="utf-8")
    command = [sys.executable, "-m", "flashelmo.cli", "neighbours", "text", "--same-word", "--model", "model"]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for arguments, out, err in (
        (["café".encode(), "le café".encode()], b"un [caf\\xe9] noir", b""),
        ([b"caf\xe9", b"le caf\xe9"], b"", b"word, SENTENCE: expected UTF-8, found 'caf\\udce9'"),
    ):
        done = subprocess.run([*command, *arguments], env=ascii_only, cwd=tmp_path, capture_output=True)
        assert out in done.stdout and err in done.stderr and done.returncode == bool(err)


def test_the_model_of_the_package_tells_senses_apart(root: Path) -> None:
    """And is what `load` takes where nothing is named, whatever lies in the folder."""
    elmo = ElmoEmbedder.load(device="cpu")
    folder = bundled()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 << 20
    assert elmo.config == preset_config("tiny") == ElmoEmbedder.load("tiny", device="cpu").config
    text = (root / "examples" / "speeches.txt").read_text(encoding="utf-8").splitlines()
    others = find_neighbours(elmo, text, "the rest of the world is watching", "rest", same_word=True)
    sleep = find_neighbours(elmo, text, "we must work now and rest later", "rest", same_word=True)
    assert [each.tokens[each.position + 1] for each in others] == ["of"] * 5
    assert "of" not in [each.tokens[each.position + 1] for each in sleep]
