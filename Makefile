# Every target sets up what it needs from a bare checkout: python3 with venv, and make, are enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
READY_AD := $(VENV)/.installed-ad
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help demo lab test soak bench docs format lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(READY) ## two servers on loopback, one message over X-ANONYMOUSTLS, everything explained
	$(BIN)/anontls demo

lab: $(READY_AD) ## Active Directory, two Mailbox servers and an Edge server on loopback, and what to break; root, LAB=folder keeps it, TOUR=1 asks nothing
	$(BIN)/python -m lab $(if $(LAB),--folder '$(LAB)') $(if $(TOUR),--tour)

test: $(READY_AD) ## format, lint, types, import contracts, tests: what CI runs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest

soak: $(READY) ## 5,000 idle TLS sessions, 100,000 messages through the queue, 100 times kill -9 under load
	ANONTLS_SOAK_SESSIONS=$${ANONTLS_SOAK_SESSIONS:-5000} ANONTLS_SOAK_MESSAGES=$${ANONTLS_SOAK_MESSAGES:-100000} \
	  ANONTLS_CRASH_ROUNDS=$${ANONTLS_CRASH_ROUNDS:-100} \
	  $(BIN)/pytest -n 0 -s tests/transport/test_soak.py tests/transport/test_crash.py

bench: $(READY) ## measure beside the peers, on loopback
	$(BIN)/python -m bench

docs: $(READY) ## write the pages that are made from the code
	$(BIN)/python docs/generate.py

format: $(READY) ## format the code, and mend what the linter can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: ## write requirements.lock from pyproject.toml; UPGRADE=1 takes the newest versions
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -q uv==$(UV_VERSION)
	build/lock/bin/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command 'make lock' --quiet \
	  $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	build/lock/bin/uv pip compile pyproject.toml --extra ad --constraint requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' --quiet \
	  --output-file requirements-ad.lock

clean: ## remove everything that these targets made
	rm -rf $(VENV) build dist demo-output .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests bench lab -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# The extra `ad` is compiled; without its headers all but its tests runs, except where CI is set.
$(READY_AD): $(READY) requirements-ad.lock
	@mkdir -p build
	@$(BIN)/python -m pip install -q --require-hashes -r requirements-ad.lock >build/ad.log 2>&1 || { \
	  echo "the extra 'ad' cannot be built (build/ad.log), so Active Directory and Kerberos are not tested;" \
	    "on Debian: apt install gcc python3-dev libldap-dev libsasl2-dev libkrb5-dev"; test -z "$$CI"; }
	@touch $@
