# make demo: set everything up in .venv, draw birds, train prompts on them, measure and show what they look at
# make test: the test suite
# make weights: make the weights that ship with the package anew (less than an hour)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check weights clean

demo: .venv/installed
	$(BIN)/promptcam demo --overwrite

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What CI asks besides: lint, format, and types of the package as it is installed
check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed
	$(BIN)/pip install --quiet --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p promptcam_hf

weights: .venv/installed
	$(BIN)/python examples/make_demo_weights.py runs/weights

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build runs *.egg-info
