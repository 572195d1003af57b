#!/bin/sh
# Runs Common Test suites with the library under AddressSanitizer and LeakSanitizer, or under
# valgrind, and fails when a report names the library. First it makes sure that it can fail: a build
# with defects on purpose (native/nif/src/defects.rs) has to be reported.
#
#   sanitize.sh address [SUITE...]
#   sanitize.sh valgrind [SUITE...]
#
# Only reports that name the library count: the VM never frees what it keeps until its end. The VM's
# own allocators are switched off, so that its memory, too, is guarded piece by piece.
set -eu

tool=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd -P)
work=$here/_build/sanitize/$tool
library=macula_gateway_mesh_nif
lib=$work/lib/macula_gateway_mesh
reports=$work/reports
# The models' sequences of calls: few, since each takes ten times as long.
PROP_RUNS=${PROP_RUNS:-15}
export PROP_RUNS
# Times that tests take under the tool, against without: for their time limits.
case $tool in
    address)
        slower=5 seconds=1800
        suites=${*:-term_fuzz binary quic_stream quic_read quic_owner pool_stream
            delivery fault mesh_protocol liveness contract dial pool options identity quic
            quic_listener leaving node macula_platform pool_prop stream_prop}
        ;;
    valgrind) slower=30 seconds=3000 suites=${*:-quic_frame delivery} ;;
    *) echo "usage: $0 address|valgrind [SUITE...]" >&2 && exit 2 ;;
esac

fail() {
    echo "sanitize: $1" >&2
    exit 1
}

# The library as the tool wants it, with these options of cargo.
build() {
    target=$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')
    if [ "$tool" = address ]; then
        # Sanitizers are unstable, and the toolchain is not to be another one for that.
        export RUSTC_BOOTSTRAP=1
        flags="-Zsanitizer=address -Cforce-frame-pointers=yes"
    else
        flags=-Cforce-frame-pointers=yes
    fi
    # Without the release's link-time optimization, which takes minutes and hides who called whom.
    RUSTFLAGS=$flags CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        "${CARGO:-cargo}" build --quiet --release --locked --target "$target" \
        --target-dir "$work/target" -p "$library" "$@"
    mkdir -p "$lib/priv"
    cp "$work/target/$target/release/lib$library.so" "$lib/priv/$library.so.new"
    mv "$lib/priv/$library.so.new" "$lib/priv/$library.so"
}

# The VM itself, without the script and the program that usually start it. Other VMs of the tests
# are started by those.
vm() {
    ROOTDIR=$(erl -noshell -eval 'io:put_chars(code:root_dir()), halt().')
    BINDIR=$(echo "$ROOTDIR"/erts-*/bin)
    export ROOTDIR BINDIR EMU=beam PROGNAME=erl ERL_FLAGS="+Mea min"
    rm -rf "$reports"
    mkdir -p "$reports"
    case $tool in
        address)
            run="env LD_PRELOAD=$(gcc -print-file-name=libasan.so)"
            # %M names the file, also where the line in the source is known.
            ASAN_OPTIONS="detect_leaks=1:exitcode=0:log_path=$reports/report:malloc_context_size=40"
            ASAN_OPTIONS="$ASAN_OPTIONS:stack_trace_format='    #%n %p %F %S %M'"
            export ASAN_OPTIONS
            schedulers=2:2
            ;;
        valgrind)
            # No limit: valgrind takes thousands of the writes of the VM's just-in-time code for
            # wrong ones, and would look at nothing that comes after the first of them.
            # The just-in-time code of the VM has its stack in the heaps of processes, and valgrind
            # takes what is beyond a stack's end for gone: it does not know what is initialised.
            run="valgrind --quiet --smc-check=all --leak-check=full --show-leak-kinds=definite
                --undef-value-errors=no --suppressions=$here/test/valgrind.supp
                --error-limit=no --num-callers=40 --log-file=$reports/report.%p"
            schedulers=1:1
            ;;
    esac
    # shellcheck disable=SC2086
    timeout --kill-after=10 "$seconds" $run "$BINDIR/beam.smp" -S $schedulers -Mea min -- \
        -root "$ROOTDIR" -bindir "$BINDIR" -progname erl -- -home "$HOME" -- \
        -noshell -noinput -pa "$lib/ebin" "$lib/test" "$@"
}

# The reports that name the library, one a paragraph.
ours() {
    case $tool in
        address) awk -v RS= -v ORS='\n\n' -v name="$library" 'index($0, name)' "$reports"/* ;;
        valgrind)
            # For the same reason valgrind takes memory in use for gone; that is none of our errors.
            sed 's/^==[0-9]*== *//' "$reports"/* |
                awk -v RS= -v ORS='\n\n' -v name="$library" \
                    "index(\$0, name) && !/inside a block of size [0-9,]+ alloc'd/"
            ;;
    esac
}

# A defect on purpose is reported.
prove() {
    MACULA_DEFECT=$1 vm -eval '
        {ok, Pool} = macula_gateway_mesh:start_link(#{}),
        0 = macula_gateway_mesh:pool_size(Pool),
        ok = macula_gateway_mesh:stop(Pool),
        halt(0).' >"$work/log" 2>&1 || fail "the VM with the defect '$1' did not end: $work/log"
    ours | grep -q "$2" || fail "the defect '$1' was not reported: see $reports"
    echo "sanitize: the defect '$1' on purpose is reported"
}

case $here in *[[:space:]]*) fail "the path of this folder has a space in it" ;; esac
[ -x "$MACULA_PEER" ] || fail "MACULA_PEER names no program: this is for make sanitize"
command -v valgrind >/dev/null || [ "$tool" != valgrind ] || fail "valgrind is missing"
cd "$here"
"${REBAR3:-rebar3}" compile >/dev/null
rm -rf "$lib/ebin" "$lib/test"
mkdir -p "$lib/test" "$work/logs"
cp -rL _build/default/lib/macula_gateway_mesh/ebin "$lib/ebin"
# Not as rebar3 compiles suites: those need rebar3 to run in.
erlc -o "$lib/test" test/*.erl test/prop/*.erl

echo "sanitize: building with $tool"
build --features defects
prove leak "leak\|lost"
prove overrun "overflow\|Invalid write"
build

echo "sanitize: $suites"
vm -eval '
    Suites = [list_to_atom(S ++ "_SUITE") || S <- init:get_plain_arguments()],
    Result = ct:run_test([
        {dir, "'"$lib/test"'"}, {suite, Suites}, {auto_compile, false}, {logdir, "'"$work/logs"'"},
        {multiply_timetraps, '"$slower"'}, {scale_timetraps, true}
    ]),
    io:format("~p~n", [Result]),
    %% What processes of the VM itself still name, of handles that tests have had.
    [erlang:garbage_collect(P) || P <- processes()],
    receive after 2000 -> ok end,
    %% Some skip themselves where the machine lacks what they need; none for what failed before it.
    halt(case Result of {_, 0, {_, 0}} -> 0; _ -> 1 end).' -extra $suites >"$work/log" 2>&1 || {
    tail -n 60 "$work/log" >&2
    fail "tests failed; all of it is in $work/log"
}
tail -n 1 "$work/log"
if [ -n "$(ours)" ]; then
    ours >&2
    fail "the library is named in reports: see $reports"
fi
echo "sanitize: no report names the library"
