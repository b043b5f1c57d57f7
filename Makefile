# `make` lists the targets. The environment is made on first use and brought up to date when its inputs change.
# Settings: PYTHON=/path/to/python3 (default: the newest >= 3.11 that runs), VENV=.venv, PYTEST_ARGS="-k schema",
# BENCHMARKS="startup adult" (default: all).

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
IMAGE := mmjax

.DEFAULT_GOAL := help
.PHONY: help install setup train train-images evaluate serve lint format typecheck test soak bench docker-build docker-run clean FORCE

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

install: $(READY) ## Make .venv with the locked dependencies and mmjax itself

# Another PYTHON than the one that the environment was made with remakes it.
ifdef PYTHON
ifneq ($(PYTHON),$(shell cat $(READY) 2>/dev/null))
$(READY): FORCE
endif
endif
$(READY): pyproject.toml requirements/py311.txt requirements/py312.txt .ci/install .ci/python
	@PYTHON="$(PYTHON)" .ci/install $(VENV)
	@echo "$(PYTHON)" > $@

setup: install ## Make the sample data: a CSV and a folder of images
	@$(PY) data/make_sample.py

train: install setup ## Train, test and register the iris model (a table)
	$(PY) -m mmjax.train --config configs/iris.yaml

train-images: install setup ## Train, test and register the colour model (images)
	$(PY) -m mmjax.train --config configs/images.yaml

evaluate: install setup ## Evaluate the newest iris model on the sample CSV (trains it first when there is none)
	@test -d registry/iris || $(MAKE) --no-print-directory train
	$(PY) -m mmjax.evaluate --model iris --data data/sample/iris.csv

serve: install setup ## Serve the sample models on port 8000 (trains first what is absent)
	@test -d registry/iris || $(MAKE) --no-print-directory train
	@test -d registry/images || $(MAKE) --no-print-directory train-images
	$(PY) -m mmjax.serve --config configs/serve.yaml

lint: install ## Check style, imports and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: install ## Format the code and mend what the linter can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

typecheck: install ## Check the types
	$(PY) -m pyright --pythonpath $(PY)

# Three workers with one thread each for two cores, as tests wait for disks and for processes of their own; a file stays
# with one worker, so that what its tests share is made once.
# Compiled programs are kept beside the environment that compiled them: the second run takes half the time.
ONE_THREAD := NPROC=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
KEEP_COMPILED := JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/.compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

test: install setup ## Run the tests
	$(ONE_THREAD) $(KEEP_COMPILED) $(PY) -m pytest -n 3 --dist loadfile -m "not soak" $(PYTEST_ARGS)

soak: install setup ## Run the long tests
	$(PY) -m pytest -m soak $(PYTEST_ARGS)

bench: install setup ## Run the benchmarks, one JSON file each under benchmarks/results
	@$(PY) benchmarks/run_all.py $(BENCHMARKS)

docker-build: ## Build the container image
	docker build --tag $(IMAGE) .

docker-run: ## Run the container image: serve this folder's registry on port 8000 of this machine
	docker run --rm --publish 127.0.0.1:8000:8000 --volume "$(CURDIR)/registry:/app/registry:ro" $(IMAGE)

clean: ## Remove the environment, caches, runs and the made sample images; the registry stays
	rm -rf $(VENV) .ci/venv .pytest_cache .hypothesis .ruff_cache .coverage* htmlcov build dist *.egg-info runs
	rm -rf data/sample/images benchmarks/results benchmarks/.peers benchmarks/.peers-tabular
	find mmjax tests benchmarks data -name __pycache__ -prune -exec rm -rf {} +
