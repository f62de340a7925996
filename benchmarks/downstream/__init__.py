"""What vectors are worth to a task: a tagger and two classifiers of sentences, linear on all that they are given.

suite.py     the contestants in each task, several seeds each
tuned.py     the language model fine-tuned, which goes back to weights and is judged in the engine

`benchmarks.tasks` reads the tasks; what learns on frozen vectors is `senses/linear.py`.
"""
