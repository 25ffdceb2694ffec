#!/usr/bin/env bash
# Builds Kubernetes, CoreDNS and pause from their Go modules into $BIN: minutes and 4 GB the
# first time, nothing when their sources and Go are the same as the last time.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

GO_MINOR_MIN=24
# As in kube/go.mod.
KUBERNETES=1.34.4

minor=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
[ "${minor:-0}" -ge $GO_MINOR_MIN ] ||
    fail "Kubernetes is built with Go 1.$GO_MINOR_MIN or newer, and this machine has ${minor:+only 1.}${minor:-none}" \
        "install it, or set KUBECONFIG to use another cluster"

key=$(cd "$BED" && cat kube/* coredns/* pause/* lib/build.sh | sha256sum | cut -c 1-16)-go1.$minor
if [ "$(cat "$BIN/made-for" 2>/dev/null)" = "$key" ]; then
    exit
fi
mkdir -p "$BIN"
exec 9>"$STATE/build.lock"
flock 9
if [ "$(cat "$BIN/made-for" 2>/dev/null)" = "$key" ]; then
    exit
fi
say "builds Kubernetes $KUBERNETES (about ten minutes, once)"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off
export GOFLAGS="-mod=readonly -modcacherw -trimpath -buildvcs=false"
export GOMODCACHE=$STATE/go/modules GOCACHE=$STATE/go/build

# What kubectl and the API server say of themselves; clients go by it.
version=
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    for value in gitVersion=v$KUBERNETES gitMajor=1 gitMinor=34 gitTreeState=clean \
        gitCommit=module buildDate=2026-01-01T00:00:00Z; do
        version+=" -X $package.$value"
    done
done
build() {
    (cd "$BED/$1" && go build -ldflags "-s -w ${2:-}" -o "$BIN/$1.new" .)
    mv "$BIN/$1.new" "$BIN/$1"
}
build pause
build coredns
build kube "$version"
ln -sf kube "$BIN/kubectl"
echo "$key" >"$BIN/made-for"
say "built Kubernetes in $SECONDS s"
