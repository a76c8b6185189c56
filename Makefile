# `make up` is all that a first look needs; `make help` lists the rest. Python 3.11 and nothing else has to be there.

VENV := .venv
STANDARD := .venv-standard
BIN := $(VENV)/bin
PYTHON ?= python3.11
# The broker that integration tests run on a second time: a folder with libs/, as a Kafka release has it.
KAFKA_HOME ?= $(abspath $(wildcard ../shared/kafka))
PYTEST := -m pytest -q -p no:cacheprovider -m "not standard"
# These test the embedded broker itself: once is enough.
EMBEDDED_ONLY := $(addprefix tests/integration/,test_embedded.py test_up.py test_parity.py)
SUITES := $(wildcard tests/unit tests/contract tests/golden)
# Each of the two processes has a broker and a store of its own; a file's tests share them.
BROKER_SUITES := -n 2 --dist loadfile $(wildcard tests/integration tests/faults)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install up test test-kafka test-standard lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv, install everything pinned, fetch the models; instant when nothing changed
	@echo "installed: $(BIN)/tidegate --help"

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(call environment,$(VENV),dev,a minute or two and 1 GB)
	@echo "fetching the models (84 MB, once) …"
	@$(BIN)/python -m guards.models pull
	@touch $@

up: $(VENV)/.installed ## run it: broker, store, workers, sidecar, demo traffic (ARGS="--port 8090 --no-demo"); Ctrl-C ends it
	@exec $(BIN)/tidegate up $(ARGS)

test: $(VENV)/.installed ## all tests, on the embedded broker and store
	@echo "== unit and contract tests"
	@$(BIN)/python $(PYTEST) -n 2 $(SUITES)
	@echo "== integration tests, embedded broker"
	@env -u KAFKA_HOME -u TIDEGATE_TEST_BOOTSTRAP $(BIN)/python $(PYTEST) $(BROKER_SUITES)

test-kafka: $(VENV)/.installed ## the tests that use a broker once more, on the Apache Kafka in KAFKA_HOME
ifeq ($(strip $(KAFKA_HOME)),)
	@echo "set KAFKA_HOME to the folder of an Apache Kafka release (libs/, bin/): make test-kafka KAFKA_HOME=/opt/kafka" >&2; exit 2
else
	@echo "== integration tests, Apache Kafka from $(KAFKA_HOME)"
	@env -u TIDEGATE_TEST_BOOTSTRAP KAFKA_HOME=$(KAFKA_HOME) $(BIN)/python $(PYTEST) $(BROKER_SUITES) \
		$(addprefix --ignore=,$(EMBEDDED_ONLY))
endif

test-standard: $(STANDARD)/.installed ## the tests of the standard extra (torch, Detoxify), in an environment of their own
	@$(STANDARD)/bin/python -m pytest -q -p no:cacheprovider -m standard tests

$(STANDARD)/.installed: pyproject.toml constraints.txt
	@$(call environment,$(STANDARD),dev$(comma)standard,some minutes and 3 GB)
	@touch $@

lint: $(VENV)/.installed ## ruff, mypy, the layering
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy guards streams
	@$(BIN)/lint-imports

format: $(VENV)/.installed ## let ruff sort imports and format
	@$(BIN)/ruff check --select I --fix .
	@$(BIN)/ruff format .

clean: ## remove both environments, caches and builds; the models and the state folder stay
	rm -rf $(VENV) $(STANDARD) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find guards streams tests -name __pycache__ -type d -prune -exec rm -rf {} +

# environment FOLDER EXTRAS COST: a virtual environment with this project in it. Made anew if it is another Python's.
comma := ,
define environment
set -e; \
command -v $(PYTHON) >/dev/null || { \
	echo "Tidegate needs Python 3.11, and $(PYTHON) is not on the PATH: install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
[ "$$version" = 3.11 ] || { \
	echo "Tidegate needs Python 3.11, and $(PYTHON) is $$version: name another, make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
if ! $(1)/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	echo "creating $(1) …"; rm -rf $(1); $(PYTHON) -m venv $(1); fi; \
echo "installing packages into $(1) ($(3)) …"; \
$(1)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(2)]'
endef
