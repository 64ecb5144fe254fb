# On a fresh machine, `make compare` and `make test` set everything up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The versions in this file are installed; with an empty name, the newest that pip finds.
CONSTRAINTS ?= constraints/newest.txt
# which extra is installed: `test`, or `dev`, which adds the tools for lint and types
EXTRA ?= dev

# Where PyTorch comes from on Linux without an NVIDIA GPU: builds without CUDA libraries, which are 4 GB less. With an empty name,
# or where it cannot be reached, PyTorch comes from where all other packages do.
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname)),$(if $(wildcard /dev/nvidia[0-9]* /dev/dxg),,https://download.pytorch.org/whl/cpu))

.PHONY: compare test lint types fast slow docs test-lowest test-newest constraints

compare: $(VENV)/installed  ## train and compare placements, with nothing but the package installed; options in ARGS
	$(BIN)/mixln compare $(ARGS)

test: lint types fast  ## under ten minutes on two cores, with the newest tested versions; `make slow` runs the other tests

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/ready
	$(BIN)/pyright --pythonpath $(BIN)/python

fast: $(VENV)/ready
	$(BIN)/pytest

slow: $(VENV)/ready  ## tests with several processes, whole studies, every class of transformers; half an hour
	$(BIN)/pytest -m slow -n 3  # many of them wait for processes of their own

docs: $(VENV)/ready  ## the documentation site, in docs/_build/html; every reference must be found
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --builder html docs docs/_build/html

# what the next two targets run; for everything: `make test-newest TESTS='lint types fast slow'`
TESTS ?= fast

test-lowest:  ## the fast tests on the lowest versions that pyproject.toml allows
	$(MAKE) VENV=.venv-lowest CONSTRAINTS=constraints/lowest.txt EXTRA=test $(TESTS)

test-newest:  ## the fast tests on the newest releases of today
	rm -rf .venv-newest
	$(MAKE) VENV=.venv-newest CONSTRAINTS= $(TESTS)

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PINNED = $(CONSTRAINTS:%=--constraint %)

# The package and what it needs to run. Build backends are installed in the environment, since an isolated build would
# download the newest ones: ours, and setuptools for packages that come as source (lm-eval's rouge-score).
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mixln needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade $(PINNED) pip setuptools hatchling editables
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  echo "No NVIDIA GPU was found: PyTorch is installed without CUDA libraries (with them: make TORCH_INDEX= ...)"; \
	  $(PIP) --timeout 15 --retries 1 install $(PINNED) --no-deps --index-url "$(TORCH_INDEX)" torch \
	    || echo "$(TORCH_INDEX) cannot be reached: PyTorch is installed as published, with CUDA libraries"; \
	fi
	$(PIP) install $(PINNED) --no-build-isolation --editable .
	touch $@

# the tools for tests, lint and types, in the same environment
$(VENV)/ready: $(VENV)/installed
	$(PIP) install $(PINNED) --no-build-isolation --editable '.[$(EXTRA)]'
	touch $@

# Names and versions that hold on any machine: no build label (`+cpu`), no package that torch pins for one platform.
PORTABLE := sed -E -e 's/\+[a-z0-9.]+$$//' -e '/^(nvidia-|cuda-|triton=)/d'

constraints:  ## after a green `make test-newest`: pins its versions as the newest, and the bounds of pyproject.toml as the lowest
	$(PYTHON) -m venv --clear .venv-uv && .venv-uv/bin/python -m pip install --quiet uv
	.venv-uv/bin/uv pip freeze --quiet --python .venv-newest --exclude-editable | $(PORTABLE) > constraints/newest.txt
	grep -E '^(pip|setuptools|hatchling|editables)==' constraints/newest.txt | .venv-uv/bin/uv pip compile pyproject.toml - --quiet \
	  --extra test --resolution lowest-direct --python-version 3.11 --no-annotate --no-header | $(PORTABLE) > constraints/lowest.txt
