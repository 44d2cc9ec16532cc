# The habits of this repository; `.ci/run` calls the same targets. ARGS reaches the program: make test ARGS="-k relay"
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile
.DEFAULT_GOAL := help
.PHONY: help run test lint types layers e2e bench docs install clean

# Where `make install` puts things. Packagers set DESTDIR, and PIP_ARGS="--no-index --find-links FOLDER" without a network.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
ROOT := $(abspath $(DESTDIR))
HOME_OF_PROGRAM := $(ROOT)$(PREFIX)/lib/portguard

help: ## list these targets
	@sed -n 's/^\([a-z][a-z0-9]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

run: .venv/installed ## install into .venv and start the quickstart: a gateway, two clients, bytes through it
	$(BIN)/portguard quickstart $(ARGS)

test: .venv/installed-test ## run every test, with the real programs that are installed
	$(BIN)/python -m compileall -q portguard
	$(PYTEST) $(ARGS)

lint: .venv/installed-test ## style and formatting
	$(BIN)/ruff check && $(BIN)/ruff format --check

types: .venv/installed-test ## static types, strict
	$(BIN)/mypy

layers: .venv/installed-test ## dependencies point down, pure rooms stay pure
	$(BIN)/lint-imports

e2e: .venv/installed-test ## only the tests that drive real programs, none skipped
	PORTGUARD_REQUIRE_REAL=1 $(PYTEST) -m e2e $(ARGS)

bench: .venv/installed-bench ## portguard beside HAProxy, nginx and stunnel; then the cost of a decision
	$(BIN)/python -m bench --json bench/results/peers.json --picture bench/results/peers.svg $(ARGS)
	$(BIN)/python -m bench.decide

docs: .venv/installed-test ## links, anchors and commands named in the documents
	$(BIN)/pytest tests/docs $(ARGS)

# All of it can be read by the account that the gateway runs as, whatever root's umask is.
install: ## install the program, its units and an example configuration; PREFIX is /usr/local, DESTDIR empty
	rm -rf build
	umask 022 && $(PYTHON) -m venv $(HOME_OF_PROGRAM)
	umask 022 && $(HOME_OF_PROGRAM)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) '.[fleet]'
	grep -rlI "$(HOME_OF_PROGRAM)" $(HOME_OF_PROGRAM)/bin $(HOME_OF_PROGRAM)/pyvenv.cfg | xargs sed -i 's|$(HOME_OF_PROGRAM)|$(PREFIX)/lib/portguard|g'
	install -d $(ROOT)$(PREFIX)/bin $(ROOT)$(PREFIX)/lib/systemd/system $(ROOT)$(PREFIX)/share/doc/portguard $(ROOT)$(SYSCONFDIR)/portguard/tls
	ln -sfn ../lib/portguard/bin/portguard $(ROOT)$(PREFIX)/bin/portguard
	umask 022 && for unit in portguard.service portguard.socket; do \
	    sed 's|/usr/local/|$(PREFIX)/|g' systemd/$$unit > $(ROOT)$(PREFIX)/lib/systemd/system/$$unit; done
	install -D -m 644 systemd/portguard.sysusers $(ROOT)$(PREFIX)/lib/sysusers.d/portguard.conf
	cp -R README.md CHANGELOG.md LICENSE SECURITY.md docs prometheus grafana $(ROOT)$(PREFIX)/share/doc/portguard
	chmod -R u+w,go+rX $(ROOT)$(PREFIX)/share/doc/portguard
	for file in portguard.toml policy.toml; do \
	    test -e $(ROOT)$(SYSCONFDIR)/portguard/$$file || install -m 644 systemd/$$file $(ROOT)$(SYSCONFDIR)/portguard/$$file; done

clean: ## remove what these targets made; the quickstart folder stays, it holds keys
	rm -rf .venv build dist *.egg-info .*_cache .hypothesis bench/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make an installation happen once per change of the metadata, not once per call.
.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-bench: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@ .venv/installed

.venv/installed-test: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ .venv/installed
