# make demo | make demo-beyond | make test | make ui | make lint | make bench. Each sets itself up: a virtual environment in .venv, made on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TEST_PROCESSES ?= 2
SERVER_PROCESSES ?= 3
MUTATIONS ?= --sample 300 --seed 1
EXAMPLES ?= 3000
MINUTES ?= 60
CAMPAIGN ?= --seconds 1800

PROCESSES := $(addprefix tests/orchestration/test_, processes.py backfills.py dagster_cli.py pages.py)

.PHONY: demo demo-beyond bench-gpu bench-scale test test-slow test-processes test-servers test-kills test-fuzz campaign test-cloud test-browser test-all test-mutations ui lint bench rehearsal golden soak setup clean-state
.DEFAULT_GOAL := demo

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv (a minute or two, 2 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(INSTALLED)

setup: $(INSTALLED)

demo: $(INSTALLED)
	@$(RUN) -m orchestration.cli demo

demo-beyond: $(INSTALLED)
	@$(RUN) -m orchestration.cli materialize --recipe demo_beyond

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist loadgroup

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m slow --timeout 3000 --log-cli-level=INFO

test-processes: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "slow or processes" --timeout 900 $(PROCESSES)

test-servers: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(SERVER_PROCESSES) --dist loadgroup -m "browser or cloud or processes" --timeout 1200 tests/browser tests/orchestration tests/storage

test-kills: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/training/test_resume.py -m slow --timeout 3000 --log-cli-level=INFO

test-fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 YT8M_FUZZ_EXAMPLES=$(EXAMPLES) $(RUN) -m pytest tests/faults/test_fuzzing.py --timeout 6000 --log-cli-level=INFO

campaign: $(INSTALLED)
	@for place in folder bucket served daemon; do OMP_NUM_THREADS=1 $(RUN) -m tests.campaign --place $$place $(CAMPAIGN) || exit 1; done

test-cloud: $(INSTALLED)
	$(RUN) -m pytest -m cloud --timeout 1200

test-browser: $(INSTALLED)
	$(RUN) -m pytest -m browser --timeout 900

test-all: test test-servers test-slow

test-mutations: $(INSTALLED)
	$(RUN) -m tests.mutations $(MUTATIONS)

ui: $(INSTALLED)
	@$(RUN) -m orchestration.cli ui

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

bench: $(INSTALLED)
	@for name in reader models "prediction --models demo" prediction training topk_to_search; do $(RUN) -m tests.benchmarks.bench_$$name || exit 1; done

bench-gpu: $(INSTALLED)
	$(RUN) -m tests.benchmarks.bench_gpu $(ARGS)

bench-scale: $(INSTALLED)
	$(RUN) -m tests.benchmarks.bench_scale $(ROWS)

rehearsal: $(INSTALLED)
	$(RUN) -m tests.benchmarks.bench_rehearsal
	$(RUN) -m tests.benchmarks.bench_scale worker_memory worker_start listing
	$(RUN) -m tests.benchmarks.rehearsal_challenge

soak: $(INSTALLED)
	@for what in run report fill pages; do $(RUN) -m tests.soak $$what --minutes $(MINUTES) || exit 1; done

golden: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m tests.golden.release

clean-state:
	rm -rf .state
