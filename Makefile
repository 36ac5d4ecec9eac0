# Everything is set up inside this folder: .venv, runs. `make` shows the targets.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
# Without an NVIDIA device the CPU build of torch; the other one brings gigabytes of CUDA.
TORCH := torch==2.13.0 $(shell nvidia-smi -L >/dev/null 2>&1 || \
	echo --extra-index-url https://download.pytorch.org/whl/cpu)
# JupyterLab and its kernels keep to this folder.
JUPYTER := JUPYTER_PREFER_ENV_PATH=1 JUPYTER_CONFIG_DIR=$(CURDIR)/$(VENV)/etc/jupyter \
	JUPYTER_DATA_DIR=$(CURDIR)/$(VENV)/share/jupyter
QUIET := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

.PHONY: help install lab test test-slow lint jupyter clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(STAMP) ## Create .venv and install the project

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found (python3 is $$(python3 --version 2>&1)). Install one, or: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25"
	@echo "Installing torch, then the project (about 2.5 GB, a few minutes) ..."
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -e ".[test]"
	@touch $(STAMP)

lab: $(STAMP) ## Train GRPO and AnytimeReasoner, evaluate, compare (ARGS="--seed 1 --fresh")
	@$(PY) -m anytime_lab.lab $(ARGS)

test: $(STAMP) ## The fast tests (ARGS="tests/test_tree.py -k pack")
	$(QUIET) $(PY) -m pytest -q $(ARGS)

test-slow: $(STAMP) ## The slow tests, among them the whole main job at smoke scale
	$(QUIET) $(PY) -m pytest -q -m slow $(ARGS)

lint: $(STAMP) ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

jupyter: $(STAMP) ## Open JupyterLab on the notebooks
	$(JUPYTER) $(VENV)/bin/jupyter lab --notebook-dir=$(CURDIR) --LabApp.default_url=/lab/tree/notebooks $(ARGS)

clean: ## Remove runs and caches; .venv stays
	rm -rf runs .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
