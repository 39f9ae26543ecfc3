# `make demo`, `make test` and `make faults` do everything from nothing: a virtual environment, the installation, the job.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
DEMO_ARGS ?=
FIRST_HOUR_ARGS ?=

.PHONY: demo test docs faults golden families oldest first-hour pages ray trl harness notebook links nightly lint bench study-toy clean

demo: $(VENV)/installed
	$(BIN)/redistill demo $(DEMO_ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The documentation site in build/site: warnings are errors, and its links and its search are tested.
docs: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m sphinx --quiet --write-all --fail-on-warning --keep-going -c docs . build/site
	$(BIN)/python -m pytest -m site tests/test_site.py $(PYTEST_ARGS)

# Every fault as often as docs/reliability.md says; `make test` tries a few of each.
faults: $(VENV)/installed-dev
	REDISTILL_FAULTS=whole OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not gpu' tests/faults $(PYTEST_ARGS)

# Losses, texts and scores of the nine methods, the demo, LoRA, two processes and a resume, compared bitwise with tests/golden/record.json.
golden: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.golden.record

# Every row of docs/models.md; `make test` tries a few. python -m tests.models.family_page writes the page.
families: $(VENV)/installed-dev
	REDISTILL_FAMILIES=whole OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/models/test_family_page.py $(PYTEST_ARGS)

# Losses, data, models, generation, metrics and every method with the lowest releases of all dependencies in pyproject.toml.
oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python tests/lowest_versions.py > $(VENV)-oldest/lowest.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint $(VENV)-oldest/lowest.txt -e '.[dev]'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest tests/losses tests/vocab_pass tests/data tests/models tests/generation \
	  tests/evaluation tests/integration/test_every_method.py $(PYTEST_ARGS)

# The quick start of the README in a new environment, with the real model.
first-hour:
	$(MAKE) $(VENV)-first-hour/torch VENV=$(VENV)-first-hour
	$(VENV)-first-hour/bin/python -m pip install --quiet '.[spans]'
	rm -rf $(VENV)-first-hour/work
	PATH=$(abspath $(VENV)-first-hour/bin):$$PATH python tests/first_hour.py $(VENV)-first-hour/work $(FIRST_HOUR_ARGS)

# The commands of every page in a new environment, with small models; `make test` executes those of two pages.
pages:
	$(MAKE) $(VENV)-pages/torch VENV=$(VENV)-pages
	$(VENV)-pages/bin/python -m pip install --quiet '.[dev]'
	REDISTILL_PAGES=whole OMP_NUM_THREADS=1 $(VENV)-pages/bin/python -m pytest tests/test_page_commands.py $(PYTEST_ARGS)

# Sweeps on a Ray of this machine; `make test` skips these tests, since the package ray is not installed.
ray: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -e '.[ray]'
	$(BIN)/python -m pytest -m 'not gpu' tests/runs/test_ray.py tests/faults/test_sweep_on_ray.py $(PYTEST_ARGS)

# One update of TRL's trainers against the recipes of docs/moving.
trl: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet trl==1.16.0
	$(BIN)/python -m pytest -m trl tests/integration/test_trl.py $(PYTEST_ARGS)

# Tasks of lm-evaluation-harness, without a download; `make test` skips these tests, since the package lm_eval is not installed.
harness: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -e '.[eval]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/runs/test_harness.py $(PYTEST_ARGS)

# Every cell of examples/quickstart.ipynb.
notebook: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet nbclient ipykernel
	$(BIN)/python -m pytest -m notebook tests/test_notebook.py $(PYTEST_ARGS)

# The external links of the documentation and of docstrings; needs a network.
links: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m sphinx --builder linkcheck --quiet -D include_patterns='docs/**,*.md' -c docs . build/links

# What is too long for every change, the short jobs first. A job that fails does not stop the others.
NIGHTLY := notebook trl harness links ray families pages first-hour oldest golden faults
nightly:
	$(MAKE) --keep-going $(NIGHTLY)

# Every benchmark of docs/performance.md against its rivals, an hour or two on one core: make bench MODEL=folder PROMPTS=rows.jsonl
bench: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	for each in loss memory scaling rows replay_buffer long_logs; do $(BIN)/python -m benchmarks.$$each || exit 1; done
	for each in accuracy generation step estimate; do $(BIN)/python -m benchmarks.$$each --model $(MODEL) || exit 1; done
	$(BIN)/python -m benchmarks.scrg --model $(MODEL) --prompts $(PROMPTS)
	$(BIN)/python -m benchmarks.compact --model $(MODEL) --data $(PROMPTS)
	$(BIN)/python -m benchmarks.chart

# The tables of the study (python -m benchmarks.study) at toy size.
study-toy: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study --toy --jobs 2

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and by its exact version: a range may bring the newest build with several gigabytes of CUDA libraries.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[spans]'
	touch $@

$(VENV)/installed-dev: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-first-hour $(VENV)-pages .ci-cache runs dist build
