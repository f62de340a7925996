"""Ask a running `flashelmo serve` for vectors, by its own client and by plain HTTP.

python examples/serve_client.py http://127.0.0.1:8080
"""

import sys

import httpx
import numpy as np

from flashelmo import Client

SENTENCES = ["And God said", "Let there be light"]
url = sys.argv[1]

with Client(url) as elmo:  # ElmoEmbedder's methods: the same arrays, bit by bit
    print(elmo.info["layers"], "layers of", elmo.info["output_size"])
    vectors = elmo.encode(SENTENCES)
    print(vectors.shape, elmo.embed_sentence(SENTENCES[1]).shape)

answer = httpx.post(f"{url}/embed", json={"inputs": SENTENCES})  # JSON is the shortest text that gives the same bits
print(np.array_equal(vectors, np.array(answer.json(), np.float32)))

openai = {"model": "elmo", "input": SENTENCES}
embeddings = httpx.post(f"{url}/v1/embeddings", json=openai).json()
print(len(embeddings["data"]), embeddings["usage"]["prompt_tokens"])
