#!/usr/bin/env bash
# rustfmt, clippy with warnings denied, cargo-deny, and the purity of the core.
set -euo pipefail
cache=${CARILLON_CACHE:-$HOME/.cache/carillon}
cargo fmt --all --check
cargo clippy --release --workspace --all-targets --locked --quiet -- -D warnings
scripts/check-core-is-pure.sh
"$cache/bin/cargo-deny" --log-level error --locked check licenses bans sources
# The advisories' database is a repository of its own, which not every machine can reach.
if timeout 60 "$cache/bin/cargo-deny" fetch db >/dev/null 2>&1; then
    "$cache/bin/cargo-deny" --log-level error --locked check --disable-fetch advisories
else
    echo "skipped: the advisory database cannot be reached from here"
fi
echo "lint: ok"
