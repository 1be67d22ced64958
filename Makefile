# One command a chore. Everything lives in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test test-full kill-loop faults mutants fuzz endure suites soak check format bench docs wheel site clean
help:      ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@
install: $(VENV)/installed ## make .venv and install beadwork with everything that tests and demo need
demo: install ## 16 beads of 32 waters at 300 K with real i-PI, 120 steps; everything lands in demo/
	rm -rf demo && $(BIN)/beadwork demo demo
# by file, in the order of the folders: left to itself xdist begins with the files of most tests and ends with the longest
test: install ## the test suite, under ten minutes on two cores
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder
test-full: install ## the same and what is slow or needs a browser or a database
	$(BIN)/python -m pytest
kill-loop: install ## kill -9 in each stage of beadwork learn, and between write and commit: twelve in all
	$(BIN)/python -m pytest tests/loop/test_loop_kill.py -s
faults: install ## provoke every fault, and write what happened to docs/faults.md
	$(BIN)/python -m pytest -m fault -n 3 --dist loadfile --timeout 1500 --continue-on-collection-errors --fault-table=docs/faults.md
mutants: install ## put faults into the code, one at a time: does a test notice? to docs/mutants.md, under half an hour
	$(BIN)/python tests/mutants/run.py
fuzz: install ## damaged files of every kind and a hostile i-PI, some thousand cases from a seed: to docs/fuzz.md, minutes
	$(BIN)/python tests/fuzz/run.py
endure: install ## 5,000 evaluations of a real i-PI while the machine fails at random, twice: to docs/endure.md, half an hour
	$(BIN)/python tests/endure/run.py
suites: install ## other people's tests with our client, to docs/suites.md; IPI=checkout, else it is cloned
	$(BIN)/python tests/suites/run.py $(if $(IPI),--ipi $(IPI))
soak: install ## a million exchanges with real i-PI: does anything grow? to docs/soak.md, a quarter of an hour
	$(BIN)/python benchmarks/soak.py
bench: install ## beadwork against its peers, on a quiet machine; some 45 minutes a sitting, two for all rounds
	$(BIN)/python benchmarks/run.py
check: install ## formatting, lint, types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
format: install ## let ruff do what it can
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .
docs: install ## the reference pages that come from the code
	$(BIN)/python docs/make.py
wheel: install ## the wheel, to dist/: built, checked, and tried in an empty environment of each Python that is there; or PYTHONS=…
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --wheel --outdir dist
	$(BIN)/python -m twine check --strict dist/*.whl
	$(BIN)/python packaging/check.py dist/*.whl $(PYTHONS)
site: install ## the documentation as pages, to build/site; without network, and without a warning
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site
clean: ## remove what the other commands made
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
