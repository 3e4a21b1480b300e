PYTHON ?= python3.11
VENV ?= .venv
DOCKER ?= docker
# Of the images' names. No registry has `localhost`, so a cluster cannot pull a stranger's image by the default.
REGISTRY ?= localhost
# The one place of the version is pyproject.toml; a test compares the manifests with it.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export NO_ALBUMENTATIONS_UPDATE = 1
export BENTOML_DO_NOT_TRACK = True
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help train serve test test-slow test-long test-containers bench-serving bench-training check-gpu images sbom lint clean

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[train,serve,test]'
	touch $@

train: $(VENV)/installed ## Train on the embedded digits, evaluate, export, prove, report. ARGS="--data DIR" for your own.
	python -m training $(ARGS)

# For this machine alone; `bentoml serve` by itself listens on all interfaces.
serve: export BENTOML_HOST ?= 127.0.0.1
serve: $(VENV)/installed ## Serve the latest run on port 3000 of this machine. BENTOML_HOST=0.0.0.0 for others.
	bentoml serve

test: $(VENV)/installed ## Run the tests, but for the slow ones.
	pytest

test-slow: $(VENV)/installed ## Run the tests that take long, then those that measure, with nothing beside them.
	pytest -m "slow and not alone and not long"
	pytest -m "alone and not long" --numprocesses=0

test-long: $(VENV)/installed ## Run the tests that take longest: every page's commands, studies, searches, rare cases.
	pytest -m "long and not alone"
	pytest -m "long and alone" --numprocesses=0

test-containers: $(VENV)/installed ## Build both images and run them as the manifests do; root, podman, debootstrap, dnsmasq.
	pytest -m containers --numprocesses=0 tests/containers

bench-serving: $(VENV)/installed ## Compare the service with its peers, half an hour on a quiet machine; needs wrk. ARGS="--help".
	python -m tests.bench.serving $(ARGS)

check-gpu: $(VENV)/installed ## Check driver, GPU, training and serving in minutes, also without a GPU; leaves check/check.json.
	status=0; \
	python -m training check || status=1; \
	python -m serving check --model check/cnn.onnx || status=1; \
	pytest -m gpu --numprocesses=0 || status=1; \
	exit $$status

bench-training: $(VENV)/installed ## Compare the trainer with other loops, minutes on a quiet machine. ARGS="--data DIR".
	python -m tests.bench.training $(ARGS)

images: ## Build both images, tagged with the version. REGISTRY=localhost, SUFFIX=-cpu, ARGS="--build-arg EXTRAS=serve ...".
	for kind in train serve; do \
	    $(DOCKER) build --file Dockerfile.$$kind --build-arg VERSION=$(VERSION)$(SUFFIX) \
	        --build-arg REVISION="$$(git rev-parse HEAD)" $(ARGS) \
	        --tag $(REGISTRY)/twinlens/$$kind:$(VERSION)$(SUFFIX) . || exit 1; \
	done

sbom: $(VENV)/installed ## Write build/sbom.json (CycloneDX) and build/licenses.md of all that is installed.
	mkdir -p build
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-licenses==5.5.5
	build/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file build/sbom.json $(VENV)
	build/tools/bin/pip-licenses --python $(VENV)/bin/python --with-urls --format markdown --output-file build/licenses.md

lint: $(VENV)/installed ## Format check, lint, types, layers.
	ruff format --check .
	ruff check .
	mypy
	lint-imports

clean: ## Remove the virtual environments and what was built; runs stay.
	rm -rf $(VENV) .bench build
