# Each target makes its own environment from a bare clone: `make demo` and `make test` are the two to know.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check bench live format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole system on loopback: sandbox broker, daemon, two bots, hub and page"
	@echo "make test    every test, with branch coverage of each room"
	@echo "make check   format, lint, types"
	@echo "make bench   the speed figures of docs/reference/benchmarks.md"
	@echo "make live    ask a real TopstepX account for everything that can be read (PROJECT_X_API_KEY, PROJECT_X_USERNAME)"
	@echo "make format  put the code into form; make clean removes the environment"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d; try: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml requirements/run.txt
	$(PIP) install --require-hashes -r requirements/run.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

demo: $(VENV)/.run
	$(BIN)/keepline demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run --parallel-mode -m pytest $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python tests/coverage_gate.py

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

# Places no order and is never part of `make test` or of CI.
live: $(VENV)/.dev
	@$(BIN)/python tests/live/topstepx.py

clean:
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
