# `make demo` runs the main job on generated videos, `make test` the tests; both set up what they need in .venv.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

export OMP_NUM_THREADS ?= 1

.PHONY: demo test fuzz kills load check format docs seam clean

demo: $(VENV)/.installed
	$(BIN)/l2g demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q

# Ten minutes of mutated and hostile input files; reports inputs, tracebacks, hangs, crashes and writes elsewhere.
fuzz: $(VENV)/.installed-test
	L2G_FUZZ_SECONDS=$${L2G_FUZZ_SECONDS:-600} $(BIN)/python -m pytest -q -s tests/fuzz

# 100 kills of trainings and 50 of predictions at random moments; each must be repaired by the next run.  20 kills of
# actors and nodes of a Ray cluster, which must repair itself.
kills: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -s -m slow tests/engine/test_random_kills.py tests/app/test_ray_faults.py

# Twenty visitors of `l2g serve` at once for five minutes; prints requests, errors and memory.
load: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -s -m slow tests/app/serve/test_load.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Tests with the real detrex: make seam DETREX=path/to/detrex DETECTRON2=path/to/detectron2 (checkouts of both).
# They run in a separate environment, because detrex needs torchvision and an old setuptools.
SEAM_VENV ?= .venv-seam
seam: $(SEAM_VENV)/.installed
	DETREX="$(DETREX)" DETECTRON2="$(DETECTRON2)" $(SEAM_VENV)/bin/python -m pytest -q -rs -m detrex tests/test_seam.py tests/modeling/test_seam_modules.py

$(SEAM_VENV)/.installed: setup.py constraints.txt
	test -x $(SEAM_VENV)/bin/python || $(PYTHON) -m venv $(SEAM_VENV)
	$(SEAM_VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[test]"
	$(SEAM_VENV)/bin/python -m pip install --quiet cloudpickle einops matplotlib opencv-python-headless pandas "setuptools<81" wandb
	$(SEAM_VENV)/bin/python -m pip install --quiet --no-deps fairscale timm torchvision
	touch $@

clean:
	rm -rf $(VENV) $(SEAM_VENV)

# A stamp is older than what it was made from exactly when the environment is.
$(VENV)/.installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e ".[test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	touch $@
