# make        the environment in .venv
# make demo   the whole road on data that ships with a dependency, into runs/demo
# make test   every test of the default suite, two files at a time (WORKERS=1: one)
# make lint   style, types, import contract, links in the documentation
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := venv
.PHONY: venv demo test lint clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "paretune needs Python 3.11 or newer, and $(PYTHON) is not: try 'make PYTHON=python3.12 $(or $(MAKECMDGOALS),venv)'" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --build-constraint constraints.txt \
	  -e '.[nncf,loadgen,examples]' --group dev
	@touch $(STAMP)

demo: $(STAMP)
	@rm -rf runs/demo
	@$(BIN)/paretune demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/links.py

clean:
	rm -rf .venv build dist runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
