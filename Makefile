# make demo and make test set up a .venv by themselves. See README.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test test-full lint bench bench-reports peers docs reference clean setup

demo: $(STAMP)
	$(BIN)/python cli.py demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not full"

test-full: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site with search, in build/site. A broken link is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The reference of all commands, from the commands themselves.
reference: $(STAMP)
	$(BIN)/python -c 'from cli import cli; from pipeline.console.reference import reference; print(reference(cli), end="")' > docs/commands.md

# The folder of real images and captions.
DATA := $(or $(CAPSTREAM_DATA),../shared/data)
CAPTIONS := $(DATA)/coco-captions/captions_val2017.json

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run --images $(DATA)/coco-cc --captions $(CAPTIONS)

# The suite, and other scripts whose reports are kept, for a quiet machine.
bench-reports: bench
	$(BIN)/python -m benchmarks.bench_caption --images $(DATA)/coco-cc --num-images 1000 --out benchmarks/results
	$(BIN)/python -m benchmarks.bench_cider_d --captions $(CAPTIONS) --out benchmarks/results

# Other tools for `make bench`, each in an environment of its own. What cannot be installed is named, and left out.
peers: $(STAMP)
	-$(BIN)/python -m benchmarks.peers

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit("Capstream needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@$(MAKE) --no-print-directory pillow-simd
	touch $(STAMP)

# Pillow-SIMD resizes several times faster. It comes as source, and under another name than what the other packages ask for:
# it takes stock Pillow's place last. Where it cannot be built, stock Pillow stays.
.PHONY: pillow-simd
pillow-simd:
	@flags=; if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then flags="-mavx2"; fi; \
	simd=$$(sed -n 's/^pillow-simd==/pillow-simd==/p' constraints.txt); \
	if CC="$${CC:-cc} $$flags" $(BIN)/python -m pip wheel --quiet --no-deps --no-binary :all: --wheel-dir $(VENV)/wheels "$$simd" >$(VENV)/pillow-simd.log 2>&1; then \
		$(BIN)/python -m pip uninstall --quiet --yes pillow && \
		$(BIN)/python -m pip install --quiet --no-deps --no-index $(VENV)/wheels/*illow*.whl && \
		$(BIN)/python -c 'from PIL import Image, features; assert features.check("jpg")'; \
	else \
		echo "Pillow-SIMD could not be built here (see $(VENV)/pillow-simd.log; libjpeg-dev and zlib1g-dev help): stock Pillow is used, sharding is slower."; \
	fi

# The wheel that pip keeps goes too, so that Pillow-SIMD is built anew with the headers that are there now.
clean:
	-$(BIN)/python -m pip cache remove '*illow*imd*' 2>/dev/null
	rm -rf $(VENV)
