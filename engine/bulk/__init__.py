"""Whole corpora: records of many formats in, shards of vectors out.

records.py      an input's reader, chosen by its format
parts.py        records, raw and decoded, and their places in the input
inputs.py       where the bytes come from: files, addresses, standard input; decompressed
text_reader.py  consecutive records in a text, cut out of it from any place on
text_format.py  what every format of text has, and the steps that some of these share:
plain.py        lines
json_lines.py   JSON lines
token_lines.py  CoNLL-U, and tokens with tags
delimited.py    CSV and TSV
fasta.py        proteins
parquet.py      a column of a Parquet file
tokenizers.py   raw text to tokens

run.py          `embed_corpus`: an input into a folder of shards
source.py       the shards that still have to be written, cut out of the input
attempt.py      reading, computing and writing at the same time
stages.py       calls in the background, one after the other
shards.py       what a shard is
native_shard.py one as safetensors with an index, written and read
parquet_shard.py one as a Parquet file, likewise
shard_writer.py writes one, completely or not at all
folder.py       how a folder was begun, and which of its shards are complete; `verify`
locks.py        who may write to it
report.py       what a run did
to_file.py      an input into a single file of vectors, or SeqVec's files

units.py        the shards as units of work for other processes; `EmbedUnit` does them
workers.py      several processes on this machine: `embed_with_workers`; worker_process.py is what each of them runs
on_ray.py       actors of a Ray cluster: `embed_on_ray`

embeddings.py   `open_embeddings`: vectors read back
"""
