# One command each. Needed beforehand: Python 3.10 or later with its venv module, a C++17 compiler for the CPU kernels
# (without one their tests are skipped), and CMake for `make bare`.

PYTHON ?= python3
PYTEST_FLAGS ?= -n 2

# Where lint and check find their tools: the development environment .venv, made when it is missing or out of date,
# or a bin/ folder of your own: make check BIN=path/to/bin
ifdef BIN
tools :=
else
BIN := .venv/bin
tools := .venv/.ready
endif

# The kernels are looked at twice: as the portable source and, where that is the machine, with every intrinsic.
tidy_flags := -std=gnu++17 -fno-math-errno -Wall -Wextra
# And as another machine's compiler would: types and intrinsics of aarch64, for which no headers are needed.
tidy_aarch64 := $(tidy_flags) --target=aarch64-linux-gnu -ffreestanding -DALIBI_TARGET=baseline
ifneq ($(filter x86_64 amd64,$(shell uname -m)),)
tidy_avx512 := -DALIBI_TARGET=amx -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 \
	-mamx-tile -mamx-bf16
# What asks the machine what it has.
tidy_library := -DALIBI_HAS_AVX2 -DALIBI_HAS_AVX512BF16 -DALIBI_HAS_AMX
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check lint isas cases sanitize aarch64 pages gpu kernels bare clean

# Only what is installed in the environment is imported.
unexport PYTHONPATH

pip_install = -m pip --disable-pip-version-check install -qq --no-input -c constraints.txt

# $(call fresh,directory,requirement): an environment made anew, whatever was there before.
define fresh
@rm -rf $(1)
@echo "Installing $(2) into a fresh $(1) (a few minutes the first time) ..."
@$(PYTHON) -m venv $(1)
@$(1)/bin/python $(pip_install) "$(2)"
endef

help: ## list these commands
	@echo "alibi-attention"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=$(PYTHON)    the interpreter environments are made with"
	@echo "  PYTEST_FLAGS=\"$(PYTEST_FLAGS)\""
	@echo "  OUTPUT=FILE.json    where make gpu writes its results; of make pages a folder for what was seen"

run: ## train short, test long: install into a fresh environment, run (or resume) `alibi extrapolate`
	$(call fresh,.venv-run,.[all])
	@.venv-run/bin/alibi extrapolate $(if $(wildcard runs/extrapolate/config.json),--resume)

test: ## install into a fresh environment and run the whole test suite
	$(call fresh,.venv-test,.[dev])
	.venv-test/bin/python -m pytest $(PYTEST_FLAGS)

check: lint ## lint, types and tests in the development environment, kept between runs
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# The parts of lint that take long, apart, so that two run at a time.
lint_parts := lint-python lint-library lint-baseline lint-aarch64 $(if $(tidy_avx512),lint-avx512)
.PHONY: $(lint_parts)

lint: $(tools) ## ruff and mypy (strict), clang-format and clang-tidy, alone
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/tests/*.cpp
	@$(MAKE) --no-print-directory -j2 BIN=$(BIN) $(lint_parts)

lint-python:
	$(BIN)/python -m mypy

lint-library:
	$(BIN)/clang-tidy --quiet csrc/library.cpp csrc/tests/driver.cpp -- $(tidy_flags) $(tidy_library)

lint-baseline:
	$(BIN)/clang-tidy --quiet csrc/kernel.cpp -- $(tidy_flags) -DALIBI_TARGET=baseline

lint-aarch64:
	$(BIN)/clang-tidy --quiet csrc/kernel.cpp -- $(tidy_aarch64)

lint-avx512:
	$(BIN)/clang-tidy --quiet csrc/kernel.cpp -- $(tidy_flags) $(tidy_avx512)

# What runs in the kernels. Errors, forecasts and what torch makes of the operator are the same under all, as is what runs
# in plain PyTorch; and that each agrees with the reference is asked in the suite itself.
kernel_tests := $(wildcard tests/backends/test_cpu*.py) $(addprefix tests/backends/test_,appending.py auditing.py) \
	$(addprefix tests/operator/test_,conformance.py extremes.py horizon.py memory.py) \
	$(addprefix tests/cache/test_,kv_cache.py horizon_cache.py horizon_audit.py steps.py)
# Kernels as wide as the best differ from it in what they multiply bfloat16 by: what asks the kernels themselves will do.
wide_tests := $(wildcard tests/backends/test_cpu*.py) tests/operator/test_conformance.py
not_again := not blocked and not test_the_bound_holds_where_it_is_tight and not every_instruction_set
loaded = $(BIN)/python -c "from alibi_attention.backends import native; print(native.load().isa)"

# The suite itself runs with the best there is.
isas: $(tools) ## the tests of the CPU kernels under each instruction set this machine has but the best (minutes)
	@best=$$($(loaded)) && for isa in baseline avx2 avx512 avx512bf16 amx; do \
	  if [ $$isa = $$best ]; then continue; fi; \
	  if ! ALIBI_CPU_ISA=$$isa $(loaded) >/dev/null 2>&1; then echo "this machine has no $$isa"; continue; fi; \
	  case $$isa in avx512*) tests="$(wide_tests)";; *) tests="$(kernel_tests)";; esac; \
	  echo "The kernels as $$isa"; \
	  ALIBI_CPU_ISA=$$isa $(BIN)/python -m pytest $(PYTEST_FLAGS) -q -k "$(not_again)" $$tests || exit 1; \
	done

cases: $(tools) ## 20,000 random calls of the CPU kernels against float64 (ten minutes on two cores)
	ALIBI_CPU_CASES=20000 $(BIN)/python -m pytest $(PYTEST_FLAGS) -q tests/backends/test_cpu.py -k random_calls

sanitize: ## the C++ kernels under the address, undefined-behaviour and thread sanitizers (minutes)
	$(MAKE) -j2 -C csrc/tests sanitize

aarch64: $(tools) ## the portable C++ kernels compiled for 64-bit Arm (Linux and macOS), and run in an emulator (minutes)
	$(BIN)/python $(pip_install) ziglang unicorn
	$(MAKE) -C csrc/tests aarch64 PYTHON=$(abspath $(BIN))/python

pages: $(tools) ## the committed reports in a Chromium: phone, desk, dark, print; no message, no request, nothing cut off
	$(BIN)/python $(pip_install) playwright
	$(BIN)/python tests/pages/look.py $(wildcard docs/study/*/report.html docs/study/*/*/report.html) \
	  $(if $(OUTPUT),--output "$(OUTPUT)")

gpu: ## check and measure the GPU kernels here, under eight minutes; needs torch, Triton, a C compiler, Python's headers
	$(PYTHON) benchmarks/gpu.py $(if $(OUTPUT),--output "$(OUTPUT)")

bare: ## the C++ kernels without the bias, into build/bare: what it costs is the difference (alibi versus --bare)
	cmake -S csrc -B build/bare -DCMAKE_BUILD_TYPE=Release -DALIBI_WITHOUT_BIAS=ON
	cmake --build build/bare

kernels: $(tools) ## every GPU kernel compiled for every architecture, without a GPU, and inspected (two hours, two cores)
	PYTHONPATH=src $(BIN)/python tests/backends/triton_kernels/compile_table.py --jobs 2

clean: ## remove the environments, caches and build products
	rm -rf .venv .venv-run .venv-test build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/.ready: pyproject.toml constraints.txt $(wildcard csrc/*.h csrc/*.cpp) csrc/CMakeLists.txt
	@echo "Installing .[dev] into .venv (a few minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python $(pip_install) -e ".[dev]"
	@touch $@
