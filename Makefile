# Every command of the README is a target here, and the other way round: tests/test_readme.py checks it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process a core of a small machine; a file's tests stay together, they share what they trained.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test check format setup bench clean

demo: $(VENV)/.installed
	$(BIN)/polytune demo

test: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(PYTEST)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.installed-dev

# The step benchmark against Hugging Face transformers. Set TORCH to a wheel or version of a CPU build of torch.
TORCH ?= torch
bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet $(TORCH) -e '.[bench]'
	$(BIN)/python -m tests.bench.step

clean:
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .ruff_cache build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "polytune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
