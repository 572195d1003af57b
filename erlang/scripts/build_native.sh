#!/bin/sh
# Puts the NIF library into priv/: builds it with cargo, or takes the prebuilt one that
# MACULA_GATEWAY_MESH_NIF names. rebar3 calls it before every compilation (rebar.config), so it is
# silent when nothing has changed. CARGO and CARGO_TARGET_DIR are honoured.
set -eu

name=macula_gateway_mesh_nif
# From our own place: as a dependency we are called from folders we do not know.
root=$(cd "$(dirname "$0")/../.." && pwd -P)
# The VM looks for .so on macOS, too.
installed=$root/priv/$name.so
cd "$root"

fail() {
    printf '%s\n' "macula_gateway_mesh: $1" >&2
    exit 1
}

# The library is replaced by a new file, never written into: a running VM has the old one mapped.
install_library() {
    if cmp -s "$1" "$installed"; then
        return
    fi
    mkdir -p priv
    cp "$1" "$installed.$$"
    mv -f "$installed.$$" "$installed"
}

if [ -n "${MACULA_GATEWAY_MESH_NIF:-}" ]; then
    [ -f "$MACULA_GATEWAY_MESH_NIF" ] ||
        fail "MACULA_GATEWAY_MESH_NIF names no file: $MACULA_GATEWAY_MESH_NIF (seen from $root)"
    install_library "$MACULA_GATEWAY_MESH_NIF"
    exit 0
fi

cargo=${CARGO:-cargo}
command -v "$cargo" >/dev/null 2>&1 || fail "cargo is missing: there is no '$cargo' on PATH.
  Install Rust 1.91 or later (https://rustup.rs) and put cargo on PATH, or set CARGO to it,
  or set MACULA_GATEWAY_MESH_NIF to the absolute path of a prebuilt $name library."

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"

# From build to copy, one at a time: two source trees may share one target folder. Where there is no
# flock (macOS), cargo's own lock covers the build.
owner=$target/.$name.owner
if command -v flock >/dev/null 2>&1; then
    exec 9>>"$owner"
    flock 9
fi

# cargo does not tell two trees of one workspace apart, only newer files from older ones: in a
# shared folder it would take the other tree's library for ours.
last_owner=$(cat "$owner" 2>/dev/null) || last_owner=
if [ "$last_owner" != "$root" ]; then
    [ -z "$last_owner" ] ||
        "$cargo" clean --quiet --release --locked --target-dir "$target" -p "$name" -p mesh 9>&-
    printf '%s' "$root" >"$owner"
fi

# A first build takes minutes and shows its progress; later ones speak up only when something is
# wrong.
quiet=
if [ -f "$installed" ]; then
    quiet=--quiet
fi
"$cargo" build $quiet --release --locked --target-dir "$target" -p "$name" 9>&- ||
    fail "cargo could not build $name (see above)"

case $(uname -s) in
    Darwin) extension=dylib ;;
    *) extension=so ;;
esac
install_library "$target/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release/lib$name.$extension"
