"""What a trained model's vectors know of words in context, compared with random weights and static vectors.

suite.py        the sections, except those of speech.py and precisions.py
contest.py      the words' examples, and all contestants' scores on them
nearest.py      how often the nearest neighbour of an example has its sense; chance; 95% confidence, by resampling
vectors.py      vectors of examples: of a model's layers, of random weights of its shape, and word2vec's
speech.py       parts of speech by a linear classifier, linear.py
precisions.py   neighbours by sense, and perplexity, in every precision
"""
