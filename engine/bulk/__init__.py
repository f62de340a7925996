"""Whole corpora: records of many formats in, vectors of shards out.

parts.py        records, raw and decoded, and where they stand in their input
records.py      an input's reader, chosen by its format
text_reader.py  formats whose records follow each other as text, from any place on
plain.py        plain lines

run.py          `embed_corpus`: an input into a folder of shards
source.py       the shards that a job has still to write, cut out of its input
attempt.py      reading, computing and writing beside each other
stages.py       calls in the background, one after the other
shards.py       what a shard is
shard_writer.py writes one, whole or not at all
folder.py       what a folder was begun with, what of it is whole; `verify`
locks.py        who may write to it
report.py       what a run did
embeddings.py   `open_embeddings`: vectors read back
"""
