"""What a peer's own code computes, in an environment that has it: `tests/peers.py` starts this.

    PYTHON tests/peer_worker.py NAME JOB.json OUT.npz

The job names a model's folder and lists sentences, also as batches. OUT holds `CALL/i`, sentence i's vectors by each of
the peer's calls. The code is Python 3.7's, which the oldest peers run on. What each ran in is written beside it.
"""

# ruff: noqa: B905 (of later Pythons)

import json
import os
import sys
from types import SimpleNamespace

import numpy as np


def allennlp(job):
    """AllenNLP 0.9, by the two ways in which it was used.

    Python 3.7: pip install 'setuptools<66' wheel, then
    pip install --no-build-isolation --only-binary=cymem,murmurhash allennlp==0.9.0 'overrides<3.1' 'numpy<1.22'
    """
    from allennlp.commands.elmo import ElmoEmbedder
    from allennlp.modules.elmo import Elmo, batch_to_ids

    def fresh():
        return ElmoEmbedder(job.options, job.weights)

    one = fresh()
    module = Elmo(job.options, job.weights, 1, dropout=0.0, scalar_mix_parameters=[0.2, 0.5, -0.3]).eval()
    found = module(batch_to_ids(job.sentences))
    mixed = found["elmo_representations"][0].detach().numpy()
    return {
        "first batch": fresh().embed_batch(job.sentences),
        "embed_sentence": [one.embed_sentence(sentence) for sentence in job.sentences],
        "embed_sentences": list(fresh().embed_sentences(job.sentences, batch_size=8)),
        "Elmo": [row[: len(sentence)] for row, sentence in zip(mixed, job.sentences)],
    }


def bilm(job):
    """bilm-tf, whose only input is a file.

    Python 3.7: pip install tensorflow==1.15.5 'protobuf<3.21' 'numpy<1.19' 'h5py<3', and
    the checkout 7cffee2 of allenai/bilm-tf
    """
    import h5py
    from bilm import dump_bilm_embeddings

    with open("vocabulary.txt", "w", encoding="utf-8") as file:
        file.write("\n".join(["<S>", "</S>", "<UNK>"]) + "\n")
    dump_bilm_embeddings("vocabulary.txt", job.text, job.options, job.weights, "bilm.hdf5")
    with h5py.File("bilm.hdf5", "r") as file:
        return {"dump_bilm_embeddings": [file[str(i)][()] for i in range(len(job.sentences))]}


