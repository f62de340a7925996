"""Verification: an exported file against the PyTorch reference.

sentences.py, cases.py   what is embedded: ragged real text, odd words, empty sentences
truth.py                 the reference's layers, computed once for all files of a model
session.py               the file in ONNX Runtime
structure.py             checks of its graph, metadata and report
weights.py               its weights and other constants against those of the model
compare.py               errors, and how large they may be
verify.py                all of it together, into a report
report.py                the report as data and as a page
"""
