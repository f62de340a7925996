"""flashelmo inside other tools, with the real ones where they are installed: `make test-integrations`."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo import ElmoEmbedder, FlashElmoError
from flashelmo.engine.arrays import Array
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.initialize import random_model
from flashelmo.engine.settings import CudaSettings
from flashelmo.integrations.batches import EmbedBatch
from flashelmo.integrations.texts import TextEmbedder

TEXTS = ["the cat sat", "cat", "", "sat the mat on", "the the the"]
quiet = pytest.mark.filterwarnings("ignore")  # what others warn of is theirs


@pytest.fixture(scope="module")
def elmo(model: Path) -> ElmoEmbedder:
    return ElmoEmbedder.load(model, precision="fp32")


@pytest.fixture(scope="module")
def means(elmo: ElmoEmbedder) -> Array:
    """The mean vector of each text [5, 8]."""
    return np.stack(list(elmo.embed(TEXTS, layers="average", pool="mean")))


class Table(list[str]):
    """Iterated over, it gives the names of its columns, as pandas' do."""

    columns = ("text",)


# ------------------------------------------------------------------------------------------- what all are built on


def test_texts(model: Path, elmo: ElmoEmbedder, means: Array) -> None:
    texts = TextEmbedder(model, precision="fp32")
    np.testing.assert_array_equal(texts.matrix(TEXTS), means)
    np.testing.assert_array_equal(texts.matrix([text.split() for text in TEXTS]), means)
    assert texts.matrix([]).shape == (0, 8) and texts.size == 8
    assert texts.embedder is TextEmbedder(model, precision="fp32").embedder, "a process loads a model once"
    assert TextEmbedder(elmo).embedder is elmo
    with_settings, again = (TextEmbedder(model, precision="fp32", cuda=CudaSettings()) for _ in range(2))
    assert with_settings.embedder is again.embedder is not texts.embedder, "of whose options JSON knows nothing"
    for wrong in ("a b", {"a": 1}, {"a"}, Table(["the cat"])):
        with pytest.raises(FlashElmoError, match="texts: expected "):
            texts.matrix(wrong)  # type: ignore[arg-type]
    with pytest.raises(FlashElmoError, match="pool: expected mean or max, as there is one vector for a text"):
        TextEmbedder(model, pool=None).matrix(TEXTS)
    joined = TextEmbedder(model, layers="all", pool=None)
    layers = elmo.embed_sentence(TEXTS[0])
    np.testing.assert_array_equal(joined(TEXTS[:1])[0], np.concatenate(list(layers), axis=-1))
    assert joined.size == 24 and TextEmbedder(model, layers=(0, 2)).size == 16
    mixed = TextEmbedder(model, mix=[1, 0, 2], pool="max")
    np.testing.assert_array_equal(mixed.matrix(TEXTS), np.stack(list(elmo.embed(TEXTS, mix=[1, 0, 2], pool="max"))))
    for option, said in (
        ("stateful", "an embedder that carries no state"),
        ("keep_sentence_boundaries", "one vector a token"),
    ):
        options: dict[str, Any] = {option: True}
        with pytest.raises(FlashElmoError, match=f"^{option}: expected {said}"):
            TextEmbedder(model, **options).check_rows()
        with pytest.raises(FlashElmoError, match=f"^{option}: expected {said}"):
            TextEmbedder(ElmoEmbedder.load(model, **options)).check_rows()
    moses = TextEmbedder(model, tokenizer="moses", pool=None)
    assert [len(each) for each in moses(["the cat, sat.", ["the cat"], "two\nlines"])] == [5, 1, 2]


@pytest.mark.parametrize("options", [{"layers": "top"}, {"model": "x"}, 7, ["precision"]])
def test_options_are_those_of_the_embedder(options: Any, model: Path) -> None:
    assert TextEmbedder.of(model, None).options == {}
    assert TextEmbedder.of(model, {"threads": 1}, layers="top").options == {"threads": 1}
    with pytest.raises(FlashElmoError, match=r"^options: expected those of ElmoEmbedder\.load"):
        TextEmbedder.of(model, options, layers="average")


def test_texts_are_pickled_as_their_arguments(model: Path, means: Array) -> None:
    texts = TextEmbedder(model, precision="fp32")
    before = pickle.dumps(texts)
    texts.matrix(TEXTS)
    assert pickle.dumps(texts) == before and len(before) < 1000
    np.testing.assert_array_equal(pickle.loads(before).matrix(TEXTS), means)
    with pytest.raises(FlashElmoError, match="embedder of a model in memory"):
        pickle.dumps(TextEmbedder(ElmoEmbedder(MODELS["skip"])))


