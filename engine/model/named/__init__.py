"""Models by name: what `models.json` lists is downloaded on first use, verified, and kept in the user's cache.

table.py     the list, and what stands in for a path
download.py  the files of a model: downloaded, resumed, verified, unpacked
"""
