# Needs Python 3.11 or newer, GNU make and a package index; everything else is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGE := featpipe tests
# Tests are independent of one another; each process holds a torch of its own.
AT_ONCE := -n auto --maxprocesses 8
SLOWEST := --durations 25 --durations-min 0.5

.PHONY: demo test test-all test-gpu reliability check coverage format clean

demo: $(VENV)/installed
	$(BIN)/featpipe run pipelines/quickstart.toml
	@echo 'Next, with your own pictures: $(BIN)/featpipe extract FOLDER --name NAME'

test: check
	$(BIN)/pytest $(AT_ONCE) $(SLOWEST)

test-all: check
	$(BIN)/pytest $(AT_ONCE) -m "not gpu and not browser"

# Needs a CUDA device; one process, so that tests do not take each other's memory.
test-gpu: $(VENV)/installed-dev
	$(BIN)/pytest -m gpu tests/gpu

reliability: $(VENV)/installed-dev
	$(BIN)/pytest --full --timeout 3600 -m "not gpu and not browser" tests/reliability

coverage: $(VENV)/installed-dev
	$(BIN)/pytest $(AT_ONCE) --cov featpipe --cov-report term

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check $(PACKAGE)
	$(BIN)/ruff check $(PACKAGE)
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff format $(PACKAGE)
	$(BIN)/ruff check --fix $(PACKAGE)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("expected Python 3.11 or newer, found " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@echo 'Installing torch and the rest into $(VENV): some 6 GB, a few minutes …'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs audits comparisons build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
