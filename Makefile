# Two commands do all the set-up on a fresh machine: `make compare` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: compare test lint types fast slow

compare: $(VENV)/ready  ## train and compare placements; options in ARGS
	$(BIN)/mixln compare $(ARGS)

test: lint types fast slow  ## everything that CI checks

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/pyright

fast: $(VENV)/ready
	$(BIN)/pytest

# those that run several processes or kill them, one after the other; the others share the processors
SHARING := tests/ecosystem tests/exchange tests/models

slow: $(VENV)/ready
	$(BIN)/pytest -m slow $(SHARING)
	$(BIN)/pytest -m slow -n 0 $(addprefix --ignore=,$(SHARING))

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mixln needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
