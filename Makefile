# `make demo` and `make test` do everything from a fresh clone: environment, install, run.
#
#   make demo        a ticket search on the shipped digits, with a progress bar, then its report
#   make test        environment, lint, types, tests (what CI runs)
#   make fast        the tests that take less than ten seconds each
#   make long        the tests that take minutes, left out of `make test`
#   make dist        a wheel and a source archive in dist/, checked
#   make benchmarks  measure; numbers go to the terminal
#   make clean       remove the environment and caches (never runs/)
#
# make PYTHON=python3.12      another Python (3.11 or later)
# make VENV=/some/dir         another place for the environment
# make PIP_ARGS="..."         more words for pip, such as the index of CPU builds (see README)
# make CONSTRAINTS=           the newest versions instead of those in constraints.txt
# make test PYTEST_ARGS="..." more words for pytest
# make demo DEMO="..."        other words for `tombola find`
# make benchmarks BENCHMARKS="masks select"  only these

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO ?= linear-ae --data digits --rounds 4 --rate 0.5 --seeds 8 --out runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input \
       $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS)
SPELLED := $(wildcard src tests tools docs examples benchmarks *.md *.cff Makefile pyproject.toml)
BENCHMARKS ?=

.PHONY: demo test env lint types tests fast long dist benchmarks clean

demo: env
	$(BIN)/tombola find $(DEMO)

# Cheapest first, so that a slip shows early; `make -j` may run them side by side.
test: lint types tests

env: $(STAMP)

# The stamp comes last, so an install that was interrupted is taken up again. setuptools goes first
# and without build isolation, so that the build uses the pinned version too.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: no $(PYTHON) found; install Python 3.11 or later, or say which:" \
	    "make PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); Tombola needs Python 3.11 or" \
	    "later: make PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv "$(VENV)" || { \
	  echo "error: $(PYTHON) cannot make an environment in $(VENV); on Debian and Ubuntu:" \
	    "apt-get install python3-venv" >&2; exit 2; }
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e ".[dev]"
	@touch "$@"

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $(SPELLED)

types: env
	$(BIN)/mypy

# Two files at a time, each on one thread: on two cores that takes little more than half as long.
tests: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  -m "not long" $(PYTEST_ARGS)

fast: env
	$(BIN)/python -m pytest -m "not slow and not long" $(PYTEST_ARGS)

long: env
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

# Without build isolation, so that the pinned setuptools builds it.
dist: env
	$(PIP) --no-build-isolation -e ".[release]"
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

benchmarks: env
	$(BIN)/python benchmarks/run.py $(BENCHMARKS)

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
