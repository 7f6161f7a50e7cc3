# make demo: install into .venv, draw birds, train prompts on them, and write a page about where the prompts look
# make test: run the tests
# make check: lint, and check the format and the types
# make docs: build the documentation in build/site
# make dist: build the packages in build/dist, check them, and try the installed wheel
# make weights: train the weights that ship with the package (less than an hour)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs dist weights clean

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

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

dist: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dist]'
	rm -rf build/dist build/wheel-test
	$(BIN)/python -m build --outdir build/dist
	$(BIN)/twine check --strict build/dist/*
	$(BIN)/check-wheel-contents --ignore W002 build/dist/*.whl  # W002: two equal files, one of each shipped model
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/pip install --quiet --constraint constraints.txt build/dist/*.whl
	cd build/wheel-test && bin/promptcam doctor && bin/promptcam demo --classes 4 --train 4 --test 2 --epochs 1

weights: .venv/installed
	$(BIN)/python examples/make_demo_weights.py runs/weights

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build runs *.egg-info
