# gapkd in two commands:  make distill  and  make test.  Both set everything up themselves; the second time is quick.
#
#   make PYTHON=python3.12 setup     with another Python (3.10 or later)
#   make TORCH=cuda setup            torch with CUDA (or TORCH=cpu: without; else the machine decides)
#   make TORCH_INDEX=ADDRESS setup   torch from another package index
#                                    (each of these at first, or after: make clean)
#   make LINKS=online site           ask other hosts, too, whether what the pages link to is there

PYTHON ?= python3
LINKS  ?= offline
TORCH  ?= auto
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
SITE   := $(VENV)/site-ready

# A chapter may train for three minutes in one cell; the limit leaves room for machines that are slower or busy.
CELL_SECONDS := 1200

# Two torch processes that share the cores stall each other by spinning: one thread each for parallel tests,
# the notebooks run one after the other with all cores.
UNIT_ENV     := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup distill test lint unit notebooks site clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install gapkd with the exact versions of constraints.txt

distill: $(READY) ## the main job: chapter 04 on the embedded teacher; results go to runs/
	@$(BIN)/python -m gapkd chapter

test: lint unit notebooks ## ruff, every unit test, every notebook against its stored verdicts

lint: $(READY) ## ruff over package, tests and notebooks
	@$(BIN)/python -m ruff check .

unit: $(READY) ## the tests in tests/
	@$(UNIT_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile

notebooks: $(READY) ## run all notebooks; compare the cells tagged nbval-check-output with what is stored
	@$(BIN)/python -m pytest notebooks --nbval-lax --nbval-current-env \
		--nbval-cell-timeout $(CELL_SECONDS)

site: $(SITE) ## chapters, results and reference as static pages in runs/site, links checked
	@$(BIN)/python -m tools.site --links $(LINKS)

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) *.egg-info build .pytest_cache .ruff_cache
	find gapkd tools tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted set-up is taken up again, and a finished one is not repeated.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "gapkd: there is no '$(PYTHON)' here; install Python 3.10 or later, or name one: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "gapkd: $$($(PYTHON) --version 2>&1) is too old; name Python 3.10 or later: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "gapkd: this Python has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Setting up $(VENV) (once; some minutes): torch, and about 150 MB of other packages"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python tools/torch_build.py
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e ".[dev]"
	@touch $@

$(SITE): $(READY)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e ".[docs]"
	@touch $@
