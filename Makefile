PYTHON ?= python3.11
VENV ?= .venv
export NO_ALBUMENTATIONS_UPDATE = 1
export BENTOML_DO_NOT_TRACK = True
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help train serve test test-slow lint clean

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[train,serve,test]'
	touch $@

train: $(VENV)/installed ## Train on the embedded digits, evaluate, export, prove, report. ARGS="--data DIR" for your own.
	python -m training $(ARGS)

serve: $(VENV)/installed ## Serve the latest run on port 3000.
	bentoml serve

test: $(VENV)/installed ## Run the tests, but for the slow ones.
	pytest

test-slow: $(VENV)/installed ## Run the tests that take minutes, or both cores, one after the other.
	pytest -m slow --numprocesses=0

lint: $(VENV)/installed ## Format check, lint, types.
	ruff format --check .
	ruff check .
	mypy

clean: ## Remove the virtual environment; runs stay.
	rm -rf $(VENV)
