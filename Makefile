# Everything runs in one virtual environment, made on first use: override with VENV=...
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
OUT ?= out

.PHONY: run test types style format clean

# Set up and convert the bundled GPT-2 sample, offline.
run: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/convert-attn sample:gpt2 --to gqa --groups 4 --output $(OUT)/gpt2-gqa4 --overwrite

# Set up and run every test.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

types: $(VENV)/.installed
	rm -rf build/types && mkdir -p build/types/convert_attn
	for part in convert modeling eval; do ln -s ../../../$$part build/types/convert_attn/$$part; done
	for file in __init__.py py.typed; do ln -s ../../../convert/_package/$$file build/types/convert_attn/$$file; done
	$(BIN)/python -m mypy

style: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# a stale build/lib would put deleted modules into a wheel
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
