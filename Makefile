# make demo: segment the demo images; make test: everything that CI runs. Both make a virtual environment when there is none, and
# put there what they need: the demo the package alone, the tests what develops it, too.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNNABLE := $(VENV)/.runnable

.PHONY: demo test lint types tests clean

demo: $(RUNNABLE)
	$(BIN)/thingstuff predict src/thingstuff/demo/people --out demo-output/people
	$(BIN)/thingstuff predict src/thingstuff/demo/nuclei --model nuclei --out demo-output/nuclei
	@echo "Look at the pictures in demo-output/, such as demo-output/people/astronaut.png and demo-output/nuclei/fluorescence-dense.png"

test: lint types tests

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/pyright

tests: $(INSTALLED)
	$(BIN)/pytest --cov=thingstuff --cov-report=term

# A stamp is newer than pyproject.toml once its packages are installed; a change of dependencies installs again.
$(RUNNABLE): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(RUNNABLE) $@

clean:
	rm -rf $(VENV) demo-output .pytest_cache .ruff_cache .coverage htmlcov
