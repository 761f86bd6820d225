# What a person runs is what CI runs. Python 3.11 or later is all that has to be there.
#
#   make up      a tower on this machine: http://localhost:8080   (PORT=9000, ARGS="-c my/tower.yaml")
#   make test    every test that this machine can run             (ARGS="-k config")
#   make check   ruff, mypy, import rules, docs
#   make fix     format, and fix what can be fixed
#   make bench   the gateway beside its neighbours, the planner beside real logs, prefix caching, metrics, stores
#   make docs    write the generated pages again
#   make lock    pin the requirements again

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
PORT   ?=
CONFIG := $(if $(findstring -c,$(ARGS))$(findstring --config,$(ARGS)),,-c examples/laptop/tower.yaml)

# One stamp a set of requirements: `make up` installs the small one, `make test` the large one on top.
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
SELF  := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .

# `bash -m` gives the tower the terminal: Ctrl-C is for the tower alone, make waits and passes its exit code on.
FOREGROUND := bash -mc

.PHONY: up test check fix bench docs lock clean
.DEFAULT_GOAL := up

up: $(VENV)/.demo
	@$(FOREGROUND) "$(BIN)/lmtower up $(CONFIG) $(if $(PORT),--port $(PORT)) $(ARGS); exit \$$?"

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_docs.py

fix: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks $(ARGS)
	$(if $(ARGS),,@for rest in planner prefix telemetry "retrieval --only quality"; do \
	    $(BIN)/python -m benchmarks $$rest || exit 1; done)

docs: $(VENV)/.test
	$(BIN)/python -m tests.docs_pages

lock:
	requirements/compile.sh $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmtower needs Python 3.11 or later; name one with PYTHON=...")'
	@echo "setting up $(VENV) (once; nothing is installed outside of it)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.build: $(VENV)/.python requirements/build.txt pyproject.toml
	@$(PIP) -r requirements/build.txt
	@$(SELF)
	@touch $@

$(VENV)/.demo: $(VENV)/.build requirements/demo.txt
	@echo "installing what the tower needs, pinned by hash (requirements/demo.txt)"
	@$(PIP) -r requirements/demo.txt
	@touch $@

$(VENV)/.test: $(VENV)/.build requirements/test.txt
	@echo "installing what the tests need, pinned by hash (requirements/test.txt)"
	@$(PIP) -r requirements/test.txt
	@touch $@
