# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into .venv, with exact versions.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: setup demo test lint docs results bench bench-signals bench-loss bench-step clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bequest needs Python 3.11 or later; call make with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(RUN)/bequest demo $(if $(TEXT),--text $(TEXT))

test: setup
	$(RUN)/pytest -n 2

lint: setup
	$(RUN)/ruff check src tests bench docs
	$(RUN)/ruff format --check src tests bench docs
	$(RUN)/mypy

docs: setup
	$(RUN)/sphinx-build -W --keep-going -b html docs docs/_build

results: setup
	$(RUN)/python docs/results.py

# Every sweep of docs/results.md: hours on two cores; safe to stop and to start again.
bench: setup
	for sweep in ki/headline ki/teachers ki/placebos ki/generations ki/confirm ki/masked ki/stacking elle/elle; do \
		$(RUN)/bequest compare bench/$$sweep.yaml || exit; \
	done

bench-signals: setup
	OMP_NUM_THREADS=1 $(RUN)/python bench/signals.py

PEERS := .venv-bench

# Peers stay out of .venv. liger-kernel wants triton, which a CPU does not need.
$(PEERS)/.installed: pyproject.toml constraints.txt bench/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	grep -v '^liger' bench/peers.txt | $(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement /dev/stdin
	grep '^liger' bench/peers.txt | $(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement /dev/stdin
	touch $@

bench-step: $(PEERS)/.installed
	OMP_NUM_THREADS=1 $(PEERS)/bin/python bench/step.py

bench-loss: $(PEERS)/.installed
	OMP_NUM_THREADS=1 $(PEERS)/bin/python bench/loss.py $(LOSS)

clean:
	rm -rf $(VENV) $(PEERS) runs docs/_build
