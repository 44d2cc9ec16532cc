# The habits of this repository; `.ci/run` calls the same targets. ARGS reaches the program: make test ARGS="-k relay"
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help run test lint types layers e2e bench docs clean

help: ## list these targets
	@sed -n 's/^\([a-z][a-z0-9]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

run: .venv/installed ## install into .venv and start the quickstart: a gateway, two clients, bytes through it
	$(BIN)/portguard quickstart $(ARGS)

test: .venv/installed-test ## run every test, with the real programs that are installed
	$(BIN)/pytest $(ARGS)

lint: .venv/installed-test ## style and formatting
	$(BIN)/ruff check && $(BIN)/ruff format --check

types: .venv/installed-test ## static types, strict
	$(BIN)/mypy

layers: .venv/installed-test ## dependencies point down, pure rooms stay pure
	$(BIN)/lint-imports

e2e: .venv/installed-test ## only the tests that drive real programs, none skipped
	PORTGUARD_REQUIRE_REAL=1 $(BIN)/pytest -m e2e $(ARGS)

bench: .venv/installed ## portguard beside HAProxy, nginx and stunnel; then the cost of a decision
	$(BIN)/python -m bench --json bench/results/peers.json --picture bench/results/peers.svg $(ARGS)
	$(BIN)/python -m bench.decide

docs: .venv/installed-test ## links, anchors and commands named in the documents
	$(BIN)/pytest tests/docs $(ARGS)

clean: ## remove what these targets made; the quickstart folder stays, it holds keys
	rm -rf .venv build dist *.egg-info .*_cache .hypothesis bench/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make an installation happen once per change of the metadata, not once per call.
.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ .venv/installed
