"""OnnxElmo: a toy of an exported file shows what is fed and what is given back, exported models show the vectors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx_toy import METADATA, SIZE, spread, sums, toy_model
from tiny_models import MANYLANGS, MANYLANGS_LEXICON, MODELS, SENTENCES, WORD_MODEL, WORDS

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import tolerance
from flashelmo.export.build import build_onnx
from flashelmo.export.metadata import STATES
from flashelmo.export.onnx_elmo import OnnxElmo


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("toy") / "onnx" / "model.onnx")


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_sentences_are_given_back_in_order_and_without_padding(toy: Path, batch_size: int) -> None:
    elmo = OnnxElmo(toy)
    found = elmo.embed([*SENTENCES, "the cat\tsat"], batch_size=batch_size)
    assert (elmo.layers, elmo.output_size, elmo.metadata) == ((0, 2), SIZE, METADATA)
    assert len(found) == len(SENTENCES) + 1
    for vectors, sentence in zip(found, [*SENTENCES, SENTENCES[0]], strict=True):
        np.testing.assert_array_equal(vectors, [spread(sums(sentence), 1), spread(sums(sentence), 3)])
        assert vectors.base is None
    assert elmo.embed([]) == []
    assert elmo.embed([[]])[0].shape == (2, 0, SIZE)


def test_the_folder_means_its_fp32_file(toy: Path) -> None:
    found = OnnxElmo(toy.parent.parent, providers="cpu", threads=1).embed(["a"])
    np.testing.assert_array_equal(found[0][0], spread(sums(["a"]), 1))


def test_encode(toy: Path) -> None:
    elmo = OnnxElmo(toy)
    expected = np.concatenate([spread([sum(sums(sentence))], 100) for sentence in SENTENCES])
    np.testing.assert_array_equal(elmo.encode(SENTENCES, 2), expected)
    np.testing.assert_array_equal(elmo.encode("the cat sat"), expected[0])
    unit = (expected > 0) * SIZE**-0.5
    np.testing.assert_allclose(elmo.encode(SENTENCES, normalize_embeddings=True), unit, rtol=1e-6)
    tokens = elmo.encode(SENTENCES, output_value="token_embeddings")
    for vectors, sentence in zip(tokens, SENTENCES, strict=True):
        np.testing.assert_array_equal(vectors, spread(sums(sentence), 10))
        assert vectors.base is None
    np.testing.assert_array_equal(elmo.encode("the cat sat", output_value="token_embeddings"), tokens[0])
    nothing = elmo.encode([])
    assert nothing.shape == (0, SIZE) and nothing.dtype == np.float32
    with pytest.raises(FlashElmoError, match=r"output_value: expected .* found 'tokens'"):
        elmo.encode("a", output_value="tokens")  # type: ignore[arg-type]


def test_run(toy: Path) -> None:
    elmo = OnnxElmo(toy)
    inputs = elmo.inputs(SENTENCES)
    assert list(inputs) == ["character_ids"] and inputs["character_ids"].shape == (5, 6, 12)
    outputs = elmo.run(**inputs)
    assert set(outputs) == {"mask", "hidden_states.0", "hidden_states.2", "token_embeddings", "sentence_embedding"}
    np.testing.assert_array_equal(outputs["mask"], [[k < len(sentence) for k in range(6)] for sentence in SENTENCES])
    np.testing.assert_array_equal(
        outputs["hidden_states.2"], inputs["character_ids"].sum(-1)[..., None] * 3 * np.ones(SIZE)
    )
    few = elmo.run(outputs=["mask"], on_device=True, character_ids=inputs["character_ids"].astype(np.uint16).tolist())
    assert list(few) == ["mask"] and isinstance(few["mask"], onnxruntime.OrtValue)
    np.testing.assert_array_equal(few["mask"].numpy(), outputs["mask"])
    strided = np.repeat(inputs["character_ids"], 2, axis=0)[::2].astype(">i4")
    np.testing.assert_array_equal(
        elmo.run(character_ids=strided, word_ids=None)["token_embeddings"], outputs["token_embeddings"]
    )
    assert list(elmo.run(outputs=["mask", "mask"], **inputs)) == ["mask"]
    for wrong, found in ((["mask", "hidden_states.1"], r"hidden_states\.1"), ([], "none")):
        with pytest.raises(FlashElmoError, match=rf"expected outputs of .*token_embeddings.*, found {found}"):
            elmo.run(outputs=wrong, **inputs)


def test_a_free_axis_is_as_long_as_the_longest_word(tmp_path: Path) -> None:
    elmo = OnnxElmo(toy_model(tmp_path / "model.onnx", replace(METADATA, characters=None)))
    assert elmo.inputs(["the cat", "a"])["character_ids"].tolist() == [
        [[259, 117, 105, 102, 260], [259, 100, 98, 117, 260]],
        [[259, 98, 260, 261, 261], [0, 0, 0, 0, 0]],
    ]
    assert elmo.inputs([[], []])["character_ids"].tolist() == [[[0]], [[0]]]
    assert elmo.embed(["the", "a"])[1][0, 0, 0] == 259 + 98 + 260 + 2 * 261


def test_words_and_their_absence(tmp_path: Path) -> None:
    for config, lexicon, expected in (
        (WORD_MODEL, WORDS, [[4, 3, 0], [0, 0, 0], [5, 4, 6]]),
        (MANYLANGS, MANYLANGS_LEXICON, [[5, 0, -1], [-1, -1, -1], [4, 5, 0]]),
    ):
        metadata = replace(METADATA, config=config, lexicon=lexicon, characters=None)
        elmo = OnnxElmo(toy_model(tmp_path / "model.onnx", metadata))
        inputs = elmo.inputs(["the dog", "", "cat the sat"])
        assert inputs["word_ids"].tolist() == expected
        assert ("character_ids" in inputs) == (config is MANYLANGS)
        total = sum(inputs.values()) if config is WORD_MODEL else inputs["word_ids"] + inputs["character_ids"].sum(-1)
        np.testing.assert_array_equal(elmo.run(**inputs)["hidden_states.0"][..., 0], total)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_states_are_carried_by_row(tmp_path: Path, precision: Any) -> None:
    elmo = OnnxElmo(toy_model(tmp_path / "model.onnx", replace(METADATA, stateful=True, precision=precision)))
    words = [["a"], [], ["b", "c"], ["d"], ["é"], ["f"], ["g"]]
    # rows of the batches: three, then three of which the first continues the first, then one
    state = [0, 0, 0]
    expected = []
    for k, sentence in enumerate(words):
        expected.append([total + state[k % 3] for total in sums(sentence)])
        state[k % 3] += sum(sums(sentence))
    rtol = tolerance("fp16", "onnx") if precision == "fp16" else 0
    for _ in range(2):
        found = elmo.embed(words, batch_size=3)
        assert found[0].dtype == (np.float16 if precision == "fp16" else np.float32)
        for vectors, values in zip(found, expected, strict=True):
            np.testing.assert_allclose(vectors[0], spread(values, 1), rtol=rtol)
        elmo.reset_state()
    first = elmo.encode(["a"], output_value="token_embeddings")[0]
    second = elmo.encode(["a", "a"], output_value="token_embeddings")
    np.testing.assert_array_equal(second[0] - sums(["a"])[0], first)
    np.testing.assert_array_equal(second[1], first)


def test_run_leaves_the_state_to_its_caller(tmp_path: Path) -> None:
    elmo = OnnxElmo(toy_model(tmp_path / "model.onnx", replace(METADATA, stateful=True)))
    inputs = elmo.inputs(["a", "b c"])
    outputs = elmo.run(**inputs)
    np.testing.assert_array_equal(outputs["new_state.hidden"][:, 1], np.full((4, 4), sum(sums(["b", "c"]))))
    np.testing.assert_array_equal(outputs["new_state.cell"], np.ones((4, 2, 6)))
    states: dict[str, Any] = {name: outputs[new].astype(np.float64) for name, new in STATES.items()}
    again = elmo.run(**inputs, **states)
    np.testing.assert_array_equal(again["new_state.hidden"], 2 * outputs["new_state.hidden"])
    np.testing.assert_array_equal(elmo.run(**inputs)["new_state.cell"], outputs["new_state.cell"])
    for wrong, found in ((np.zeros((4, 1, 4)), r"float64 \[4, 1, 4\]"), (np.zeros((4, 2, 4), int), "int64")):
        states["state.hidden"] = wrong
        with pytest.raises(FlashElmoError, match=rf"state\.hidden: expected floats \[4, 2, 4\], found {found}"):
            elmo.run(**inputs, **states)


def ids(value: int = 5, *, batch: int = 2, length: int = 3, characters: int = 12) -> npt.NDArray[np.int64]:
    return np.full((batch, length, characters), value)


def with_hole() -> npt.NDArray[np.int64]:
    holed = ids()
    holed[1, 1] = 0
    return holed


CHARACTERS = ids()
WORD_IDS = np.ones((2, 3), int)
WRONG = [
    ({}, "character_ids: this file needs them, found none"),
    ({"character_ids": CHARACTERS}, "word_ids: this file needs them, found none"),
    ({"input_ids": CHARACTERS}, "inputs: expected character_ids, word_ids, found input_ids"),
    ({"character_ids": CHARACTERS.astype(float)}, "character_ids: expected integers, found float64"),
    ({"character_ids": CHARACTERS > 0}, "character_ids: expected integers, found bool"),
    ({"character_ids": CHARACTERS[0]}, r"expected \[batch_size, sequence_length, characters\], found \[3, 12\]"),
    ({"character_ids": ids(batch=0)}, "word_ids: this file needs them, found none"),
    ({"character_ids": ids(batch=0), "word_ids": WORD_IDS}, r"word_ids: expected \[0, 3\] as in character_ids, found"),
    ({"character_ids": ids(characters=11)}, "character_ids: expected 12 characters on the last axis, found 11"),
    ({"character_ids": [[[1], [1, 2]]]}, "character_ids: expected an array: "),
    ({"character_ids": ids(9)}, "character_ids: expected ids from 0 to 8, found 9 to 9"),
    ({"character_ids": ids(-1)}, "character_ids: expected ids from 0 to 8, found -1 to -1"),
    ({"character_ids": ids().astype(np.uint64) + 2**63}, "character_ids: expected ids from 0 to 8, found 9223"),
    ({"character_ids": with_hole(), "word_ids": WORD_IDS}, "padding on the right .* otherwise in sentence 1 of"),
    ({"character_ids": CHARACTERS, "word_ids": WORD_IDS[0]}, r"word_ids: expected \[batch_size, sequence_length\], "),
    (
        {"character_ids": CHARACTERS, "word_ids": WORD_IDS[:, 1:]},
        r"expected \[2, 3\] as in character_ids, found \[2, 2\]",
    ),
    ({"character_ids": CHARACTERS, "word_ids": WORD_IDS + 5}, "word_ids: expected ids from -1 to 5, found 6 to 6"),
    ({"character_ids": CHARACTERS, "word_ids": WORD_IDS - 3}, "word_ids: expected ids from -1 to 5, found -2 to -2"),
    ({"character_ids": CHARACTERS, "word_ids": WORD_IDS - 2}, "no id below 0 where there is a token, .* sentence 0"),
    ({"character_ids": CHARACTERS, "word_ids": WORD_IDS, "state.cell": 0}, "inputs: expected .* found state.cell"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> OnnxElmo:
    metadata = replace(METADATA, config=MANYLANGS, lexicon=MANYLANGS_LEXICON)
    return OnnxElmo(toy_model(tmp_path_factory.mktemp("both") / "model.onnx", metadata))


@pytest.mark.parametrize(("inputs", "message"), WRONG)
def test_what_the_file_does_not_take(
    both: OnnxElmo, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(both, "_run", None)  # nothing of it may reach the graph
    with pytest.raises(FlashElmoError, match=message) as caught:
        both.run(**inputs)
    assert "\n" not in str(caught.value)


def test_right_inputs_pass_the_same_checks(both: OnnxElmo) -> None:
    characters, words = ids(length=2), np.ones((2, 2), np.int8)
    characters[1, 1], words[1, 1] = 0, -1
    found = both.run(character_ids=characters, word_ids=words)["hidden_states.0"]
    np.testing.assert_array_equal(found[..., 0], [[61, 61], [61, -1]])


def test_padding_of_a_word_model_stands_on_the_right(tmp_path: Path) -> None:
    elmo = OnnxElmo(
        toy_model(tmp_path / "model.onnx", replace(METADATA, config=WORD_MODEL, lexicon=WORDS, characters=None))
    )
    with pytest.raises(FlashElmoError, match="padding on the right of a sentence alone, found otherwise in sentence 1"):
        elmo.run(word_ids=[[1, 0], [0, 1]])
    with pytest.raises(FlashElmoError, match="word_ids: expected ids from 0 to 6, found -1 to 1"):
        elmo.run(word_ids=[[1, -1]])


def test_sentences_that_are_none(toy: Path) -> None:
    elmo = OnnxElmo(toy)
    wrong: list[tuple[Any, str]] = [
        ("the cat", "sentences: expected several, found one text"),
        ({"the cat": 1}, "sentences: expected a list, found a dict"),
        ([["a"], 7], "sentence 1: expected text or a list of tokens, found 7"),
        ([["a", None]], "word 1: expected text, found nothing"),
    ]
    for sentences, message in wrong:
        with pytest.raises(FlashElmoError, match=message):
            elmo.embed(sentences)
    with pytest.raises(FlashElmoError, match="batch_size: expected 1 or more, found 0"):
        elmo.embed(["a"], batch_size=0)


def test_threads_may_share_one(tmp_path: Path) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    assert {"Scan", "Unique"} <= {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    elmo = OnnxElmo(tmp_path / "model.onnx", threads=1)
    texts = [[f"w{k}" * (1 + (k + i) % 3) for k in range(1 + i % 7)] for i in range(40)]
    sizes = [1, 2, 3, 5, 7, 11, 13, 40]
    alone = [elmo.embed(texts, batch_size=size) for size in sizes]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda size: elmo.embed(texts, batch_size=size), sizes * 3))
    for found, expected in zip(together, alone * 3, strict=True):
        for a, b, c in zip(found, expected, alone[0], strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, rtol=0, atol=tolerance("fp32", "onnx"))
    assert min(np.abs(a).max() for a in alone[0]) > 0.1


# Words of every kind: cut, empty, boundaries, unknown, several bytes a character.
TEXT = [*SENTENCES, ["<S>", "the", "</S>"], ["<bos>", "", "<eos>"], ["incomprehensibilities" * 3], ["天", "😀é", "cat"]]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("characters", [None, "dynamic"])
def test_exported_models(name: str, characters: str | None, tmp_path: Path) -> None:
    model = MODELS[name]
    n_layers = model.config.n_layers + 1
    mix = [0.5, -0.25, 1.0, 0.75][:n_layers]
    build_onnx(model, tmp_path / "model.onnx", characters=characters, mix=mix, layers=[0, n_layers - 1])
    elmo, engine = OnnxElmo(tmp_path / "model.onnx"), ElmoEmbedder(model, runtime="ort", precision="fp32")
    for batch_size in (1, 4, 32):
        for a, b in zip(elmo.embed(TEXT, batch_size=batch_size), engine.embed(TEXT), strict=True):
            np.testing.assert_allclose(a, b[[0, -1]], rtol=0, atol=tolerance("fp32", "onnx"))
    expected = engine.encode(TEXT, mix=mix)
    np.testing.assert_allclose(elmo.encode(TEXT, 4), expected, rtol=0, atol=tolerance("fp32", "onnx"))
    tokens = engine.encode(TEXT, output_value="token_embeddings", mix=mix)
    for a, b in zip(elmo.encode(TEXT, 4, output_value="token_embeddings"), tokens, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance("fp32", "onnx"))
    assert np.abs(expected).max() > 0.1


def test_lone_surrogates_are_left_out_as_the_engine_does(tmp_path: Path) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    text = [["c\ud800at", "\udc80"], ["cat", ""]]
    found = OnnxElmo(tmp_path / "model.onnx").embed(text)
    np.testing.assert_array_equal(found[0], found[1])
    for a, b in zip(found, ElmoEmbedder(MODELS["skip"], runtime="ort").embed(text), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance("fp32", "onnx"))


@pytest.mark.parametrize("name", ["skip", "no projection", "words alone", "manylangs"])
def test_stateful_models(name: str, tmp_path: Path) -> None:
    build_onnx(MODELS[name], tmp_path / "model.onnx", stateful=True)
    elmo = OnnxElmo(tmp_path / "model.onnx")
    engine = ElmoEmbedder(MODELS[name], runtime="ort", precision="fp32", stateful=True, batch_size=4)
    first, second = ([*engine.embed(TEXT)], [*engine.embed(TEXT)])
    for expected in (first, second):
        for a, b in zip(elmo.embed(TEXT, batch_size=4), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance("fp32", "onnx"))
    assert np.abs(first[0][1:] - second[0][1:]).max() > 1e-3
    elmo.reset_state()
    np.testing.assert_allclose(elmo.embed(TEXT, batch_size=4)[5], first[5], rtol=0, atol=tolerance("fp32", "onnx"))


@pytest.mark.parametrize("stateful", [False, True])
def test_an_fp16_model(stateful: bool, tmp_path: Path) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx", precision="fp16", stateful=stateful)
    elmo = OnnxElmo(tmp_path / "model.onnx")
    engine = ElmoEmbedder(MODELS["skip"], runtime="ort", precision="fp32", stateful=stateful, batch_size=3)
    found, expected = elmo.embed(TEXT, batch_size=3), list(engine.embed(TEXT))
    assert {vectors.dtype.name for vectors in found} == {"float16"}
    a, b = (np.concatenate(vectors, axis=1).astype(np.float64) for vectors in (found, expected))
    for layer in range(3):
        assert np.linalg.norm(a[layer] - b[layer]) < 2 * tolerance("fp16", "onnx") * np.linalg.norm(b[layer])


@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_small_vectors_of_fp16_are_normalized(output_value: Any, tmp_path: Path) -> None:
    mix = [1e-4, 1e-4, 1e-4]  # the vectors' squares are zero in float16
    build_onnx(MODELS["skip"], tmp_path / "model.onnx", precision="fp16", mix=mix)
    sentences = [sentence for sentence in TEXT if sentence]
    options = {"output_value": output_value, "normalize_embeddings": True}
    elmo, engine = OnnxElmo(tmp_path / "model.onnx"), ElmoEmbedder(MODELS["skip"], runtime="ort", precision="fp32")
    found = np.vstack(elmo.encode(sentences, **options))
    expected = np.vstack(engine.encode(sentences, mix=[1, 1, 1], **options))
    assert found.dtype == np.float16
    np.testing.assert_allclose(
        np.linalg.norm(found.astype(np.float32), axis=1), 1, rtol=0, atol=tolerance("fp16", "onnx")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)  # few bits are left of values so small
    assert not elmo.encode([[]], normalize_embeddings=True).any()
