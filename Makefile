# Each target does all the set-up it needs: a virtual environment in .venv from the lock, with the project in it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup report test faults lint lab lock

help:
	@echo "make report   run the notebooks and write report/index.html (eleven minutes on two cores, more on slow ones)"
	@echo "make test     run the tests, one a core (ten minutes on two cores)"
	@echo "make faults   try many more faults than make test does, write tests/FAULTS.md (about ten minutes)"
	@echo "make setup    make the environment in $(VENV) and nothing else: every other target does it first"
	@echo "make lint     check style, notebooks and whether the report is up to date"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make lock     resolve pyproject.toml into requirements.txt anew, and into the lock of LiteRT's converter"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

report: setup
	$(BIN)/mnv3 report

# Tests take one thread each, so one process a core.
test: setup
	$(BIN)/pytest --numprocesses auto --dist loadfile

faults: setup
	$(BIN)/pytest --long tests/faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/mnv3 report --check

lab: setup
	$(BIN)/jupyter lab notebooks

COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --upgrade --quiet --no-annotate --no-emit-index-url \
  --custom-compile-command "make lock"

lock: setup
	$(COMPILE) pyproject.toml --extra deploy --extra executorch --extra ncnn --extra openvino --extra tflite --group dev --output-file requirements.txt
	$(COMPILE) --group converter --excludes mnv3lib/deploy/tflite-excludes.txt --output-file mnv3lib/deploy/tflite-requirements.txt
