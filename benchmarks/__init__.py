"""What is measured, by one harness: `flashelmo bench [SUITE] [options]`, or from the checkout `python -m benchmarks`.

__main__.py      the command line of every suite, and the list of suites
settings.py      one settings object for all suites: its fields are the options
contestant.py    one contestant: a way to embed or to compute, made in its own process (worker.py) or in this one, and
                 its clock; the line-up of those whose vectors are right (accuracy.py); their contest in turns
run.py           jobs, whose rows are printed and written as they come
results.py       rows of figures with the machine they were measured on (machine.py), as JSON; tables.py shows them
text.py, roofline.py, fresh.py   the text and its workloads, this processor's limits, and fresh processes
report.py        tables and plots (plots.py) of the committed results in README and docs; summary.py has the first ones

cpu.py           the engine on the processor beside the reference: the default
onnx.py          the exported file beside the engine, on a card too
precision.py     each precision's error on a CUDA device, without one
feed.py          everything around the computation of a corpus: sharing, feeding, processes
train.py         training beside plain PyTorch modules
senses/          what a trained model's vectors know of words in context, beside random weights and static vectors
downstream/      what they are worth to tasks, frozen and fine-tuned
ngrams.py        the perplexity that a language model must beat
serve.py         the service under load: throughput, latency, memory
gpu/             the engine on a card, end to end: suite.py has its jobs, processes.py compiles and supervises;
                 windows.py says without one how long steps should take by the size of windows
kernels/         the GPU kernels by themselves: cases.py is the table of them, kernels.py times them, resources.py says
                 without a card what they cost
corpus.py        the text that a model is trained on, and the held-out text; tasks.py reads the tagged data beside it
test_parts.py    contestants by pytest-benchmark: `pytest benchmarks`

To add a suite: write a module with `SUITE = Suite(about, defaults, options, command)` (run.py), and add it to SUITES in
__main__.py. If each model has sections that give rows, `run_sections` does everything else. A section lines up
`Contestant`s, which first compares their vectors, and lets their `Entry`s `compete`, which gives rows with ratios and
ceilings; an absent contestant is a row without a figure, whose note says why. A new setting is a field of `Settings`;
users may change it if a suite names it among its options.
"""
