"""What vectors are worth to a task: a tagger and two classifiers of sentences, linear on all that they are given.

suite.py     the contestants in each task, several seeds each
samples.py   the tasks: sentences with a label, or with a label of each token
tuned.py     the language model fine-tuned, which goes back to weights and is judged in the engine

What learns on frozen vectors is `senses/linear.py`.
"""
