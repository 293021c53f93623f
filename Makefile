# The two commands of the README are `make quickstart` and `make test`; both set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python .ci/pip_install.py -c constraints.txt

.PHONY: quickstart test test-portable lint docs gpu-test bench clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "litlm needs Python 3.10 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not create $(VENV): install the venv module (Debian: apt install python3-venv)"; exit 1; }

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing litlm into $(VENV) (a few minutes the first time; PyTorch is large) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "Installing what the tests compare with ..."
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(PIP) -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.core  ## fetch a real model, finetune it, see it change, chat
	@$(BIN)/litlm quickstart $(ARGS)

test: $(VENV)/.test  ## the default test suite
	@$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

# An older processor, two threads on one with AVX2, and a busy one.
PORTABLE := "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2" \
	"ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=2"
test-portable: $(VENV)/.test  ## the default test suite as other machines would run it
	@for as in $(PORTABLE); do \
		echo "$$as"; env $$as $(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS) || exit 1; done
	@echo "beside four busy loops"; for i in 1 2 3 4; do yes > /dev/null & loops="$$loops $$!"; done; \
		trap "kill $$loops" EXIT; trap "exit 130" INT TERM; \
		$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS); exit $$?

lint: $(VENV)/.dev  ## format check, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright

docs: $(VENV)/.test  ## check that the commands shown in README.md and tutorials/ run
	@$(BIN)/python -m pytest tests/test_docs.py -m 'not gpu' $(ARGS)

# Most of the time is compiling, so workers share the device; each would else start a compiler for every core.
gpu-test: $(VENV)/.test  ## tests that need a CUDA device
	@TORCHINDUCTOR_COMPILE_THREADS=2 $(BIN)/python -m pytest -m gpu -n 8 --dist loadgroup $(ARGS)

bench: $(VENV)/.test  ## measure litlm beside transformers and PEFT on this machine
	@$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
