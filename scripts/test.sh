#!/usr/bin/env bash
# Every test that needs no Kubernetes: units and models, the cluster as real processes, and
# clients that nobody here wrote. The binaries are built already (see the Makefile).
set -euo pipefail
export CARILLON_NODE_BIN=${CARILLON_NODE_BIN:-$CARGO_TARGET_DIR/release/carillon-node}
cargo test --release --workspace --locked --lib --bins --tests
cargo test --release --workspace --locked --doc
tests/compatibility/run.sh
if [ "$(id -u)" = 0 ]; then
    echo "all tests passed"
else
    echo "all tests passed, but a full disk was NOT tested: it needs root, who alone may mount"
fi
