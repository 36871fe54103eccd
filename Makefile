# One command each; `make help` lists them. Nothing but Python 3.11+ and make is needed beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Containers often forbid Python to keep what it compiled. The tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install serve test lint format bench lock clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

# The stamps name what was installed from: a changed requirements file or entry point installs again.
$(VENV)/.run: requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# The tools' file holds all of the other: one installation. What is imported of it is compiled when it first is, which is
# a third of what there is.
$(VENV)/.dev: requirements-dev.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), with the development tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $(VENV)/.run $@

install: $(VENV)/.dev ## make .venv with the gateway command and the development tools

serve: $(VENV)/.run ## run the gateway with embedded PostgreSQL and Valkey on port 8080 (ARGS="--workers 2")
	@exec $(BIN)/gateway serve --with-parent $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

# What fails beside others is tried once more, alone: many of these tests kill and pause real servers, and a machine
# that is short of processors is no bug. What fails alone is one.
test: lint ## lint, types and every test (ARGS="-k name")
	@$(BIN)/pytest -n auto --dist loadgroup $(ARGS) || { \
		test $$? -eq 1 && echo "once more, one at a time, what failed beside others:" && \
		$(BIN)/pytest --last-failed --last-failed-no-failures none $(ARGS); }

format: $(VENV)/.dev ## format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## measure this gateway beside nginx (where installed); a table, JSON and an HTML report
	@$(BIN)/python -m benchmarks.run $(ARGS)

lock: ## make the hashed requirements files anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra local --group build pyproject.toml -o requirements.txt --custom-compile-command "make lock" --upgrade -q
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra local --group dev pyproject.toml -o requirements-dev.txt --custom-compile-command "make lock" --upgrade -q

clean: ## remove what was built, but no data
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
