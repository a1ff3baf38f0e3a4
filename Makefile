# Everything a person does with this repository from the command line. `make` alone prints the list.

CARGO ?= cargo
PYTHON ?= python3
# The folder with the labelled sets (its layout: CONTRIBUTING.md). Tests that need it are skipped where it is missing.
FACEWISE_DATA ?= ../shared/data
# Further arguments for the program that a target runs: make serve ARGS="--models my-models"
ARGS ?=
# A Python with PyTorch to compare with. The default is made by the target, any other is used as it is.
BENCH_PYTHON ?= $(BENCH_VENV)/bin/python
BENCH_TORCH := 2.11.0
BENCH_VENV := .venv-bench
BENCH_PACK ?= runs/packs/bench
# What the server is tested with by programs that others wrote.
CONFORMANCE_VENV := .venv-conformance
# What servers are measured with: the Python servers that they are compared with, and where networks and pictures go.
BENCH_SERVING_VENV := .venv-bench-serving
BENCH_SERVING_DATA := runs/bench
BENCH_SERVING := $(BENCH_SERVING_VENV)/bin/python -B
# Clients of others that the server is tested with.
CLIENTS_VENV := .venv-clients
# The programs that are measured, and where those lie that are not.
BUILT := $(or $(CARGO_TARGET_DIR),target)/release
BUILT_DEBUG := $(or $(CARGO_TARGET_DIR),target)/debug

# Features that are off by default and tested nevertheless.
TESTED := --features facewise/tls

venv = $(PYTHON) -m venv --clear $(1) || { echo "facewise: $(PYTHON) could not make a virtual environment." \
		"Install venv (on Debian and Ubuntu: sudo apt install python3-venv) and run this again." >&2; exit 1; }

TRAINER := $(CARGO) run --release --locked --quiet --package facewise-training --

.DEFAULT_GOAL := help
.PHONY: help serve serve-cuda test test-training clients conformance conformance-contract conformance-console screenshots lint fmt openapi onnxruntime onnxruntime-cuda libtorch train-default export-default train-detector \
	export-detector reports bench bench-evaluation bench-latency bench-memory bench-overload bench-serving bench-training clean
.PHONY: cargo python c++ nvidia wrk

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: cargo onnxruntime ## the server with the models of models/, on 127.0.0.1:8080 or FACEWISE_LISTEN
	@$(CARGO) run --release --locked --package facewise -- serve $(ARGS)

# The loader looks into the folder of the libraries that were fetched after all those that were named.
serve-cuda: cargo nvidia onnxruntime-cuda ## the same on an NVIDIA GPU; fetches ONNX Runtime for CUDA, and CUDA where it is missing
	@LD_LIBRARY_PATH="$${LD_LIBRARY_PATH:+$$LD_LIBRARY_PATH:}$(CURDIR)/.onnxruntime/cuda-13.0/lib" \
		ORT_DYLIB_PATH="$${ORT_DYLIB_PATH:-$(CURDIR)/.onnxruntime/1.31.1-cuda/libonnxruntime.so}" \
		$(CARGO) run --release --locked --package facewise -- serve --provider cuda $(ARGS)

# Tests run in the folders of their packages, so a relative path would mean another folder to each.
test: export FACEWISE_DATA := $(abspath $(FACEWISE_DATA))
# nextest runs last, so that the summary of the tests is what one sees at the end. It does not know doc tests.
test: lint onnxruntime clients ## formatting, lints and all tests; fetches ONNX Runtime, libtorch, and clients from PyPI
	$(PYTHON) -B -m unittest discover --start-directory scripts
	$(CARGO) test --locked --workspace --doc
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -- nextest run; else set -- test --all-targets; fi; \
		set -- "$$@" --locked --workspace $(TESTED); \
		echo $(CARGO) "$$@"; $(CARGO) "$$@"

test-training: export FACEWISE_DATA := $(abspath $(FACEWISE_DATA))
test-training: cargo c++ libtorch onnxruntime ## the tests of training, with those that take minutes and need FACEWISE_DATA
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -- nextest run --run-ignored all; last=; \
		else set -- test --all-targets; last="-- --include-ignored"; fi; \
		set -- "$$@" --locked --package facewise-training $$last; echo $(CARGO) "$$@"; $(CARGO) "$$@"

clients: $(CLIENTS_VENV)/installed ## installs the clients of others that the server is tested with (170 MB)

