# make demo: install into .venv, draw birds, train prompts on them, and write a page about where the prompts look
# make test: run the tests
# make check: lint, and check the format and the types
# make weights: train the weights that ship with the package (less than an hour)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check weights clean

demo: .venv/installed
	$(BIN)/promptcam demo --overwrite

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Types are checked in the installed package, because type checkers do not follow package_dir
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
