# make demo and make test set up a .venv by themselves. See README.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.demo-ready
STAMP := $(VENV)/.ready
# One test process per core. Each begins with a share of the tests in their order and takes over others' tests when it has none left.
PYTEST := $(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist worksteal

.PHONY: demo test test-full lint bench bench-reports peers docs reference clean setup

demo: $(DEMO_STAMP)
	$(BIN)/python cli.py demo

test: $(STAMP)
	$(PYTEST) -m "not full"

test-full: $(STAMP)
	$(PYTEST)

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

# `step TITLE LOG COMMAND...` runs one step of the set-up and prints one line about it. The command's output goes to .venv/LOG.log; if it fails,
# the end of that log is printed, without pip's warnings about package indexes that are plain folders.
STEP := step() { \
	title=$$1; log=$(VENV)/$$2.log; shift 2; start=$$(date +%s); printf '%s ... ' "$$title"; \
	"$$@" >"$$log" 2>&1 </dev/null && { echo "$$(($$(date +%s) - start)) s"; return; }; status=$$?; \
	printf 'failed\n\nCommand: %s\nThe last lines of its output:\n' "$$*"; \
	grep -v 'is ignored: it is neither a file nor a directory' "$$log" | tail -n 15 | sed 's/^/    /'; \
	echo "Complete log: $$log. Once the cause is removed, run make again."; exit $$status; \
}; step

PIP_INSTALL := $(BIN)/python -m pip install --no-input --progress-bar off --no-compile

# What the commands need. Only the modules that the demo imports are byte-compiled: the dependencies have ten times as many.
$(DEMO_STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Capstream needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo 'not installed')."; \
		echo "Name another one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),demo)"; exit 1; }
	@rm -rf $(VENV) && mkdir $(VENV)
	@$(STEP) 'Creating the virtual environment .venv' venv $(PYTHON) -m venv $(VENV)
	@$(STEP) 'Installing Capstream and its dependencies' install $(PIP_INSTALL) --constraint constraints.txt --editable .
	@$(MAKE) --no-print-directory pillow-simd
	@$(STEP) 'Checking that the demo can be imported' check env PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import cli, pipeline.demo, matplotlib.figure, nltk.tokenize, torch._dynamo, torch.utils.tensorboard'
	@touch $@

# What tests, lint, docs and benchmarks need in addition.
$(STAMP): $(DEMO_STAMP)
	@$(STEP) 'Installing what tests, lint and docs need' install-dev $(PIP_INSTALL) --constraint constraints.txt --editable '.[dev,docs]'
	@rm -f $(DEMO_STAMP)  # from here until Pillow-SIMD is back, an interruption leaves an incomplete environment
	@$(MAKE) --no-print-directory pillow-simd
	@$(STEP) 'Byte-compiling the packages' compile sh -c '$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true'
	@touch $(DEMO_STAMP) $@

# Pillow-SIMD resizes several times faster. It comes as source, and under another name than what the other packages ask for:
# it takes stock Pillow's place last. Where it cannot be built, stock Pillow stays.
.PHONY: pillow-simd
pillow-simd:
	@flags=; if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then flags="-mavx2"; fi; \
	simd=$$(sed -n 's/^pillow-simd==/pillow-simd==/p' constraints.txt); \
	if ls $(VENV)/wheels/*illow*.whl >/dev/null 2>&1 || CC="$${CC:-cc} $$flags" \
		$(BIN)/python -m pip wheel --no-input --no-deps --no-binary pillow-simd --wheel-dir $(VENV)/wheels "$$simd" >$(VENV)/pillow-simd.log 2>&1; then \
		$(STEP) "Putting Pillow-SIMD in Pillow's place" pillow sh -ec "\
			$(BIN)/python -m pip uninstall --yes pillow pillow-simd; \
			$(PIP_INSTALL) --no-deps --no-index $(VENV)/wheels/*illow*.whl; \
			$(BIN)/python -c 'from PIL import Image, features; assert features.check(\"jpg\")'"; \
	else \
		echo "Pillow-SIMD could not be built here (see $(VENV)/pillow-simd.log; libjpeg-dev and zlib1g-dev help): stock Pillow is used, sharding is slower."; \
	fi

# Also removes the wheel in pip's cache, so that Pillow-SIMD is built again with the installed headers.
clean:
	-$(BIN)/python -m pip cache remove '*illow*imd*' 2>/dev/null
	rm -rf $(VENV)
