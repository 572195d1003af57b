#!/bin/sh
# Runs the interoperability suite against peers on QUIC stacks that are not ours, and sets up first
# what they need.
#
#   run.sh aioquic                        needs Python with venv, and pip
#   run.sh aioquic msquic s2n quiche      builds the peers in Rust, too
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

# install WHAT PACKAGE...
install() {
    what=$1
    shift
    command -v apt-get >/dev/null 2>&1 || {
        say "$what is missing, and there is no apt-get here to install it" >&2
        exit 1
    }
    say "missing, to be installed by apt-get: $*"
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    $as_root apt-get update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# MsQuic, and the TLS libraries of s2n-quic and quiche, are built from sources in C and C++.
set_up_compilers() {
    command -v cmake >/dev/null 2>&1 || install cmake cmake
    # quiche's is in C++. The compiler is of use only with its headers, a package apart.
    echo '#include <string>' | c++ -x c++ -E - >/dev/null 2>&1 || install "a C++ compiler" g++
}

# quiche's TLS library is bound with bindgen, which looks for libclang here.
set_up_bindgen() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    find_libclang
    [ -n "$LIBCLANG_PATH" ] || install libclang clang libclang-dev
    find_libclang
    export LIBCLANG_PATH
}

find_libclang() {
    LIBCLANG_PATH=
    for library in /usr/lib/llvm-*/lib/libclang.so /usr/lib/llvm-*/lib/libclang.so.1; do
        [ -e "$library" ] && LIBCLANG_PATH=$(dirname "$library")
    done
    return 0
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
            set_up_compilers
            [ "$peer" != quiche ] || set_up_bindgen
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
