# `make help` lists the targets. Everything is made in this folder: .venv (environment, stamps) and build/ (generated C).

SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# the first interpreter that is new enough; `make PYTHON=python3.13 ...` picks another
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)

VENV := .venv
RUN := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(RUN) -m pip install -qq --no-warn-script-location
STAMPS := $(VENV)/stamps
SAY := @printf '==> %s\n'

# a worker a processor, and one that has nothing left takes half of what another still has; PYTEST='-n0 --pdb' for one
# process with a terminal
WORKERS := -n logical --maxprocesses 8 --dist worksteal

KERNELS := $(shell find src -name '*.pyx' -o -name '*.pxd' -o -name '*.h')

# build requirements, dependencies and the extras named on the command line, one a line
REQUIREMENTS := import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); x = p["project"]; \
	print(*p["build-system"]["requires"], *x["dependencies"], \
	*(r for e in sys.argv[1:] for r in x["optional-dependencies"][e]), sep="\n")

.PHONY: help demo test build debug oldest sanitize lint bench bench-busy bench-large bench-growth bench-glmm bench-readme bench-docs bench-kernels bench-compare bench-coverage bench-coverage-glmm bench-inference wheel docs clean distclean
.DEFAULT_GOAL := help

help:  ## list the targets
	@printf 'make TARGET [PYTHON=python3.12]\n\n'
	grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  \1\t/' | expand -t 20

demo: build  ## fit a crossed model to 73,421 rows and show the summary, time and memory
	$(SAY) 'Fitting y ~ service + (1|s) + (1|d) + (1|dept:service) to InstEval'
	$(RUN) -m fastlmm_core.demo

test: build $(STAMPS)/oracle  ## build, then run the tests and the examples in docstrings
	$(SAY) 'Running the tests'
	$(RUN) -m pytest -q $(WORKERS) $(PYTEST)

build: $(STAMPS)/build $(STAMPS)/install  ## environment and compiled kernels, whatever of them is out of date

debug: build $(STAMPS)/oracle  ## the tests on kernels with bounds checks, built apart in build/debug
	$(SAY) 'Building the kernels with bounds checks in build/debug'
	FASTLMM_DEBUG=1 $(RUN) setup.py -q build --build-lib build/debug/lib
	export PYTHONPATH=$(CURDIR)/build/debug/lib
	$(RUN) -c 'import fastlmm_core as f; assert "/build/debug/lib/" in f.__file__, f.__file__'
	printf '==> %s\n' 'Running the tests on that build'
	$(RUN) -m pytest -q $(WORKERS) tests $(PYTEST)

oldest: build $(STAMPS)/oldest  ## the tests on the oldest version of everything that pyproject.toml names, in .venv-oldest
	$(SAY) 'Making .venv-oldest'
	oldest=.venv-oldest/bin/python uv="$(VENV)/bin/uv"
	$$uv venv -q --clear --python $(RUN) .venv-oldest
	$(RUN) -c '$(REQUIREMENTS)' test adapters >$(STAMPS)/lowest.txt
	$$uv pip install -q --resolution lowest-direct --python $$oldest -r $(STAMPS)/lowest.txt
	printf '==> %s\n' 'Running the tests on it'
	PYTHONPATH=python $$oldest -m pytest -q $(WORKERS) tests $(PYTEST)

# what the sanitizers look at is the kernels: leaks are the interpreter's own, and the memory that a fit takes is not
# to be measured among the sanitizers' shadows; their allocator's own locks stay held in a child (gcc 12) where another
# thread of the parent was about to end, so forks beside threads belong to the other builds
sanitize: build  ## kernel and core tests on kernels that gcc's address and undefined-behaviour sanitizers watch
	$(SAY) 'Building the kernels with sanitizers in build/sanitize'
	FASTLMM_SANITIZE=1 $(RUN) setup.py -q build --build-lib build/sanitize/lib
	export PYTHONPATH=$(CURDIR)/build/sanitize/lib
	export LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"
	export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
	$(RUN) -c 'import fastlmm_core as f; assert "/build/sanitize/lib/" in f.__file__, f.__file__'
	printf '==> %s\n' 'Running the kernel and core tests on that build'
	$(RUN) -m pytest -q tests/_native tests/core --ignore=tests/core/test_memory.py --ignore=tests/core/test_forks.py $(PYTEST)

lint: build $(STAMPS)/dev  ## ruff, mypy, stubtest and cython-lint
	$(SAY) 'Checking style and types'
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy.stubtest fastlmm_core._native --concise --ignore-disjoint-bases --allowlist packaging/stubtest.txt
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint src

bench: build $(STAMPS)/bench  ## time this package and its peers; BENCH='-p insteval-3 --rounds 9' passes arguments on
	$(SAY) 'Timing the short set, in turn (less than ten minutes); benchmarks/README.md has the rest'
	$(RUN) -m benchmarks $(if $(BENCH),$(BENCH),--minutes 9)

bench-growth: build $(STAMPS)/bench  ## time against rows and levels: docs/benchmarks/growth.md and its plot
	$(RUN) -m benchmarks.growth $(BENCH)

