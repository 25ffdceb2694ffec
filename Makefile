# Everything a developer types. Build output is kept outside the clone, so that a second
# clone is fast; RocksDB is compiled once, in the one profile that everything uses.
CARILLON_CACHE ?= $(HOME)/.cache/carillon
CARGO_TARGET_DIR ?= $(CARILLON_CACHE)/target
export CARILLON_CACHE CARGO_TARGET_DIR

# The same selection everywhere: another one would resolve other features of RocksDB's
# build script and compile RocksDB again.
BUILD = cargo build --release --workspace --all-targets --locked
BIN = $(CARGO_TARGET_DIR)/release

.PHONY: run test e2e bench lint lint-charts clean help

help:
	@echo 'make run    a three-node cluster on this machine, with a chat in it'
	@echo 'make test   every test that needs no Kubernetes'
	@echo 'make e2e    the tests on a real Kubernetes, which it starts on this machine'
	@echo 'make bench  the measurements of docs/performance.md'
	@echo 'make lint   rustfmt, clippy, cargo-deny'
	@echo 'make lint-charts  the Helm chart, the alerts and their runbooks'
	@echo 'make clean  removes build output and the demo cluster'

run:
	@scripts/install-tools.sh build
	@$(BUILD)
	@$(BIN)/carillon dev --demo

test:
	@scripts/install-tools.sh test
	@$(BUILD)
	@scripts/previous-release.sh >/dev/null
	@$(BUILD)
	@scripts/test.sh

# Three nodes, or NODES=5; with KUBECONFIG set, that cluster.
e2e:
	@scripts/install-tools.sh build
	@scripts/install-tools.sh e2e
	@scripts/install-tools.sh charts
	@$(BUILD)
	@tests/kubernetes/run.sh

bench:
	@scripts/install-tools.sh build
	@$(BUILD)
	@scripts/bench.sh

lint:
	@scripts/install-tools.sh build
	@scripts/install-tools.sh lint
	@scripts/lint.sh

lint-charts:
	@scripts/install-tools.sh charts
	@scripts/lint-charts.sh

clean:
	-tests/kubernetes/cluster/down
	cargo clean
	rm -rf $(CARILLON_CACHE)/venv $(CARILLON_CACHE)/bin $(CARILLON_CACHE)/kubernetes $(HOME)/.local/share/carillon/dev
