# `make demo` runs the main job, `make test` everything that is checked. Each makes .venv in the checkout when it is not
# there and installs once for each state of pyproject.toml and constraints.txt.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-all test lint style site clean

PYTHON ?= python3
KEEP ?=
BIN := .venv/bin

# One thread for each process that computes: several processes of two threads on two cores are many times slower.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PYTHONUNBUFFERED ?= 1

help:
	@echo "make demo         search, compare, register and serve adapters on real text"
	@echo "make demo KEEP=1  the same, and the endpoint stays up"
	@echo "make demo-all     every pipeline by three seeds, in one table (an hour or more on two cores; goes on if killed)"
	@echo "make test         lint, types and tests"
	@echo "make lint         lint and types"
	@echo "make site         docs/ as a site: build/site/index.html"
	@echo "make clean        remove .venv and everything that runs wrote"

demo: .venv/installed
	@$(BIN)/python -m pipelines.sentiment $(if $(KEEP),--keep)

demo-all: .venv/installed-gguf
	@$(BIN)/python -m benchmarks.tasks --seeds 3

# mypy has one processor's work for a minute: beside the tests neither of two waits meanwhile.
test: style
	@echo "== mypy and pytest"
	@($(BIN)/mypy 2>&1 | sed -u 's/^/mypy: /') & types=$$!; failed=0; \
		$(BIN)/python -m pytest -n 2 --durations=20 || failed=$$?; \
		wait $$types || { echo "mypy found errors: see above"; failed=1; }; exit $$failed

lint: style
	@echo "== mypy"
	@$(BIN)/mypy

style: .venv/installed-test
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

site: .venv/installed-site
	@$(BIN)/python -m sphinx -q -W --keep-going docs build/site
	@echo "build/site/index.html"

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache data runs store mlflow.db mlartifacts mlruns
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is quiet but for the names of what it fetches; everything it said is in .venv/install.log.
define install
	@echo "== installing ray_lora$(1) into .venv (some minutes the first time; log: .venv/install.log)"
	@$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.$(1)' 2>&1 | tee .venv/install.log \
		| awk '/^Collecting|^Installing collected/ {printf "  %.110s\n", $$0; fflush()} /^ *ERROR/ {print; fflush()}'
	@touch $@
endef

.venv/installed: .venv/made pyproject.toml constraints.txt
	$(call install)

.venv/installed-gguf: .venv/installed
	$(call install,[gguf,speech])

.venv/installed-site: .venv/installed
	$(call install,[site])

.venv/installed-test: .venv/installed
	$(call install,[test])

.venv/made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else \
		"ray_lora needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12 ..." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@touch $@
