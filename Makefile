# Promptmill. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Images of containers often set it, and then each process of the tests would compile all of them again.
unexport PYTHONDONTWRITEBYTECODE

# They wait too, so more processes than there are cores; each costs 4 s of CPU before its first test.
QUICK_TESTS := $(BIN)/python -m pytest -n 6 --dist worksteal --ignore tests/system
# Of the three processes one runs several scenarios side by side by itself: see tests/system/conftest.py.
SYSTEM_TESTS := $(BIN)/python -m pytest -n 3 tests/system

.DEFAULT_GOAL := help
.PHONY: help install run check test coverage browser lint format lock bench soak clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# Two stamps: `make run` needs the product and its embedded Redis; the rest needs the developers' tools too.
$(VENV)/run.stamp: requirements/run.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Promptmill needs Python 3.11 or newer; set PYTHON=..., e.g. make run PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements/run.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock $(VENV)/run.stamp
	@echo "Installing the developers' tools into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

install: $(VENV)/dev.stamp ## .venv with everything, the developers' tools too

run: $(VENV)/run.stamp ## the main job: 1,319 real questions through 2 workers and a simulated provider
	@mkdir -p out
	@$(BIN)/promptmill run examples/gsm8k.jsonl --simulate -o out/gsm8k.jsonl $(ARGS)

check: lint ## lint, and the tests that start no worker processes: two minutes on two cores
	$(QUICK_TESTS) --hypothesis-profile quick -m "not thorough" $(ARGS)

test: $(VENV)/dev.stamp ## all tests; make test ARGS="-k pool" for some of them
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(QUICK_TESTS)
	$(SYSTEM_TESTS)
endif

coverage: $(VENV)/dev.stamp ## the tests of `make check`, and how much of the code they run
	$(QUICK_TESTS) --cov --cov-report=term:skip-covered $(ARGS)

browser: $(VENV)/dev.stamp ## a headless Chromium, for the tests that open Flower's pages
	@$(BIN)/python -m tests.support.browser >/dev/null 2>&1 \
		|| { test "$$(id -u)" = 0 && apt-get update -q \
			&& DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium-headless-shell; } \
		|| $(BIN)/playwright install --only-shell chromium
	@$(BIN)/python -m tests.support.browser

lint: $(VENV)/dev.stamp ## ruff, mypy --strict, the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp ## benchmarks, ours beside others in the same run; make bench ARGS=limiter
	$(BIN)/python -m bench $(ARGS)

soak: $(VENV)/dev.stamp ## the long fault runs, bounded in time; make soak ARGS=kills, limiter, failover or chaos
	$(BIN)/python -m tests.soak $(ARGS)

lock: ## pin the dependencies anew (needs uv)
	uv pip compile pyproject.toml --extra local --group build --universal --generate-hashes --python-version 3.11 \
		--no-header --quiet --output-file requirements/run.lock
	uv pip compile pyproject.toml --extra local --extra tokenizer --group build --group dev --universal --generate-hashes \
		--python-version 3.11 --no-header --quiet --output-file requirements/dev.lock

clean: ## remove what the targets made
	rm -rf $(VENV) out dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
