# One virtual environment, .venv, is made once and again whenever what it is made from changes.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export DS_BUILD_OPS := 0
export TOKENIZERS_PARALLELISM := false
# As many tests at a time as there are cores, each with one thread; a file's tests stay together, as they share runs, and
# files come in the order of tests/conftest.py.
IN_PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-faults test-gpu bench bench-gpu docs docs-serve lint format clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python -m data_tools demo prepare demo
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no -m finetune conf=demo
	$(BIN)/python -m data_tools demo report demo runs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(IN_PARALLEL)

test-faults: install
	$(IN_PARALLEL) tests/faults tests/launch tests/bench tests/test_launch.py -m ""

test-gpu: install
	$(BIN)/pytest -m gpu

bench: install
	$(BIN)/python -m tests.bench

bench-gpu: install
	$(BIN)/python -m tests.bench gpu

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build site
