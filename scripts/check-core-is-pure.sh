#!/usr/bin/env bash
# Fails when carillon-core depends on anything but what is listed here: it has no I/O, no
# clock and no randomness, and cargo knows.
set -euo pipefail
allowed="bytes carillon-core proc-macro2 quote syn thiserror thiserror-impl unicode-ident xxhash-rust"
found=$(cargo tree --package carillon-core --edges normal --prefix none --format '{lib}' --locked | tr '_' '-' | awk '{print $1}' | sort -u)
for crate in $found; do
    case " $allowed " in
        *" $crate "*) ;;
        *)
            echo "error: carillon-core depends on $crate, which is not on the list of $0" >&2
            exit 1
            ;;
    esac
done
echo "carillon-core is pure"
