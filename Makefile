# Every target does its own set-up, in a virtual environment in VENV.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt kernels/CMakeLists.txt $(shell find kernels -name '*.cpp' -o -name '*.h')

# Tests run in as many processes as there are processors, but no more than eight: each takes about a gigabyte.
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all test-arm test-gpu test-wheels test-web check docs bench bench-quick bench-check \
	bench-gpu bench-gpu-prepare bench-service test-triton wheels web

# What the demo needs, and what development needs beside that.
$(VENV)/.demo: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/mirl-sparse demo -o demo

test: $(VENV)/.installed
	$(PYTEST) -m 'not slow and not gpu' --ignore=tests/triton
	TRITON_INTERPRET=1 $(PYTEST) -m 'not slow and not gpu' tests/triton

test-all: $(VENV)/.installed
	$(PYTEST) -m 'not gpu and not quiet' --ignore=tests/triton
	$(BIN)/python -m pytest -q -m quiet --ignore=tests/triton
	TRITON_INTERPRET=1 $(PYTEST) -m 'not gpu' tests/triton

# The kernels' tests with kernels for ARM, under an emulator; the second time in many strips, by two threads.
# (Threads that spin while they wait would take the processors from the others.)
ARM := aarch64-linux-gnu
ARM_TESTS := PYTHONPATH=tests/arm $(PYTEST) -p arm_server -m 'not slow and not native'

test-arm: $(VENV)/.installed
	@for tool in cmake qemu-aarch64 $(ARM)-g++; do command -v $$tool >/dev/null || { \
		echo "there is no $$tool; install the packages cmake, qemu-user and g++-$(ARM) (Debian's names)"; \
		exit 1; }; done
	cmake -S tests/arm -B build/arm -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=$(ARM)-gcc -DCMAKE_CXX_COMPILER=$(ARM)-g++
	cmake --build build/arm --parallel 2
	$(ARM_TESTS) tests/arm tests/mirl_kernels
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive MIRL_L2_BYTES=4096 MIRL_TEST_EXAMPLES=0.2 \
		$(ARM_TESTS) tests/mirl_kernels/ops

# Wheels with the kernels and the page inside, in dist/, for machines without a compiler.
wheels: web
	$(BIN)/python kernels/wheels.py
	for wheel in dist/*manylinux*.whl; do $(BIN)/auditwheel show "$$wheel"; done

$(VENV)/.wheels: $(VENV)/.demo
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[wheels]'
	touch $@

# Install the wheel for this machine where there is no compiler.
test-wheels: wheels
	tests/try_wheel.sh $(PYTHON) dist/*_$$(uname -m).whl

# The page that restores photos in the browser, in mirl_sparse/web/built; `mirl-sparse page` serves it.
WEB := mirl_sparse/web
web: $(VENV)/.wheels
	$(BIN)/python kernels/web.py -o $(WEB)/wasm
	$(BIN)/python -m mirl_sparse.web.build --wasm $(WEB)/wasm --ticket mirl_sparse/tickets/shipped/small.mirl

# The page in Chromium, by itself and with the service, the engine in Node 20, and the types.
test-web: web
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[serve]'
	cd tests/web && npm install --no-audit --no-fund --loglevel error && npm run types
	$(BIN)/python tests/web/engine_fixtures.py tests/web/fixtures
	cd tests/web && MIRL_FIXTURES=fixtures MIRL_PYTHON=$(abspath $(BIN))/python npm test

# On a machine with a GPU: what is installed there is used as it is.
test-gpu:
	PYTHONPATH=.:kernels:training:tests/helpers $(PYTHON) -m pytest -q -m gpu tests/triton

bench-gpu:
	PYTHONPATH=.:kernels $(PYTHON) -m benchmarks.gpu

# Triton of another version, in an environment of its own that shares all else with VENV. Triton 3.6 interprets
# with NumPy before 2.4 only. The packages of VENV come behind its own ones.
TRITON ?= 3.6.0
TRITON_VENV := $(VENV)-triton-$(TRITON)
TRITON_PYTHON := $(TRITON_VENV)/bin/python
ADD_VENV := import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))

$(TRITON_VENV)/.installed: $(VENV)/.installed
	$(BIN)/python -m venv $(TRITON_VENV)
	$(TRITON_PYTHON) -m pip install -q --no-deps triton==$(TRITON) 'numpy<2.4'
	$(BIN)/python -c '$(ADD_VENV)' > "$$($(TRITON_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	touch $@

# The interpreter's tests and the compilation for one architecture with another Triton.
test-triton: $(TRITON_VENV)/.installed
	TRITON_INTERPRET=1 $(TRITON_PYTHON) -m pytest -q -n auto --maxprocesses 8 -m 'not slow and not gpu' tests/triton
	$(TRITON_PYTHON) -m pytest -q -m 'not slow' tests/mirl_sparse/performance/test_predict.py \
		tests/mirl_kernels/core/test_hazards.py tests/benchmarks/test_gpu_prepare.py

# On a machine without a GPU, for one that has the GPU, this Triton and this Python: see docs/gpu.md.
TARGET ?= H200
TARGET_PYTHON ?= 3.12
WHEELS := build/wheels/$(TRITON)-$(TARGET_PYTHON)

bench-gpu-prepare: $(TRITON_VENV)/.installed
	ls $(WHEELS)/triton-*.whl >/dev/null 2>&1 || $(TRITON_PYTHON) -m pip download -q --no-deps \
		--only-binary=:all: --python-version $(TARGET_PYTHON) -d $(WHEELS) triton==$(TRITON)
	PYTHONPATH=.:kernels $(TRITON_PYTHON) -m benchmarks.gpu.prepare --target '$(TARGET)' --triton $(TRITON) \
		--wheel $(WHEELS)/triton-*.whl

# The service under twice the load that it can do.
bench-service: $(VENV)/.installed
	$(BIN)/python -m benchmarks.service

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files kernels | grep -E '\.(cpp|h)$$' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

BENCH := $(BIN)/python -m pytest -q benchmarks/suite/test_suite.py --results benchmarks/results \
	--benchmark-columns=min,median,stddev,rounds --benchmark-sort=name

bench-quick: $(VENV)/.peers
	$(BENCH) --quick

bench-check: $(VENV)/.peers
	$(BIN)/python -m benchmarks.suite.check

bench: $(VENV)/.peers
	$(BENCH)
	$(BIN)/python -m benchmarks.suite.report

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[peers]'
	touch $@
