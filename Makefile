# Everything a fresh machine needs: `make demo` and `make test` make .venv, install pinned versions, and run.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $(name))))
VENV ?= .venv
# Options of pip for torch alone, such as the index of the small build without CUDA.
TORCH_FLAGS ?=
ARGS ?=
UV := 0.13.9
PIP_AUDIT := 2.10.1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs

.PHONY: demo up test check-long lint catalog docs openapi bench install hashes audit pin-images clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	@$(BIN)/anamorph demo $(ARGS)

up: $(STAMP)
	@$(BIN)/anamorph up $(ARGS)

test: $(DEV_STAMP)
	$(BIN)/python -m pytest $(ARGS)

# What takes too long for every change: the commands of all guides, every recorded golden, jobs under kills, the site.
check-long: $(DEV_STAMP)
	$(BIN)/python -m pytest -m long
	ANAMORPH_ALL_GOLDENS=1 $(BIN)/python -m pytest tests/golden
	$(BIN)/python -m tests.benchmarks.kill_drill --jobs 50 --job-kills 8 --worker-kills 6 --broker-kills 2 --front-kills 2 \
		--inference-kills 1 --database-kills 1 --freezes 1 --clock-jumps 2 --all-at-once 1 --seconds 600
	$(MAKE) docs

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# After adding a family, an attack or an operation: what the front end knows of it.
catalog: $(STAMP)
	$(BIN)/python -m models.catalog

# The reference, and everything in docs/ as a static site with search: site/index.html.
docs: $(DOCS_STAMP)
	$(BIN)/python docs/reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/. To search it, serve it: python3 -m http.server -d site"

# The description of the HTTP API, for generators of clients: build/openapi.json, or the file in ARGS.
openapi: $(STAMP)
	$(BIN)/python -m app.openapi $(ARGS)

bench: $(DEV_STAMP)
	$(BIN)/python -m tests.benchmarks $(ARGS)

install: $(STAMP)

# Every package of the two images with the SHA-256 of its files, in the versions of constraints.txt.
hashes: $(BIN)/python
	@$(PIP) uv==$(UV)
	@for image in "web" "run --extra worker --extra data --extra pretrained"; do set -- $$image; file=constraints-$$1.txt; shift; \
		echo "# Made by \`make hashes\` from constraints.txt: the packages of an image with the SHA-256 of their files." > $$file.new; \
		echo setuptools | $(BIN)/uv pip compile --quiet pyproject.toml - $$* -c constraints.txt --generate-hashes --universal \
			--python-version 3.11 --no-annotate --no-header --no-emit-index-url >> $$file.new || { rm -f $$file.new; exit 1; }; \
		mv $$file.new $$file; done

# Known vulnerabilities of the packages of the images; fails also when a package could not be looked up.
audit: $(BIN)/python
	@$(PIP) pip-audit==$(PIP_AUDIT)
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r constraints-run.txt $(ARGS)

# The digests of the base images, into .env; needs Docker and its registry.
pin-images:
	@sh docker/pin-images.sh

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Anamorph needs Python 3.11, 3.12 or 3.13 and none was found (python3 here is:" \
		"$$(python3 --version 2>&1)). Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment;" \
		"on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch into $(VENV) (once; this is the long one) ..."
	@$(PIP) -c constraints.txt $(TORCH_FLAGS) torch==2.13.0
	@echo "Installing Anamorph and the rest ..."
	@$(PIP) -c constraints.txt -e '.[worker,data,pretrained]'
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo "Installing what the tests need ..."
	@$(PIP) -c constraints.txt -e '.[worker,data,pretrained,dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@echo "Installing what the documentation needs ..."
	@$(PIP) -c constraints.txt -e '.[worker,data,pretrained,docs]'
	@touch $@

# The models you trained (anamorph-data/) are not touched.
clean:
	rm -rf $(VENV) demo-output site build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find app workers models tests -name __pycache__ -type d -prune -exec rm -rf {} +
