"""What vectors are worth to a task: a tagger and two sentence classifiers, linear in everything that they are given.

suite.py     the contestants in each task, with several seeds each
tuned.py     the fine-tuned language model, which is converted back to weights and judged in the engine

`benchmarks.tasks` reads the tasks; `senses/linear.py` learns on frozen vectors.
"""
