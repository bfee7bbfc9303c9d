# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Needs Python 3.11 or newer, a C compiler and make; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Ray keeps to loopback and reports nothing home.
export RAY_USAGE_STATS_ENABLED := 0
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER := 0
# DeepSpeed would otherwise try to compile kernels at install time.
export DS_BUILD_OPS := 0

.PHONY: help setup demo studio test check perf clean

help:  ## Say what each command does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(STAMP)  ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"OmniFarm needs Python 3.11 or newer, found {sys.version.split()[0]}. Set PYTHON=/path/to/python3.11.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench,edits]"
	@touch $(STAMP)

demo: $(STAMP)  ## Learn several concepts on a local cluster and show them (CONCEPTS=folder for your own)
	$(BIN)/omnifarm demo run $(if $(CONCEPTS),--concepts "$(CONCEPTS)") $(DEMO_FLAGS)

studio: $(STAMP)  ## Open the studio: teach, ask, draw and edit in the browser (BACKBONE=folder for photographs)
	$(BIN)/omnifarm studio $(if $(BACKBONE),--backbone "$(BACKBONE)") $(STUDIO_FLAGS)

test: $(STAMP)  ## Run every test, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TEST_FLAGS)

check: $(STAMP)  ## Format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

perf: $(STAMP)  ## Measure speed side by side: training, serving, the farm
	$(BIN)/omnifarm perf train
	$(BIN)/omnifarm perf serve
	$(BIN)/omnifarm perf farm

clean:  ## Remove what the other commands made
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache
