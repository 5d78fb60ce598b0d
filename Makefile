# Each target does all set-up in .venv inside the checkout: it needs only Python >= 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Without an NVIDIA GPU the CPU build of torch is taken, never gigabytes of CUDA.
CONSTRAINT := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "-c constraints-cpu.txt")
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q $(CONSTRAINT)
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help demo banner test test-all lint typecheck bench clean

help:
	@echo "make demo       draw, read and edit with the bundled model; writes demo-out/index.html"
	@echo "make test       lint, type check and the default tests (under 10 minutes on 2 cores)"
	@echo "make test-all   the slow tests too"
	@echo "make lint       ruff (make typecheck: mypy)"
	@echo "make banner     the README's picture, docs/images/demo.png"
	@echo "make bench      seconds to draw one picture with the bundled model"
	@echo "make clean      remove .venv, caches and demo-out"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "vargpt needs Python 3.11 or newer: none found on PATH" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vargpt needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: a second run installs nothing unless the requirements changed.
$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(BIN)/python
	@echo "installing vargpt into $(VENV) (about a minute)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints-cpu.txt | $(BIN)/python
	@echo "installing vargpt and its development tools into $(VENV) (about a minute)"
	@$(PIP) -e ".[dev]"
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m vargpt.demo --output demo-out

banner: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m vargpt.demo --output demo-out --banner docs/images/demo.png

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy

test: lint typecheck
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: lint typecheck
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

bench: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python benchmarks/draw_latency.py

clean:
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache
