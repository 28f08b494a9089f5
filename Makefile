# `make demo` and `make test` work in a new copy of the repository: they create the virtual environment first.
# `make help` lists all commands.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
DOCS := $(VENV)/.docs
ENVPOOL := $(VENV)/.envpool
SUITES := $(VENV)/.suites
PACKAGE := $(VENV)/.package
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo help test lint types test-slow test-long test-suites test-faults errors package fuzz bench-speed bench-guard bench-seconds bench-scaling bench-memory bench-own-policy bench-acting bench-fisher bench-direction bench-backward bench-certificate bench-variance bench-off-policy bench-learning bench-returns results-page zoo bench-minatar bench-suites bench-gpu bench-ideas bench-guided bench-demonstrations bench-ray bench-cluster-model bench-mesh bench-tune clean

demo: $(CORE)  ## train TRPO on CartPole-v1, evaluate it on 100 episodes and write a report
	$(BIN)/klimb train trpo CartPole-v1

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 22

test: $(DEV) lint types  ## lint, type checks and fast tests
	timeout -s KILL 900 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(DEV)  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV)  ## check types
	$(BIN)/mypy

# Shapes are checked by the fast tests; here that would be a sixth of the time.
test-slow: $(DEV)  ## the slow tests, which take many minutes
	timeout -s KILL 2400 $(BIN)/python -m pytest -m "slow and not long" --jaxtyping-packages= --numprocesses 2 --dist worksteal

test-long: $(DEV)  ## the longest of the slow tests
	timeout -s KILL 1800 $(BIN)/python -m pytest -m long --jaxtyping-packages= --numprocesses 2 --dist worksteal

test-suites: $(SUITES)  ## tests of the compiled environments of other libraries, which are installed apart from the rest
	timeout -s KILL 1500 $(VENV)/suites/bin/python -m pytest -m suites tests/environments/suites tests/test_docs.py --jaxtyping-packages= --numprocesses 2 --dist worksteal

test-faults: $(DEV)  ## all tests of faults; writes the tables of docs/reliability.md
	timeout -s KILL 3000 $(BIN)/python -m pytest tests/faults --ignore tests/faults/test_table.py -m "slow or not slow" --faults-table docs/reliability.md

errors: $(DEV)  ## write the tables of docs/errors.md and the types of options
	$(BIN)/python tests/wrong_inputs.py
	$(BIN)/python tests/typed_options.py

.PHONY: docs
docs: $(DOCS)  ## build the documentation site, site/index.html, and check it
	$(BIN)/python website/build_site.py

