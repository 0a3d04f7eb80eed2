# SPDX-License-Identifier: Apache-2.0
# make demo   set up, then generate data, train, evaluate and draw: results in demo/
# make test   set up, then run the tests (PYTEST_ARGS adds arguments)
# Both make everything they need; a second call only redoes what changed.

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build/cmake
PYTEST_ARGS ?=
DEMO_ARGS ?=

python := $(VENV)/bin/python
jobs := $(or $(MAX_JOBS),$(shell nproc))
packages := $(VENV)/.packages
built := $(VENV)/.built
native := $(shell find csrc -type f)
cpp := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help setup demo test lint lint-python lint-types lint-cpp lint-spelling format cpp-test cpp-sanitize emulated-test kernel-resources bench clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make lint   formatting, linters, types, spelling"
	@echo "make format apply the formatters"
	@echo "make cpp-test      the C++ tests, without Python and torch"
	@echo "make cpp-sanitize  the same under the address, undefined-behaviour and thread sanitizers"
	@echo "make emulated-test the tests of the ops on the CUDA kernels, which the CPU runs by emulation"
	@echo "make kernel-resources  the CUDA kernels by nvcc: registers, shared memory, stack, spills"
	@echo "make bench  every benchmark on this machine"
	@echo "make clean  remove what was built"

setup: $(built)

$(python):
	@$(PYTHON) -c 'import sys; sys.exit("make: PYTHON must be Python 3.10 or newer, got " \
	  + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(packages): requirements.txt requirements-dev.txt constraints.txt | $(python)
	$(python) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	@touch $@

# Editable: the sources stay here, pydet/_C*.so is built beside them. Object files are kept in
# build/, so that only what changed is compiled again.
$(built): $(packages) pyproject.toml setup.py $(native)
	$(python) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

demo: $(built)
	$(python) -m pydet demo --output demo $(DEMO_ARGS)

# A worker for each core, up to 8; a file is one worker's, so that what its tests share is made once.
test: $(built)
	$(python) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

lint: lint-python lint-types lint-cpp lint-spelling

lint-python: $(packages)
	$(python) -m ruff check .
	$(python) -m ruff format --check .

lint-types: $(packages)
	$(python) -m mypy

lint-cpp: $(packages)
	$(VENV)/bin/clang-format --dry-run --Werror $(cpp)

lint-spelling: $(packages)
	$(VENV)/bin/typos

format: $(packages)
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	$(VENV)/bin/clang-format -i $(cpp)

# nvcc's objects are left out: the tests run the CUDA kernels by emulation, and kernel-resources
# compiles them.
cpp-test:
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release -DPYDET_CUDA=OFF
	cmake --build $(BUILD) --parallel $(jobs)
	ctest --test-dir $(BUILD) --output-on-failure

cpp-sanitize:
	for sanitizers in address,undefined thread; do \
	  folder=$(BUILD)-$$sanitizers && \
	  cmake -S . -B $$folder -DPYDET_CUDA=OFF -DPYDET_SANITIZE=$$sanitizers && \
	  cmake --build $$folder --parallel $(jobs) && \
	  ctest --test-dir $$folder --output-on-failure || exit 1; \
	done

emulated-test: $(packages)
	$(python) tests/cpp/emulated_tests.py $(BUILD)-address,undefined $(PYTEST_ARGS)

kernel-resources:
	$(PYTHON) tests/cpp/kernel_resources.py

bench: $(built)
	$(python) -m benchmarks

clean:
	rm -rf build dist *.egg-info pydet/_C*.so $(built)
