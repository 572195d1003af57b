#!/bin/sh
# Uses this project as a Mix dependency: compiles it, starts the pool under a supervisor, and sends
# to a peer. What Mix makes is in _build/mix; it needs no Hex, and nothing of the user's own.
set -eu

seconds=600
here=$(cd "$(dirname "$0")/.." && pwd -P)
work=$here/_build/mix
export MIX_HOME="$work/home" MIX_BUILD_PATH="$work/build" MIX_DEPS_PATH="$work/deps" MIX_ENV=test
cd "$here/test/mix"
mix local.rebar rebar3 "$(command -v "${REBAR3:-rebar3}")" --force >/dev/null
timeout --kill-after=10 "$seconds" mix do deps.get, compile, test
