.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
API := client/tunesmith/api
CODE := client kit services trainer gateway tests bench

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: proto
proto: ## generate the Python contract in client/tunesmith/api from proto/
	rm -rf $(API)
	$(PY) -m grpc_tools.protoc -I proto --python_out=client --grpc_python_out=client --mypy_out=client \
	  --mypy_grpc_out=client $$(find proto -name '*.proto' | sort)
	find $(API) -type d -exec touch {}/__init__.py \;
	$(PY) -m grpc_tools.protoc -I proto --include_source_info --include_imports \
	  --descriptor_set_out=$(API)/contract.binpb $$(find proto -name '*.proto' | sort)
