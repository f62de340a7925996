"""Models by name: those listed in `models.json` are downloaded on first use, verified, and kept in the user's cache.

table.py     the list, and the cache's folder
download.py  the files of a model: downloaded, resumed, verified, unpacked
locate.py    the path that a name stands for
"""
