#!/usr/bin/env bash
# Installs what building and testing need and the machine lacks. Does nothing when all of
# it is there. Usage: install-tools.sh build|lint|test|e2e|charts
set -euo pipefail

CARGO_DENY_VERSION=0.20.2
HELM_VERSION=v3.22.0
cache=${CARILLON_CACHE:-$HOME/.cache/carillon}
what=${1:?usage: install-tools.sh build|lint|test|e2e|charts}

# A minimal toolchain has neither.
if [ "$what" = lint ]; then
    for tool in rustfmt clippy; do
        case $tool in rustfmt) command=fmt ;; clippy) command=clippy ;; esac
        if ! cargo $command --version >/dev/null 2>&1; then
            echo "installs: $tool"
            rustup component add $tool
        fi
    done
fi

packages=()
# bindgen, for RocksDB, loads libclang and needs clang's own headers.
if ! ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* >/dev/null 2>&1 || ! ls -d /usr/lib/clang/*/include /usr/lib/llvm-*/lib/clang/*/include >/dev/null 2>&1; then
    packages+=(libclang-dev)
fi
if [ "$what" = test ] && ! python3 -c 'import venv, ensurepip' >/dev/null 2>&1; then
    packages+=(python3 python3-venv)
fi
# Tests of partitions make network namespaces with it, which only root may.
if [ "$what" = test ] && [ "$(id -u)" = 0 ] && ! command -v ip >/dev/null; then
    packages+=(iproute2)
fi
# A Kubernetes of one's own has real nodes, which only root may make; without root, or with
# somebody else's cluster, it needs none of this.
if [ "$what" = e2e ] && [ -z "${KUBECONFIG:-}" ]; then
    needed=(openssl:openssl)
    if [ "$(id -u)" = 0 ]; then
        needed+=(containerd:containerd runc:runc ip:iproute2 nft:nftables conntrack:conntrack
            busybox:busybox-static mkfs.xfs:xfsprogs losetup:mount)
        [ -x /usr/lib/cni/bridge ] || packages+=(containernetworking-plugins)
    fi
    for item in "${needed[@]}"; do
        command -v "${item%%:*}" >/dev/null || packages+=("${item#*:}")
    done
fi
if [ ${#packages[@]} -gt 0 ]; then
    echo "installs: ${packages[*]}"
    run=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || {
            echo "error: ${packages[*]} must be installed, and neither root nor sudo is available" >&2
            echo "  do:  as root: apt-get install ${packages[*]}" >&2
            exit 1
        }
        run=(sudo)
    fi
    command -v apt-get >/dev/null || {
        echo "error: this machine has no apt-get; install the equivalents of ${packages[*]} by hand" >&2
        exit 1
    }
    "${run[@]}" apt-get update -qq
    "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if [ "$what" = lint ]; then
    have=$("$cache/bin/cargo-deny" --version 2>/dev/null | awk '{print $2}' || true)
    if [ "$have" != "$CARGO_DENY_VERSION" ]; then
        echo "installs: cargo-deny $CARGO_DENY_VERSION (compiles for some minutes, once)"
        # Without optimisation: it runs for seconds, but compiles for minutes.
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            CARGO_TARGET_DIR="$cache/cargo-deny" \
            cargo install cargo-deny --version "$CARGO_DENY_VERSION" --locked --quiet --force --root "$cache"
        rm -rf "$cache/cargo-deny"
    fi
fi

# Built from the Go module proxy; everything but the program is thrown away.
go_program() {
    local name=$1 module=$2 version=$3 work
    if [ "$(cat "$cache/bin/$name.version" 2>/dev/null)" = "$version" ] && [ -x "$cache/bin/$name" ]; then
        return
    fi
    command -v go >/dev/null || {
        echo "error: $name is built with Go, and this machine has none" >&2
        echo "  do:  install Go 1.24 or newer" >&2
        exit 1
    }
    echo "installs: $name $version (compiles for some minutes, once)"
    mkdir -p "$cache/bin"
    work=$(mktemp -d "$cache/$name-build.XXXXXX")
    if ! env GOFLAGS=-modcacherw CGO_ENABLED=0 GOBIN="$work/bin" GOPATH="$work/path" \
        GOCACHE="$work/cache" go install "$module@$version" 2>"$work/log"; then
        cat "$work/log" >&2
        rm -rf "$work"
        echo "error: $name $version could not be built" >&2
        exit 1
    fi
    mv "$work/bin/$name" "$cache/bin/$name"
    echo "$version" >"$cache/bin/$name.version"
    rm -rf "$work"
}

if [ "$what" = charts ]; then
    go_program helm helm.sh/helm/v3/cmd/helm "$HELM_VERSION"
    # Only promtool, out of Debian's package: the package would start a server.
    if ! command -v promtool >/dev/null && [ ! -x "$cache/bin/promtool" ]; then
        echo "installs: promtool"
        work=$(mktemp -d "$cache/promtool.XXXXXX")
        if ! (cd "$work" && apt-get download -qq prometheus 2>log && dpkg-deb -x prometheus_*.deb .); then
            cat "$work/log" >&2
            rm -rf "$work"
            echo "error: promtool could not be had" >&2
            echo "  do:  install Prometheus' promtool" >&2
            exit 1
        fi
        mv "$work/usr/bin/promtool" "$cache/bin/promtool"
        rm -rf "$work"
    fi
fi
