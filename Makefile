# `make help` lists what there is. Every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo up test lint types imports proto gen unit e2e bench clean format

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt proto/pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Sidestep needs Python 3.11 or newer: make PYTHON=python3.x ...")'
	@echo "setting up $(VENV) (once, about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable proto --editable clients/python --editable '.[sidecar,controlplane,dev]'
	@touch $@

demo: $(READY) ## play the payments story and check every decision
	@$(BIN)/python -m examples.demo

up: $(READY) ## run control plane, sidecar and an OTLP receiver in the foreground
	@$(BIN)/python -m examples.up

test: lint types imports proto unit ## everything that needs only Python and PyPI; under 5 minutes

lint: $(READY) ## style
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(READY) ## types
	@$(BIN)/mypy --no-error-summary

imports: $(READY) ## who may import whom
	@$(BIN)/lint-imports --no-cache 2>&1 | tail -n 3

proto: $(READY) ## API: lint, no breaking change, committed code is what the generator makes
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	@cd proto && ../$(BIN)/buf breaking --against baseline.binpb
	@$(BIN)/python scripts/gen_protos.py --check

gen: $(READY) ## regenerate the Python of proto/
	@$(BIN)/python scripts/gen_protos.py

unit: $(READY) ## the tests themselves
	@$(BIN)/pytest -m "not e2e" --numprocesses 2 --dist worksteal

e2e: $(READY) ## the heavy rest: long chaos, a million devices
	@$(BIN)/pytest -m e2e --timeout 900

bench: $(READY) ## measure; writes bench/results/
	@$(BIN)/python -m bench

format: $(READY) ## rewrite the code in the project's style
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

clean: ## remove what was built
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
