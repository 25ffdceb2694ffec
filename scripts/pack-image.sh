#!/usr/bin/env bash
# Packs a directory into a container image, a docker-archive that docker load, podman load and
# ctr images import read, without a daemon. The same input makes the same bytes. Prints the
# image's digest, that of its configuration.
#   scripts/pack-image.sh --name NAME:TAG --root DIR --out FILE.tar
#       [--entrypoint PROGRAM] [--command PROGRAM] [--user UID]
#       [--writable DIR]...     made in the image, owned by the user
#       [--label NAME=VALUE]... [--port PORT]...
set -euo pipefail

name= root= out= entrypoint= command= user=0
writable=() labels=() ports=()
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || {
        echo "error: $1 has no value" >&2
        exit 2
    }
    case $1 in
        --name) name=$2 ;;
        --root) root=$2 ;;
        --out) out=$2 ;;
        --entrypoint) entrypoint=$2 ;;
        --command) command=$2 ;;
        --user) user=$2 ;;
        --writable) writable+=("$2") ;;
        --label) labels+=("$2") ;;
        --port) ports+=("$2") ;;
        *)
            echo "error: unknown: $1" >&2
            exit 2
            ;;
    esac
    shift 2
done
[ -n "$name" ] && [ -n "$root" ] && [ -n "$out" ] || {
    echo "error: --name, --root and --out are needed" >&2
    exit 2
}
case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *)
        echo "error: no name is known for the architecture $(uname -m)" >&2
        exit 1
        ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Nothing of this machine: order, times, owners.
plain=(--format=gnu --sort=name --mtime=@0 --numeric-owner)
archive() { tar "${plain[@]}" --owner=0 --group=0 "$@"; }
archive -C "$root" -cf "$work/layer.tar" .
for directory in ${writable[@]+"${writable[@]}"}; do
    mkdir -p "$work/writable$directory"
    tar "${plain[@]}" --owner="$user" --group="$user" --mode=0750 --no-recursion \
        -C "$work/writable" -rf "$work/layer.tar" ".$directory"
done
layer=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)

# quoted TEXT: as a JSON string. Names, paths and labels here have no control characters.
quoted() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}
# joined ITEM...: with commas in between.
joined() {
    local IFS=,
    echo "$*"
}
label_items=() port_items=()
for label in ${labels[@]+"${labels[@]}"}; do
    label_items+=("$(quoted "${label%%=*}"):$(quoted "${label#*=}")")
done
for port in ${ports[@]+"${ports[@]}"}; do
    port_items+=("$(quoted "$port/tcp"):{}")
done
process='"Env":["PATH=/usr/local/bin:/usr/bin:/bin"],"WorkingDir":"/"'
process+=",\"User\":$(quoted "$user")"
[ -z "$entrypoint" ] || process+=",\"Entrypoint\":[$(quoted "$entrypoint")]"
[ -z "$command" ] || process+=",\"Cmd\":[$(quoted "$command")]"
process+=",\"Labels\":{$(joined ${label_items[@]+"${label_items[@]}"})}"
process+=",\"ExposedPorts\":{$(joined ${port_items[@]+"${port_items[@]}"})}"
printf '{"architecture":"%s","os":"linux","created":"1970-01-01T00:00:00Z","config":{%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"scripts/pack-image.sh"}]}' \
    "$architecture" "$process" "$layer" >"$work/config.json"
config=$(sha256sum "$work/config.json" | cut -d ' ' -f 1)
mv "$work/config.json" "$work/$config.json"
mv "$work/layer.tar" "$work/$layer.tar"
printf '[{"Config":"%s.json","RepoTags":[%s],"Layers":["%s.tar"]}]' \
    "$config" "$(quoted "$name")" "$layer" >"$work/manifest.json"
# By a name that is not there yet, so that nobody reads half of it.
archive --mode=0644 -C "$work" -cf "$out.new" manifest.json "$config.json" "$layer.tar"
mv "$out.new" "$out"
echo "sha256:$config"
