# make demo   install into .venv, run both demo methods, print their accuracy matrices
# make test   the same set-up, then the linters and every test
# make lint   ruff and mypy alone
# make clean  remove what make made, but not runs/

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
DEMOS := clmoe vanilla

.PHONY: help install demo test lint format clean

help:
	@sed -n 's/^# //p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "make: installing clmoe and the versions in constraints.txt into $(VENV) (minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; make PYTHON=python3.x chooses one" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	@for method in $(DEMOS); do \
	  echo "make: clmoe run shapes --name demo-$$method method.name=$$method"; \
	  $(BIN)/clmoe --runs runs run shapes --name demo-$$method method.name=$$method > /dev/null; \
	done
	@for method in $(DEMOS); do \
	  echo; echo "== $$method =="; \
	  $(BIN)/clmoe --runs runs report --run demo-$$method --report all; \
	done
	@echo "make: the results are in runs/demo-clmoe/report and runs/demo-vanilla/report"

test: $(INSTALLED) lint
	@echo "make: pytest, $(WORKERS) workers"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(INSTALLED)
	@echo "make: ruff check, ruff format --check, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