def test_batches(model: Path, means: Array) -> None:
    batch = {"id": [3, 4], "text": TEXTS[:2]}
    found = EmbedBatch(model, precision="fp32")(batch)
    assert list(found) == ["id", "text", "embedding"]
    np.testing.assert_array_equal(found["embedding"], means[:2])
    with pytest.raises(FlashElmoError, match=r"^column: expected 'body', found id, text$"):
        EmbedBatch(model, "body")(batch)
    rows: Any = [batch]
    with pytest.raises(FlashElmoError, match=r"^batch: expected columns by name, .* found list$"):
        EmbedBatch(model)(rows)


@pytest.mark.parametrize("name", ["sklearn", "sentence_transformers", "spacy", "flair", "langchain"])
def test_a_package_that_is_absent_is_named(name: str) -> None:
    package = {"langchain": "langchain_core"}.get(name, name)
    code = f"import sys; sys.modules[{package!r}] = None\nimport flashelmo.integrations.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"pip install 'flashelmo[{name.replace('_', '-')}]'" in done.stderr.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------- scikit-learn


@quiet
def test_scikit_learn(model: Path, means: Array) -> None:
    sklearn = pytest.importorskip("sklearn")
    from flashelmo.integrations.sklearn import ElmoTransformer

    step = ElmoTransformer(str(model), options={"precision": "fp32"})
    np.testing.assert_array_equal(step.fit(TEXTS).transform(TEXTS), means)
    np.testing.assert_array_equal(step.fit_transform(np.array(TEXTS)), means)
    assert step.get_feature_names_out().tolist() == [f"elmo{number}" for number in range(8)]
    again = sklearn.clone(step).set_params(pool="max", layers="all")
    assert again.transform(TEXTS).shape == (5, 24) and step.get_params()["pool"] == "mean"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(step)).transform(TEXTS), means)
    wrong: list[tuple[str, Any]] = [("pool", "sum"), ("pool", None), ("tokenizer", "x"), ("mix", [1]), ("layers", 9)]
    for name, value in wrong:
        with pytest.raises(FlashElmoError, match=f"^{name}: expected "):
            ElmoTransformer(str(model), **{name: value}).fit(TEXTS)


