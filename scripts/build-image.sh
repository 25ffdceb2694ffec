#!/usr/bin/env bash
# Makes a container image out of binaries that are built already, as a docker-archive and
# without a daemon: the program, the libraries that it needs, certificate authorities, and a
# user that is not root. The same binaries make the same image. Load it with docker load,
# podman load or ctr images import.
#   scripts/build-image.sh node|operator [NAME:TAG [FILE.tar]]
set -euo pipefail
cd "$(dirname "$0")/.."

# Nobody special; the Dockerfiles have the same.
USER_ID=65532
target=${CARGO_TARGET_DIR:-${CARILLON_CACHE:-$HOME/.cache/carillon}/target}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
what=${1:?usage: scripts/build-image.sh node|operator [NAME:TAG [FILE.tar]]}
packing=()
case $what in
    node)
        image=carillon-node
        programs=(carillon-node carillon)
        description="A storage node and gateway of a Carillon chat cluster"
        packing+=(--writable /var/lib/carillon --port 7400 --port 7500 --port 7600 --port 7700)
        ;;
    operator)
        image=carillon-operator
        programs=(carillon-operator)
        description="The Kubernetes operator of Carillon chat clusters"
        packing+=(--port 8080)
        ;;
    *)
        echo "error: there is no image of $what, only of node and operator" >&2
        exit 2
        ;;
esac
name=${2:-carillon.dev/$image:$version}
out=${3:-$target/images/$image.tar}
authorities=/etc/ssl/certs/ca-certificates.crt

fail() {
    echo "error: $1" >&2
    echo "  do:  $2" >&2
    exit 1
}
for program in "${programs[@]}"; do
    [ -x "$target/release/$program" ] ||
        fail "there is no $target/release/$program" "build it (make test does), or set CARGO_TARGET_DIR"
done
[ -r $authorities ] || fail "$authorities is not there" "apt-get install ca-certificates"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
# Permissions are part of the image, a umask is this shell's.
umask 022
for program in "${programs[@]}"; do
    install -D --mode 755 "$target/release/$program" "$root/usr/local/bin/$program"
    # With its loader. Those of one program may be another's too.
    ldd "$target/release/$program" | grep -oE '/[^ ]+' | while read -r library; do
        install -D --mode 755 "$(readlink -f "$library")" "$root$library"
    done
done
install -D --mode 644 $authorities "$root$authorities"
install -D --mode 644 /dev/stdin "$root/etc/passwd" <<END
root:x:0:0:root:/:/nologin
carillon:x:$USER_ID:$USER_ID:carillon:/:/nologin
END
install -D --mode 644 /dev/stdin "$root/etc/group" <<END
root:x:0:
carillon:x:$USER_ID:
END
install -D --mode 644 /dev/stdin "$root/etc/nsswitch.conf" <<<'hosts: files dns'
install -d --mode 1777 "$root/tmp"

mkdir -p "$(dirname "$out")"
prefix=org.opencontainers.image
digest=$(scripts/pack-image.sh --name "$name" --root "$root" --out "$out" --user $USER_ID \
    --entrypoint "/usr/local/bin/${programs[0]}" \
    --label "$prefix.title=$image" --label "$prefix.description=$description" \
    --label "$prefix.version=$version" --label "$prefix.licenses=Apache-2.0" "${packing[@]}")
echo "$name $digest $out"
