# `make help` lists the targets. Everything is installed into .venv and build, plus the Debian packages that
# scripts/setup names; no service is installed, started or enabled.

SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
# .venv/bin has the redis-server that set-up made, if the machine has none.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHON
# How many pure tests run side by side.
WORKERS ?= 2
# What pytest ends with if there was none for it.
NO_TESTS := 5

.DEFAULT_GOAL := help
.PHONY: help setup check format test unit sim sim-boundaries mutants faults compare demo bench docs docs-check lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (quick if nothing is)
	@scripts/setup

check: setup ## lint, format, strict types, generated documents
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@$(MAKE) --no-print-directory docs-check

format: setup ## let ruff fix and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: setup ## the whole suite: what is pure side by side, what starts servers one by one; TESTS=tests/unit ARGS=-x narrow it down
	@failed=0; \
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not alone" $(TESTS) $(ARGS) || [ $$? -eq $(NO_TESTS) ] || failed=1; \
	$(PY) -m pytest -m alone $(TESTS) $(ARGS) || [ $$? -eq $(NO_TESTS) ] || failed=1; \
	exit $$failed

unit: setup ## the quick tests only: no server is started
	$(PY) -m pytest tests/unit tests/sim $(ARGS)

sim: setup ## the simulator: SEEDS=20000 or A..B, ARGS='--seed 7 --trace' for one, '--record tests/sim/ranges.jsonl' to list a range
	$(PY) -m tests.sim.run $(if $(findstring --seed,$(ARGS)),,--seeds $(or $(SEEDS),200)) $(ARGS)

sim-boundaries: setup ## the simulator: a fault at every command boundary of nine scenarios (ARGS='--sample 50')
	$(PY) -m tests.sim.boundaries $(ARGS)

mutants: setup ## does the simulator notice a missing rule? all of them; ARGS='--only lease --jobs 1', ARGS=--record
	$(PY) -m tests.sim.mutants $(ARGS)

demo: setup ## three ZooKeepers, three agents: killed, switched over, frozen, live
	@$(VENV)/bin/redis-agent demo $(ARGS)

faults: setup ## faults on real processes in network namespaces, as root: MINUTES=60 SEED=1, ARGS='--only redis-kill,rack-cut'
	$(PY) -m tests.faults --minutes $(or $(MINUTES),3) --seed $(or $(SEED),1) $(ARGS)

bench: setup ## failover, handover and restart times, idle cost: FAILOVERS=300 HANDOVERS=300 RESTARTS=30
	$(PY) -m tests.bench --failovers $(or $(FAILOVERS),300) --handovers $(or $(HANDOVERS),300) \
		--restarts $(or $(RESTARTS),30) $(ARGS)

compare: setup ## redis-agent and Redis Sentinel under the same faults (root): ARGS='--runs 3 --docs'
	$(PY) -m tests.faults.compare $(ARGS)

docs: setup ## rewrite the generated parts of docs/ and systemd/
	$(PY) scripts/generate_docs.py

docs-check: setup
	@$(PY) scripts/generate_docs.py --check

lock: setup ## rewrite requirements.lock (needs uv); ARGS=--upgrade for newer versions
	scripts/lock $(ARGS)

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
