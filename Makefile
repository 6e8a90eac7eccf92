# demo, test and check each work alone on a fresh machine with Python, a C++ compiler and make.

PYTHON ?= python3
# The version developed and tested with. Named exactly and installed before everything else, so
# that no dependency fetches another build.
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-slow check lint types clean

demo: $(VENV)/lab.stamp  ## train, judge the claims, write the report
	$(BIN)/normkit lab run --preset quick --store runs/lab.sqlite --report runs/report.html

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

$(VENV)/torch.stamp:
	@echo "Setting up $(VENV): $(TORCH) first, then the rest (a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	$(PIP) install "setuptools>=77" wheel
	@touch $@

# --no-build-isolation: a build environment of its own would fetch a torch of its own.
$(VENV)/lab.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) install --no-build-isolation -e ".[lab]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) install --no-build-isolation -e ".[dev]"
	@touch $@ $(VENV)/lab.stamp

clean:  ## everything but data and results
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