# Their tests are skipped where this fails: a machine without PyPI tests everything else.
$(CLIENTS_VENV)/installed: tests/clients/tritonclient.txt | python
	@echo "Installing clients to test the server with into $(CLIENTS_VENV)/: 170 MB on disk, once."
	@{ $(PYTHON) -m venv --clear $(CLIENTS_VENV) && $(CLIENTS_VENV)/bin/python -m pip install --quiet --no-cache-dir \
		--retries 1 --timeout 20 --only-binary :all: --requirement tests/clients/tritonclient.txt && touch $@; } || \
		echo "facewise: they could not be installed (above is why): the tests that need them are skipped." >&2

conformance: conformance-contract conformance-console ## the server as programs see it that others wrote; fetches these from PyPI

conformance-contract: cargo onnxruntime $(CONFORMANCE_VENV)/schemathesis
	$(CARGO) build --locked --package facewise --bin facewise
	@$(CONFORMANCE_VENV)/bin/python -B tests/clients/conformance.py --facewise $(BUILT_DEBUG)/facewise \
		--schemathesis $(CONFORMANCE_VENV)/bin/schemathesis $(ARGS)

$(CONFORMANCE_VENV)/schemathesis: tests/clients/requirements.txt | python
	@[ -x $(CONFORMANCE_VENV)/bin/python ] || $(call venv,$(CONFORMANCE_VENV))
	$(CONFORMANCE_VENV)/bin/python -m pip install --quiet --no-cache-dir --requirement tests/clients/requirements.txt
	@touch $@

CONSOLE := $(CONFORMANCE_VENV)/bin/python -B -m pytest -p no:cacheprovider -rs tests/clients/console.py

# Where there is no Chromium, the tests say so and are skipped.
conformance-console: cargo onnxruntime $(CONFORMANCE_VENV)/console-installed
	$(CARGO) build --locked --package facewise --bin facewise
	@FACEWISE=$(abspath $(BUILT_DEBUG))/facewise $(CONSOLE) $(ARGS)

screenshots: cargo onnxruntime $(CONFORMANCE_VENV)/console-installed ## writes the pictures of the console and of a report to docs/images/ (needs chromium)
	$(CARGO) build --release --locked --package facewise --bin facewise
	@FACEWISE=$(abspath $(BUILT))/facewise FACEWISE_SCREENSHOTS=docs/images $(CONSOLE) -k screenshot $(ARGS)

$(CONFORMANCE_VENV)/console-installed: tests/clients/console-requirements.txt | python
	@[ -x $(CONFORMANCE_VENV)/bin/python ] || $(call venv,$(CONFORMANCE_VENV))
	$(CONFORMANCE_VENV)/bin/python -m pip install --quiet --no-cache-dir --requirement $<
	@touch $@

lint: cargo c++ libtorch ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets $(TESTED) -- -D warnings

fmt: cargo ## formats the code
	$(CARGO) fmt --all

# Through a second file: a server that fails to build must not leave an empty description.
openapi: cargo ## writes openapi/openapi.json from the code
	$(CARGO) run --locked --quiet --package facewise -- openapi > openapi/openapi.json.new
	mv openapi/openapi.json.new openapi/openapi.json

onnxruntime: ## fetches ONNX Runtime into .onnxruntime/, once (24 MB)
onnxruntime-cuda: ## fetches ONNX Runtime for CUDA (256 MB), and CUDA and cuDNN (942 MB) where the system has none, once
libtorch: ## fetches libtorch into .libtorch/, once (545 MB); only training and its tests need it

# Who names a library of their own needs no other.
ifeq ($(ORT_DYLIB_PATH)$(FACEWISE_ONNXRUNTIME),)
onnxruntime: python
	@$(PYTHON) -B scripts/fetch.py onnxruntime
onnxruntime-cuda: python
	@$(PYTHON) -B scripts/fetch.py onnxruntime-cuda cuda
endif
ifeq ($(LIBTORCH),)
libtorch: python
	@$(PYTHON) -B scripts/fetch.py libtorch
endif

