# make demo: set up and run the main job.   make test: set up and run the tests.
PYTHON ?= python3
# Pins a CPU build of torch. On a machine with an accelerator: make demo CONSTRAINTS=
CONSTRAINTS ?= constraints/cpu.txt
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
OUT ?= runs/demo
# Where make reliability and make security write what they measure.
FIGURES ?= docs/results
# One worker per core, one thread each: the models of the tests are too small for more.
SUITE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: bench demo test slow reliability security lint clean
.DEFAULT_GOAL := help

help:
	@grep -h '^# make' Makefile; echo '   make lint, make slow, make bench, make reliability, make security, make clean'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras, renewed only when the requirements change.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@n=0; out=$(OUT); while [ -e "$$out" ]; do n=$$((n + 1)); out=$(OUT)-$$n; done; \
	$(BIN)/pcpo train demo --output "$$out"

test: $(VENV)/.installed-dev
	$(SUITE)

reliability: $(VENV)/.installed-dev
	$(SUITE) tests/reliability -m reliability --figures $(FIGURES)/reliability.json

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

security: $(VENV)/.installed-dev
	$(SUITE) tests/security -m 'slow or not slow' --figures $(FIGURES)/security.json

bench: $(VENV)/.installed-dev
	PYTHON=$(abspath $(BIN)/python) benchmarks/run_all.sh

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
