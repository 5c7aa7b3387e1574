# make demo   set up, fit a model on Python's own documentation, evaluate it, let it write
# make test   set up, then lint, types, tests, every bench for a moment (those whose data sets are there)
# make bench  every table and plot of docs/benchmarks.md (needs the data sets, see README)
#
# Linux: the torch on PyPI brings gigabytes of CUDA. PyTorch's index has the CPU build:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= demo-model
PIP_FLAGS ?=

.PHONY: demo test lint bench clean

$(BIN)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "warmstart needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable .
	touch $@

$(BIN)/installed-dev: $(BIN)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable '.[dev]'
	touch $@

demo: $(BIN)/installed
	$(BIN)/warmstart fit --output $(MODEL)
	$(BIN)/warmstart eval $(MODEL)
	$(BIN)/warmstart generate $(MODEL) --prompt "Return the"

lint: $(BIN)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Threads of one process wait for each other, many times as long where others use the cores too.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest
	$(BIN)/python -m benchmarks all --quick --quiet

bench: $(BIN)/installed-dev
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) $(MODEL) build *.egg-info