bench-coverage: build  ## how often 95 % intervals cover: docs/benchmarks/coverage.md; five minutes
	$(RUN) -m benchmarks.coverage $(BENCH)

bench-coverage-glmm: build  ## the same of generalised fits: docs/benchmarks/coverage_glmm.md; five minutes
	$(RUN) -m benchmarks.coverage_glmm $(BENCH)

bench-inference: build  ## inference next to the fit and to lme4: docs/benchmarks/inference.md
	$(RUN) -m benchmarks.inference $(BENCH)

bench-glmm: build $(STAMPS)/bench  ## generalised models next to their peers, up to a million rows: docs/benchmarks/glmm.md
	$(RUN) -m benchmarks -p cbpp -p epilepsy -p bacteria -p grouseticks -p contraception -p children -p verbagg -p logistic-10k -p logistic-100k -p logistic-1m \
		--patience 300 --output docs/benchmarks/glmm $(BENCH)

bench-busy: build  ## two threads next to one, beside busy processes: fit, and what follows it
	$(RUN) -m benchmarks.busy $(BENCH)

bench-large: build $(STAMPS)/bench  ## rows past memory, streamed: each problem in a fresh process; BENCH='panel-100m --rows 1e6'
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m benchmarks.large $(BENCH)

bench-kernels: build  ## the kernels one by one
	$(RUN) -m pytest -q benchmarks/micro --benchmark-columns=min,median,rounds --benchmark-sort=name $(BENCH)

SMALL := dyestuff dyestuff2 sleepstudy penicillin pastes cake cbpp bacteria

bench-readme: build $(STAMPS)/bench  ## the README's comparisons: docs/benchmarks/{readme,slope,large,ratings,small}.md; half an hour
	$(RUN) -m benchmarks -p sleepstudy -p insteval-3 -p eight-terms -a fastlmm_core -a textbook -a lme4 -a mixedlm --rounds 5 \
		--output docs/benchmarks/readme
	$(RUN) -m benchmarks -p schools-3m -p ratings-866k -a fastlmm_core -a pandas -a cholmod --rounds 5 --patience 20 \
		--output docs/benchmarks/large
	$(RUN) -m benchmarks -p insteval-slope -a fastlmm_core -a lme4 --rounds 5 --output docs/benchmarks/slope
	$(RUN) -m benchmarks -p ratings-10m -a fastlmm_core --rounds 2 --output docs/benchmarks/ratings
	$(RUN) -m benchmarks $(SMALL:%=-p %) -a fastlmm_core -a glmm -t fit -t satterthwaite -t coef_table --threads 1 --rounds 9 \
		--output docs/benchmarks/small

bench-docs: build $(STAMPS)/bench bench-growth  ## everything that docs/benchmarks shows; hours, mostly the peers'
	$(RUN) -m benchmarks --problem all --patience 300 --output docs/benchmarks/all

BASE ?= HEAD~1
bench-compare: build  ## time commit HEAD against commit BASE=...
	$(RUN) -m benchmarks.compare $(BASE) $(BENCH)

