# The commands of the project, the same for developers and CI. `make` lists them.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= quick
INSTALLED := .venv/.installed
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
.DEFAULT_GOAL := help
.PHONY: help demo test test-portable test-slow check train export serve bench bench-peers fuzz soak system proto lock lock-image sbom container notebook serving-alone clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv (once, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@

demo: $(INSTALLED) ## train, distil, export, serve and benchmark on MNIST, end to end
	@$(BIN)/python -m benchmarks demo

# Bytecode is written even where the environment forbids it: three processes import the tests, and others the service.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile
test: $(INSTALLED) ## run the default test suite
	@$(PYTEST)

NUMERIC = $(addprefix tests/training/, loop model evaluation paper runs)
PORTABLE = $(PYTEST) $(NUMERIC)
test-portable: $(INSTALLED) ## run the numeric tests of training as older CPUs compute them: SSE4 with one thread, AVX2 with two
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(PORTABLE)
	@ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 DISTILLERY_TEST_THREADS=2 OMP_WAIT_POLICY=PASSIVE $(PORTABLE)

test-slow: $(INSTALLED) ## run the slow tests; those that need `make system` are skipped without it
	@$(PYTEST) -m "slow or browser or nginx or prometheus or wrk or cluster"

RUNS ?= 100000
TARGET ?= all
fuzz: $(INSTALLED) ## fuzz every decoder, guided by coverage: make fuzz TARGET=json RUNS=1000000
	@$(BIN)/python -m tests.fuzz .cache/fuzz $(TARGET) -runs=$(RUNS)

check: $(INSTALLED) ## check format, lint, types, imports and generated docs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/oxlint --quiet --deny-warnings serving/http/page/files
	@$(BIN)/mypy & linux=$$!; \
		$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin && wait $$linux # finds what macOS lacks
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m benchmarks render --check

train: $(INSTALLED) ## train and evaluate a recipe: make train RECIPE=notebook ARGS="--seed 1"
	@$(BIN)/python -m training --recipe $(RECIPE) $(ARGS)
	@$(BIN)/python -m training evaluate --recipe $(RECIPE)

export: $(INSTALLED) ## export the trained models to the model repository: make export RECIPE=notebook
	@$(BIN)/python -m export --run-dir runs/$(RECIPE) $(ARGS)

serve: $(INSTALLED) ## serve the model repository on http://127.0.0.1:8000
	@$(BIN)/python -m serving $(ARGS)

bench: $(INSTALLED) ## measure the serving figures of README and docs, and update them (15 minutes)
	@$(BIN)/python -m benchmarks session
	@$(BIN)/python -m benchmarks http --against litserve-first-example
	@$(BIN)/python -m benchmarks scenarios
	@$(BIN)/python -m benchmarks perf-analyzer
	@$(BIN)/python -m benchmarks profile
	@$(BIN)/python -m benchmarks footprint
	@$(BIN)/python -m benchmarks render

bench-peers: $(INSTALLED) ## compare with other serving frameworks: make bench-peers ARGS="--peers bare-asgi"
	@$(BIN)/python -m benchmarks peers $(ARGS)
	@$(BIN)/python -m benchmarks render

MINUTES ?= 10
soak: $(INSTALLED) ## run the service under mixed traffic, bad input, kills and overload: make soak MINUTES=480
	@$(BIN)/python -m benchmarks soak --minutes $(MINUTES)

system: ## install the Debian packages that some tests and benchmarks need
	@$(SUDO) apt-get update -qq
	@$(SUDO) apt-get install -qq --yes --no-install-recommends buildah chromium libb64-0d haproxy iproute2 mmdebstrap nginx-light openssl podman postgresql prometheus prometheus-alertmanager runc wrk
	@command -v kubectl >/dev/null || $(SUDO) .ci/kubectl # Debian 12 has a version without Kustomize's components

container: $(INSTALLED) ## build the serving image and test a container of it, without Docker; needs `make system` and root
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -m container tests/docker

notebook: $(INSTALLED) ## execute the notebook in examples/ and store its outputs
	@$(BIN)/jupyter-execute --inplace examples/distillation.ipynb

serving-alone: $(INSTALLED) ## build the serving image's environment without a container, serve signed models, predict
	@.ci/serving-alone

proto: $(INSTALLED) ## generate the gRPC messages from open_inference.proto
	@$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. serving/codecs/open_inference/open_inference.proto

lock: $(INSTALLED) ## write constraints.txt from the installed packages
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//; s/+cu[0-9]*$$//' > constraints.txt

LOCK = $(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --universal --python-version 3.11 --generate-hashes
lock-image: $(INSTALLED) ## write the requirements of the serving image, with hashes
	@$(LOCK) --extra grpc --extra serving --extra signed --extra tracing --constraint constraints.txt --output-file docker/requirements.txt pyproject.toml
	@echo 'setuptools>=77' | $(LOCK) --output-file docker/build-requirements.txt -

sbom: $(INSTALLED) ## write the list of the serving image's Python packages (CycloneDX)
	@.ci/sbom

clean: ## remove runs, models and caches
	rm -rf runs models .hypothesis .mypy_cache .pytest_cache .ruff_cache
