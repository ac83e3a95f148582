# Everything starts here; on a fresh machine only Python 3.11+ and make are needed.
#   make demo    two tenants fine-tune and are served, on this machine
#   make test    the tests
#   make check   what CI runs
# TORCH_INDEX=URL takes torch from another wheel index, for instance one without CUDA.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV ?= .venv
CHAOS_REPORT ?= chaos-report
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
CHROMIUM := $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))

.DEFAULT_GOAL := install
.PHONY: install demo test check lint browser prometheus postgresql e2e chaos bench gpu postgres secrets docs-check clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; make PYTHON=/path/to/python names one."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --no-deps --index-url $(TORCH_INDEX) "$(TORCH)")
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/python examples/demo.py

test: install
	$(PYTEST)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test postgres e2e

# Tests drive a browser, a Prometheus and a PostgreSQL; a machine without them gets Debian's.
browser:
	$(if $(CHROMIUM),,apt-get update -q && apt-get install -qy --no-install-recommends chromium)

prometheus:
	$(if $(shell command -v prometheus),,apt-get update -q && apt-get install -qy --no-install-recommends prometheus)

postgresql:
	$(if $(or $(shell command -v postgres),$(wildcard /usr/lib/postgresql/*/bin/postgres)),,\
	  apt-get update -q && apt-get install -qy --no-install-recommends postgresql)

e2e: install browser prometheus postgresql
	$(PYTEST) -m e2e tests/e2e tests/chaos

chaos: install postgresql
	$(PYTEST) -m chaos tests/chaos --chaos-report=$(CHAOS_REPORT)

bench: install
	OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=10000 $(BIN)/python -m benchmarks.coserve $(if $(QUICK),--quick) $(BENCH)

gpu: install
	TRITON_INTERPRET=0 $(PYTEST) -m gpu
	TRITON_INTERPRET=0 $(PYTEST) $(foreach part,rows adapters attention,tests/unit/workers/test_triton_$(part).py)

postgres: install postgresql
	$(PYTEST) -m postgres

# The folder is closed; the files in it are read by the users of several containers.
secrets:
	chmod 700 docker/secrets
	umask 022; for name in redis_password postgres_password s3_secret_key key_pepper grafana_password; do \
	  test -s docker/secrets/$$name || openssl rand -hex 32 > docker/secrets/$$name; done

docs-check: install
	$(PYTEST) tests/unit/test_architecture.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
