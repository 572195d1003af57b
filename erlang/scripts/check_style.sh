#!/bin/sh
# The formatting rules that no formatter checks for us: no tabs, no trailing space, 100 columns.
# Rust code is rustfmt's business; of it only the comments are measured.
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
    find rebar.config .ci bench erlang facade test interop native fuzz \
        \( -name target -o -name _build \) -prune -o -type f "$@" -print
}

erlang=$(files \( -name '*.erl' -o -name '*.hrl' -o -name '*.config' -o -name '*.app.src' \
    -o -name '*.escript' -o -name '*.sh' -o -path .ci/run \))
rust=$(files -name '*.rs')

# No file name in this tree has a space.
# shellcheck disable=SC2086
{
    complain "a tab" "$tab" $erlang $rust
    complain "trailing space" "[ $tab]+\$" $erlang $rust
    complain "more than 100 columns" '^.{101,}' $erlang
    complain "a comment of more than 100 columns" '^ *//.{99,}' $rust
}
exit $status
