# make demo · make test · make lab · make bench · make docs: each sets up what it needs in .venv, from a bare checkout.
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) 2>/dev/null || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_ROOT_USER_ACTION ?= ignore
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export PYTHONWARNINGS ?= ignore::FutureWarning
# Threads that wait spin only shortly: beside another busy program a step takes twice the time, not fifteen times (see nbs/14_cli).
export GOMP_SPINCOUNT ?= 5000

.PHONY: demo test lab bench setup readme docs docs-check clean
setup: $(READY)

$(READY): setup.py settings.ini constraints.txt
	@echo "Setting up .venv (once; some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $(READY)
	@echo "Ready: make demo, make lab, make test; or source $(BIN)/activate, and derta_demo --help"

# Huge pages for what malloc hands out (glibc; elsewhere it says nothing): a step of training takes 0.82 of the time.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(READY)
	$(BIN)/derta_demo

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=nbs $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(READY)
	$(BIN)/python tests/bench.py

test: $(READY)
	@bash tests/run_all.sh

readme: $(READY)
	$(BIN)/python tests/make_readme.py

# The notebooks as web pages, in _docs; Quarto is no Python package, and whoever builds the pages installs it.
docs: $(READY)
	$(BIN)/python tests/make_docs.py render

docs-check: $(READY)
	$(BIN)/python tests/make_docs.py

clean:
	rm -rf _proc _docs build dist *.egg-info