def simple_elmo(job):
    """simple_elmo, without its arrays' padding; by default it runs the first batch twice, and the state goes on.

    Python 3.11: pip install simple_elmo tensorflow-cpu tf_keras
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # whose cell it uses; the package tf_keras
    from simple_elmo import ElmoModel

    model = ElmoModel()
    model.load(job.folder)

    def vectors(warmup, layers):
        return model.get_elmo_vectors(job.sentences, warmup=warmup, layers=layers)

    lengths = [len(sentence) for sentence in job.sentences]
    return {
        "all": [row[:, :n] for row, n in zip(vectors(False, "all"), lengths)],
        "average": [row[:n] for row, n in zip(vectors(False, "average"), lengths)],
        "top": [row[:n] for row, n in zip(vectors(False, "top"), lengths)],
        "a sentence": [model.get_elmo_vector_average([each], warmup=False)[0] for each in job.sentences],
        "sentences": list(model.get_elmo_vector_average(job.sentences, warmup=False)),
        "after a warm-up": [row[:, :n] for row, n in zip(vectors(True, "all"), lengths)],
    }


def elmoformanylangs(job):
    """ELMoForManyLangs, all layers.

    Python 3.11: pip install torch elmoformanylangs overrides==3.1.0
    """
    from elmoformanylangs import Embedder

    return {"sents2elmo": Embedder(job.folder).sents2elmo(job.sentences, output_layer=-2)}


def bio_embeddings(job):
    """SeqVec in bio_embeddings; a protein is a string of its residues.

    AllenNLP's environment: pip install --no-deps bio_embeddings, then what it says that it lacks, but no transformers
    """
    from bio_embeddings.embed import SeqVecEmbedder

    def fresh():
        return SeqVecEmbedder(options_file=job.options, weights_file=job.weights, device="cpu", warmup_rounds=0)

    embedder, one = fresh(), fresh()
    proteins = ["".join(sentence) for sentence in job.sentences]
    batch = list(embedder.embed_many(proteins, batch_size=sum(map(len, proteins)) + 1))
    return {
        "embed_many": batch,
        "reduce_per_protein": [embedder.reduce_per_protein(each) for each in batch],
        "embed": [one.embed(protein) for protein in proteins],
    }


def flair(job):
    """flair, when it had ELMo: the layers of a token side by side; it embeds "hello" first, and the state goes on.

    AllenNLP's environment: pip install --no-deps flair==0.4.5 transformers==2.3.0, then what they say that they lack
    """
    from flair.data import Sentence
    from flair.embeddings import ELMoEmbeddings

    embeddings = ELMoEmbeddings(options_file=job.options, weight_file=job.weights)

    def vectors():
        sentences = [Sentence(" ".join(sentence), use_tokenizer=False) for sentence in job.sentences]
        embeddings.embed(sentences)
        return [np.stack([token.embedding.cpu().numpy() for token in each]) for each in sentences]

    carried = vectors()
    embeddings.ee.elmo_bilm._elmo_lstm.reset_states()
    return {"carried": carried, "fresh": vectors()}


def golden_allennlp(job):
    """Of tests/golden: one batch that begins at zero, batches one after the other, and the layers' mix."""
    from allennlp.commands.elmo import ElmoEmbedder
    from allennlp.modules.elmo import Elmo, batch_to_ids

    embedder = ElmoEmbedder(job.options, job.weights)
    module = Elmo(job.options, job.weights, 1, dropout=0.0, scalar_mix_parameters=job.mix).eval()
    mixed = module(batch_to_ids(job.sentences))["elmo_representations"][0].detach().numpy()
    return {
        "stateless": ElmoEmbedder(job.options, job.weights).embed_batch(job.sentences),
        "stateful": [vectors for batch in job.batches for vectors in embedder.embed_batch(batch)],
        "mix": [row[: len(sentence)] for row, sentence in zip(mixed, job.sentences)],
    }


def golden_bilm(job):
    """Of tests/golden: batches one after the other, and each sentence by itself, as the command does it."""
    import tensorflow
    from bilm import Batcher, BidirectionalLanguageModel, TokenBatcher

    found = {} if job.vocabulary else {"one by one": bilm(job)["dump_bilm_embeddings"]}
    with open(job.options, encoding="utf-8") as file:
        size = json.load(file).get("char_cnn", {}).get("max_characters_per_token")
    tensorflow.reset_default_graph()
    if job.vocabulary:
        batcher, ids = TokenBatcher(job.vocabulary), tensorflow.placeholder("int32", (None, None))
        words = {"use_character_inputs": False, "embedding_weight_file": job.weights}
    else:
        batcher, ids = Batcher("vocabulary.txt", size), tensorflow.placeholder("int32", (None, None, size))
        words = {}
    layers = BidirectionalLanguageModel(job.options, job.weights, **words)(ids)["lm_embeddings"]
    found["stateful"] = []
    with tensorflow.Session() as session:
        session.run(tensorflow.global_variables_initializer())
        for batch in job.batches:
            rows = session.run(layers, {ids: batcher.batch_sentences(batch)})
            found["stateful"] += [row[:, : len(sentence)] for row, sentence in zip(rows, batch)]
    return found


def golden_elmoformanylangs(job):
    """Of tests/golden: one batch that begins at zero, and batches one after the other, whose longest rows are first."""
    from elmoformanylangs import Embedder

    embedder = Embedder(job.folder)
    return {
        "stateless": Embedder(job.folder).sents2elmo(job.sentences, output_layer=-2),
        "stateful": [vectors for batch in job.batches for vectors in embedder.sents2elmo(batch, output_layer=-2)],
    }


GOLDEN = (golden_allennlp, golden_bilm, golden_elmoformanylangs)
PEERS = {
    each.__name__: each for each in (allennlp, bilm, simple_elmo, elmoformanylangs, bio_embeddings, flair, *GOLDEN)
}


if __name__ == "__main__":
    peer, job_file, out = sys.argv[1:]
    with open(job_file, encoding="utf-8") as job_text:
        made = PEERS[peer](SimpleNamespace(**json.load(job_text)))
    np.savez(out, **{f"{call}/{i}": v for call, rows in made.items() for i, v in enumerate(rows)})
