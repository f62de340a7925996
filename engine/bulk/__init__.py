"""Whole corpora: records of many formats in, vectors of shards out.

records.py      an input's reader, chosen by its format
parts.py        records, raw and decoded, and where they stand in their input
inputs.py       where the bytes come from: files, addresses, standard input; decompressed
text_reader.py  records that follow each other as text, cut out of it from any place on
plain.py        lines
by_record.py    JSON lines, CoNLL-U, tokens with tags
delimited.py    CSV and TSV
fasta.py        proteins
parquet.py      a column of a Parquet file
tokenizers.py   raw text to tokens
"""
