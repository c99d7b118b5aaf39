# `make` alone prints the targets. Every target that needs the environment sets it up by itself.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PROTOS := $(sort $(wildcard proto/tidemark/v1/*.proto))
PYTEST_ARGS ?=
# Tests wait for a part of their time: those that drive real processes for half of it. Who is done
# takes from the others what they have not begun.
CORES := $(shell nproc)
THREE_FOR_TWO := --numprocesses $(shell echo $$(($(CORES) * 3 / 2))) --dist worksteal
CAMPAIGN_ARGS ?=

# Many images set it. Here it would have every run of the tests compile them anew, in every worker:
# 10 s of a core each, instead of 3 s.
unexport PYTHONDONTWRITEBYTECODE

# The first of these that is at least 3.11.
PYTHON ?= $(shell for python in python3.11 python3; do \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	echo "$$python"; break; fi; done)

.PHONY: help
help: ## print this list
	@awk -F':.*## ' '/^[a-z][a-z0-9-]*:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## make .venv from requirements.lock, with hashes checked

# pip brings in the locked uv, and uv the rest, some twenty times faster than pip.
# uv does not read pip's configuration: where only pip can reach an index, pip does all of it.
$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: Tidemark needs Python 3.11 or newer, and found neither python3.11 nor such a python3" >&2; \
		echo "hint: install it (Debian: apt-get install python3.11), or name one: make setup PYTHON=..." >&2; \
		exit 1; \
	fi
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null && "$(PYTHON)" -m venv --clear $(VENV) || { \
			version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
			echo "error: $(PYTHON) cannot make a virtual environment: its venv module is missing or broken" >&2; \
			echo "hint: on Debian and Ubuntu: apt-get install python$$version-venv" >&2; \
			exit 1; \
		}; \
	fi
	@awk '/^[^ #]/ {wanted = /^uv==/} wanted' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --require-hashes \
			--compile-bytecode -r requirements.lock || { \
		echo "note: uv could not install the packages; pip tries, which takes about a minute" >&2; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
			-r requirements.lock; \
	}
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@$(MAKE) --no-print-directory bytecode
	@echo "ready: $(VENV)"

# Where PYTHONDONTWRITEBYTECODE is set, as in many images, every start of a program would compile
# all of it anew, which takes longer than most commands.
.PHONY: bytecode
bytecode: $(STAMP)
	@$(BIN)/python -m compileall -q agent coordinator proto repository $(VENV)/lib/python*/site-packages

.PHONY: lock
lock: $(STAMP) ## rewrite requirements.lock from pyproject.toml (UPGRADE=--upgrade for newer versions)
	$(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 \
		--generate-hashes --no-header $(UPGRADE) --group dev pyproject.toml -o requirements.lock

# Writes the code made from $(PROTOS) below the directory $(1).
define generate
PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)
endef

.PHONY: proto
proto: $(STAMP) ## regenerate the code made from proto/tidemark/v1/*.proto
	@made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; \
	$(call generate,"$$made"); \
	rm -f proto/tidemark/v1/*_pb2.py proto/tidemark/v1/*_pb2.pyi; \
	rm -f proto/tidemark/v1/*_pb2_grpc.py proto/tidemark/v1/*_pb2_grpc.pyi; \
	cp "$$made"/proto/tidemark/v1/* proto/tidemark/v1/

.PHONY: docs
docs: $(STAMP) ## rewrite docs/ERRORS.md from the source
	$(BIN)/python -m tests.unit.docs.errors

.PHONY: wheel
wheel: $(STAMP) ## build the wheel, below dist/
	$(BIN)/python -m hatchling build --target wheel --directory dist

.PHONY: fmt
fmt: $(STAMP) ## format and repair what ruff can repair
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

.PHONY: check
check: $(STAMP) ## lint, types, import contracts, fresh protocol code, unit tests (under a minute)
	@$(MAKE) --no-print-directory --jobs=$(CORES) --output-sync=target --keep-going \
		check-types check-unit check-imports check-proto check-lint

.PHONY: check-types check-unit check-imports check-proto check-lint
check-types: $(STAMP)
	$(BIN)/mypy

check-unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit $(THREE_FOR_TWO) --quiet --timeout=10 $(PYTEST_ARGS)

check-imports: $(STAMP)
	$(BIN)/lint-imports

check-lint: $(STAMP)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

ifeq ($(PROTOS),)
check-proto:
	@echo "no .proto file below proto/tidemark/v1"
else
check-proto: $(STAMP)
	$(BIN)/buf lint
	@made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; \
	$(call generate,"$$made"); \
	diff --recursive --brief --exclude='*.proto' --exclude=__init__.py --exclude=__pycache__ \
		"$$made/proto/tidemark/v1" proto/tidemark/v1 || { \
		echo "error: the code below proto/ is not what its .proto files make; run: make proto" >&2; \
		exit 1; \
	}
endif

.PHONY: test
test: bytecode ## all tests, three at a time for each two cores
	$(BIN)/python -m pytest $(THREE_FOR_TWO) $(PYTEST_ARGS)

.PHONY: e2e
e2e: bytecode ## only the tests that drive the real processes
	$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

.PHONY: faults
faults: bytecode ## only the tests that break something half-way
	$(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

.PHONY: campaign-core
campaign-core: bytecode ## every failpoint, failing store call and power cut; a million flips and entries
	$(BIN)/python -m tests.faults $(CAMPAIGN_ARGS)

.PHONY: campaign-store
campaign-store: bytecode ## store work over one that misbehaves, on virtual time and by real daemons
	$(BIN)/python -m tests.faults.stores $(CAMPAIGN_ARGS)

.PHONY: bench-tracking
bench-tracking: bytecode ## measure change tracking on a million files
	$(BIN)/python -m tests.bench.tracking

.PHONY: campaign-tracking
campaign-tracking: bytecode ## random changes under backups, by each source on each filesystem
	$(BIN)/python -m tests.tracking $(CAMPAIGN_ARGS)

.PHONY: bench
bench: bytecode ## measure, side by side with what is installed
	$(BIN)/python -m tests.bench

.PHONY: demo
demo: bytecode ## protect, damage and restore a directory, before your eyes
	$(BIN)/python -m tests.demo

.PHONY: clean
clean: ## remove caches and build output (not .venv)
	rm -rf build dist htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache
	rm -rf .import_linter_cache .hypothesis
	find agent coordinator proto repository tests -name __pycache__ -prune -exec rm -rf {} +
