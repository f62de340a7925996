"""From text to schedules: everything before the network.

sentences.py    what may be given as sentences
lines.py        whole lines of UTF-8 to tokens in Arrow
windows.py      lines of a file, or sentences, to windows: distinct words and each token's word
tables.py       files that are refused, as their columns would be mistaken for words
characters.py   words to character ids and word ids, by the model's conventions, many at a time
spelling.py     the same conventions without Arrow, for users of an exported file
schedule.py     a window's forests: one node for each distinct prefix and suffix
"""
