#!/usr/bin/env bash
# Imports an image archive into the containerd of the node that this runs in, and notes that
# it did. Usage: import.sh N ARCHIVE
set -euo pipefail
. "$(dirname "$0")/settings.sh"
noted=$RUN/node${1:?}/loaded
ctr --namespace k8s.io images import "${2:?}" >/dev/null
mkdir -p "$noted"
: >"$noted/$(basename "$2")"
