# What to install and run: STACK is openmmlab or onedl, TASK is det or seg,
# TORCH a version of PyTorch or a whole requirement, FILTER a regular expression on
# the names of the configs that `make zoo` tries and `make bench-cost` measures.
STACK ?= openmmlab
TASK ?= det
TORCH ?= 2.13.0
PYTEST_ARGS ?=
FILTER ?=
COST_ARGS ?=
# The first Python that runs; install.py looks for a supported one from there.
PYTHON ?= $(shell for p in python3 python3.11 python3.10 python3.12 python; do \
	$$p -c '' >/dev/null 2>&1 && echo $$p && break; done)

venv_openmmlab := .venv
venv_onedl := .venv-onedl
zoo_openmmlab := docs/zoo.md
zoo_onedl := docs/zoo_onedl.md
zoo_dir := work_dirs/zoo_$(STACK)
venv := $(or $(venv_$(STACK)),$(error STACK=$(STACK): choose openmmlab or onedl))
python := $(venv)/bin/python

.PHONY: help install demo test lint docs zoo bench-accuracy bench-cost

help:
	@echo 'make demo [TASK=det|seg] [STACK=openmmlab|onedl]  install, then train, compare, draw'
	@echo 'make test                                         install, then lint and test'
	@echo 'make lint                                         install, then ruff and mypy'
	@echo 'make docs                                         install, then build docs/_build/html'
	@echo 'make zoo [FILTER=REGEX] [STACK=openmmlab|onedl]   install, then try every family'
	@echo 'make bench-accuracy [ACCURACY_ARGS=...]           install, then measure what is gained'
	@echo 'make bench-cost [FILTER=REGEX] [COST_ARGS="--sizes 320 --rounds 10"]'
	@echo '                                                  install, then measure the cost of an iteration'
	@echo 'make install [TORCH=2.13.0]                       only install'

install:
	@test -n '$(PYTHON)' || { echo 'No Python was found: please install python3.11' \
		'with python3.11-venv and python3.11-dev.'; exit 1; }
	@$(PYTHON) tools/install.py --stack '$(STACK)' --torch '$(TORCH)'

demo: install
	@# the frameworks warn of the pkg_resources that they import, in every process
	PYTHONWARNINGS=ignore $(python) -m tools.demo --task '$(TASK)'

lint: install
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

test: lint
	@# two processes, each test file in one; more threads would wait for each other
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

docs: install
	PYTHONWARNINGS=ignore $(python) -m sphinx -W --keep-going -b html docs docs/_build/html

zoo: install
	@# a config that does not train in stock has a second and a third choice;
	@# pytest ends with 1 where a test fails, and with 5 where there is none
	@export PYTHONWARNINGS=ignore OMP_NUM_THREADS=1; failed=0; \
	for choice in 1 2 3; do \
		$(python) -m pytest tests/zoo -vv -rs -n 2 --dist worksteal $(PYTEST_ARGS) \
			--zoo-dir=$(zoo_dir) --zoo-filter='$(FILTER)' --zoo-choice=$$choice; \
		case $$? in 0) ;; 1) failed=1 ;; 5) break ;; *) exit 1 ;; esac; \
	done; \
	PYTHONPATH="tests:$$PYTHONPATH" $(python) -m zoo.report \
		$(zoo_dir)/results.jsonl $(zoo_$(STACK)) --filter='$(FILTER)' && exit $$failed

bench-accuracy: install
	PYTHONWARNINGS=ignore $(python) -m tools.benchmarks.accuracy $(ACCURACY_ARGS)
	$(python) -m tools.benchmarks.accuracy_report work_dirs/accuracy.json --out work_dirs

bench-cost: install
	PYTHONWARNINGS=ignore $(python) -m tools.benchmarks.cost --models '$(FILTER)' $(COST_ARGS)
