# make demo   sets up .venv and serves the app on http://127.0.0.1:7860
# make test   sets up .venv and runs the tests
PYTHON ?= python3
PORT ?= 7860
VENV := .venv
PY := $(VENV)/bin/python
# CPU-only machines take the CPU build of torch where its index answers; elsewhere pip decides.
TORCH ?= torch==2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

MODULES = $(subst /,.,$(basename $(filter-out %/__init__.py,$(wildcard fusemix/*.py fusemix/encoders/*.py fusemix/datasets/*.py))))

.PHONY: demo test lint types docs index clean

demo: $(VENV)/.run
	$(PY) app.py --port $(PORT)

test: $(VENV)/.dev
	$(PY) -m pytest -m "not slow and not gpu"

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

docs: $(VENV)/.dev
	$(PY) -m pdoc --docformat google -o build/api $(MODULES)
	@echo "build/api/index.html: the API reference, from the docstrings"

index: $(VENV)/.run
	$(PY) scripts/build_index.py --checkpoint checkpoints/default --pairs demo/gallery/pairs.csv --dtype float16 --out demo/index

$(VENV)/.torch: Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FuseMix needs Python 3.11 or newer")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	if $(PY) -c 'import torch' 2>/dev/null; then :; \
	elif ! command -v nvidia-smi >/dev/null && [ "$$(uname -s)" = Linux ] && \
	     curl -sfI -m 5 $(TORCH_CPU_INDEX)/torch/ >/dev/null 2>&1; then \
	  $(PY) -m pip install -q --disable-pip-version-check $(TORCH) --index-url $(TORCH_CPU_INDEX); \
	else $(PY) -m pip install -q --disable-pip-version-check $(TORCH); fi
	touch $@

$(VENV)/.run: $(VENV)/.torch requirements.txt pyproject.toml
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	sh scripts/install_test_tools.sh
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