# Nine runs, each from the weights of the one before or the mean of two; the first has fewer blocks. What was stopped goes on where it was.
train-default: cargo c++ libtorch ## trains the attribute network on FACEWISE_DATA, into runs/default; goes on after a stop
	@set -e; train() { run=$$1; shift; \
		if [ -e runs/$$run/checkpoint.safetensors ]; then start=--resume; else start=$${init:+--init $$init}; fi; \
		[ -e runs/$$run/weights.safetensors ] || $(TRAINER) train --config training/configs/$$run.toml \
			--data $(FACEWISE_DATA) --run runs/$$run $$start "$$@" $(ARGS); \
		init=runs/$$run/weights.safetensors; }; \
	mean() { init=runs/$$1-$$2.safetensors; \
		$(TRAINER) average runs/default-$$1/weights.safetensors runs/default-$$2/weights.safetensors --out $$init; }; \
	init=; for run in default-start default-middle default-late default-coarse; do train $$run; done; \
	mean late coarse; train default-soft --teacher $$init; \
	train default-emotion --tasks emotion; \
	mean soft emotion; train default-joint --teacher runs/default-soft --teacher runs/default-emotion; \
	train default-photographs --teacher runs/default-joint; \
	train default --teacher runs/default-photographs

export-default: cargo c++ libtorch onnxruntime ## writes the network of the last train-default to models/, in floats and in 8-bit integers
	@$(TRAINER) export --data $(FACEWISE_DATA) --weights training/weights/face-attributes-1.safetensors $(ARGS)
	@$(TRAINER) export --data $(FACEWISE_DATA) --name face-attributes-small --int8 \
		--description "Age, gender, smile and emotion of one face, computed in 8-bit integers" $(ARGS)

# Set, rows, columns that divide them into groups.
REPORTS := utkface:split=test:race,gender celeba_faces:split=test:Young,Eyeglasses smiles:split=test: fer2013:usage=PublicTest:

