# `make test` is the whole gate: it needs Python 3.10 or newer, make, and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := build/oldest
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1
# Python compiles what is imported and keeps it, also where the environment says otherwise; pip would compile all of torch.
export PYTHONDONTWRITEBYTECODE :=
PIP := python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: test check laws test-oldest demo clean

test: check
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

laws: $(VENV)/ready
	$(BIN)/python -m pytest tests/laws

# The embedded model answers a question unpruned, with FastV and with SwiftVLM; the picture goes to build/demo.
demo: $(VENV)/ready
	$(BIN)/swiftvlm run --save build/demo

# Every law at the oldest transformers that is supported.
test-oldest: $(OLDEST)/ready
	$(OLDEST)/bin/python -m pytest -n auto tests/laws tests/test_against_reference.py tests/test_before_reference.py tests/test_more_reference.py

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) -c constraints.txt torch
	$(BIN)/$(PIP) -c constraints.txt -e ".[dev]"
	touch $@

$(OLDEST)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep '^torch==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/$(PIP) -c $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/$(PIP) -c $(OLDEST)/constraints.txt -e ".[dev]" transformers==5.16.1
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
