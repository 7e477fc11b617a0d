# Everything runs in one virtual environment, made on first use: override with VENV=...
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
OUT ?= out

# The oldest transformers that pyproject.toml allows, in an environment of its own, and the tests that run there too.
OLDEST_VENV ?= .venv-oldest
OLDEST = $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
OLDEST_TESTS = $(wildcard tests/test_modeling_*.py) $(addprefix tests/test_,$(addsuffix .py, \
	cache_names golden serving_contract verification balance class_facts \
	identities mla latent_ranks by_layer \
	cli bad_input eval_cli eval_speed benchmark_decode))

.PHONY: run test test-oldest types style format clean

# Set up and convert the bundled GPT-2 sample, offline.
run: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/convert-attn sample:gpt2 --to gqa --groups 4 --output $(OUT)/gpt2-gqa4 --overwrite

# Set up and run every test.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

# Set up with the oldest transformers and run the tests of models, golden checkpoints, generation and commands.
test-oldest: $(OLDEST_VENV)/.installed
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -q -n 2 $(OLDEST_TESTS)

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

$(VENV)/.installed $(OLDEST_VENV)/.installed: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" $(PIN)
	touch $@

$(OLDEST_VENV)/.installed: PIN = "transformers==$(OLDEST)"
