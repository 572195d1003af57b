#!/bin/sh
# Builds peers on QUIC stacks that are not ours, and runs the interoperability suite against them.
#
#   run.sh aioquic                        needs what `setup.sh test` sees to
#   run.sh aioquic msquic s2n quiche      needs what `setup.sh interop` sees to
#
# All goes to _build/interop: the Python environment, and the target folder of the Rust workspace.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd -P)
here=$root/interop
build=$root/_build/interop
cd "$root"

# interop_SUITE reads command lines with a word in each line.
line_break='
'

say() {
    echo "interop: $1"
}

# The packages are pinned in requirements.txt, as `pip freeze` tells them; a changed file makes a
# new environment.
set_up_python() {
    venv=$build/venv
    if cmp -s "$here/aioquic/requirements.txt" "$venv/requirements.txt"; then
        return
    fi
    say "making a Python environment in _build/interop/venv, with what requirements.txt names"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$here/aioquic/requirements.txt"
    cp "$here/aioquic/requirements.txt" "$venv/requirements.txt"
}

build_peer() {
    say "building the peer on $1; the first time takes minutes"
    env -u CARGO_BUILD_TARGET CARGO_TARGET_DIR="$build/target" \
        "${CARGO:-cargo}" build --release --locked --manifest-path "$here/Cargo.toml" \
        --package "$1-peer"
}

for peer in "$@"; do
    case $peer in
        aioquic)
            set_up_python
            export MACULA_INTEROP_AIOQUIC="$venv/bin/python$line_break$here/aioquic/peer.py"
            ;;
        msquic | s2n | quiche)
            build_peer "$peer"
            program=$build/target/release/$peer-peer
            export "MACULA_INTEROP_$(echo "$peer" | tr '[:lower:]' '[:upper:]')=$program"
            ;;
        *)
            echo "usage: $0 [aioquic] [msquic] [s2n] [quiche]" >&2
            exit 2
            ;;
    esac
done

# MsQuic is a shared library in a folder that its build has made up a name for.
for library in "$build"/target/release/build/msquic-*/out/lib; do
    LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
done
export LD_LIBRARY_PATH

export MACULA_INTEROP_PEERS="$*"
"${REBAR3:-rebar3}" as interop ct --dir interop/test
