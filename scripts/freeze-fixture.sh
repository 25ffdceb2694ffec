#!/usr/bin/env bash
# Freezes a data directory of this version for the tests of all later ones:
#   scripts/freeze-fixture.sh v0.1.0
# Run it once, when a version is released, with its binaries built (make test does). What it
# writes to tests/fixtures/data/<version>/ is committed and never changed again.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: scripts/freeze-fixture.sh VERSION, for example v0.2.0}
into=tests/fixtures/data/$version
if [ -e "$into" ]; then
    echo "$into exists: the data of a release is never changed" >&2
    exit 1
fi
export CARILLON_CACHE=${CARILLON_CACHE:-$HOME/.cache/carillon}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CARILLON_CACHE/target}
export CARILLON_NODE_BIN=${CARILLON_NODE_BIN:-$CARGO_TARGET_DIR/release/carillon-node}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# RocksDB writes the name of the host into its files: it is to be nobody's.
alone=(unshare --uts)
[ "$(id -u)" = 0 ] || alone+=(--user --map-root-user)
CARILLON_FREEZE_INTO=$work "${alone[@]}" bash -c 'hostname fixture && exec "$@"' - \
    cargo test --release --workspace --locked --test upgrades -- --ignored --exact fixtures::freeze
# For people only, with paths in them; RocksDB makes them anew.
rm -f "$work"/data/admin.sock "$work"/data/state/LOG* "$work"/data/state/OPTIONS*
if grep -rlaF -e "$(hostname)" -e "$HOME/" -e "${TMPDIR:-/tmp}/" "$work/data"; then
    echo "these files tell of this machine" >&2
    exit 1
fi
mkdir -p "$into"
tar -C "$work/data" --owner=0 --group=0 --numeric-owner --mtime=@0 --sort=name -cf - . |
    gzip -9n >"$into/data.tar.gz"
cp "$work/contents.txt" "$into/"
ls -l "$into"