@quiet
def test_scikit_learn_pipelines_cross_validate(model: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline

    from flashelmo.integrations.sklearn import ElmoTransformer

    texts = [" ".join([word] * (1 + number % 3)) for number in range(12) for word in ("cat", "sat")]
    labels = ["cat", "sat"] * 12
    pipeline = make_pipeline(ElmoTransformer(str(model), layers=0), LogisticRegression(C=100, max_iter=1000))
    assert cross_val_score(pipeline, texts, labels, cv=3, n_jobs=2).min() == 1.0
    search = GridSearchCV(pipeline, {"elmotransformer__layers": [0, "average"]}, cv=2).fit(texts, labels)
    assert search.predict(["cat", "sat sat"]).tolist() == ["cat", "sat"]


# ------------------------------------------------------------------------------------------- sentence-transformers


@quiet
def test_sentence_transformers(model: Path, means: Array, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from flashelmo.integrations.sentence_transformers import Elmo

    elmo = Elmo(model, options={"precision": "fp32"})
    whole = SentenceTransformer(modules=[elmo, Pooling(elmo.get_embedding_dimension())], device="cpu")
    np.testing.assert_allclose(whole.encode(TEXTS, batch_size=2), means, atol=1e-6)
    assert whole.get_embedding_dimension() == 8
    tokens = whole.encode(TEXTS[:2], output_value="token_embeddings")
    assert [tuple(each.shape) for each in tokens] == [(3, 8), (1, 8)]
    whole.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode(TEXTS), means, atol=1e-6)
    bounded = SentenceTransformer(modules=[Elmo(model, options={"keep_sentence_boundaries": True})], device="cpu")
    bounded.save(str(tmp_path / "bounded"))
    again = SentenceTransformer(str(tmp_path / "bounded"), device="cpu", trust_remote_code=True)
    assert again({"texts": ["cat"]})["token_embeddings"].shape == (1, 3, 8)
    with pytest.raises(FlashElmoError, match="sentence 0: expected text or a list of tokens, found 7"):
        whole.encode([7])
    similar = whole.similarity(whole.encode(["the cat"]), whole.encode(["the cat", "sat"]))[0]
    assert similar[0] > 0.999 > similar[1]


# ----------------------------------------------------------------------------------------------------------- spaCy


@quiet
def test_spacy(model: Path, elmo: ElmoEmbedder) -> None:
    spacy = pytest.importorskip("spacy")
    import flashelmo.integrations.spacy

    assert flashelmo.integrations.spacy.NAME == "flashelmo"
    nlp = spacy.blank("en")
    nlp.add_pipe("flashelmo", config={"model": str(model), "options": {"precision": "fp32"}})
    doc = nlp("The cat, sat.")
    (expected,) = elmo.embed([["The", "cat", ",", "sat", "."]], layers="average")
    np.testing.assert_array_equal(doc.tensor, expected)
    np.testing.assert_array_equal(doc[1].vector, expected[1])
    np.testing.assert_allclose(doc[1:3].vector, expected[1:3].mean(axis=0))
    np.testing.assert_allclose(doc.vector, expected.mean(axis=0))
    assert doc.has_vector and doc[0].has_vector and np.isclose(doc[0].vector_norm, np.linalg.norm(expected[0]))
    cosine = expected[0] @ expected[1] / np.linalg.norm(expected[0]) / np.linalg.norm(expected[1])
    assert np.isclose(doc[0].similarity(doc[1]), cosine) and np.isclose(doc.similarity(nlp("The cat, sat.")), 1)
    assert np.isclose(doc[:1].similarity(doc[1]), cosine) and np.isclose(doc[:1].similarity(doc[1:2]), cosine)
    assert np.isclose(doc[:1].vector_norm, doc[0].vector_norm) and np.isclose(doc.similarity(doc[:]), 1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(doc))[1].vector, expected[1])
    several = list(nlp.pipe(["The cat, sat.", "", "cat"], batch_size=2))
    np.testing.assert_array_equal(several[0].tensor, expected)
    assert several[1].tensor.shape == (0, 8) and not several[1].vector.any()
    for option in ("keep_sentence_boundaries", "stateful"):
        with pytest.raises(FlashElmoError, match=f"^{option}: expected "):
            spacy.blank("en").add_pipe("flashelmo", config={"model": str(model), "options": {option: True}})


