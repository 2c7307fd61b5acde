# The commands of a newcomer. Each sets up .venv first if it is absent or older than what it is made from:
#   make demo [DATA=folder]   the main job, end to end, into runs/demo     make test     the quick tests (a few minutes)
#   make verify               the long form, with a summary in docs/verify  make lint     ruff, mypy, clang-format
#   make format               rewrite the sources in house style            make clean    remove what was built
PYTHON ?= python3
DATA ?=
BIN = .venv/bin
# Files of tests side by side: most tests use one core.
PARALLEL = --numprocesses auto --maxprocesses 8 --dist loadfile
NATIVE = $(shell find csrc -type f)
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.hpp')

.PHONY: demo test verify lint format clean setup

demo: .venv/installed
	$(BIN)/python -m qpt demo --out runs/demo $(if $(DATA),--data "$(DATA)")

test: .venv/installed
	$(BIN)/python -m pytest $(PARALLEL)

verify: .venv/installed
	QPT_LONG=1 $(BIN)/python -m pytest $(PARALLEL) --timeout 3600 --summary docs/verify/$$(date +%F).md

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: .venv/installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

setup: .venv/installed

# torch first, from its own pinned file: nothing installed later may choose another one.
.venv/torch: requirements/torch.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements/torch.txt
	touch $@

.venv/installed: .venv/torch pyproject.toml setup.py qpt/build.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --constraint requirements/torch.txt --editable ".[demo,jpeg,test,dev]"
	touch $@

clean:
	rm -rf build dist runs/demo qpt/_cuda qpt/_build.json qpt.egg-info
	rm -f qpt/_C*.so .venv/installed
