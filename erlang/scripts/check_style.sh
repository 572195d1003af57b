#!/bin/sh
# The rules that no formatter or compiler here checks for us: no tabs, no trailing space, 100
# columns, and no code that a later OTP refuses.
# Rust code is rustfmt's business; of it only the comments are measured. Prose is wrapped at 110
# columns and may have 115; rows of tables and links are as long as they are.
set -eu

cd "$(dirname "$0")/../.."
# Columns are characters, not bytes.
LC_ALL=C.UTF-8
export LC_ALL
tab=$(printf '\t')
status=0

# complain RULE PATTERN FILE...: prints the lines that match, which break the rule.
complain() {
    rule=$1
    pattern=$2
    shift 2
    if grep -nHE -e "$pattern" "$@"; then
        echo "  ^ $rule"
        status=1
    fi
}

files() {
    find README.md CHANGELOG.md docs rebar.config .ci bench erlang facade test interop native fuzz \
        \( -name target -o -name _build \) -prune -o -type f "$@" -print
}

erlang=$(files \( -name '*.erl' -o -name '*.hrl' -o -name '*.config' -o -name '*.app.src' \
    -o -name '*.escript' -o -name '*.sh' -o -path .ci/run \))
rust=$(files -name '*.rs')
# The benchmark's page is written by `make bench`.
prose=$(files -name '*.md' ! -path docs/benchmarks.md)

# No file name in this tree has a space.
# shellcheck disable=SC2086
{
    complain "a tab" "$tab" $erlang $rust
    complain "trailing space" "[ $tab]+\$" $erlang $rust
    complain "more than 100 columns" '^.{101,}' $erlang
    # OTP 29 warns of it, and that is an error here.
    complain "an update of what may be a literal" '\?[A-Z_]+#\{' $erlang
    complain "a comment of more than 100 columns" '^ *//.{99,}' $rust
    if grep -nHE '^[^|].{115,}' $prose | grep -vE '\]\([^)]{60,}\)|https?://[^ ]{60,}'; then
        echo "  ^ prose of more than 115 columns"
        status=1
    fi
}
exit $status
