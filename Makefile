# Everything runs in .venv, which the first target makes. Needs python3 >= 3.11 with its headers, a C compiler and make.
#   make demo | test | test-clients | differential | chaos | lint | bench | fuzz | build | clean      (ARGS="..." goes to the program behind the target)

PYTHON ?= python3
FUZZ_SECONDS ?= 60
SEQUENCES ?= 3000
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# Tests wait for a third of their time (for elections, timeouts, processes that start): two for each core of a small
# machine.
JOBS ?= $(shell echo $$(($(CORES) < 8 ? 2 * $(CORES) : $(CORES))))
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
ALONE = $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)
SOURCES := $(shell find proxy -name '*.pyx' -o -name '*.pxd') setup.py
# Two makes in one checkout: the second waits, then finds everything done.
LOCK := $(shell command -v flock >/dev/null 2>&1 && echo flock $(VENV)/.lock)
LOCKED = @mkdir -p $(VENV) && $(LOCK) $(MAKE) --silent --no-print-directory

.PHONY: build demo test test-clients differential chaos lint bench fuzz clean distclean
.DEFAULT_GOAL := build

build:
	$(LOCKED) $(VENV)/.with-demo

demo:
	$(LOCKED) $(VENV)/.with-demo
	@$(BIN)/redis-proxy demo $(ARGS)

# Compiled first, for the tests start hundreds of processes, and some environments let none of them keep its bytecode.
# The modules of tests are compiled by pytest itself, with their assertions rewritten: once, by as many as there are
# cores, before each of JOBS would do all of them.
# In parallel, and then, one after another, what measures time (marked alone). 5: ARGS chose none of those.
test:
	$(LOCKED) $(VENV)/.with-test
	@$(BIN)/python -m compileall -q -j $(CORES) -x '/(test_[a-z0-9_]*|conftest)\.py$$' proxy tests bench
	@$(if $(ARGS),,find tests -name 'test_*.py' ! -path 'tests/clients/*' | xargs -n 75 -P $(CORES) \
		$(PYTEST) -q -p no:cacheprovider --collect-only >/dev/null 2>&1 || true)  # the run itself says what is wrong
	$(PYTEST) -q -n $(JOBS) --dist worksteal -m "not long and not alone" $(ARGS) || [ $$? = 5 ]
	$(PYTEST) -q $(or $(ARGS),$(ALONE)) -m "alone and not long" || [ $$? = 5 ]

# Client libraries and frameworks, installed from PyPI, npm and Debian into a cache; ARGS="--list", ARGS="--only NAME".
test-clients:
	$(LOCKED) $(VENV)/.with-test
	$(BIN)/python -m tests.clients.run $(ARGS)

# Of both kinds of server, each with one worker, two, and reads from replicas; ARGS="--seed 7 --number 41" is one again.
differential:
	$(LOCKED) $(VENV)/.with-test
	$(BIN)/python -m tests.differential.run --sequences $(SEQUENCES) $(ARGS)

# Nodes, the network and the proxy itself broken under load, and every operation judged; about ten minutes.
# ARGS="--short", ARGS="--only kill-primary", ARGS="--soak 600", ARGS="--short --sanitizers"; --write docs/chaos.md
chaos:
	$(LOCKED) $(VENV)/.with-test
	$(BIN)/python -m tests.chaos.run $(ARGS)

lint:
	$(LOCKED) $(VENV)/.with-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict proxy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint proxy  # it calls pycodestyle by name
	$(BIN)/lint-imports --no-cache
	@find proxy tests bench \( -name '*.py' -o -name '*.pyx' -o -name '*.pxd' \) ! -path proxy/commands/table.py -exec wc -l {} + \
		| awk '$$2 != "total" && $$1 > 500 { print $$2 ": " $$1 " lines, more than 500"; bad = 1 } END { exit bad }'

bench:
	$(LOCKED) $(VENV)/.with-bench
	$(BIN)/python bench/run.py $(ARGS)

fuzz:
	$(LOCKED) $(VENV)/.with-test
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.built
	find proxy tests bench ! -path 'tests/clients/*' \( -name '*.so' -o -name '*.c' -o -name '*.cpp' -o -name '*.html' \) -delete
	find proxy tests bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# Below: under the lock. The stamps are made last, so that what was interrupted is done again.

$(VENV)/.made: pyproject.toml
	command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: redis-proxy needs Python 3.11 or newer (make PYTHON=/path/to/python3)"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "redis-proxy needs Python 3.11 or newer, this is $$($(PYTHON) --version) (make PYTHON=/path/to/python3)"; exit 1; }
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module: try \`apt-get install python3-venv\`"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $(VENV)/.requires
	echo "installing what the build needs into $(VENV)"
	$(PIP) install -r $(VENV)/.requires
	touch $@

$(VENV)/.built: $(SOURCES) $(VENV)/.made
	echo "building the compiled modules"
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

$(VENV)/.with-%: pyproject.toml | $(VENV)/.built
	echo "installing what $* needs into $(VENV)"
	$(PIP) install --no-build-isolation --editable '.[$*]'
	touch $@
