# `make leaderboard` and `make test` set up what they need in .venv and work on a fresh clone.

PYTHON ?= python3
VENV   ?= .venv
PLUGINS := rbl-attacks rbl-defenses rbl-datasets rbl-metrics
BIN    := $(VENV)/bin
MNIST  := $(foreach defense,standard pgd-at trades ar-at msd-at cni,$(defense)[width=8,epochs=4])
READY  := $(VENV)/.installed-editable

export RBL_HOME ?= $(CURDIR)/.rbl/home
export RBL_STORE ?= $(CURDIR)/.rbl/results

.PHONY: setup leaderboard mnist test test-slow lint format weights clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(PLUGINS:%=plugins/%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' $(PLUGINS:%=-e plugins/%)
	touch $@

leaderboard: $(READY)
	$(BIN)/rbl run --defense all --attack all --out leaderboards

# Needs the data (RBL_DATA, or they are downloaded) and hours on two cores: trains what is missing, then runs or goes on.
mnist: $(READY)
	for defense in $(MNIST:%='%'); do \
		$(BIN)/rbl show "$$defense" --dataset mnist | grep -q sha256 || $(BIN)/rbl train "$$defense" --dataset mnist --threads 1 --resume || exit 1; \
	done
	$(BIN)/rbl run --protocol standard --dataset mnist --threat linf:0.3 --n 1000 $(MNIST:%=--defense '%') \
		--attack fgsm,bim,pgd,apgd-ce,square,autoattack --out leaderboards

weights: $(READY)
	$(BIN)/python plugins/rbl-defenses/make_weights.py

test: $(READY)
	$(BIN)/pytest -n 2

test-slow: $(READY)
	$(BIN)/pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy robustbench_lite
	for source in $(PLUGINS:%=plugins/%/src) examples/rbl-example/src; do $(BIN)/mypy $$source || exit 1; done

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .rbl .mypy_cache .pytest_cache .ruff_cache
