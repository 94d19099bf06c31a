# make demo   the main job on a real image: in napari, or headless into demo/
# make test   lint, types, layers, manifest and tests
# Both set up all that a fresh machine lacks.

PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
# On a machine without a screen, tests and demo draw on a virtual one.
VIRTUAL := $(if $(DISPLAY)$(WAYLAND_DISPLAY),,xvfb-run -a -s "-screen 0 1600x1000x24")
# Tests run a worker per core, four at most; those with a window all in one.
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadgroup

.PHONY: setup demo test lint check docs screenshots zoo evaluate benchmarks clean

setup: .venv/.ready

.venv/.ready: constraints.txt pyproject.toml tools/system-packages.sh
	PYTHON=$(PYTHON) tools/system-packages.sh
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
ifeq ($(VIRTUAL),)
	$(BIN)/napari-fovea demo
else
	$(BIN)/napari-fovea demo --headless --output demo
endif

test: setup lint
	$(VIRTUAL) $(BIN)/python -m pytest $(WORKERS) --cov --cov-report=term:skip-covered

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/npe2 validate napari-fovea --imports

docs: setup
	$(BIN)/mkdocs build --strict

screenshots: setup
	$(VIRTUAL) $(BIN)/python tools/screenshots.py

# The models that ship: trained, evaluated, and their cards written, as far as that is
# not done yet. NUCLEI is the folder with train, val and index.csv.
zoo: setup
	$(BIN)/python tools/zoo.py train score cards $(if $(NUCLEI),--nuclei $(NUCLEI))

evaluate: setup
	$(BIN)/python benchmarks/nuclei.py

benchmarks: setup
	$(BIN)/python benchmarks/scan.py
	$(VIRTUAL) $(BIN)/python benchmarks/window.py
	$(VIRTUAL) $(BIN)/python benchmarks/player.py
	$(BIN)/python benchmarks/attention.py
	$(VIRTUAL) $(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/folders.py

clean:
	rm -rf .venv build dist demo site
