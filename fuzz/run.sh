#!/bin/sh
# Fuzzes every decoder for FUZZ_SECONDS (60) each, or only the targets named. What was found before
# is in _build/fuzz/corpus, and is where the next run begins; an input for which a target does not
# hold is left in _build/fuzz/found, and ends the run.
set -eu

seconds=${FUZZ_SECONDS:-60}
# Longer than any input that a target takes apart: certificates are the longest.
max_bytes=8192
memory_mb=2048
# What is installed if there is none.
cargo_fuzz=0.13.2

cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
"$cargo" fuzz --version >/dev/null 2>&1 || {
    echo "fuzz: cargo-fuzz is missing: installing it" >&2
    "$cargo" install --locked --version "$cargo_fuzz" cargo-fuzz
}
# Its instrumentation is unstable, and the toolchain is not to be another one for that.
export RUSTC_BOOTSTRAP=1
here=$(pwd -P)
work=$here/_build/fuzz
[ "$#" -gt 0 ] || set -- $(sed -n 's|^path = "targets/\(.*\)\.rs"|\1|p' fuzz/Cargo.toml)
mkdir -p "$work/found"
# cargo fuzz has no such option itself.
"$cargo" tree --locked --manifest-path fuzz/Cargo.toml >/dev/null
for target in "$@"; do
    mkdir -p "$work/corpus/$target"
    log=$work/$target.log
    echo "fuzz: $target, $seconds s"
    "$cargo" fuzz run --fuzz-dir fuzz --target-dir "$work/target" -O "$target" \
        "$work/corpus/$target" "$here/fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len="$max_bytes" -rss_limit_mb="$memory_mb" \
        -artifact_prefix="$work/found/$target-" -print_final_stats=1 >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        echo "fuzz: $target does not hold; all of it is in $log" >&2
        exit 1
    }
    sed -n 's/^stat::number_of_executed_units: */fuzz: executions: /p' "$log"
done
