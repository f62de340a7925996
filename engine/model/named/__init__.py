"""Models by name: what `models.json` lists is downloaded on first use, verified, and kept in the user's cache.

table.py     the list, and the cache's folder
download.py  the files of a model: downloaded, resumed, verified, unpacked
locate.py    which path a name stands for
"""
