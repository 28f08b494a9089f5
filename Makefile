# Two commands from nothing: `make demo` and `make test`. Both make the virtual environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
ENVPOOL := $(VENV)/.envpool
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint types test-slow test-faults errors fuzz bench-speed bench-threshold bench-scaling bench-memory bench-own-policy bench-acting bench-fisher bench-backward bench-certificate bench-variance bench-learning bench-ideas bench-guided bench-demonstrations clean

demo: $(CORE)  ## train TRPO on CartPole-v1, evaluate on 100 episodes, write the report
	$(BIN)/klimb train trpo CartPole-v1

test: $(DEV) lint types  ## lint, types, tests
	timeout -s KILL 900 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV)
	$(BIN)/mypy

test-slow: $(DEV)  ## the tests that take minutes
	timeout -s KILL 2400 $(BIN)/python -m pytest -m slow --numprocesses 2 --dist worksteal

test-faults: $(DEV)  ## every fault, and the table of docs/reliability.md
	timeout -s KILL 3000 $(BIN)/python -m pytest tests/faults --ignore tests/faults/test_table.py -m "slow or not slow" --faults-table docs/reliability.md

errors: $(DEV)  ## the tables of docs/errors.md, and the types of options
	$(BIN)/python tests/wrong_inputs.py
	$(BIN)/python tests/typed_options.py

fuzz: $(DEV)  ## every loader of files, for ten minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt atheris
	$(BIN)/python tests/faults/fuzz_loaders.py --seconds 600

bench-speed: $(ENVPOOL)  ## klimb beside its peers, as ratios
	$(BIN)/python benchmarks/speed.py

bench-threshold: $(DEV)  ## how long until CartPole-v1 is solved, beside the peers
	$(BIN)/python benchmarks/threshold.py

bench-scaling: $(ENVPOOL)  ## how cost grows, and where the time of an iteration goes
	$(BIN)/python benchmarks/scaling.py

bench-memory: $(DEV)  ## whether memory stays flat
	$(BIN)/python benchmarks/memory.py

bench-own-policy: $(DEV)  ## what a policy class of one's own costs on Gymnasium environments
	$(BIN)/python benchmarks/own_policy.py

bench-acting: $(DEV)  ## how far apart the policies of consecutive rollouts are; writes docs/theory/certificate.md
	$(BIN)/python benchmarks/acting_policy.py

bench-fisher: $(DEV)  ## what a Fisher-vector product costs, as ratios
	$(BIN)/python benchmarks/fisher.py

bench-backward: $(DEV)  ## one backward pass against a gradient per row
	$(BIN)/python benchmarks/backward_passes.py

bench-certificate: $(DEV)  ## what the step certificate costs
	$(BIN)/python benchmarks/certificate.py

bench-variance: $(DEV)  ## how noisy the gradient estimates are
	$(BIN)/python benchmarks/variance.py

bench-learning: $(DEV)  ## every rule on three environments; writes docs/algorithms (half an hour)
	$(BIN)/python benchmarks/learning.py

bench-ideas: $(DEV)  ## what each idea from REINFORCE to TRPO brings; writes docs/ideas.md (twenty minutes)
	$(BIN)/python benchmarks/ideas.py

bench-guided: $(DEV)  ## guided policy search beside TRPO; writes its page (an hour)
	$(BIN)/python benchmarks/guided.py

bench-demonstrations: $(DEV)  ## demonstrations as first guides of guided policy search (half an hour)
	$(BIN)/python benchmarks/guided_demonstrations.py

# Installed again whenever what is to be installed has changed.
$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(DEV): $(CORE)
	$(INSTALL) '.[dev,gymnax,mujoco,offline]'
	touch $@

# EnvPool's assets are 750 MB: only for those who measure with it.
$(ENVPOOL): $(DEV)
	$(INSTALL) '.[envpool]'
	touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info
