# make demo · make test · make lab · make bench · make docs: each sets up what it needs in .venv, from a bare checkout.
# The first of these that is new enough; PYTHON=/path/to/python takes another.
NEEDS  := $(shell sed -n 's/^min_python = //p' settings.ini)
ENOUGH := -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(NEEDS)".split("."))))'
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p $(ENOUGH) 2>/dev/null && echo $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_ROOT_USER_ACTION ?= ignore
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export PYTHONWARNINGS ?= ignore::FutureWarning
# Threads that wait spin only shortly: beside another busy program a step takes twice the time, not fifteen times (see nbs/14_cli).
export GOMP_SPINCOUNT ?= 5000

.PHONY: demo test lab bench setup readme docs docs-check audit clean
setup: $(READY)

$(READY): setup.py settings.ini constraints.txt
	@echo "Setting up .venv (once; some minutes)"
	@P=$(BIN)/python; test -x $$P || P="$(PYTHON)"; "$$P" $(ENOUGH) 2>/dev/null || { if [ "$$P" ]; then X="$$P is none, or does not run"; else X="none of python3.11, python3.12, python3.13 and python3 is one, here"; fi; \
	echo "derta_kit needs Python $(NEEDS) or newer, and $$X. Install one, or name the one you have: make setup PYTHON=/path/to/python$(NEEDS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $(READY)
	@echo "Ready: make demo, make lab, make test; or source $(BIN)/activate, and derta_demo --help"

# Huge pages for what malloc hands out (glibc; elsewhere it says nothing): a step of training takes 0.82 of the time.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(READY)
	$(BIN)/derta_demo

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=nbs --LabApp.default_url=/lab/tree/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

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

# What is installed in .venv against the published advisories, by pip-audit in a folder that goes again. Packages that the service
# does not know are skipped by pip-audit, which then finds "no known vulnerabilities": here that counts as not audited.
audit: $(READY)
	@D=$$(mktemp -d) && trap 'rm -rf "$$D"' EXIT && $(BIN)/python -m venv "$$D/venv" && "$$D/venv/bin/python" -m pip install -q pip-audit && \
	$(BIN)/python -m pip freeze --all --exclude-editable | sed 's/+.*//' > "$$D/set" && \
	{ "$$D/venv/bin/pip-audit" -r "$$D/set" --no-deps --disable-pip --progress-spinner off > "$$D/said" 2> "$$D/err"; R=$$?; \
	sed -n 's/ *Dependency .*could not be audited.*//p' "$$D/said" > "$$D/unknown"; grep -v -e "could not be audited" -e "Skip Reason" -e "^[- ]*$$" "$$D/said"; \
	if [ -s "$$D/unknown" ]; then echo "Not audited: $$(wc -l < "$$D/unknown") of $$(wc -l < "$$D/set") packages, which the advisory service did not know, or something answered in its place: $$(head -n 5 "$$D/unknown" | paste -sd ' ') …" >&2; exit 2; fi; \
	tail -n 1 "$$D/err" >&2; if [ $$R != 0 ] && [ ! -s "$$D/said" ]; then echo "Not audited: the advisory service could not be asked." >&2; exit 2; fi; exit $$R; }

clean:
	rm -rf _proc _docs build dist *.egg-info
