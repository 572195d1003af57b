#!/bin/sh
# Runs the suites, the facade's too, and the Mix project on the Erlang/OTP of another Debian
# release, in a folder of its own. The library and the peer program are those of this machine: that
# a library built on an older system loads on newer ones is part of the claim.
#
#   otp.sh RELEASE OTP [SUITE...]    for example: otp.sh trixie 27, or: otp.sh trixie 27 load
#
# With suites named, it runs these of the main application, and nothing else.
#
# Everything is in _build/otp/RELEASE, about 1 GB, and the next run uses it again; `rm -rf` is safe.
# The mounts are in a namespace of this script's own, and end with it, however it ends.
set -eu

# Longer than anything takes on a busy machine.
install_s=1800
tests_s=2400

release=$1
otp=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd -P)
suites=
for suite; do
    # The property suites have a folder of their own.
    file=$(cd "$here" && find test -name "${suite}_SUITE.erl")
    suites=${suites:+$suites,}${file:-$suite}
done
place=$here/_build/otp/$release
root=$place/root
log=$place/log

fail() {
    echo "otp: $1" >&2
    exit 1
}

# Runs a step within its time, and shows what it said only when it has failed.
step() {
    what=$1 seconds=$2
    shift 2
    echo "otp: $what"
    timeout --kill-after=10 "$seconds" "$@" >"$log" 2>&1 || {
        tail -n 60 "$log" >&2
        fail "$what: failed; all of it is in $log"
    }
}

# A step in the other release, which has its own /proc and this machine's devices.
inside() {
    what=$1 seconds=$2 folder=$3 commands=$4
    step "$what" "$seconds" unshare --mount --propagation private sh -c '
        mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" &&
            exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
                LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive MACULA_PEER=/product/peer \
                MACULA_GATEWAY_MESH_NIF=/product/library.so sh -euc "$2"' \
        sh "$folder" "$commands"
}

# Debian's mirror, as this machine's own apt has it.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 == "Debian" && $3 == "main" { print $1; exit }'
}

# Takes a complete folder its name at last, so that a run that was cut short begins anew.
install_release() {
    # Releases to come are made as the unstable one is.
    script=/usr/share/debootstrap/scripts/$release
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    source=$(mirror)
    [ -n "$source" ] || fail "this machine's apt knows no mirror of Debian"
    rm -rf "$root.new"
    step "fetching Debian $release" "$install_s" \
        debootstrap --variant=minbase "$release" "$root.new" "$source" "$script"
    cp /etc/resolv.conf /etc/hosts "$root.new/etc/"
    # A release to come is frozen in some mirrors: its index may be older than it is valid.
    inside "installing Erlang and Elixir" "$install_s" "$root.new" '
        apt-get -o Acquire::Check-Valid-Until=false update
        apt-get install -y --no-install-recommends \
            rebar3 elixir openssl erlang-proper erlang-proper-dev'
    mv "$root.new" "$root"
}

[ "$(id -u)" -eq 0 ] || fail "needs root, for chroot and mount"
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
[ -x "$MACULA_PEER" ] || fail "MACULA_PEER names no program: this is for make otp$otp"
mkdir -p "$place"
[ -d "$root" ] || install_release

cd "$here"
rm -rf "$root/product"
mkdir -p "$root/product/tree"
# The tests look for the others beside the peer.
for program in peer attacker relay; do
    cp "$(dirname "$MACULA_PEER")/$program" "$root/product/"
done
cp priv/macula_gateway_mesh_nif.so "$root/product/library.so"
git ls-files -z --cached --others --exclude-standard |
    xargs -0 cp --parents --target-directory "$root/product/tree"

inside "asking for its OTP" 60 "$root" '
    erl -noshell -eval "io:put_chars(erlang:system_info(otp_release)), halt()."'
[ "$(tail -n 1 "$log")" = "$otp" ] || fail "Debian $release has OTP $(tail -n 1 "$log"), not $otp"
inside "rebar3 ct on OTP $otp" "$tests_s" "$root" "
    cd /product/tree
    rebar3 ct ${suites:+--suite $suites}"
tail -n 3 "$log"
[ -z "$suites" ] || exit 0
inside "the facade's suite on OTP $otp" "$tests_s" "$root" '
    cd /product/tree
    rebar3 compile
    export ERL_LIBS=$PWD/_build/default/lib REBAR_BASE_DIR=$PWD/_build/facade
    cd facade/quicer
    rebar3 ct'
tail -n 3 "$log"
inside "a Mix dependency on OTP $otp" "$tests_s" "$root" '
    cd /product/tree
    sh test/mix.sh'
tail -n 3 "$log"
