# The two commands: `make book` and `make test`. Everything else serves them.
# Another interpreter: `make book PYTHON=python3.12`. It needs Python 3.11 or newer, nothing else.

PYTHON ?= python3
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VENDOR := _build/vendor/.done
HTML := _build/html
BUILT := _build/.html-complete
LISTING := _build/sources.txt
LINTED := lmc_lessons book/_ext tests $(patsubst %/,%,$(sort $(dir $(wildcard benchmarks/*.py))))

# One thread per lesson: two lessons at a time fill two cores, and the numbers do not depend on the
# number of cores.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

# Everything that the built site depends on, besides the executed lessons.
SOURCES := $(shell find _config.yml _toc.yml book lmc_lessons data/results -type f \
	-not -path '*/__pycache__/*' -not -path '*/.ipynb_checkpoints/*' \
	-not -path '*/node_modules/*' 2>/dev/null | LC_ALL=C sort)

.DELETE_ON_ERROR:
.PHONY: book test lab results student lint clean execute vendor FORCE

book: execute vendor
	@$(MAKE) -s $(BUILT)
	@echo
	@echo "Open this file in a browser: $(HTML)/index.html"

test: lint book
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -p no:cacheprovider

lab: $(INSTALLED)
	$(BIN)/jupyter lab book

results: $(INSTALLED)
	$(BIN)/lmc-lessons refresh

student: execute vendor
	$(BIN)/python -m lmc_lessons.teaching.editions student _build/student
	@echo
	@echo "Open this file in a browser: _build/student/html/index.html"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(LINTED)

clean:
	rm -rf _build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis lmc_lessons.egg-info
	find book lmc_lessons tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installing ------------------------------------------------------------------------------------

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "No '$(PYTHON)' found. Python 3.11 or newer is needed: make book PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Name another one: make book PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(INSTALLED): requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# With npm the site carries its own MathJax and widget manager; without it, it uses the default CDN.
vendor:
	@if command -v npm >/dev/null; then \
		$(MAKE) -s $(VENDOR) || \
			echo "npm could not fetch the site's assets: the site will use the default CDN." >&2; \
	else echo "No npm: the site will use the default CDN for mathematics and widgets."; fi

$(VENDOR): book/_ext/vendor/package.json book/_ext/vendor/package-lock.json
	@mkdir -p $(@D)
	@cp book/_ext/vendor/package.json book/_ext/vendor/package-lock.json book/_ext/vendor/.npmrc $(@D)
	@echo "Fetching the site's browser assets with npm"
	cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# Executing and building ------------------------------------------------------------------------

execute: $(INSTALLED)
	@$(BIN)/python -m lmc_lessons.teaching.execution --jobs $(JOBS)

# Rewritten only when a source file appears or disappears, which no time stamp would tell.
$(LISTING): FORCE
	@mkdir -p $(@D)
	@printf '%s\n' $(SOURCES) > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Always from clean: an incremental build hides the warnings of the pages that it skips.
$(BUILT): $(SOURCES) $(LISTING) $(wildcard _build/executed/*.json) $(wildcard $(VENDOR)) $(INSTALLED)
	@echo "Building $(HTML)"
	@rm -rf $(HTML) $@
	$(BIN)/jupyter-book build . --all -W -n --keep-going -q
	@touch $@