reports: cargo onnxruntime ## scores models/ on the test rows of the sets in FACEWISE_DATA, into models/face-attributes/1/evaluation/
	@mkdir -p models/face-attributes/1/evaluation
	@for report in $(REPORTS); do \
		set=$${report%%:*}; rest=$${report#*:}; filter=$${rest%%:*}; groups=$${rest#*:}; \
		out=models/face-attributes/1/evaluation/$$set; \
		$(CARGO) run --release --locked --quiet --package facewise -- evaluate $(FACEWISE_DATA)/$$set --where $$filter \
			$${groups:+--group-by $$groups} --report $$out.html --json $$out.json $(ARGS) || exit 1; done

bench: bench-latency bench-serving ## facewise beside the raw limit and Python servers (35 minutes); writes bench/RESULTS.md
	@$(BENCH_SERVING) bench/compare.py --facewise $(BUILT)/facewise --limit $(BUILT)/examples/limit \
		--python $(BENCH_SERVING_VENV)/bin/python --data $(BENCH_SERVING_DATA) $(ARGS)

bench-latency: cargo onnxruntime ## the time of a picture on one core, by stage
	@$(CARGO) run --release --locked --quiet --package facewise --example latency

bench-overload: bench-serving ## facewise under ten times the load that it can sustain, for a minute
	@$(BENCH_SERVING) bench/overload.py --facewise $(BUILT)/facewise --data $(BENCH_SERVING_DATA) $(ARGS)

bench-memory: bench-serving ## the memory of facewise over 100,000 requests
	@$(BENCH_SERVING) bench/memory.py --facewise $(BUILT)/facewise --data $(BENCH_SERVING_DATA) $(ARGS)

bench-evaluation: bench-serving ## the evaluation of a labelled set beside the same work as predictions, and its memory over 100,000 rows
	@$(BENCH_SERVING) bench/evaluation.py --facewise $(BUILT)/facewise --data $(BENCH_SERVING_DATA) --dataset $(FACEWISE_DATA)/utkface $(ARGS)
	@$(BENCH_SERVING) bench/flat_memory.py --facewise $(BUILT)/facewise --rows 100000

# What these need. The networks and pictures are made anew, in seconds: they are always those of the scripts.
bench-serving: cargo onnxruntime wrk $(BENCH_SERVING_VENV)/installed
	$(CARGO) build --release --locked --package facewise --bin facewise --example limit
	@$(BENCH_SERVING) bench/networks.py --out $(BENCH_SERVING_DATA)/models
	@$(BENCH_SERVING) bench/bodies.py --faces examples/faces --out $(BENCH_SERVING_DATA)/bodies

$(BENCH_SERVING_VENV)/installed: bench/requirements.txt | python
	@echo "Installing the servers to compare with into $(BENCH_SERVING_VENV)/: 400 MB on disk, once."
	@$(call venv,$(BENCH_SERVING_VENV))
	$(BENCH_SERVING_VENV)/bin/python -m pip install --quiet --no-cache-dir --requirement bench/requirements.txt
	@touch $@

# Three runs, each from the weights of the one before; the first has a shallower head. What was stopped goes on where it was.
train-detector: cargo c++ libtorch ## trains the face detector on FACEWISE_DATA, into runs/detector; goes on after a stop
	@init=; for run in detector-start detector-middle detector; do \
		resume=; if [ -e runs/$$run/checkpoint.safetensors ]; then resume=--resume; init=; fi; \
		[ -e runs/$$run/weights.safetensors ] || $(TRAINER) detector train --config training/configs/$$run.toml \
			--data $(FACEWISE_DATA) --run runs/$$run $$resume $$init $(ARGS) || exit 1; \
		init="--init runs/$$run/weights.safetensors"; done

export-detector: cargo c++ libtorch onnxruntime ## writes the network of the last train-detector to models/
	@$(TRAINER) detector export --run runs/detector --data $(FACEWISE_DATA) \
		--weights training/weights/face-detector-1.safetensors $(ARGS)

bench-training: cargo c++ libtorch python ## training speed beside PyTorch's; makes .venv-bench/ (5 GB)
ifeq ($(BENCH_PYTHON),$(BENCH_VENV)/bin/python)
bench-training: $(BENCH_VENV)/torch-$(BENCH_TORCH)
endif
bench-training:
	$(CARGO) build --release --locked --package facewise-training
	@if [ ! -e $(BENCH_PACK) ] && [ -d $(FACEWISE_DATA) ]; then \
		rm -rf $(BENCH_PACK).part && \
		$(TRAINER) pack --config training/configs/default.toml --data $(FACEWISE_DATA) --out $(BENCH_PACK).part && \
		mv $(BENCH_PACK).part $(BENCH_PACK); fi
	@$(PYTHON) -B bench/training/compare.py --python $(BENCH_PYTHON) --trainer "$(TRAINER)" --pack $(BENCH_PACK) $(ARGS)

$(BENCH_VENV)/torch-$(BENCH_TORCH):
	@echo "Installing PyTorch $(BENCH_TORCH) into $(BENCH_VENV)/: 5 GB on disk, once. BENCH_PYTHON=… uses another one."
	@$(call venv,$(BENCH_VENV))
	$(BENCH_VENV)/bin/python -m pip install --quiet --no-cache-dir torch==$(BENCH_TORCH)
	@touch $@

clean: cargo ## removes what cargo built; the fetched libraries stay
	$(CARGO) clean

cargo:
	@command -v $(CARGO) >/dev/null || { echo "facewise: cargo is missing. Install Rust 1.92 or newer" \
		"(https://rustup.rs) and run this again." >&2; exit 1; }
	@command -v cc >/dev/null || command -v clang >/dev/null || { echo "facewise: there is no C compiler to link with." \
		"Install one (on Debian and Ubuntu: sudo apt install build-essential) and run this again." >&2; exit 1; }

# Before a gigabyte is fetched that nothing could use.
nvidia: python
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null || { echo "facewise: there is no NVIDIA driver" \
		"(libcuda.so.1). Install one for CUDA 13, version 580 or newer, so that nvidia-smi works, and run this again;" \
		"make serve needs none." >&2; exit 1; }

c++:
	@command -v $${CXX:-c++} >/dev/null || { echo "facewise: training is compiled against libtorch with a C++ compiler," \
		"and $${CXX:-c++} is missing. Install it (on Debian and Ubuntu: sudo apt install build-essential)" \
		"and run this again." >&2; exit 1; }

python:
	@command -v $(PYTHON) >/dev/null || { echo "facewise: $(PYTHON) is missing, and the native libraries are" \
		"fetched with its pip. Install both (on Debian and Ubuntu: sudo apt install python3 python3-pip) and run this again." >&2; exit 1; }

wrk:
	@command -v wrk >/dev/null || { echo "facewise: wrk, which puts servers under load, is missing." \
		"Install it (on Debian and Ubuntu: sudo apt install wrk) and run this again." >&2; exit 1; }
