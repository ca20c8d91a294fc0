PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint bench clean

demo: $(INSTALLED)
	$(BIN)/neuralign demo

test: $(INSTALLED)
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(ONLY)

clean:
	rm -rf .venv results build *.egg-info .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt assets.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r assets.txt
	$(BIN)/python -m storage.assets
	touch $@
