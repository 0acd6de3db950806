# Two commands do all the set-up on a fresh machine with Python 3.11+, a C++ compiler and make:
#   make serve   sets everything up and serves the embedded model on http://127.0.0.1:8000
#   make test    passes the tests
# On a machine without a GPU, PyTorch's CPU build is far smaller:
#   make serve TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
EVAL_PORT ?= 8765

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
PURE := $(VENV)-pure
KERNEL_SOURCES := $(wildcard csrc/*.cpp csrc/*.h)
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover -fno-omit-frame-pointer
PURE_TESTS := $(shell cat tests/pure-tests.txt)

.PHONY: help serve chat test check kernels sanitize fix bench bench-peers pure demo-eval clean
help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile
	@echo "Targets: serve chat test check sanitize fix bench bench-peers pure demo-eval clean"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml setup.py $(KERNEL_SOURCES) | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) --editable .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) --editable ".[dev]"
	@touch $@

serve: $(RUNTIME)
	$(BIN)/fathom serve $(ARGS)

chat: $(RUNTIME)
	$(BIN)/fathom chat $(ARGS)

# Everything that CI demands, fast parts first: style and types; the tests that need no torch, in an
# environment without torch; then all the others.
test: check pure
	$(BIN)/python -m pytest $(PURE_TESTS:%=--ignore=%) --ignore=tests/arch $(ARGS)

# Style, types and architecture, and the CPU kernels without warnings: seconds.
check: $(DEV) kernels
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/arch --durations=0

# The kernels of csrc/ in their format, and compiled with every warning an error.
kernels: $(DEV)
	$(BIN)/clang-format --dry-run -Werror $(KERNEL_SOURCES)
	FATHOM_REQUIRE_KERNELS=1 FATHOM_KERNEL_FLAGS=-Werror $(BIN)/python setup.py --quiet build_ext \
	  --build-temp build/strict --build-lib build/strict

# The kernels' tests on a build that stops at the first wrong address or undefined operation. The
# interpreter's own leaks are not looked for.
sanitize: $(DEV)
	FATHOM_REQUIRE_KERNELS=1 FATHOM_KERNEL_FLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build \
	  --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$(foreach name,asan ubsan stdc++,$(shell g++ -print-file-name=lib$(name).so))" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize/lib \
	  $(BIN)/python -m pytest -p no:cacheprovider -k "not v3" \
	  tests/ops/test_cpu.py tests/ops/test_cpu_pack.py tests/ops/test_cpu_pack_words.py \
	  tests/ops/test_cpu_tiles.py $(ARGS)

fix: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNEL_SOURCES)

# The tests that need no torch, in an environment that has none.
pure: $(PURE)/.installed
	PYTHONPATH=src $(PURE)/bin/python -m pytest $(PURE_TESTS)

$(PURE)/.installed: tests/pure-requirements.txt
	$(PYTHON) -m venv $(PURE)
	$(PURE)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

bench: $(DEV)
	$(BIN)/python bench/scheduler.py
	$(BIN)/python bench/server.py
	$(BIN)/python bench/client.py
	$(BIN)/python bench/gpu_smoke.py --dry-run

# Other engines, built here, beside fathom on the same random model: half an hour to prepare once,
# hours to measure. ARGS="--help" lists the flags; the table goes into docs/performance.md.
bench-peers: $(RUNTIME)
	$(BIN)/python -m bench.peers $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) $(ARGS)

# Accuracy per task of the embedded model, as served, on text that its training never saw.
demo-eval: $(DEV)
	@$(BIN)/fathom serve --port $(EVAL_PORT) --num-speculative-tokens 1 >/dev/null & server=$$!; \
	trap "kill $$server" EXIT; \
	timeout 60 sh -c 'until curl -sfo /dev/null http://127.0.0.1:$(EVAL_PORT)/readyz; do sleep 0.2; done' && \
	$(BIN)/python -m demo.evaluate --base-url http://127.0.0.1:$(EVAL_PORT)/v1 $(ARGS)

clean:
	rm -rf $(VENV) $(PURE) build dist src/*.egg-info
