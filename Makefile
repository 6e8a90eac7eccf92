# demo, test and check each work alone on a fresh machine with Python, a C++ compiler and make.

PYTHON ?= python3
# The version developed and tested with. Named exactly and installed before everything else, so
# that no dependency fetches another build.
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

DESCRIBE = $(BIN)/python -c "from normkit.kernels import cpu; print(cpu.describe())"
# What the fused kernels are built from; a change rebuilds them.
KERNELS := $(wildcard src/normkit/kernels/cpu/*.cpp src/normkit/kernels/cpu/*.h) setup.py

# Every claim's full run, which the README's table and docs/report.html come from.
FULL := --preset full --store runs/lab.sqlite

.PHONY: demo full test test-slow check lint types sanitize clean

demo: $(VENV)/lab.stamp  ## train, judge the claims, write the report
	$(BIN)/normkit lab run --preset quick --store runs/lab.sqlite --report runs/report.html

full: $(VENV)/lab.stamp  ## every claim, an hour or more; renews docs/report.html and the README's table
	$(BIN)/normkit lab run all $(FULL) --report docs/report.html
	$(BIN)/normkit lab verdicts $(FULL) --into README.md

test: $(VENV)/dev.stamp  ## all tests but the slow ones, on every core
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/dev.stamp  ## the tests that need minutes
	$(BIN)/python -m pytest -m slow

check: lint types test  ## what CI runs

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# gcc's runtime of the sanitizers must be there before Python is, and libstdc++ with it, or
# exceptions that torch throws are not seen.
sanitize: $(VENV)/dev.stamp  ## tests of the kernels, memory and undefined behaviour watched
	rm -rf build/sanitize
	CXX="$(CXX)" NORMKIT_BUILD_KERNELS=1 NORMKIT_SANITIZE=address,undefined \
		$(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		PYTHONPATH=build/sanitize \
		$(BIN)/python -m pytest -n auto --dist worksteal tests/kernels tests/nn/test_oracle.py tests/nn/test_at_once.py

$(VENV)/torch.stamp:
	@echo "Setting up $(VENV): $(TORCH) first, then the rest (a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	$(PIP) install "setuptools>=77" wheel
	@touch $@

# --no-build-isolation: a build environment of its own would fetch a torch of its own.
$(VENV)/lab.stamp: $(VENV)/torch.stamp pyproject.toml $(KERNELS)
	$(PIP) install --no-build-isolation -e ".[lab]"
	@$(DESCRIBE)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml $(KERNELS)
	$(PIP) install --no-build-isolation -e ".[dev]"
	@$(DESCRIBE)
	@touch $@ $(VENV)/lab.stamp

clean:  ## everything but data and results
	rm -rf $(VENV) build dist src/*.egg-info src/normkit/kernels/cpu/_cpu*.so \
		src/normkit/kernels/cpu/_build.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
