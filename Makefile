# make demo   the whole pipeline on rendered heads        make test   every test
# make lint   ruff, pyright, import contracts             make quick  the tests but for the slow ones
# make newest   one case of each quick test: what .ci/run does on another Python
# make docs   the site of docs/, into build/site          make clean  forget the environment
# make weights   a head-pose network from rendered heads alone, half an hour on 2 cores (docs/weights.md)
# make cluster   a real Slurm and lost links, as root
PYTHON ?= python3
VENV   ?= .venv
COMPILE ?= --compile-bytecode
EXTRAS ?= dev,docs,landmarks,export
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

# Set in many containers; without bytecode of what is not compiled yet, each started command would compile it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo weights test quick newest cluster docs lint check install clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/hpe demo

# Nobody's pictures, so nobody's terms. Run it again to resume; the same seed gives the same weights on the same machine.
weights: $(STAMP)
	[ -f shards/rendered/summary.md ] || $(BIN)/hpe pack synthetic shards/rendered --size 64 --option look=wild \
		--option count=12000 --option people=1200 --option seed=1 --option size=64
	$(BIN)/hpe train configs/rendered_pose.yaml
	$(BIN)/hpe evaluate runs/rendered_pose shards/rendered --split test --flips --name rendered
	[ -f runs/rendered_pose/head_pose.onnx ] || $(BIN)/hpe export runs/rendered_pose runs/rendered_pose/head_pose.onnx

# worksteal: neighbours share what a file makes once, and no worker waits for the last one's slow tests.
test: $(STAMP)
	$(BIN)/pytest -n auto --dist worksteal

quick: $(STAMP)
	$(BIN)/pytest -n auto --dist worksteal -m 'not slow'

# Another Python breaks imports, types, warnings, processes and the command line, whatever a test's numbers are. So one
# case of each quick test, every case of the command line, and the launchers.
newest: $(STAMP)
	$(BIN)/pytest -n auto --dist worksteal -m 'not slow or everywhere' --one-case

# As root, on Debian's iproute2, slurm-wlm and munge; a quarter of an hour. Its table is in docs/clusters.md.
cluster: $(STAMP)
	$(BIN)/pytest -m cluster tests/cluster

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Fails on any warning, such as a broken link.
docs: $(STAMP)
	$(BIN)/python docs/build.py

check: lint test

install: $(STAMP)

# uv resolves and unpacks several times faster than pip; it comes from the same registry. Compiled bytecode pays where
# commands are started often: they start in a third of the time from the first on.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] < (3, 15); sys.exit(None if ok else "hpe needs Python 3.11 to 3.14, but $(PYTHON) is %d.%d: run make PYTHON=python3.13" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	UV_COMPILE_BYTECODE_TIMEOUT=600 $(BIN)/uv pip install --quiet $(COMPILE) --python $(BIN)/python --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest build .cache
