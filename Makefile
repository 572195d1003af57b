# The two commands of the README are `make demo` and `make test`; `make` alone lists the others.

CARGO ?= cargo
REBAR3 ?= rebar3

# cargo's target folder as an absolute path: the tests start the peer program from folders of their own.
ifeq ($(filter /%,$(CARGO_TARGET_DIR)),)
export CARGO_TARGET_DIR := $(CURDIR)/$(or $(CARGO_TARGET_DIR),target)
endif
export MACULA_PEER := $(CARGO_TARGET_DIR)/$(if $(CARGO_BUILD_TARGET),$(CARGO_BUILD_TARGET)/)release/examples/peer

.DEFAULT_GOAL := help
.PHONY: help setup setup-build build peer demo test test-rust test-erlang test-facade
.PHONY: bench bench-quick bench-smoke setup-fuzz setup-interop setup-bench build-bench
.PHONY: test-mix mix chaos soak models fuzz sanitize otp27 otp29 interop interop-aioquic lint docs clean
# The targets share cargo's and rebar3's folders.
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: ## check the machine for all that tests need; install what is missing
	@sh erlang/scripts/setup.sh test

setup-build:
	@sh erlang/scripts/setup.sh build

build: setup-build ## compile the application, with the library in priv/
	$(REBAR3) compile

# The library first: its script keeps the builds of two source trees in one target folder apart.
peer: ## build the programs that demo and tests talk to: the peer, one that attacks, and a relay
	@sh erlang/scripts/build_native.sh
	$(CARGO) build --release --locked -p mesh --examples

demo: build peer ## pool peers, send messages, print the figures
	ERL_LIBS="$(CURDIR)/_build/default/lib" escript erlang/scripts/demo.escript
	ERL_LIBS="$(CURDIR)/_build/default/lib" escript erlang/scripts/demo_nodes.escript

bench: setup-bench build-bench ## the whole benchmark, and docs/benchmarks.md; under 15 minutes
	bench/run

bench-quick: build-bench ## a part of it, to the terminal; under 2 minutes
	bench/run --quick

bench-smoke: build-bench ## whether its programs still work, in seconds
	bench/run --smoke

setup-fuzz:
	@sh erlang/scripts/setup.sh fuzz

setup-bench:
	@sh erlang/scripts/setup.sh bench

build-bench: build
	$(CARGO) build --release --locked -p mesh-bench
	@mkdir -p _build/bench/ebin
	erlc -Werror -o _build/bench/ebin bench/erlang/*.erl

test: setup test-rust test-erlang test-facade test-mix interop-aioquic bench-smoke ## all tests

# The NIF crate has no tests of its own: outside a VM it does not link.
test-rust: ## tests of the core crate, and of the benchmark's check
	$(CARGO) test --locked -p mesh -p mesh-bench

test-erlang: peer ## Common Test suites, property suites, xref
	$(REBAR3) ct
	$(REBAR3) as test xref

# Their short forms are suites as the others.
chaos: peer ## a pool in a storm of faults, MINUTES=5 long; SEED=... repeats the plan of one
	CHAOS_MINUTES=$(or $(MINUTES),5) $(REBAR3) ct --suite test/chaos_SUITE

soak: peer ## a pool at a steady load, HOURS=1 long (or MINUTES): samples and a plot in _build/soak
	SOAK_MINUTES=$(or $(MINUTES),$$(( $(or $(HOURS),1) * 60 ))) SOAK_DIR="$(CURDIR)/_build/soak" \
		$(REBAR3) ct --suite test/soak_SUITE

models: peer ## the pool and streams against their models, RUNS=1000 sequences of calls each
	PROP_RUNS=$(or $(RUNS),1000) $(REBAR3) ct --dir test/prop --suite pool_prop_SUITE,stream_prop_SUITE

# The facade is an application of its own: it finds the main one as any application does.
FACADE = cd facade/quicer && ERL_LIBS="$(CURDIR)/_build/default/lib" \
	REBAR_BASE_DIR="$(CURDIR)/_build/facade" $(REBAR3)

test-facade: build ## tests of the facade, which stands in for quicer
	$(FACADE) ct
	$(FACADE) as test xref

# Not everybody has Elixir: `make mix` installs it, and fails without.
test-mix: peer
	@if command -v mix >/dev/null; then sh test/mix.sh; else echo "no mix here: see make mix"; fi

mix: ## use as a dependency of a Mix project
	@WITH_ELIXIR=1 sh erlang/scripts/setup.sh test
	@$(MAKE) test-mix

# Short forms of these are in `make test`: the fuzz targets' functions on their seeds, and fewer terms.
FUZZ_TERMS ?= 50000
fuzz: setup-fuzz peer ## fuzz every decoder, FUZZ_SECONDS (60) each, and functions with FUZZ_TERMS calls
	sh fuzz/run.sh
	TERM_FUZZ_CALLS=$(FUZZ_TERMS) $(REBAR3) ct --suite test/term_fuzz_SUITE

# No short form: it builds everything a second time, which takes minutes.
sanitize: setup setup-bench peer ## suites under AddressSanitizer and LeakSanitizer, then under valgrind
	sh test/sanitize.sh address
	sh test/sanitize.sh valgrind

otp27: build peer ## all suites on Debian 13's Erlang, in a folder; as root
	sh test/otp.sh trixie 27

otp29: build peer ## all suites on the Erlang of the Debian after that; as root
	sh test/otp.sh forky 29

setup-interop:
	@sh erlang/scripts/setup.sh interop

interop: setup-interop ## peers on four other QUIC stacks, which it builds; minutes
	sh interop/run.sh aioquic msquic s2n quiche

interop-aioquic: setup ## the short form: one of them, in Python, and fewer messages
	MACULA_INTEROP_MESSAGES=2000 sh interop/run.sh aioquic

lint: setup ## formatting, clippy, compiler warnings, xref, dialyzer, documentation
	sh erlang/scripts/check_style.sh
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path interop/Cargo.toml --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p macula_gateway_mesh_nif --features defects --locked -- -D warnings
	$(CARGO) tree --locked --manifest-path fuzz/Cargo.toml >/dev/null
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked
	$(REBAR3) as lint do compile, xref, dialyzer
	$(REBAR3) compile
	$(FACADE) as lint do compile, xref, dialyzer

docs: ## API documentation: _build/edoc and cargo's doc folder
	$(REBAR3) edoc
	$(CARGO) doc --workspace --no-deps --locked

clean: ## remove what was built here, but no shared cargo folder
	rm -rf _build priv target
