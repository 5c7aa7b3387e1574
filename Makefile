# make demo   set up, fit a model on Python's own documentation, score it and generate text
# make test   set up, then run the linter, the type checker, the tests and a short form of every bench that has its data
# make lamp   set up, then start the lamp that learns (examples/lamp) with its page on localhost
# make test-lamp  install what its tests need besides (Debian: a browser, an MQTT broker, a voice), and skip none of them
# make fuzz   try 2,000 command lines, 2,000 damaged files of every kind that is read, and 20 kills of a count and a fit
# make bench  measure every table and plot of docs/benchmarks.md (needs the data sets, see README)
#
# On Linux, pip installs torch with gigabytes of CUDA. The CPU build is on PyTorch's index:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= demo-model
PIP_FLAGS ?=

.PHONY: demo lamp test test-lamp lint fuzz bench clean test-first test-rest test-benches

$(BIN)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "warmstart needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable .
	touch $@

$(BIN)/installed-dev: $(BIN)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable '.[dev]'
	touch $@

$(BIN)/installed-lamp: $(BIN)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable '.[lamp]'
	touch $@

demo: $(BIN)/installed
	$(BIN)/warmstart fit --output $(MODEL)
	$(BIN)/warmstart eval $(MODEL)
	$(BIN)/warmstart generate $(MODEL) --prompt "Return the"

lamp: $(BIN)/installed-lamp
	$(BIN)/python -m examples.lamp serve

lint: $(BIN)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes with one thread each: on busy cores the threads of a process wait for each other most of the time.
test: export OMP_NUM_THREADS = 1
test: lint
	$(MAKE) --no-print-directory --jobs 2 --output-sync=line test-first test-rest test-benches

FIRST := $(wildcard tests/test_[a-i]*.py)

test-first:
	$(BIN)/python -m pytest $(FIRST)

test-rest:
	$(BIN)/python -m pytest $(filter-out $(FIRST),$(wildcard tests/test_*.py)) bitcipher warmstart benchmarks examples/lamp

test-benches:
	$(BIN)/python -m benchmarks all --quick --quiet

TOOLS := chromium mosquitto espeak-ng
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

test-lamp: export OMP_NUM_THREADS = 1
test-lamp: export WARMSTART_LAMP = 1
test-lamp: $(BIN)/installed-dev
	dpkg --status $(TOOLS) > /dev/null 2>&1 || \
	    { $(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(TOOLS); }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable '.[vosk]'
	$(BIN)/python -m pytest $(wildcard tests/test_lamp_*.py) examples/lamp

fuzz: export OMP_NUM_THREADS = 1
fuzz: $(BIN)/installed-dev
	WARMSTART_FUZZ=2000 $(BIN)/python -m pytest tests/test_fuzz_cli.py tests/test_fuzz_files.py tests/test_spill.py

bench: $(BIN)/installed-dev
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) $(MODEL) build *.egg-info
