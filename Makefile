# Every chore is a target. `make help` lists them; the first one run builds the environment in .venv.

VENV     ?= .venv
PYTHON3  ?= python3
BIN      := $(VENV)/bin
PYTHON   := $(BIN)/python
STAMP    := $(VENV)/.verimorph-ready
WORKERS  ?= 2
ARGS     ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types unit proof format docs serve-docs bench interop constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## build the environment in .venv (again when pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(PYTHON) ]; then \
	    command -v $(PYTHON3) >/dev/null || { echo "error: $(PYTHON3) not found; install Python 3.11 or newer, or say which: make setup PYTHON3=/path/to/python3"; exit 2; }; \
	    $(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	        || { echo "error: $(PYTHON3) is $$($(PYTHON3) -V); Verimorph needs Python 3.11 or newer: make setup PYTHON3=python3.11"; exit 2; }; \
	    $(PYTHON3) -m venv $(VENV) \
	        || { echo "error: $(PYTHON3) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }; \
	fi
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev,formats,demo]"
	@# Bytecode for all packages at once, on all cores: without it every command would compile torch's sources anew where
	@# Python may not write any (PYTHONDONTWRITEBYTECODE). Templates in some packages are no valid Python: not our concern.
	@$(PYTHON) -m compileall -q -j 0 $(VENV)/lib src/verimorph >/dev/null 2>&1 || true
	@touch $@

demo: setup  ## register the template brain to a known truth, or FIXED=a.nii.gz MOVING=b.nii.gz
	$(BIN)/verimorph demo $(if $(FIXED),--fixed "$(FIXED)") $(if $(MOVING),--moving "$(MOVING)") $(ARGS)

test: setup lint types unit  ## everything that must pass: style, types, tests, documentation examples

lint: setup  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy over the package
	$(BIN)/mypy

unit: setup  ## the tests alone; ARGS="-k grid -x" reaches pytest
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n $(WORKERS) $(ARGS)

proof: setup  ## what takes minutes: the same bits in fresh processes at full size
	$(PYTHON) -m pytest -q -m proof $(ARGS)

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

serve-docs: setup  ## read the documentation at http://127.0.0.1:8000 while writing it
	$(BIN)/mkdocs serve

bench: setup  ## measure accuracy, time and memory on the development images (bench/README.md)
	$(BIN)/verimorph bench run $(ARGS)

interop: setup  ## read our transforms with ANTs, in an environment of its own
	$(PYTHON) bench/interop.py $(ARGS)

constraints: setup  ## refresh constraints.txt from pyproject.toml
	$(PYTHON) -m pip install --quiet uv
	echo "torch==2.13.0" > $(VENV)/pins.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 -c $(VENV)/pins.txt pyproject.toml --all-extras \
	    -o constraints.txt --no-annotate --no-header --no-emit-index-url --no-emit-find-links

clean:  ## remove what the other targets made, the environment too
	rm -rf $(VENV) build dist site demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
