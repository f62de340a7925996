"""Find the uses of a word whose context is most alike: python examples/embed.py [MODEL [WORD]].

`make demo` makes a model of random weights in demo/model, which shows how it is done, not what ELMo knows; give a
folder with trained weights to see that.
"""

import sys
from pathlib import Path

import numpy as np

from flashelmo import ElmoEmbedder

TEXT = Path(__file__).with_name("genesis.txt")


def main(model: str = "demo/model", word: str = "light") -> None:
    """Print the uses of `word` in the text, nearest to its first use first."""
    sentences = [line.split() for line in TEXT.read_text(encoding="utf-8").splitlines()]
    elmo = ElmoEmbedder.load(model)
    uses, vectors = [], []
    for tokens, layers in zip(sentences, elmo.embed(sentences), strict=True):
        for i, token in enumerate(tokens):
            if token == word:
                uses.append(" ".join(tokens[max(i - 5, 0) : i + 6]))
                vectors.append(layers[-1, i])  # layers [3, tokens, 2P]; the last is the upper LSTM layer
    if not uses:
        sys.exit(f"{TEXT.name} has no word {word!r}")

    unit = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
    cosine = unit @ unit[0]
    print(f"{word!r} in {TEXT.name}: {len(uses)} uses, by their cosine to the first")
    for use in np.argsort(-cosine):
        print(f"{cosine[use]:6.3f}  {uses[use]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
