# make demo: set everything up in .venv, draw birds, train on them and explain some
# make test: the test suite

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/python examples/synthetic_birds.py runs/demo/photos --classes 8 --train 100 --test 20 --size 160
	$(BIN)/python examples/from_scratch.py runs/demo/photos runs/demo --pretrain-epochs 30 --epochs 10
	@echo "Look at the pictures in runs/demo/explained"

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What CI asks besides: lint, format, and types of the package as it is installed
check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed
	$(BIN)/pip install --quiet --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p promptcam_hf

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build runs *.egg-info
