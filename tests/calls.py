"""Calls of an embedder, for tests: in processes and threads that import them from here."""

from hashlib import sha256

from tiny_models import SENTENCES

from flashelmo.engine.embedder import ElmoEmbedder


def digests(embedder: ElmoEmbedder, n_calls: int) -> list[str]:
    """A digest of all bits that each of so many calls gives; batches of every size in turn."""
    return [digest(embedder, k) for k in range(n_calls)]


def digest(embedder: ElmoEmbedder, k: int) -> str:
    """Of the k-th call."""
    batch = (3 * SENTENCES)[k % 5 : 6 + k % 7]
    return sha256(b"".join(vectors.tobytes() for vectors in embedder.embed_batch(batch))).hexdigest()
