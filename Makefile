# billaged: everything a developer does, from a fresh clone. Needs make and Python 3.11 or newer.
#
#   make run                        the daemon and a host agent, on this machine, now
#   make test TESTS="tests/test_x.py -k name"
#   make setup PYTHON=python3.12    choose the interpreter of a new .venv

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BUILD ?= build
# Two workers, each file's tests on one of them: fixtures are made once, and tests that
# time out do so because of the product, not of a crowded machine.
WORKERS ?= 2
TESTS ?=

VENV := .venv
# Tools are run as modules: a console script holds its folder's absolute path and breaks when the tree moves.
VENV_PYTHON := $(VENV)/bin/python
# The stamp is named after this folder, since an editable install points at it.
STAMP := $(VENV)/.setup-$(shell pwd | cksum | cut -d ' ' -f 1)

.PHONY: help setup run test test-faults lint ci proto bench fuzz simulate build install uninstall deb constraints clean distclean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# An explicit PYTHON is taken at its word; the default looks on for a newer one. Candidates are
# tried, not looked up: version managers put names on PATH that do not run.
$(VENV_PYTHON):
	@set -e; chosen=; \
	case "$(origin PYTHON)" in file) candidates="$(PYTHON) python3.13 python3.12 python3.11";; *) candidates="$(PYTHON)";; esac; \
	for candidate in $$candidates; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	    echo "billaged needs Python 3.11 or newer; tried: $$candidates. Name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "creating $(VENV) with $$($$chosen -V)"; \
	"$$chosen" -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "$$chosen cannot create a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

# setuptools comes first and from the constraints, so that our own package is built
# with a known one, without a second, unpinned download into an isolated build.
$(STAMP): setup.cfg pyproject.toml constraints.txt | $(VENV_PYTHON)
	@echo "installing what constraints.txt pins into $(VENV): a minute or two, the first time"
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[agent,dev]'
	@rm -f $(VENV)/.setup-*; touch $@

setup: $(STAMP) ## Create .venv and install what constraints.txt pins; quick the second time
	@:

run: setup ## Start the daemon (plaintext, loopback, data in ./var) and a host agent metering this machine; Ctrl-C ends both
	@$(VENV_PYTHON) scripts/run_demo.py

test: setup ## Run all tests, or those of TESTS="..."
	$(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

# What needs strace is skipped by `make test` where there is none, and fails here.
# FAULTS=ci tries fewer of each; SEED repeats a run's random choices.
test-faults: setup ## Kill, fill, fail, damage and stop a real daemon under load, all cases; some ten minutes
	BILLAGED_FAULTS=$(or $(FAULTS),full) $(if $(SEED),BILLAGED_FAULTS_SEED=$(SEED)) \
	    $(VENV_PYTHON) -m pytest -n $(WORKERS) --dist load $(or $(TESTS),tests/faults)

lint: setup ## Check style, types, the layers and the freshness of generated files
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(VENV_PYTHON) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'
	$(VENV_PYTHON) scripts/generate_protos.py --check
	$(VENV_PYTHON) scripts/generate_configuration_docs.py --check
	$(VENV_PYTHON) scripts/generate_env_example.py --check
	$(VENV_PYTHON) scripts/generate_metrics_docs.py --check

ci: lint test ## What has to pass before a merge: lint and test

proto: setup ## Generate billaged/wire from protos/
	$(VENV_PYTHON) scripts/generate_protos.py

bench: setup ## Measure throughput, the fold, memory and restart, each beside its baseline
	$(VENV_PYTHON) -m bench

# SEED repeats a run; without it each has a new one, which it prints.
fuzz: setup ## Send a million mutated messages to a real daemon and judge its bill; COUNT=n SEED=n to choose
	$(VENV_PYTHON) scripts/fuzz.py --count $(or $(COUNT),1000000) $(if $(SEED),--seed $(SEED))

simulate: setup ## Live through days of a fleet in seconds and judge the bill; SEED=n repeats a world, COUNT=n for so many
	$(VENV_PYTHON) scripts/simulate.py --count $(or $(COUNT),1) $(if $(SEED),--seed $(SEED))

build: setup ## Make the wheel and the self-contained executable, build/billaged
	$(VENV_PYTHON) scripts/build_executable.py --into $(BUILD)

# Not through .venv: this one would be root's, and is not what is installed.
install: ## As root: install or upgrade the service; INSTALL="--help" lists the options, DESTDIR=dir stages it
	scripts/install.sh $(if $(DESTDIR),--prefix '$(DESTDIR)') $(INSTALL)

uninstall: ## As root: remove what install made; settings and data stay
	scripts/install.sh --uninstall $(if $(DESTDIR),--prefix '$(DESTDIR)') $(INSTALL)

deb: ## Make a Debian package, build/billaged_VERSION_ARCH.deb, for this release of Debian or Ubuntu
	packaging/build_deb.sh --into $(BUILD) $(INSTALL)

constraints: $(VENV_PYTHON) ## Refresh constraints.txt: the newest versions that setup.cfg allows
	$(VENV_PYTHON) scripts/refresh_constraints.py

clean: ## Remove what was built and cached; keeps .venv and the data in ./var
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . \( -path ./$(VENV) -o -path ./.git -o -path ./var \) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Also remove .venv and fetched tools; the data in ./var stays
	rm -rf $(VENV) .dev
