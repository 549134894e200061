# make setup | demo | test | test-slurm | lint | zoo | postgres. Needs Python 3.11 or newer, git and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
# Memory in huge pages where the kernel leaves that to programs: see launching/machine.py.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export PYTHONMALLOC ?= malloc

.PHONY: setup demo test test-slurm lint zoo postgres

setup: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/prism sweep nano/axes
	$(BIN)/prism report nano/axes

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Needs root on Debian: brings a throw-away SLURM up, and down again if it was not up before.
test-slurm: setup
	$(BIN)/python -m pytest tests/slurm -m slurm

lint: setup
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds every weight file of the nano zoo (two hours of one core or more; each weight file's JSON says its own).
zoo: setup
	$(BIN)/python -m prism_sweeps.training.zoo all

# Debian's PostgreSQL, in which tests keep what a real MLflow server is given; without it they are skipped.
postgres:
	$(if $(shell id -u | grep -vx 0),sudo) apt-get install --yes --no-install-recommends postgresql
