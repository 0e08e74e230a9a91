# Two commands do everything: `make demo` and `make test`. VENV and PYTHON can be overridden.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run in this many processes of one thread each; two suit two cores.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
STAMP := $(VENV)/.installed

.PHONY: demo install test test-all bench coverage mutation numerics lint clean

install: $(STAMP)
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

# DWC and the floors on the built-in dataset, small sweeps of its CLIP stream, then the report of all of it.
demo: install
	$(BIN)/cirbench run --method dwc --dataset scenes --explain 400 --out runs
	$(BIN)/cirbench run --method sum --dataset scenes --out runs
	for method in image-only text-only; do \
	  $(BIN)/cirbench run --method $$method --variant clip-only --dataset scenes --out runs || exit $$?; \
	done
	$(BIN)/cirbench run --method random --dataset scenes --out runs
	$(BIN)/cirbench sweep ablation --variant clip --seeds 0,1 --workers $(JOBS) --no-report --out runs
	$(BIN)/cirbench sweep lambda --seeds 0,1 --workers $(JOBS) --no-report --out runs
	$(BIN)/cirbench sweep noise --seeds 0 --workers $(JOBS) --no-report --out runs
	$(BIN)/cirbench report runs -o report.html
	@echo "open report.html"

test: install
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: install
	$(PYTEST) $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/perf --benchmark-enable --benchmark-only

bench: install
	$(BIN)/python -m pytest tests/perf --benchmark-enable --benchmark-only

# Lines of cirbench/ (cli/ left out) that the fast tests run; fails below the share that pyproject.toml names.
coverage: install
	$(PYTEST) -m 'not slow' --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

# Changes the code that scores, thousands of times, and counts how often tests notice: docs/testing.md.
mutation: install
	$(BIN)/python -m pip install --quiet --editable '.[dev,mutation]'
	rm -rf mutants
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/mutmut run --max-children $(JOBS)
	$(BIN)/python tests/mutation_score.py

# Shows that a change moves no number, or raises what moves: tests/numerics_check.py, CONTRIBUTING.md.
numerics: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/numerics_check.py --raise '$(RAISE)' --why '$(WHY)'

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* mutants
