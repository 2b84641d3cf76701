# On a machine with Python 3.11 or newer and nothing else:
#   make serve   installs into .venv and serves the demo model at http://127.0.0.1:8000 (flags: make serve ARGS="--port 9000")
#   make test    installs what tests need and runs them all
#   make lint    style, types and the import contract
#   make lock    pins what images hold, anew, to the newest of all that pyproject.toml allows
#   make clean   removes .venv and caches

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: serve test lint format lock clean

ARGS ?=
BIN := .venv/bin
# What an installation is made of: the sources of the CPU's library are compiled then, all others are used as they stand.
INSTALLS := pyproject.toml hatch_build.py $(wildcard kernels/leokernels/native/*.cpp kernels/leokernels/native/*.h) \
    kernels/leokernels/native/build.py

serve: .venv/installed
	exec $(BIN)/leoserve serve $(ARGS)

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python deploy/lock.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist

.venv/created:
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        $$python -m venv .venv && touch $@; \
	        exit; \
	    fi; \
	done; \
	echo "leoserve needs Python 3.11 or newer, and none was found" >&2; exit 2

.venv/installed: .venv/created $(INSTALLS)
	@echo "Installing leoserve into .venv; PyTorch makes this take a minute or more …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-test: .venv/created $(INSTALLS)
	@echo "Installing leoserve and what its tests need into .venv; this takes a few minutes …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch .venv/installed $@
