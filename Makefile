# make demo     sets up .venv and serves the app on http://127.0.0.1:7860
# make test     sets up .venv and runs the tests
# make lint, types, imports, docs, lock, wheel, clean: what CI checks, the pages as a site, the pinned versions, a package
PYTHON ?= python3
PORT ?= 7860
JOBS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
# CPU-only machines take the CPU build of torch where its index answers; elsewhere pip decides.
TORCH ?= torch==2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(PY) -m pip install -q --disable-pip-version-check

.PHONY: demo test test-browser lint types imports docs lock wheel index clean

demo: $(VENV)/.run
	$(PY) app.py --port $(PORT)

# One worker a core; a file's tests stay together. `make test-browser` runs the app in Chromium alone, slow tests included.
test: $(VENV)/.dev
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-browser: $(VENV)/.dev
	$(PY) -m pytest -n 0 -m serial tests/demo

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.dev
	$(PY) -m mypy

imports: $(VENV)/.dev
	$(VENV)/bin/lint-imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -q
	@echo "build/site/index.html: the pages and the API reference"

# PyTorch keeps its bounds, and what only its CUDA builds need is left out: the right build depends on the machine.
lock: $(VENV)/.dev
	$(PY) -m uv pip compile -q --upgrade --python-version 3.11 --python-platform linux --no-header --no-annotate \
	  requirements.txt -o $(VENV)/locked.txt
	echo "# Written by 'make lock' for Python 3.11 and newer on Linux: pip install -r requirements.lock" > requirements.lock
	sed -E -e "s/^torch==.*/$$(grep '^torch' requirements.txt)/" -e '/^(nvidia-|cuda-|triton)/d' $(VENV)/locked.txt \
	  >> requirements.lock

wheel: $(VENV)/.run
	$(PY) -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

index: $(VENV)/.run
	$(PY) -m fusemix.cli.index --checkpoint checkpoints/default --pairs demo/gallery/pairs.csv --dtype int8 --dims 512 --out demo/index

$(VENV)/.torch: Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FuseMix needs Python 3.11 or newer")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	if $(PY) -c 'import torch' 2>/dev/null; then :; \
	elif ! command -v nvidia-smi >/dev/null && [ "$$(uname -s)" = Linux ] && \
	     curl -sfI -m 5 $(TORCH_CPU_INDEX)/torch/ >/dev/null 2>&1; then \
	  $(PIP) $(TORCH) --index-url $(TORCH_CPU_INDEX); \
	else $(PIP) $(TORCH); fi
	touch $@

$(VENV)/.run: $(VENV)/.torch requirements.txt pyproject.toml
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	sh scripts/install_test_tools.sh
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
