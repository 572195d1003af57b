#!/bin/sh
# Checks that this machine has what the project needs, and installs what is missing on Debian and
# its kin.
#
#   setup.sh build    what building and the demo need
#   setup.sh test     the same, and what tests and checks need (the default)
#   setup.sh fuzz     as test, and what fuzzing needs
#   setup.sh interop  as test, and what peers on other QUIC stacks are built with
#   setup.sh bench    what building and the benchmark need
#
# NEED=check only reports (exit code 1 when something is missing).
# WITH_ELIXIR=1 asks for Elixir, too.
set -eu

otp_least=25

# rebar3 itself needs these; the application needs no more than kernel and stdlib.
applications="crypto public_key ssl"
scope=${1:-test}
case $scope in
    build | bench) ;;
    test | fuzz | interop)
        applications="$applications common_test dialyzer edoc eunit proper runtime_tools tools"
        ;;
    *)
        echo "usage: $0 [build|test|fuzz|interop|bench]" >&2
        exit 2
        ;;
esac

# The rust-version of the workspace that is built: Cargo.toml, interop/Cargo.toml.
cargo_least=1.91
[ "$scope" != interop ] || cargo_least=1.95

packages= # what apt-get can install
problems= # what only the user can mend

has() {
    command -v "$1" >/dev/null 2>&1
}

problem() {
    problems="$problems
  - $1"
}

# at_least VERSION LEAST
at_least() {
    [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# missing WHAT PACKAGE...: the packages that bring it.
missing() {
    what=$1
    shift
    if has apt-get; then
        packages="$packages $*"
    else
        problem "$what is missing, and there is no apt-get here to install it"
    fi
}

# The same for what belongs to Erlang. An Erlang that apt did not install must not get apt's Erlang
# beside it: two of them on one PATH mix.
missing_in_erlang() {
    if has erl && ! dpkg -S "$(readlink -f "$(command -v erl)")" >/dev/null 2>&1; then
        problem "$1 is missing; install it the way this Erlang was installed (not by apt-get)"
    else
        missing "$@"
    fi
}

# Prints the release, then those of the given applications that are not there, with one start of the
# VM. PropEr counts as there when its header is, which Debian packs apart.
ask_erlang() {
    erl -noinput -boot start_clean -eval '
        IsThere =
            fun(App) ->
                case code:lib_dir(list_to_atom(App)) of
                    {error, bad_name} -> false;
                    Dir when App =:= "proper" -> filelib:is_file(Dir ++ "/include/proper.hrl");
                    _Dir -> true
                end
            end,
        Absent = [App || App <- init:get_plain_arguments(), not IsThere(App)],
        io:put_chars(lists:join(" ", [erlang:system_info(otp_release) | Absent])),
        halt().' -extra "$@"
}

check_erlang() {
    absent=$applications
    if has erl; then
        # shellcheck disable=SC2086
        answer=$(ask_erlang $applications)
        release=${answer%% *}
        absent=${answer#"$release"}
        at_least "$release" "$otp_least" ||
            problem "Erlang/OTP $release is too old: $otp_least or later is needed"
    else
        missing "Erlang/OTP" rebar3
    fi
    # make passes REBAR3 on only if it is set; it may be a command with arguments.
    if [ -n "${REBAR3:-}" ]; then
        has "${REBAR3%% *}" || problem "REBAR3 names no program: $REBAR3"
    else
        has rebar3 || missing_in_erlang "rebar3" rebar3
    fi
    for application in $absent; do
        case $application in
            proper) missing_in_erlang "PropEr" erlang-proper erlang-proper-dev ;;
            *) missing_in_erlang "OTP's $application" "erlang-$(echo "$application" | tr _ -)" ;;
        esac
    done
    if [ "${WITH_ELIXIR:-}" = 1 ] && ! has mix; then
        missing_in_erlang "Elixir" elixir
    fi
}

# cargo is never taken from apt: Debian 12 has 1.65.
check_cargo() {
    hint="install Rust (https://rustup.rs); put cargo and rustc on PATH, or set CARGO and RUSTC"
    cargo=${CARGO:-cargo}
    if ! has "$cargo"; then
        problem "cargo is missing: $hint"
        return
    fi
    version=$("$cargo" --version | cut -d ' ' -f 2)
    at_least "$version" "$cargo_least" ||
        problem "cargo $version is too old, $cargo_least or later is needed: $hint"
    has "${RUSTC:-rustc}" || problem "rustc is missing: $hint"
}

check_compiler() {
    # cargo links with the C compiler. It is of use only with libc's headers, a package apart.
    echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1 ||
        missing "a C compiler" gcc libc6-dev
    has make || missing "make" make
}

# The suites make their certificates with it.
check_openssl() {
    has openssl || missing "openssl" openssl
}

# The peer on aioquic has an environment of its own (interop/run.sh). Debian packs pip for it apart.
check_python() {
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        missing "Python 3.11 with venv" python3 python3-venv
}

# libFuzzer and other QUIC stacks are in C++. The compiler is of use only with its headers, which
# are a package apart.
check_cxx() {
    echo '#include <string>' | c++ -x c++ -E - >/dev/null 2>&1 || missing "a C++ compiler" g++
}

# Other QUIC stacks, or their TLS libraries, are built with cmake; quiche's is bound with bindgen,
# which wants libclang.
check_interop() {
    check_cxx
    has cmake || missing "cmake" cmake
    for library in /usr/lib/llvm-*/lib/libclang.so* "${LIBCLANG_PATH:-}"/libclang.so*; do
        [ ! -e "$library" ] || return 0
    done
    missing "libclang" clang libclang-dev
}

# The benchmark's driver is in Python; it counts instructions with valgrind.
check_bench() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null ||
        missing "Python 3.9" python3
    has valgrind || missing "valgrind" valgrind
}

install_packages() {
    root=
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || {
            echo "setup: run as root: apt-get install -y --no-install-recommends$packages" >&2
            exit 1
        }
        root=sudo
    fi
    $root apt-get update
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
}

check_erlang
check_cargo
check_compiler
case $scope in
    test | fuzz | interop)
        check_openssl
        check_python
        ;;
esac
[ "$scope" != fuzz ] || check_cxx
[ "$scope" != interop ] || check_interop
[ "$scope" != bench ] || check_bench

if [ -n "$packages" ]; then
    # Several needs may name one package.
    # shellcheck disable=SC2086
    packages=$(printf ' %s\n' $packages | sort -u | tr -d '\n')
    echo "setup: missing, to be installed by apt-get:$packages"
fi
if [ -n "$problems" ]; then
    echo "setup: only you can mend this:$problems" >&2
    exit 1
fi
[ -n "$packages" ] || exit 0
[ "${NEED:-}" != check ] || exit 1

install_packages
# What apt-get had to offer may still be too old.
NEED=check sh "$0" "$scope"
