# make demo: set up, train on the built-in digits, leave a report.
# make test: set up, run the tests.
# make bench PHOTOS=FOLDER: compare with peers, on a folder of JPEGs; hours.
PYTHON ?= python3
BENCHES ?= memory kernels training data_loading inference startup edits_on_timm compressors_reach
VENV   ?= .venv
BIN    := $(VENV)/bin
BUILD  := pyproject.toml hatch_build.py $(wildcard src/foveate/*/native/*.[ch] src/foveate/*/*/native/*.[ch])
DEMO   ?= runs/demo

.PHONY: demo test test-all lint types docs bench check clean

demo: $(VENV)/.demo
	$(BIN)/foveate fit digits --out $(DEMO) --minutes 1
	@echo "open $(DEMO)/report.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev
	$(BIN)/python -m foveate.claims
	$(BIN)/python -m foveate.backbones
	$(BIN)/python -m foveate.catalog.docs
	$(BIN)/python benchmarks/page.py

bench: $(VENV)/.dev
	for name in $(BENCHES); do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/page.py

check: lint types test

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache

$(BIN)/uv:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Foveate needs Python 3.11 or newer: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(BUILD) | $(BIN)/uv
	UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[all]"
	@touch $@

$(VENV)/.dev: $(BUILD) | $(BIN)/uv
	UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[dev]"
	@touch $@
