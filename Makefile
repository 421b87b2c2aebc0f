# Every target does its own set-up, in a virtual environment in VENV.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt kernels/CMakeLists.txt $(shell find kernels -name '*.cpp' -o -name '*.h')

.PHONY: demo test test-all test-gpu check bench bench-quick bench-check

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/mirl-sparse demo -o demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m 'not slow and not gpu' --ignore=tests/triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -m 'not slow and not gpu' tests/triton

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m 'not gpu' --ignore=tests/triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -m 'not gpu' tests/triton

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m gpu tests/triton

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

BENCH := $(BIN)/python -m pytest -q benchmarks/test_suite.py --benchmark-columns=min,median,stddev,rounds --benchmark-sort=name
RESULTS := benchmarks/results

bench-quick: $(VENV)/.installed
	$(BENCH) --quick --results $(RESULTS)/new/quick.jsonl

bench-check: bench-quick
	$(BIN)/python benchmarks/check.py $(RESULTS)/new/quick.jsonl

bench: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[peers]'
	$(BENCH) --results $(RESULTS)/new/full.jsonl
	$(BIN)/python benchmarks/report.py $(RESULTS)/new/full.jsonl
