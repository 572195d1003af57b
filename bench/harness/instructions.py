"""Instructions per call and per message, counted by callgrind: they hardly differ from run to run.

Each count is the difference of two runs of different length, over the difference of their lengths:
what begins and ends a run goes out. It takes in everything that the process does meanwhile, on all
its threads, in the processor's user mode."""

import os
import re
import shutil
import subprocess

from . import commands as c
from . import connections
from .programs import Failed, Program

SHORT, LONG = 5_000, 25_000
SIZE = 256
CALLS = [
    ("ets", "vm", "ets"),
    ("echo", "vm", "echo"),
    ("core", "rust", "checkout"),
    ("bridge", "vm", "checkout"),
]
MESSAGES = [
    ("ceiling", "rust", "joined"),
    ("core", "rust", "send"),
    ("send", "vm", "send"),
    ("async", "vm", "async"),
]


def measure(results, progress):
    if not shutil.which("valgrind"):
        raise Failed("valgrind is missing; `make setup-bench` installs it")
    calls = results.table("instructions-call", "instructions of a pooled "
                          "`get_or_create_connection/3`", "instructions", ABOUT)
    messages = results.table("instructions-message", "instructions of the sending process for a "
                             "message of 256 B, to its acknowledgement", "instructions", ABOUT)
    with Program(*connections.SERVER) as there:
        port = there.hear("ready")["port"]
        for table, kinds in ((calls, CALLS), (messages, MESSAGES)):
            for name, where, what in kinds:
                progress(f"instructions: {name}, {what}")
                short, long = (count(where, what, times, port) for times in (SHORT, LONG))
                table.entry(name).values.append((long - short) / (LONG - SHORT))


ABOUT = ("Counted by callgrind: the difference of a run of 25,000 and one of 5,000, user mode only, "
         "everything that the process does on all its threads.")


def count(where, what, times, port):
    options = ["--what", what, "--times", times, "--size", SIZE, "--to", port]
    program = c.rust("count", *options) if where == "rust" else emulator(*options)
    words = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--smc-check=all",
             *program]
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                         stdin=subprocess.DEVNULL, env=environment(), timeout=300, check=False)
    collected = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode or not collected:
        raise Failed(f"{what} under callgrind: {ran.stdout}{ran.stderr}")
    return int(collected.group(1))


def emulator(*options):
    """`beam.smp` itself, since valgrind does not follow the script `erl`; one scheduler, and the
    allocators that it can watch."""
    root, binaries = places()
    paths = ["-pa", c.EBIN, "-pa", c.APPLICATION]
    return [f"{binaries}/beam.smp", "-S", "1:1", "-Mea", "min", "--", "-root", root, "-bindir",
            binaries, "-progname", "erl", "--", "-home", os.environ.get("HOME", "/"), "--",
            "-noshell", *paths, "-run", "bench_count", "main", "-extra", *options]


def environment():
    root, binaries = places()
    return {**os.environ, "ROOTDIR": root, "BINDIR": binaries, "EMU": "beam"}


def places():
    asked = 'io:put_chars(code:root_dir() ++ " " ++ os:getenv("BINDIR")), halt().'
    words = ["erl", "-noshell", "-eval", asked]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split(" ")
