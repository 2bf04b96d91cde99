# Every command of the README is a target here, and the other way round: tests/test_readme.py checks it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process a core of a small machine; a file's tests stay together, they share what they trained.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# Torch and transformers have an environment of their own: nothing else may come to need them.
PARITY := .venv-parity

# The TPU compiler too: where it is installed, JAX looks for a TPU first.
PLANS := .venv-plans

.PHONY: demo test test-slow test-plans test-parity check format setup bench clean

demo: $(VENV)/.installed
	$(BIN)/polytune demo

test: $(VENV)/.installed-dev
	$(PYTEST)

# What takes longest: jobs of several processes killed at random, plans that need no TPU compiler.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

test-parity: $(PARITY)/.installed
	OMP_NUM_THREADS=1 $(PARITY)/bin/python -m pytest -n 2 --dist loadfile tests/parity

test-plans: $(PLANS)/.installed
	$(PLANS)/bin/python -m pytest tests/launch/plan_ahead -m "slow or not slow" --durations=10

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(PYTEST)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.installed-dev

# For this and the parity suite: set TORCH to a wheel or version of a CPU build of torch.
TORCH ?= torch

# The step benchmark against Hugging Face transformers, on a GPU if torch sees one:
# make bench BENCH='--recipe dense_1b_gpu_1 --random compute.remat=none'
BENCH ?=
bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet $(TORCH) -e '.[bench]'
	$(BIN)/python -m tests.bench.step $(BENCH)

clean:
	rm -rf $(VENV) $(PARITY) $(PLANS) .cache .hypothesis .pytest_cache .ruff_cache build *.egg-info

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

$(PARITY)/.installed: requirements-dev.txt requirements.txt pyproject.toml
	test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r requirements-dev.txt $(TORCH) -e '.[parity]'
	touch $@

$(PLANS)/.installed: requirements-dev.txt requirements.txt pyproject.toml
	test -x $(PLANS)/bin/python || $(PYTHON) -m venv $(PLANS)
	$(PLANS)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r requirements-dev.txt -e '.[plan]'
	touch $@
