# Identity & Flow: everything that is made here. `make help` lists it.

.DEFAULT_GOAL := help
.PHONY: help book serve test test-quick test-all test-package test-kernels test-notebooks test-pages lint links colab offline pdf \
	notebooks chapter api status speed benchmark requirements repository release clean

# The first Python that is new enough; `make book PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
BUILT := _build/.built
PORT ?= 8000
# The environment with Colab's packages, and the Python in it.
COLAB := .venv-colab
COLAB_PYTHON ?= 3.13
# Test files, notebooks, or pages, at a time.
WORKERS ?= 2
NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
# Which unit tests: pyproject.toml says what the marks mean.
MARKED ?= not (pages or long)
# The arithmetic of other processors, each by itself or joined by +, and tests of numbers that it may round otherwise.
# MKL_ENABLE_INSTRUCTIONS acts on Intel's processors alone, MKL_CBWR on others too.
KERNELS ?= OMP_NUM_THREADS=2+OMP_WAIT_POLICY=passive+MKL_ENABLE_INSTRUCTIONS=SSE4_2+MKL_CBWR=COMPATIBLE+ATEN_CPU_CAPABILITY=default+ONEDNN_MAX_CPU_ISA=AVX2
EVERY_KERNEL := MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default \
	ONEDNN_MAX_CPU_ISA=AVX2
NUMERICAL := $(patsubst %,tests/test_%.py,similarity features flow regularizers information_gaussian)
PAGES := _config.yml _toc.yml $(shell find book notebooks companion -type f -not -name '*.pyc' -not -path '*/.*' 2>/dev/null)

JUPYTER_BOOK := $(BIN)/jupyter-book build . -W -n --keep-going
# Notebooks and their tests see no network and no image data: what they show must not depend on either. One thread is as
# fast for nets this small, and on a busy machine many times faster.
OFFLINE := env -u COMPANION_DATA OMP_NUM_THREADS=1 TQDM_DISABLE=1 http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9

# $(call each,A B C,command with $$one): every one of them, whatever becomes of the others, then a line on each.
define each
@failed=0; said=; for one in $(1); do \
	echo "==== $$one"; begun=$$(date +%s); \
	if $(2); then end=passed; else end=FAILED; failed=1; fi; \
	said="$$said$$(printf '%-34s %s in %d s' $$one $$end $$(($$(date +%s) - begun)))\n"; \
done; printf "\n$$said"; exit $$failed
endef

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: $(BUILT) ## set everything up and build the book into _build/html
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html, or run: make serve"

serve: $(BUILT) ## serve the built book on http://localhost:8000 (PORT=...)
	@echo "The book is at http://localhost:$(PORT) (stop with Ctrl-C)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: $(INSTALLED) ## test the package, the notebooks and the built pages, each part whatever fails (25 minutes on two cores)
	$(call each,test-package test-kernels test-notebooks test-pages,$(MAKE) --no-print-directory $$one)

test-quick: $(INSTALLED) ## unit tests without the slow ones (2 minutes), for daily work
	@$(MAKE) --no-print-directory test-package MARKED="not (pages or slow or long)"

test-all: $(INSTALLED) ## the same as test, with what takes long, and each processor's arithmetic by itself (an hour)
	$(call each,test-package test-kernels test-notebooks test-pages,$(MAKE) --no-print-directory $$one MARKED="not pages" \
		KERNELS="$(EVERY_KERNEL)")

test-package: $(INSTALLED) ## unit tests only
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "$(MARKED)" --numprocesses=$(WORKERS) --dist=loadfile

test-kernels: $(INSTALLED) ## numerical tests again, with the arithmetic of other processors
	$(call each,$(KERNELS),env OMP_NUM_THREADS=1 $$(echo $$one | tr + " ") $(BIN)/python -m pytest -q -rf --disable-warnings \
		-m "not (slow or long)" --numprocesses=$(WORKERS) --dist=loadfile $(NUMERICAL))

test-notebooks: $(INSTALLED) ## run every notebook and compare what the prose cites
	$(OFFLINE) $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 --numprocesses=$(WORKERS) --dist=loadfile $(NOTEBOOKS)

