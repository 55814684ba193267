# What to install and run: STACK is openmmlab, onedl or oldest, TASK is det or seg,
# TORCH a version of PyTorch or a whole requirement in place of the stack's own, FILTER
# a regular expression on the names of the configs that `make zoo` tries and
# `make bench-cost` measures.
STACK ?= openmmlab
TASK ?= det
TORCH ?=
PYTEST_ARGS ?=
FILTER ?=
COST_ARGS ?=
# The first Python that runs; install.py looks for a supported one from there.
PYTHON ?= $(shell for p in python3 python3.11 python3.10 python3.12 python; do \
	$$p -c '' >/dev/null 2>&1 && echo $$p && break; done)

stacks := openmmlab onedl oldest
$(if $(filter $(STACK),$(stacks)),,$(error STACK=$(STACK): choose one of $(stacks)))
# openmmlab, the default, has the plain names
suffix = $(STACK:openmmlab=)
venv := .venv$(if $(suffix),-$(suffix))
zoo_dir := docs/benchmarks/zoo_$(STACK)
python := $(venv)/bin/python
zoo := docs/zoo$(if $(suffix),_$(suffix)).md
# what depends on the versions of PyTorch and the frameworks
core_tests := $(addprefix tests/test_,core losses hooks families schedules.py \
	containers.py compat.py identity.py views.py views_of.py testing.py \
	testing_terms.py testing_unlabeled.py)

.PHONY: help install demo test test-core test-oldest test-latest lint docs zoo \
	bench-accuracy bench-cost

help:
	@echo 'make demo [TASK=det|seg] [STACK=openmmlab|onedl]  install, then train, compare, draw'
	@echo 'make test                                         install, then lint and test'
	@echo 'make test-oldest                                  install PyTorch 2.1 and the oldest frameworks'
	@echo '                                                  in .venv-oldest, then run the core tests'
	@echo 'make test-latest                                  the same with the newest that mmcv compiles with'
	@echo 'make lint                                         install, then ruff and mypy'
	@echo 'make docs                                         install, then build docs/_build/html'
	@echo 'make zoo [FILTER=REGEX] [STACK=openmmlab|onedl]   install, then try every family'
	@echo 'make bench-accuracy [ACCURACY_ARGS=...]           install, then measure what is gained'
	@echo 'make bench-cost [FILTER=REGEX] [COST_ARGS="--sizes 320 --rounds 10"]'
	@echo '                                                  install, then measure the cost of an iteration'
	@echo 'make install [STACK=...] [TORCH=2.13.0]           only install'

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

test-core: install
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --dist loadfile $(core_tests) $(PYTEST_ARGS)

test-oldest:
	$(MAKE) test-core STACK=oldest

# PyTorch 2.14 asks for C++20, and mmcv compiles as C++17: the default is the newest
test-latest:
	$(MAKE) test-core STACK=openmmlab

docs: install
	PYTHONWARNINGS=ignore $(python) -m sphinx -W --keep-going -b html docs docs/_build/html

# packages that some configs need; their own requirements would replace PyTorch
$(venv)/zoo: tests/zoo/requirements.txt tests/requirements_mmpretrain.txt | install
	$(python) -m pip install -q --upgrade --no-deps --target $@ -r $<
	@touch $@

zoo: install $(venv)/zoo
	@# a config that does not train in stock has a second and a third choice;
	@# pytest ends with 1 where a test fails, and with 5 where there is none
	@export PYTHONWARNINGS=ignore OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/$(venv)/zoo"; \
	failed=0; \
	for choice in 1 2 3; do \
		$(python) -m pytest tests/zoo -vv -rs -n 2 --dist worksteal $(PYTEST_ARGS) \
			--zoo-dir=$(zoo_dir) --zoo-filter='$(FILTER)' --zoo-choice=$$choice; \
		case $$? in 0) ;; 1) failed=1 ;; 5) break ;; *) exit 1 ;; esac; \
	done; \
	PYTHONPATH="tests:$$PYTHONPATH" $(python) -m zoo.report $(zoo_dir) $(zoo) && \
		exit $$failed

bench-accuracy: install
	@# what was measured is reported where a run has failed, too
	PYTHONWARNINGS=ignore $(python) -m tools.benchmarks.accuracy $(ACCURACY_ARGS); \
	status=$$?; \
	$(python) -m tools.benchmarks.accuracy_report work_dirs/accuracy.json \
		--out work_dirs && exit $$status

bench-cost: install
	PYTHONWARNINGS=ignore $(python) -m tools.benchmarks.cost --models '$(FILTER)' $(COST_ARGS)