wheel: $(STAMPS)/wheel build/cholmod/lib/libcholmod.so build  ## a wheel that needs no system library, checked and tested on a bare Debian
	$(SAY) 'Building the wheel from an sdist'
	rm -rf build/wheel dist/*.whl
	$(RUN) setup.py -q sdist --dist-dir build/wheel
	export PATH="$(CURDIR)/$(VENV)/bin:$$PATH" CHOLMOD_INCLUDE_DIR=$(CURDIR)/build/cholmod/include
	export CHOLMOD_LIBRARY_DIR=$(CURDIR)/build/cholmod/lib LD_LIBRARY_PATH=$(CURDIR)/build/cholmod/lib
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m pip wheel -q --no-deps --no-build-isolation --wheel-dir build/wheel build/wheel/*.tar.gz
	$(RUN) -m auditwheel -v repair --strip --wheel-dir dist build/wheel/*.whl >build/wheel/auditwheel.log 2>&1 || { cat build/wheel/auditwheel.log; exit 1; }
	printf '==> %s\n' 'Checking it, and running the tests where there is no compiler and no library'
	$(RUN) packaging/check_wheel.py dist/*.whl -- $(PYTEST)

docs: build $(STAMPS)/docs  ## the documentation in build/docs/index.html: pages executed, links followed, warnings are errors
	$(SAY) 'Building the documentation'
	rm -rf docs/api
	$(RUN) -m sphinx -q -W --keep-going -b html -d build/docs-trees docs build/docs
	$(RUN) docs/check_links.py build/docs
	printf '==> %s\n' 'Read build/docs/index.html'

clean:  ## remove everything built, keep the environment
	rm -rf build dist $(STAMPS)/{install,build} python/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python -name '*.so' -delete
	find python tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)

# --- how the environment comes about -------------------------------------------------------------------------------

# Debian splits Python and SuiteSparse; look for what a build needs and install only what is missing
define INSTALL_SYSTEM_PACKAGES
version=$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
include=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
header=$$(ls $${CHOLMOD_INCLUDE_DIR:-/nowhere}/cholmod.h {/usr,/usr/local,/opt/homebrew,$${CONDA_PREFIX:-/usr}}/include{,/suitesparse}/cholmod.h 2>/dev/null | head -n 1 || true)
missing=()
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
command -v g++ >/dev/null || missing+=(g++)
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=($$version-venv)
[ -f "$$include/Python.h" ] || missing+=($$version-dev)
[ -n "$$header" ] || pkg-config --exists CHOLMOD 2>/dev/null || missing+=(libsuitesparse-dev)
[ $${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null; then
	echo "Please install what Debian calls $${missing[*]} with this system's package manager, then run make again." >&2
	exit 1
fi
echo "==> Installing system packages: $${missing[*]}"
sudo=(); [ "$$(id -u)" = 0 ] || sudo=(sudo)
"$${sudo[@]}" env DEBIAN_FRONTEND=noninteractive bash -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends "$$@" </dev/null' apt "$${missing[@]}" >build/apt.log 2>&1 || {
	cat build/apt.log >&2
	echo "The packages $${missing[*]} could not be installed; install them by hand, then run make again." >&2
	exit 1
}
endef

$(STAMPS)/venv:
	@mkdir -p build
	if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null; then
		echo "fastlmm_core needs Python 3.11 or newer: install one, or name it with make PYTHON=/path/to/python3.12." >&2
		exit 1
	fi
	( $(INSTALL_SYSTEM_PACKAGES) )
	if ! $(RUN) -c '$(NEW_ENOUGH)' 2>/dev/null; then
		echo "==> Making a virtual environment in $(VENV) ($$($(PYTHON) --version))"
		$(PYTHON) -m venv --clear $(VENV)
	fi
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/dependencies: pyproject.toml $(STAMPS)/venv
	$(SAY) 'Installing the Python packages it needs (a minute or so the first time)'
	$(RUN) -c '$(REQUIREMENTS)' test adapters >$(STAMPS)/requirements.txt
	$(PIP) -r $(STAMPS)/requirements.txt
	touch $@

$(STAMPS)/build: setup.py $(KERNELS) $(STAMPS)/dependencies
	$(SAY) 'Compiling the kernels'
	$(RUN) setup.py -q build_ext --inplace
	touch $@

$(STAMPS)/install: pyproject.toml setup.py $(STAMPS)/dependencies | $(STAMPS)/build
	$(SAY) 'Installing fastlmm_core into $(VENV), linked to this folder'
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# The oracle's own sources do not compile against every SuiteSparse; the tests that need it say so and are skipped.
$(STAMPS)/oracle: pyproject.toml $(STAMPS)/dependencies
	@echo '==> Compiling scikit-sparse, which some tests compare with'
	$(RUN) -c '$(REQUIREMENTS)' oracle >$(STAMPS)/oracle.txt
	$(PIP) -r $(STAMPS)/oracle.txt 2>$(STAMPS)/oracle.log \
		|| echo '    scikit-sparse does not build here ($(STAMPS)/oracle.log); the tests that compare with it are skipped.'
	touch $@

# The peers one at a time: whichever cannot be installed is left out of the table with a note.
$(STAMPS)/bench: pyproject.toml $(STAMPS)/dependencies
	@echo '==> Installing the packages to compare with'
	$(RUN) -c '$(REQUIREMENTS)' bench >$(STAMPS)/bench.txt
	while read -r peer; do
		$(PIP) "$$peer" 2>>$(STAMPS)/bench.log || echo "    $$peer cannot be installed here ($(STAMPS)/bench.log)"
	done <$(STAMPS)/bench.txt
	touch $@

$(STAMPS)/docs: pyproject.toml $(STAMPS)/dependencies
	@echo '==> Installing what the documentation is built with'
	$(RUN) -c '$(REQUIREMENTS)' docs >$(STAMPS)/docs.txt
	$(PIP) -r $(STAMPS)/docs.txt
	touch $@

$(STAMPS)/wheel: pyproject.toml $(STAMPS)/dependencies
	@echo '==> Installing the tools that repair a wheel'
	$(RUN) -c '$(REQUIREMENTS)' wheel >$(STAMPS)/wheel.txt
	$(PIP) -r $(STAMPS)/wheel.txt
	touch $@

$(STAMPS)/oldest: pyproject.toml $(STAMPS)/dependencies
	$(RUN) -c '$(REQUIREMENTS)' oldest >$(STAMPS)/uv.txt
	$(PIP) -r $(STAMPS)/uv.txt
	touch $@

build/cholmod/lib/libcholmod.so: packaging/cholmod.py $(STAMPS)/venv
	@echo "==> Building CHOLMOD's LGPL modules"
	$(RUN) packaging/cholmod.py build/cholmod

$(STAMPS)/dev: pyproject.toml $(STAMPS)/dependencies
	$(SAY) 'Installing the development tools'
	$(RUN) -c '$(REQUIREMENTS)' dev >$(STAMPS)/dev.txt
	$(PIP) -r $(STAMPS)/dev.txt
	touch $@
