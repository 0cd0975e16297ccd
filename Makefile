# `make demo` and `make test` set themselves up in .venv with the versions of constraints.txt; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-all lint docs bench bench-tuned wheel clean

demo: $(READY)
	$(BIN)/edgevit export shiftvit_t --fmt openvino,ort --out demo
	$(BIN)/edgevit export shiftvit_cifar10 --fmt openvino,ort --out demo
	$(BIN)/edgevit run demo/shiftvit_cifar10-fp32-openvino edgevit/data/photos/chelsea.png --top 3

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  # the generated pages and tables
	$(BIN)/python -m tests.tools.readme
	$(BIN)/python -m tests.tools.cli_reference
	$(BIN)/python -m tests.tools.kernels

bench: $(READY)  # on an idle machine, for some three hours: BENCH="--models deit_t --seconds 30" makes a part
	$(BIN)/python -m tests.tools.bench $(BENCH)

bench-tuned: $(READY)  # on an idle machine, for some ten minutes: BENCH="--time 5m --threads 1" are the defaults
	$(BIN)/python -m tests.tools.bench.tuned $(BENCH)

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgevit needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv demo dist
