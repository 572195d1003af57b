"""The command lines of the benchmark's programs."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
RELEASE = TARGET / os.environ.get("CARGO_BUILD_TARGET", "") / "release"
EBIN = ROOT / "_build/bench/ebin"
APPLICATION = ROOT / "_build/default/lib/macula_gateway_mesh/ebin"

MESH = "macula-mesh/1"
FIELD = "macula"


def rust(command, *options):
    """A command of the crate mesh-bench."""
    return [RELEASE / "mesh-bench", command, *options]


def erlang(module, function, *options):
    """A virtual machine of its own, with the flags that it has by default."""
    paths = ["-pa", EBIN, APPLICATION]
    return ["env", "ERL_CRASH_DUMP_SECONDS=0", "erl", "-noshell", *paths, "-run", module, function, "-extra", *options]


def receiver(alpn, bidi="messages"):
    return rust("receive", "--alpn", alpn, "--bidi", bidi)


def ceiling(alpn, way, peers=1):
    """Its send windows are those with which it goes best. quinn's own, 10 MB, are slower: what lies
    there is no longer in the caches, and what many connections have under way together must fit
    into one socket buffer of the receiver."""
    window = 256 * 1024 if peers > 1 else 1024 * 1024
    words = ["--alpn", alpn, "--way", way, "--peers", peers, "--window", window]
    return rust("ceiling", *words)


def core(peers=1, *more):
    return rust("core", "--peers", peers, *more)


def bridge(way, peers=1, callers=1):
    return erlang("bench_send", "main", "--way", way, "--peers", peers, "--callers", callers)


def bridge_receiver():
    return erlang("bench_receive", "main")


def tcp(peers=1, callers=1):
    return erlang("bench_tcp", "send", "--peers", peers, "--callers", callers)


def tcp_receiver():
    return erlang("bench_tcp", "receive")
