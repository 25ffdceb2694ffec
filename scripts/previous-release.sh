#!/usr/bin/env bash
# The node of the release before, for the test that exchanges nodes of both builds. Built once
# from this repository's history, with the libraries that are built already, and kept in the
# cache. Prints where it is; nothing when the history is not here (a shallow clone, an archive).
# Whoever builds into the same directory builds again after it: both write `carillon-node`.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=0.1.0
COMMIT=6b99773030cae87f2f35cbbaf1448002436700fe
cache=${CARILLON_CACHE:-$HOME/.cache/carillon}/previous
node=$cache/carillon-node-$VERSION

if [ ! -x "$node" ]; then
    if ! git cat-file -e "$COMMIT^{commit}" 2>/dev/null; then
        exit 0
    fi
    echo "builds: carillon-node $VERSION, once" >&2
    rm -rf "$cache/$VERSION"
    mkdir -p "$cache/$VERSION"
    # New to cargo, which goes by times: it may know another state of the same release.
    git archive "$COMMIT" | tar -xm -C "$cache/$VERSION"
    # Another release has other libraries beside RocksDB, for which cargo would compile it again:
    # of the same version it is the same.
    rocksdb() { grep -A1 '^name = "librocksdb-sys"' "$1" | tail -1; }
    built=$(ls -t "$CARGO_TARGET_DIR"/release/build/librocksdb-sys-*/out/librocksdb.a 2>/dev/null |
        head -1)
    if [ -n "$built" ] && [ "$(rocksdb Cargo.lock)" = "$(rocksdb "$cache/$VERSION/Cargo.lock")" ]; then
        ROCKSDB_LIB_DIR=$(dirname "$built")
        export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
    fi
    (
        cd "$cache/$VERSION"
        cargo build --release --workspace --bin carillon-node --locked >&2
    )
    cp "$CARGO_TARGET_DIR/release/carillon-node" "$node.new"
    mv "$node.new" "$node"
    rm -rf "$cache/$VERSION"
fi
echo "$node"
