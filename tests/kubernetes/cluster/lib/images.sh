#!/usr/bin/env bash
# Makes the images that every node begins with, from what build.sh built and from busybox,
# when they are not of the same programs already.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
busybox=$(command -v busybox)
key="$(cat "$BIN/made-for") $(sha256sum <"$busybox" | cut -c 1-16) $(sha256sum <"$0" | cut -c 1-16) $(sha256sum <"$ROOT/scripts/pack-image.sh" | cut -c 1-16)"
[ "$(cat "$IMAGES/made-for" 2>/dev/null)" != "$key" ] || exit 0

rm -rf "$IMAGES"
mkdir -p "$IMAGES"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack() {
    local name=$1
    shift
    "$ROOT/scripts/pack-image.sh" --name "$REGISTRY/$name:1" --root "$work/$name" \
        --out "$IMAGES/$name.tar" "$@" >/dev/null
}

for program in pause coredns; do
    install -D --mode 755 "$BIN/$program" "$work/$program/$program"
    pack $program --entrypoint "/$program"
done

install -D --mode 755 "$busybox" "$work/busybox/bin/busybox"
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$work/busybox/bin/$applet"
done
install -d --mode 1777 "$work/busybox/tmp"
install -D --mode 644 /dev/stdin "$work/busybox/etc/passwd" <<<'root:x:0:0:root:/:/bin/sh'
install -D --mode 644 /dev/stdin "$work/busybox/etc/group" <<<'root:x:0:'
pack busybox --command /bin/sh
echo "$key" >"$IMAGES/made-for"