package: $(PACKAGE)  ## build the wheel and the source distribution into dist/, and check them
	rm -rf dist build src/klimb.egg-info/SOURCES.txt
	$(VENV)/package/bin/python -m build --no-isolation
	$(VENV)/package/bin/python -m twine check --strict dist/*
	$(VENV)/package/bin/python tests/distributions.py dist

fuzz: $(DEV)  ## fuzz all loaders of files for ten minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt atheris
	$(BIN)/python tests/faults/fuzz_loaders.py --seconds 600

bench-speed: $(ENVPOOL)  ## speed compared with other libraries, as ratios
	$(BIN)/python benchmarks/speed.py

bench-guard: $(ENVPOOL)  ## three minutes of bench-speed: what has become slower than the recorded ratios
	$(BIN)/python benchmarks/guard.py

bench-seconds: $(ENVPOOL)  ## time until tasks are solved, compared with other libraries; writes docs/seconds.md (an hour and a quarter)
	$(BIN)/python benchmarks/seconds.py

bench-scaling: $(ENVPOOL)  ## time of an iteration by its sizes and by its parts; draws the figures of docs/performance.md
	$(BIN)/python benchmarks/scaling.py

bench-memory: $(DEV)  ## memory over ten million steps, and with 256 seeds
	$(BIN)/python benchmarks/memory.py

bench-own-policy: $(DEV)  ## cost of a policy of the user's own class on Gymnasium environments
	$(BIN)/python benchmarks/own_policy.py

bench-acting: $(DEV)  ## KL between the policies of consecutive rollouts; writes docs/theory/certificate.md
	$(BIN)/python benchmarks/acting_policy.py

bench-ray: $(DEV)  ## what a Ray cluster costs; writes docs/scaling.md
	$(BIN)/python benchmarks/ray_rollouts.py

bench-cluster-model: $(DEV)  ## how far a cluster scales, on paper and simulated; writes docs/scaling.md
	$(BIN)/python benchmarks/cluster_model.py

bench-mesh: $(DEV)  ## one seed on two devices and in two processes; writes docs/scaling.md
	$(BIN)/python benchmarks/mesh.py

bench-tune: $(DEV)  ## what a search costs, and what it finds; writes docs/tuning.md
	$(BIN)/python benchmarks/tuning.py

bench-fisher: $(DEV)  ## cost of a Fisher-vector product, as ratios
	$(BIN)/python benchmarks/fisher.py

bench-direction: $(DEV)  ## products and time of TRPO's direction against its angle to the exact one
	$(BIN)/python benchmarks/natural_direction.py

bench-backward: $(DEV)  ## one backward pass compared with one gradient per sample
	$(BIN)/python benchmarks/backward_passes.py

bench-certificate: $(DEV)  ## cost of the step certificate
	$(BIN)/python benchmarks/certificate.py

bench-variance: $(DEV)  ## variance of gradient estimates
	$(BIN)/python benchmarks/variance.py

bench-off-policy: $(DEV)  ## estimates of returns from the episodes of other policies
	$(BIN)/python benchmarks/off_policy_estimates.py

bench-learning: $(DEV)  ## all rules on three environments; writes docs/algorithms (half an hour)
	$(BIN)/python benchmarks/learning.py

bench-returns: $(DEV)  ## returns on the tasks of the published tables; days of computing, can be stopped at any moment
	$(BIN)/python benchmarks/returns.py

results-page: $(DEV)  ## write docs/results.md and docs/ablations.md from the returns measured so far
	$(BIN)/python benchmarks/returns_page.py
	$(BIN)/python benchmarks/ablations_page.py

zoo: $(DEV)  ## put the best policies of the returns measured here into the zoo
	$(BIN)/python benchmarks/zoo.py

bench-minatar: $(DEV)  ## returns on MinAtar beside rejax's PPO; writes docs/minatar.md (an hour and a half)
	$(BIN)/python benchmarks/minatar.py

bench-suites: $(SUITES)  ## compiled environments of other libraries: returns, speed, resets; writes docs/compiled-worlds.md (an hour)
	$(VENV)/suites/bin/python benchmarks/suites.py

bench-gpu: $(DEV)  ## compiled trainings on a GPU: speed, seeds, precision, memory; writes docs/gpu.md
	$(BIN)/python benchmarks/gpu.py

bench-ideas: $(DEV)  ## what each idea from REINFORCE to TRPO contributes; writes docs/ideas.md (twenty minutes)
	$(BIN)/python benchmarks/ideas.py

bench-guided: $(DEV)  ## guided policy search compared with TRPO; writes docs/algorithms/guided.md (an hour)
	$(BIN)/python benchmarks/guided.py

bench-demonstrations: $(DEV)  ## guided policy search started from demonstrations (half an hour)
	$(BIN)/python benchmarks/guided_demonstrations.py

# These files mark what is installed; it is installed again when the requirements have changed.
$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(DEV): $(CORE)
	$(INSTALL) '.[dev,gymnax,hub,mlflow,mujoco,offline,onnx,ray,tune,video,wandb]'
	touch $@

$(DOCS): $(CORE)
	$(INSTALL) '.[docs]'
	touch $@

# EnvPool's assets are 750 MB, so it is installed only for the benchmarks that need it.
$(ENVPOOL): $(DEV)
	$(INSTALL) '.[envpool]'
	touch $@

# Apart from the rest: together they take more than a gigabyte, and bring tools of their own.
$(SUITES): $(CORE)
	test -x $(VENV)/suites/bin/python || $(PYTHON) -m venv $(VENV)/suites
	$(VENV)/suites/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[suites,dev]'
	touch $@

# Apart from the rest: klimb itself is not installed there.
$(PACKAGE): pyproject.toml constraints.txt
	test -x $(VENV)/package/bin/python || $(PYTHON) -m venv $(VENV)/package
	$(VENV)/package/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build setuptools twine
	touch $@

clean:  ## remove the virtual environment, caches and builds
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site src/*.egg-info
