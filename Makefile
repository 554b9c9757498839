.PHONY: demo test check audit lock

PYTHON ?= python3
VENV := .venv
UV := $(VENV)/bin/uv
UV_VERSION := 0.13.9

demo: $(VENV)/.installed
	$(VENV)/bin/semiprune demo

test: $(VENV)/.installed
	$(VENV)/bin/pytest

check: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/mypy

audit: $(VENV)/.installed
	.ci/audit

# Bytecode is compiled at installation: every Ray worker imports torch, and none of them should compile it again.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	    { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(UV) || { $(PYTHON) -m venv $(VENV) && $(VENV)/bin/pip install --quiet uv==$(UV_VERSION); }
	$(UV) pip sync --python $(VENV) --quiet --compile-bytecode requirements.lock
	$(UV) pip install --python $(VENV) --quiet --no-deps --editable .
	touch $@

lock: $(VENV)/.installed
	$(UV) pip compile --quiet --universal --upgrade --group dev --no-header --no-annotate pyproject.toml -o requirements.lock
