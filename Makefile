# `make` alone prints what there is. Continuous integration runs `make setup check` and nothing else.
# `make demo` wants Python >= 3.10 with venv, and make; it writes nothing outside this folder.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --no-input --disable-pip-version-check --progress-bar off
LOCK := requirements-dev.lock
COVERAGE_FLOOR := 88
BENCH_JSON ?= .cache/bench.json

export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
# ONNX Runtime 1.29 and later reports its use, and keeps a database in the home folder, unless told not to.
export ORT_DISABLE_TELEMETRY := 1

# What `python3 -m edged` should see when it is run from here rather than installed.
demo engine verify bench: export EDGED_PATHS__ENGINES := $(CURDIR)/engines
demo engine verify bench: export EDGED_PATHS__CALIB := $(CURDIR)/calib
# glibc: keep blocks up to 32 MB on the heap instead of asking the kernel for each payload anew.
# systemd/edged.service sets the same two.
demo bench test-e2e: export MALLOC_MMAP_THRESHOLD_ := 33554432
demo bench test-e2e: export MALLOC_TRIM_THRESHOLD_ := 67108864

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The order of `check` is meant: cheap checks first, pytest's closing line last.
.NOTPARALLEL:
.SUFFIXES:

# ------------------------------------------------------------------------------ help

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ------------------------------------------------------------------------------ try it

.PHONY: demo engine verify models bench bench-timer
demo: $(VENV)/.demo ## build the digits engine, serve it on an embedded broker, send requests, print a table
	$(PY) -m edged demo

engine: $(VENV)/.demo ## build the engine of MODEL= from its calibration samples
	@$(call need_model)
	$(PY) -m edged build $(MODEL)

verify: $(VENV)/.demo ## compare the built engine of MODEL= with its float model on held-out samples
	@$(call need_model)
	$(PY) -m edged build $(MODEL)
	$(PY) -m edged verify $(MODEL)

