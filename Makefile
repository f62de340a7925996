# Works from a fresh clone with python3 (3.10 or newer) and make; everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL := .wheel
# Of all that is installed little is imported, and Python compiles that by itself.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
    --editable
# A file's tests run in one process, as they share fixtures; files that take long begin (tests/conftest.py). Where a
# process dies the run ends and names its test: with another in its place pytest-xdist may wait for ever.
PARALLEL = --numprocesses=logical --maxprocesses=8 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: help demo test test-triton test-ray test-serve test-integrations docs lint style types types-of-tests bench

help:
	@echo "make demo               embed a text, and find the nearest neighbours of a word in two senses"
	@echo "make lint               check style, formatting and types"
	@echo "make test               build the wheel, install it and run the tests against it"
	@echo "make test-integrations  test the adapters to scikit-learn, spaCy and others, those that are installed"
	@echo "make test-serve         test the service with other projects' clients, and exported files in JavaScript"
	@echo "make test-ray           test actors and replicas on a Ray cluster on this machine (pip install '.[ray]')"
	@echo "make test-triton        test the kernels with other versions of Triton"
	@echo "make docs               build the documentation as a site, in .site"
	@echo "make bench              run the benchmarks (takes long; use an idle machine)"

# The stamps say what .venv holds, so that a second call installs nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	    sys.exit(v < (3, 10) and f"expected Python 3.10 or newer, found {v[0]}.{v[1]}; PYTHON=python3.12 names another")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/cpu.stamp: setup.py constraints.txt | $(BIN)/python
	$(INSTALL) '.[cpu]'
	touch $@

$(VENV)/dev.stamp: setup.py constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch $@

# The model that comes with the package, where the pages of docs/ look for one.
demo/model/config.json: | $(VENV)/cpu.stamp
	$(BIN)/flashelmo convert tiny demo/model

demo: $(VENV)/cpu.stamp demo/model/config.json
	$(BIN)/flashelmo embed examples/speeches.txt demo/vectors.h5 --overwrite
	@echo "The vectors are in demo/vectors.h5. The shape (layers, tokens, size) of the first sentence's:"
	$(BIN)/python -c "import h5py; print(h5py.File('demo/vectors.h5')['0'].shape)"
	@echo "One word in two senses, and where the speeches have it in a context that is like it:"
	$(BIN)/flashelmo neighbours examples/speeches.txt rest --same-word \
	    "the rest of the world is watching" "we must work now and rest later"

# What is tested is what users get: the wheel, in an environment of its own that borrows .venv's other packages.
# While working, `.venv/bin/pytest` runs the same tests on the checkout.
test: $(VENV)/dev.stamp
	rm -rf build $(WHEEL)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(WHEEL)/dist .
	$(BIN)/python -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --no-deps --no-index $(WHEEL)/dist/*.whl
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	    $(BIN)/python -c "$$site" > "$$($(WHEEL)/bin/python -c "$$site")/borrowed.pth"
	$(WHEEL)/bin/python -c "import sys, flashelmo as f; assert f.__file__.startswith(sys.prefix), f.__file__"
	PYTHONSAFEPATH=1 $(WHEEL)/bin/python -m pytest $(PARALLEL)

# Type checkers don't follow setup.py's mapping: a tree of links shows them the package as it is imported.
.PHONY: .typing
.typing:
	rm -rf .typing && mkdir -p .typing/flashelmo
	for path in src/flashelmo/*; do ln -s ../../$$path .typing/flashelmo/; done
	for path in */__init__.py; do ln -s ../../$${path%/__init__.py} .typing/flashelmo/; done

# `make --jobs=2 lint` checks the package and its tests at once; each has a cache, as their settings differ.
lint: style types types-of-tests

style: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp .typing
	MYPYPATH=.typing $(BIN)/mypy -p flashelmo
	@# One folder's types must reach another: a wrong call is an error, not an unresolved Any.
	MYPYPATH=.typing $(BIN)/mypy -c 'from flashelmo import ElmoConfig; ElmoConfig.from_dict(0)' | grep arg-type
	@# An option of the embedder that is misspelled is one too.
	MYPYPATH=.typing $(BIN)/mypy -c 'from flashelmo import ElmoEmbedder; ElmoEmbedder.load("m", precison="int8")' | grep call-arg
	@# So is a public name.
	MYPYPATH=.typing $(BIN)/mypy -c 'from flashelmo import ElmoEmbeder' | grep attr-defined

types-of-tests: $(VENV)/dev.stamp .typing
	MYPYPATH=.typing $(BIN)/mypy --cache-dir=.mypy_cache/tests --config-file tests/mypy.ini tests/*.py examples/*.py

docs: $(VENV)/dev.stamp .typing
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks
	$(BIN)/pytest benchmarks

# Clients of other projects, and a browser, are in no environment of ours:
# `$(BIN)/python -m pip install openai huggingface_hub 'tritonclient[http]' schemathesis playwright`, and chromium first.
# The page's own environment gets the server that docs/onnx.md starts; with npm, its folder gets ONNX Runtime for Node.js,
# and the programs of the model card the package for browsers too.
test-serve:
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -v -s tests/test_serve_clients.py tests/test_serve_page.py
	FLASHELMO_SERVERS=1 $(BIN)/python -m pytest -v tests/test_docs_onnx.py
	FLASHELMO_SERVERS=1 $(BIN)/python -m pytest -v tests/test_onnx_card.py -k javascript

# Kernels by the other versions of Triton that setup.py allows: compiled for an H100, with what spills, and run here.
test-triton: $(VENV)/dev.stamp
	for version in 3.6.0 3.8.0 3.9.0; do \
	    $(BIN)/python -m pip install --quiet --upgrade --no-deps --target .triton/$$version triton==$$version || exit 1; \
	    export PYTHONPATH=.triton/$$version PYTHONWARNINGS=ignore; \
	    $(BIN)/python -c "import triton; print('Triton', triton.__version__)" || exit 1; \
	    $(BIN)/python -m benchmarks resources --target 90 > /dev/null || echo "These spill, and are right."; \
	    $(BIN)/pytest -q $(PARALLEL) -W default -k "not found" tests/test_kernel_launch.py tests/test_kernel_ptx.py \
	        tests/test_kernel_lstm_persistent.py tests/test_kernel_linear.py tests/test_cuda_hopper.py || exit 1; \
	done

# Ray is in no environment of ours: `$(BIN)/python -m pip install '.[ray]'` first.
test-ray:
	$(BIN)/python -m pytest -m ray tests/test_bulk_ray.py tests/test_serve_ray.py

# Nor are the tools of docs/integrations.md: `pip install '.[sklearn,sentence-transformers,spacy,datasets,langchain,ray]'`
# first, and '.[flair]' in another environment: flair 0.15 needs transformers 4, sentence-transformers 6 needs 5.
test-integrations:
	$(BIN)/python -m pip freeze | grep -E '^(datasets|flair|langchain-core|ray|scikit-learn|sentence-transformers|spacy|transformers)='
	$(BIN)/python -m pytest -v tests/test_integrations.py tests/test_docs.py -k "integrations"
