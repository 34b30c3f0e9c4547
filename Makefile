# `make demo` and `make test` set up what they need the first time and start at once afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
WRONG_PYTHON := PYTHON=$(PYTHON) is not Python 3.10 or later. Name one that is, for example: make PYTHON=python3.12

.PHONY: help demo test browser test-npu test-npu-hardware npu-tools check dev bench clean
help: ## say what each target does
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): setup.py mindie_cache/version.py
	@test -x $(BIN)/pip && $(BIN)/python -c "$(NEW_ENOUGH)" || { \
		$(PYTHON) -c "$(NEW_ENOUGH)" || { echo "$(WRONG_PYTHON)" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); }  # --clear: what is there is of an old Python, or was interrupted
	@echo "Setting up $(VENV): this may download PyTorch and take a few minutes."
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" setuptools wheel -e .
	@touch $@

$(TOOLS): $(READY)
	@echo "Installing the development tools into $(VENV)."
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	@touch $@

demo: $(READY) ## generate with and without caches, compare, and write pictures to out/demo/ (ARGS="--steps 20" passes options)
	$(BIN)/mindie-cache demo $(ARGS)

test: $(TOOLS) ## run the tests, one process a core (ARGS="-k clock" passes options to pytest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(ARGS)

browser: $(TOOLS) ## install Chromium for the tests in a browser, where that can be done; without it `make test` skips them
	@$(BIN)/python tests/browser.py

npu-tools: $(TOOLS) ## set up .npu/ and MLIR, for tests of the NPU code without an NPU
	@$(BIN)/python tests/npu/setup_tools.py

test-npu: npu-tools ## test the kernels as lowered for Ascend and for CUDA, and torch_npu, on the CPU (ARGS as for test)
	@$(BIN)/python tests/npu/run.py $(ARGS)

test-npu-hardware: ## on a machine with an NPU: the same cases and timings on it; PYTHON is the one with torch_npu and mindie_cache
	PYTHONPATH=tests $(PYTHON) tests/npu/hardware.py $(ARGS)

check: $(TOOLS) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dev: $(TOOLS) ## set up .venv with all development tools
	@echo "Ready: source $(BIN)/activate"

bench: $(TOOLS) ## measure host time per call, beside MindIE-SD's cache_agent
	$(BIN)/python benchmarks/overhead.py $(ARGS)

clean: ## remove .venv, .npu, caches and outputs (trainings in runs/ stay)
	rm -rf $(VENV) .npu out build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
