#!/usr/bin/env bash
# Every test that needs no Kubernetes: units and models, the cluster as real processes, and
# clients that nobody here wrote. The binaries are built already (see the Makefile).
set -euo pipefail
export CARILLON_NODE_BIN=${CARILLON_NODE_BIN:-$CARGO_TARGET_DIR/release/carillon-node}
CARILLON_PREVIOUS_NODE_BIN=${CARILLON_PREVIOUS_NODE_BIN:-$(scripts/previous-release.sh)}
[ -z "$CARILLON_PREVIOUS_NODE_BIN" ] || export CARILLON_PREVIOUS_NODE_BIN
cargo test --release --workspace --locked --lib --bins --tests
cargo test --release --workspace --locked --doc
tests/compatibility/run.sh
scripts/check-live-metrics.sh

# What this machine does not allow is skipped by the tests, and said here.
untested=()
if [ -z "$CARILLON_PREVIOUS_NODE_BIN" ]; then
    untested+=("the release before and this one in a cluster: its history is not in this clone")
fi
if [ "$(id -u)" != 0 ]; then
    untested+=("a full disk: it needs root, who alone may mount")
fi
skipped=$(cargo test --release --workspace --locked --lib -- --exact --nocapture \
    harness::network::tests::a_link_is_cut_one_way_or_both 2>/dev/null | sed -n 's/.*SKIPPED: //p')
if [ -n "$skipped" ]; then
    untested+=("$skipped")
fi
if [ ${#untested[@]} = 0 ]; then
    echo "all tests passed"
else
    printf -v list '; %s' "${untested[@]}"
    echo "all tests passed, but NOT tested: ${list:2}"
fi