test-pages: $(INSTALLED) ## build the book twice, warnings are errors, then look at its pages in a browser
	$(JUPYTER_BOOK) --all
	$(JUPYTER_BOOK)
	@touch $(BUILT)
	$(BIN)/python -m pytest $$(grep -l "mark\.pages" tests/*.py) -m pages --numprocesses=$(WORKERS) --dist=loadgroup

lint: $(INSTALLED) ## style and types of code and notebooks, spelling and words of the prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python scripts/prose.py

links: $(INSTALLED) ## check every address elsewhere that the book points to (needs the network)
	$(BIN)/jupyter-book build . --builder linkcheck

notebooks: $(INSTALLED) ## run the notebooks and store their outputs (NOTEBOOKS=notebooks/...)
	$(OFFLINE) $(BIN)/python scripts/notebooks.py $(NOTEBOOKS)

chapter: $(INSTALLED) ## write the skeleton of a new chapter (NAME=17_name)
	$(BIN)/python scripts/chapter.py $(or $(NAME),$(error Name it: make chapter NAME=17_name))

colab: $(COLAB)/.installed ## run every notebook with the packages that Colab has (NOTEBOOKS=notebooks/...)
	OMP_NUM_THREADS=1 $(COLAB)/bin/python scripts/colab.py $(NOTEBOOKS)

offline: $(BUILT) ## zip the built book: unpacked anywhere, it reads without a network
	$(BIN)/python -c "import shutil; shutil.make_archive('_build/identity-and-flow', 'zip', '_build', 'html')"
	@echo "Open html/index.html in _build/identity-and-flow.zip once it is unpacked."

pdf: $(INSTALLED) ## make the book's PDF by LaTeX; says what is missing
	$(BIN)/python scripts/pdf.py

api: $(INSTALLED) ## write the API pages from the package
	$(BIN)/python scripts/api.py

status: $(INSTALLED) ## write the pages that follow from the records: what ran, the claims, the summary, the speed
	$(BIN)/python scripts/status.py
	$(BIN)/python scripts/results.py
	$(BIN)/python scripts/summary.py
	$(BIN)/python scripts/speed.py

speed: $(INSTALLED) ## measure what the page Speed shows, five rounds, and write it (ten minutes)
	$(BIN)/pip install --quiet -e '.[benchmark]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_speed.py
	$(BIN)/python scripts/speed.py

benchmark: $(INSTALLED) ## measure the package beside its peers
	$(BIN)/pip install --quiet -e '.[benchmark]'
	for script in tests/benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

repository: $(INSTALLED) ## write the repository's public address everywhere (URL=https://github.com/...)
	$(BIN)/python scripts/repository.py $(URL)

release: $(INSTALLED) ## make the files those of a release (VERSION=1.2.0), which Colab then opens and installs
	$(BIN)/python scripts/repository.py $(or $(VERSION),$(error Name it: make release VERSION=1.2.0))

requirements: $(INSTALLED) ## resolve requirements.txt anew from pyproject.toml
	$(BIN)/pip install --quiet uv
	echo "# The book's whole environment, for Python 3.11 and newer. Made by \`make requirements\` from pyproject.toml." > requirements.new
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --extra book --extra test \
		--generate-hashes --quiet --no-header --no-annotate >> requirements.new
	mv requirements.new requirements.txt

clean: ## remove what was built; the environment stays
	rm -rf _build

$(INSTALLED): requirements.txt pyproject.toml setup.py
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Missing: Python 3.11 or newer. Install it (https://www.python.org), or name it: make book PYTHON=/path/to/python3"; exit 1; }
	@command -v git >/dev/null || { echo "Missing: git. Install it (https://git-scm.com)."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Missing: Python's venv module. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "Installing into .venv: some gigabytes, some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(COLAB)/.installed: tests/colab.txt | $(INSTALLED)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(COLAB_PYTHON) $(COLAB)
	$(BIN)/uv pip install --quiet --python $(COLAB)/bin/python -r tests/colab.txt
	@touch $@

$(BUILT): $(INSTALLED) $(PAGES)
	$(BIN)/jupyter-book build . --all
	@touch $@
