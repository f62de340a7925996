"""Words to ids, against a plain function for one word written from the published description."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import MODELS

from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import Lexicon
from flashelmo.engine.text.characters import WordEncoder, batch_to_ids
from flashelmo.engine.text.spelling import Speller, Utf8Words, utf8

CHARACTERS = {"<oov>": 0, "<bow>": 1, "<eow>": 2, "<pad>": 3, "<bos>": 4, "<eos>": 5, "a": 6, "é": 7, "天": 8, "😀": 9}
WORDS = {"<oov>": 0, "<pad>": 1, "<bos>": 2, "<eos>": 3, "a": 4, "天天": 5, "\u3000": 6, "<bos": 7}
LEXICON = Lexicon(CHARACTERS, WORDS)
BILM = ElmoConfig("bilm", 8, 4, 2, 3.0, 3.0, True, ((1, 4),), 1, "relu", 4, 262, 50)
BILM_WORDS = replace(BILM, filters=(), character_size=0, n_highway=0, word_size=4, n_words=6)
MANYLANGS = replace(BILM, family="manylangs", n_characters=10, max_characters=7, word_size=3, n_words=8)

texts = (
    st.text(max_size=60) | st.text("aé天😀<bos>S/", max_size=60) | st.sampled_from(["<S>", "</S>", "<bos>", "<eos>"])
)
# Python strings may hold what UTF-8 cannot: lone surrogates
any_texts = st.text(st.characters(), max_size=20) | st.text(st.sampled_from("a\ud800\udc80é"), max_size=8) | texts


def slow_byte_ids(word: str, max_characters: int = 50) -> list[int]:
    if word in ("<S>", "</S>"):
        spelled = [259, 257 if word == "<S>" else 258, 260]
    else:
        spelled = [259, *(byte + 1 for byte in word.encode("utf-8", "ignore")[: max_characters - 2]), 260]
    return spelled + [261] * (max_characters - len(spelled))


def slow_cut(word: str, max_characters: int) -> str:
    return word if word in ("<bos>", "<eos>") else word[: max_characters - 2]


def slow_code_point_ids(word: str, max_characters: int) -> list[int]:
    word = slow_cut(word, max_characters)
    if word in ("<bos>", "<eos>"):
        spelled = [2, CHARACTERS[word], 1]
    else:
        spelled = [2, *(CHARACTERS.get(character, 0) for character in word), 1]
    return spelled + [3] * (max_characters - len(spelled))


@given(st.lists(any_texts, max_size=8))
def test_bytes(words: list[str]) -> None:
    ids = WordEncoder(BILM, None).character_ids(words)
    assert ids is not None and ids.dtype == np.int32 and ids.shape == (len(words), 50)
    assert ids.tolist() == [slow_byte_ids(word) for word in words]


@given(st.lists(any_texts, max_size=8), st.integers(3, 9))
def test_code_points(words: list[str], max_characters: int) -> None:
    encoder = WordEncoder(replace(MANYLANGS, max_characters=max_characters), LEXICON)
    characters, rows = encoder.character_ids(words), encoder.word_ids(words)
    assert characters is not None and characters.dtype == np.int32 and characters.shape == (len(words), max_characters)
    assert characters.tolist() == [slow_code_point_ids(word, max_characters) for word in words]
    assert rows is not None and rows.dtype == np.int64
    assert rows.tolist() == [WORDS.get(slow_cut(word, max_characters), 0) for word in words]


@given(st.lists(texts, min_size=1, max_size=8), st.integers(0, 3), st.data())
def test_arrow_arrays_and_slices(words: list[str], start: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string()]))
    array = pa.array(["before", *words, "after"], kind).slice(1, len(words)).slice(start)
    for encoder in (WordEncoder(BILM, None), WordEncoder(MANYLANGS, LEXICON)):
        np.testing.assert_array_equal(encoder.character_ids(array), encoder.character_ids(words[start:]))
    np.testing.assert_array_equal(encoder.word_ids(array), encoder.word_ids(words[start:]))


@given(st.lists(any_texts | st.text("cath<>beo/S", max_size=14), max_size=8))
def test_arrow_and_plain_python_give_the_same_ids(words: list[str]) -> None:
    for model in MODELS.values():
        encoder, speller = WordEncoder(model.config, model.lexicon), Speller(model.config, model.lexicon)
        plain = Utf8Words.from_python(words, speller.surrogates)
        arrow_ids = [encoder.character_ids(words), encoder.word_ids(words)]
        plain_ids = [speller.spell(plain), speller.look_up(plain)]
        assert any(ids is not None for ids in plain_ids)
        for a, b in zip(arrow_ids, plain_ids, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


@given(st.lists(texts, max_size=8), texts)
def test_rows_of_a_word(words: list[str], wanted: str) -> None:
    words = [*words, wanted, wanted[1:], wanted]
    found = Utf8Words.from_python(words, "strict").rows_of(wanted)
    assert found.tolist() == [row for row, word in enumerate(words) if word == wanted]


@given(st.lists(texts, max_size=8))
def test_lengths_are_positions_through_the_end_of_word(words: list[str]) -> None:
    encoder = WordEncoder(BILM, None)
    expected = [slow_byte_ids(word).index(260) + 1 for word in words]
    ids = encoder.character_ids(words)
    assert ids is not None and encoder.lengths(ids).tolist() == expected
    encoder = WordEncoder(MANYLANGS, LEXICON)
    ids = encoder.character_ids(words)
    assert ids is not None
    assert encoder.lengths(ids).tolist() == [slow_code_point_ids(word, 7).index(1) + 1 for word in words]


def test_published_ids_of_a_word() -> None:
    # bilm-tf's and AllenNLP's ids after their + 1: bytes 1-256, then <S> </S> begin end padding
    ids = WordEncoder(BILM, None).character_ids(["dog", "<S>", "</S>", "", "x" * 60])
    assert ids is not None
    assert ids[0, :6].tolist() == [259, 101, 112, 104, 260, 261]
    assert ids[1, :4].tolist() == [259, 257, 260, 261]
    assert ids[2, :4].tolist() == [259, 258, 260, 261]
    assert ids[3, :3].tolist() == [259, 260, 261]
    assert ids[4].tolist() == [259] + [121] * 48 + [260]


def test_a_long_word_is_cut_within_a_code_point() -> None:
    ids = WordEncoder(BILM, None).character_ids(["a" + "é" * 30])
    assert ids is not None
    assert ids[0, -3:].tolist() == [0xA9 + 1, 0xC3 + 1, 260]


def test_begin_and_end_of_word_are_swapped_in_manylangs() -> None:
    ids = WordEncoder(MANYLANGS, LEXICON).character_ids(["a天b"])
    assert ids is not None
    assert ids.tolist() == [[2, 6, 8, 0, 1, 3, 3]]


def test_a_word_cut_down_to_a_boundary_means_the_boundary() -> None:
    encoder = WordEncoder(MANYLANGS, LEXICON)
    ids, rows = encoder.character_ids(["<bos>天"]), encoder.word_ids(["<bos>天"])
    assert ids is not None and ids.tolist() == [[2, 4, 1, 3, 3, 3, 3]]
    assert rows is not None and rows.tolist() == [2]


def test_vocabulary_of_a_word_model() -> None:
    rows = {"<S>": 1, "</S>": 2, "<UNK>": 3, "the": 4, "cat": 5}  # a token's line in the vocabulary + 1
    encoder = WordEncoder(BILM_WORDS, Lexicon({}, rows))
    assert encoder.character_ids(["the"]) is None
    ids = encoder.word_ids([*encoder.boundary_words, "cat", "dog", "the", "Cat", "\ud800cat", "x" * 100])
    assert ids is not None and ids.tolist() == [1, 2, 5, 3, 4, 3, 5, 3]


def test_models_without_words_or_characters() -> None:
    assert WordEncoder(BILM, None).word_ids(["a"]) is None
    assert WordEncoder(replace(MANYLANGS, word_size=0, n_words=0), Lexicon(CHARACTERS, {})).word_ids(["a"]) is None
    words_only = replace(MANYLANGS, filters=(), character_size=0, n_highway=0)
    encoder = WordEncoder(words_only, Lexicon({}, WORDS))
    assert encoder.character_ids(["a"]) is None
    ids = encoder.word_ids(["a", "<bosom>", "天天"])  # cut to 5 code points, which are no word
    assert ids is not None and ids.tolist() == [4, 0, 5]


def test_no_words() -> None:
    encoder = WordEncoder(MANYLANGS, LEXICON)
    ids, rows = encoder.character_ids([]), encoder.word_ids([])
    assert ids is not None and ids.shape == (0, 7) and encoder.lengths(ids).shape == (0,)
    assert rows is not None and rows.shape == (0,)


@pytest.mark.parametrize("lacking", ["<oov>", "<bos>", "<eos>"])
def test_a_word_lexicon_lacks_a_token(lacking: str) -> None:
    words = {word: row for word, row in WORDS.items() if word != lacking}
    with pytest.raises(FlashElmoError, match=f"word lexicon: expected the token {lacking}"):
        WordEncoder(MANYLANGS, Lexicon(CHARACTERS, words))


def test_bad_lexicons_and_words() -> None:
    with pytest.raises(FlashElmoError, match=r"char\.dic: expected the entry <pad>"):
        WordEncoder(MANYLANGS, Lexicon({"<bos>": 0, "<eos>": 1, "<bow>": 2, "<eow>": 3}, WORDS))
    with pytest.raises(FlashElmoError, match="found none"):
        WordEncoder(MANYLANGS, None)
    with pytest.raises(FlashElmoError, match="word 1: expected text, found nothing"):
        WordEncoder(BILM, None).character_ids(["a", None])
    with pytest.raises(FlashElmoError, match="expected a list of texts"):
        WordEncoder(BILM, None).character_ids(["a", 7])
    with pytest.raises(FlashElmoError, match="word 1: expected text, found nothing"):
        WordEncoder(BILM, None).character_ids(["\ud800", None])
    bad: list[tuple[Any, str]] = [(None, "nothing"), (7, "7"), (b"a", "b'a'")]
    for word, found in bad:
        with pytest.raises(FlashElmoError, match=f"word 2: expected text, found {found}"):
            utf8(["a", "", word], "ignore")


def test_batch_to_ids() -> None:
    torch = pytest.importorskip("torch")
    batch = [["First", "sentence", "."], ["Another", "<S>"], [], ["ü" * 40]]
    ids = batch_to_ids(batch)
    assert ids.dtype == torch.int64 and ids.shape == (4, 3, 50)
    for row, sentence in zip(ids.tolist(), batch, strict=True):
        assert row == [slow_byte_ids(word) for word in sentence] + [[0] * 50] * (3 - len(sentence))
    assert batch_to_ids([[]]).shape == (1, 0, 50)
    assert batch_to_ids([]).shape == (0, 0, 50)


def test_batch_to_ids_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"flashelmo\[torch\]"):
        batch_to_ids([["a"]])
