"""Whole corpora: records of many formats in, vectors of shards out.

parts.py        records, raw and decoded, and where they stand in their input
records.py      an input's reader, chosen by its format
text_reader.py  formats whose records follow each other as text, from any place on
plain.py        plain lines
"""