models: ## train the bundled models anew (fetches PyTorch into .cache)
	$(PYTHON) -m venv .cache/models
	.cache/models/bin/python -m pip install --no-input 'pip>=25.1'
	.cache/models/bin/python -m pip install --no-input --group models -e '.[build]'
	set -e; for script in engines/*/train.py; do .cache/models/bin/python "$$script"; done

bench: $(VENV)/.dev ## measure latency against a bare MQTT echo, start-up and memory; JSON to BENCH_JSON=
	@mkdir -p $(dir $(BENCH_JSON))
	$(PY) tests/bench/one_at_a_time.py $(BENCH_JSON)

bench-timer: $(VENV)/.dev ## simulate the batch timer against optima and other rules (minutes); tables into docs/benchmarks.md
	OPENBLAS_NUM_THREADS=1 $(PY) -m tests.bench.batching tests/bench/results/batching.json
	$(PY) -m tests.bench.batching_table --write

.PHONY: bench-outbox
bench-outbox: $(VENV)/.dev ## measure the outbox: rates, a day offline, a thousand times kill -9; JSON into .cache
	@mkdir -p .cache
	$(PY) -m tests.bench.outbox_kills --kills 1000 .cache/outbox_kills.json
	$(PY) -m tests.bench.outbox --folder .cache .cache/outbox.json

.PHONY: bench-reporting
bench-reporting: $(VENV)/.dev ## measure what reporting costs a request, a desired change, a day offline; JSON into .cache
	@mkdir -p .cache
	$(PY) -m tests.bench.reporting_cost .cache/reporting_cost.json
	$(PY) -m tests.bench.reporting .cache/reporting.json
	$(PY) -m tests.bench.day_offline --folder .cache .cache/day_offline.json

.PHONY: bench-chaos
bench-chaos: $(VENV)/.dev ## kill -9 of daemon and broker under load, twenty times each, and a million requests' memory; JSON into .cache
	@mkdir -p .cache
	$(PY) -m tests.bench.chaos .cache/chaos.json
	$(PY) -m tests.bench.soak .cache/soak.json

# ------------------------------------------------------------------------------ work on it

.PHONY: setup check fix format-check lint types layers test test-integration test-e2e test-gpu
setup: $(VENV)/.dev ## virtual environment with everything that development needs, and mosquitto
	@.ci/system-package mosquitto || echo "edged: without mosquitto test-integration and test-e2e fail"
	@.ci/system-package chromium || echo "edged: without chromium the build report is not opened in a browser"

check: setup format-check lint types layers test test-integration test-e2e ## exactly what continuous integration runs

fix: $(VENV)/.dev ## format, and apply the safe lint fixes
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

format-check: $(VENV)/.dev ## formatting, changing nothing
	$(PY) -m ruff format --check .

lint: $(VENV)/.dev ## ruff
	$(PY) -m ruff check .

types: $(VENV)/.dev ## mypy, strict
	$(PY) -m mypy

layers: $(VENV)/.dev ## import contracts: who may import whom
	$(VENV)/bin/lint-imports

test: $(VENV)/.dev ## unit and property tests
	$(PY) -m pytest tests/unit tests/property --cov --cov-report=

test-integration: $(VENV)/.dev ## tests against a real mosquitto, the embedded broker, ONNX Runtime; coverage floor
	$(PY) -m pytest tests/integration --cov --cov-append --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE_FLOOR)

test-e2e: $(VENV)/.dev ## the built wheel in a clean environment, real processes and signals
	$(PY) -m pytest tests/e2e

test-gpu: $(VENV)/.dev ## tests that need an NVIDIA GPU and TensorRT; a missing one is a failure
	EDGED_REQUIRE_GPU=1 $(PY) -m pytest -m gpu tests/integration

# ------------------------------------------------------------------------------ release and install

.PHONY: asyncapi package changelog lock clean
asyncapi: $(VENV)/.dev ## write docs/asyncapi.json anew from the code, after a change of the protocol
	$(PY) -m edged asyncapi > docs/asyncapi.json.new && mv docs/asyncapi.json.new docs/asyncapi.json

package: $(VENV)/.dev ## build the wheel into dist/
	$(PY) -m build --wheel --no-isolation --outdir dist .

changelog: $(VENV)/.made ## fold the fragments of docs/changes/ into CHANGELOG.md
	$(PY) docs/changes/fold.py

# Needs uv (https://docs.astral.sh/uv/). Pins that still fit stay; remove the file first to renew all.
# The lines carry no addresses and no header, so that any mirror can serve them.
lock: ## resolve requirements-dev.lock anew after a change of dependencies
	uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --no-emit-index-url \
	  --extra demo --extra rtx --group dev pyproject.toml --output-file $(LOCK)

clean: ## remove what the targets made, except .venv, .cache and built engines
	rm -rf dist build .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage .coverage.*
	find edged tests engines docs -name __pycache__ -type d -prune -exec rm -rf {} +

-include systemd/install.mk

# ------------------------------------------------------------------------------ the virtual environment

# Three stamps, so that a second run installs nothing: .made (empty), .demo (what the demo needs),
# .dev (everything that is locked; includes .demo).

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "edged: needs Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1); name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(NO_SUDO_FOR_DEMO) .ci/system-package \
	  "$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml $(LOCK) | $(VENV)/.made
	$(PIP_INSTALL) -c $(LOCK) hatchling
	$(PIP_INSTALL) -c $(LOCK) --no-build-isolation -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(LOCK) | $(VENV)/.made
	$(PIP_INSTALL) -r $(LOCK)
	$(PIP_INSTALL) --no-build-isolation --no-deps -e .
	@touch $(VENV)/.demo $@

# Only `setup` and what follows from it may use sudo; the demo asks for nothing.
NO_SUDO_FOR_DEMO = $(if $(filter setup check,$(MAKECMDGOALS)),,NO_SUDO=1)

need_model = test -n "$(MODEL)" || { echo "edged: say which one, for example: make $@ MODEL=digits (there are:$(patsubst engines/%/recipe.toml, %,$(wildcard engines/*/recipe.toml)))" >&2; exit 1; }