@quiet
def test_spacy_embeds_each_sentence_by_itself(model: Path, elmo: ElmoEmbedder, tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    import flashelmo.integrations.spacy  # noqa: F401

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("flashelmo", config={"model": str(model), "layers": "all", "options": {"precision": "fp32"}})
    expected = [np.concatenate(list(each), axis=-1) for each in elmo.embed([["The", "cat", "."], ["It", "sat", "."]])]
    np.testing.assert_array_equal(nlp("The cat. It sat.").tensor, np.concatenate(expected))
    nlp.to_disk(tmp_path / "nlp")
    np.testing.assert_array_equal(spacy.load(tmp_path / "nlp")("The cat.").tensor, expected[0])


# ----------------------------------------------------------------------------------------------------------- flair


@quiet
def test_flair(model: Path, elmo: ElmoEmbedder) -> None:
    pytest.importorskip("flair")
    from flair.data import Sentence
    from flair.embeddings.base import load_embeddings

    from flashelmo.integrations.flair import ElmoEmbeddings

    embeddings = ElmoEmbeddings(model, precision="fp32")
    sentences = [Sentence(text.split()) for text in ("the cat sat", "cat")]
    embeddings.embed(sentences)
    for sentence, layers in zip(sentences, elmo.embed([[t.text for t in each] for each in sentences]), strict=True):
        found = np.stack([token.embedding.numpy(force=True) for token in sentence])
        np.testing.assert_array_equal(found, np.concatenate(list(layers), axis=-1))
    assert embeddings.embedding_length == 24
    again = load_embeddings(embeddings.save_embeddings())
    assert again.name == embeddings.name and again.embedding_length == 24
    with pytest.raises(FlashElmoError, match="expected a model's path or name"):
        ElmoEmbeddings(elmo).to_params()
    with pytest.raises(FlashElmoError, match=r"^keep_sentence_boundaries: expected one vector a token"):
        ElmoEmbeddings(model, keep_sentence_boundaries=True)


@quiet
def test_flair_trains_a_tagger(tmp_path: Path) -> None:
    pytest.importorskip("flair")
    from flair.data import Corpus, Sentence
    from flair.datasets import FlairDatapointDataset
    from flair.models import SequenceTagger
    from flair.trainers import ModelTrainer
    from torch.optim import AdamW

    from flashelmo.integrations.flair import ElmoEmbeddings

    def tagged(number: int) -> Any:
        sentence = Sentence(["the", "cat", "sat", str(number)])
        for token, tag in zip(sentence, ("DET", "NOUN", "VERB", "NUM"), strict=True):
            token.add_label("pos", tag)
        return sentence

    write_native(random_model("small", 0), tmp_path / "model")
    parts = [FlairDatapointDataset([tagged(10 * part + k) for k in range(8)]) for part in range(3)]
    corpus = Corpus(*parts)
    tags = corpus.make_label_dictionary("pos")
    plain = {"use_crf": False, "use_rnn": False, "reproject_embeddings": False, "dropout": 0.0, "word_dropout": 0.0}
    tagger = SequenceTagger(ElmoEmbeddings(tmp_path / "model"), tags, "pos", locked_dropout=0.0, **plain)
    ModelTrainer(tagger, corpus).train(tmp_path, learning_rate=0.01, mini_batch_size=2, max_epochs=2, optimizer=AdamW)
    sentence = Sentence(["the", "cat", "sat", "7"])
    SequenceTagger.load(tmp_path / "final-model.pt").predict(sentence)
    assert [label.value for label in sentence.get_labels("pos")] == ["DET", "NOUN", "VERB", "NUM"]


# -------------------------------------------------------------------------------------------------------- datasets


@quiet
@pytest.mark.parametrize("num_proc", [None, 2])
def test_datasets(
    model: Path, means: Array, tmp_path: Path, num_proc: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"text": TEXTS})
    embed = EmbedBatch(model, threads=1, precision="fp32")
    found = texts.map(embed, batched=True, batch_size=2, num_proc=num_proc, cache_file_name=str(tmp_path / "a.arrow"))
    np.testing.assert_array_equal(np.array(found["embedding"], np.float32), means)
    assert found.column_names == ["text", "embedding"]
    tokens = texts.map(EmbedBatch(model, pool=None), batched=True, cache_file_name=str(tmp_path / "b.arrow"))
    assert [len(row) for row in tokens["embedding"]] == [3, 1, 0, 4, 3]


@quiet
def test_datasets_find_a_result_again(model: Path) -> None:
    fingerprint = pytest.importorskip("datasets.fingerprint")
    embed = EmbedBatch(model, precision="fp32")
    before = fingerprint.Hasher.hash(embed)
    embed({"text": TEXTS})
    assert fingerprint.Hasher.hash(embed) == before == fingerprint.Hasher.hash(EmbedBatch(model, precision="fp32"))
    assert fingerprint.Hasher.hash(EmbedBatch(model, layers="top", precision="fp32")) != before


# ------------------------------------------------------------------------------------------------------- LangChain


@quiet
def test_langchain(model: Path, means: Array) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.vectorstores import InMemoryVectorStore

    from flashelmo.integrations.langchain import ElmoEmbeddings

    embeddings = ElmoEmbeddings(model, precision="fp32")
    assert embeddings.embed_documents(TEXTS) == means.tolist()
    assert embeddings.embed_query(TEXTS[0]) == means[0].tolist()
    assert embeddings.embed_documents([]) == []
    store = InMemoryVectorStore.from_texts([text for text in TEXTS if text], embeddings)
    assert store.similarity_search("sat the mat on", k=1)[0].page_content == "sat the mat on"


# -------------------------------------------------------------------------------------------------------- Ray Data


@quiet
def test_ray_data(model: Path, means: Array) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, logging_level="ERROR", include_dashboard=False)
    try:
        rows = ray.data.from_items([{"id": number, "text": text} for number, text in enumerate(TEXTS)])
        rows = rows.map_batches(
            EmbedBatch,
            fn_constructor_args=(str(model),),
            fn_constructor_kwargs={"threads": 1, "precision": "fp32"},
            batch_size=2,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        found = sorted(rows.take_all(), key=lambda row: row["id"])
    finally:
        ray.shutdown()
    np.testing.assert_array_equal(np.stack([row["embedding"] for row in found]), means)
