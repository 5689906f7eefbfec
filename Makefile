# demo    the main example on a local Ray; run it again to go on, NEW=1 to begin anew, KILL=0.9 to have it killed there
# test    all tests; the summary of the tests on Ray comes last
# check   format, rules, types, import contracts, dependencies, coverage of the core, the wheel
# bench   every scenario, the fast form; FULL=1 for the long one
# lock    requirements.lock from pyproject.toml; UPGRADE=1 for newer versions
# clean   what was built, tested and measured; the virtual environment and recorded runs stay
#
# Every target sets up .venv by itself. Paths are relative, so the checkout may lie anywhere.

SHELL := /bin/bash
.DEFAULT_GOAL := test
.PHONY: demo test check bench lock clean
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
UV := $(PY) -m uv
# The lock names the one version of uv that also installs it.
UV_PIN = $(shell sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements.lock)
CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

demo: $(STAMP)
	@$(PY) examples/audit.py $(if $(NEW),--new) $(if $(KILL),--kill-at $(KILL))

test: $(STAMP)
	@status=0; \
	$(PY) -m pytest -q -m "not ray" -n 2 || status=1; \
	$(PY) -m pytest -q -m ray || status=1; \
	exit $$status

check: $(STAMP)
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet . || { echo 'Run: $(PY) -m ruff format .' >&2; exit 1; }
	@$(PY) -m pyright --warnings
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) -m deptry .
	@$(PY) -m pytest -q tests/engine/core --cov=engine/core --cov-branch --cov-report=term --cov-fail-under=95
	@$(PY) -m pytest -q tests/architecture/test_wheel.py

bench: $(STAMP)
	@$(PY) -m bench run all $(if $(FULL),,--fast)

lock: $(STAMP)
	@$(UV) pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url --no-emit-find-links \
		--extra bench --extra dev --extra postgres $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements.lock >/dev/null

clean:
	@rm -rf build dist report bench-results bench-report htmlcov .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find engine cluster serve bench examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@found=; for python in $(CANDIDATES); do \
		if $$python -c '$(USABLE)' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo 'Gecko needs Python 3.11 or newer with venv (on Debian: apt install python3 python3-venv).' >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV)

$(STAMP): requirements.lock pyproject.toml | $(PY)
	@echo 'Installing what requirements.lock names into $(VENV)'
	@$(PY) -m pip install --quiet --disable-pip-version-check '$(UV_PIN)'
	@$(UV) pip sync --quiet --python $(PY) requirements.lock
	@$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@
