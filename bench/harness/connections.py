"""New connections per second, and what idle ones cost: memory and wake-ups of the dialling
process."""

import time
from dataclasses import dataclass

from . import commands as c
from .programs import Failed, Program

# The server is the receiver of all other rows, and the size of messages of no interest.
SERVER = [*c.receiver(c.MESH), "--size", 256]
CONTESTANTS = {
    "ceiling": (c.rust("dial-ceiling", "--alpn", c.MESH), SERVER),
    "core": (c.rust("dial-core"), SERVER),
    "bridge": (c.erlang("bench_dial", "pool"), SERVER),
    "ssl": (c.erlang("bench_dial", "tcp"), [*c.tcp_receiver(), "--size", 256]),
}


class Dialled:
    """A process with `count` open connections."""

    def __init__(self, contestant, count, at_once):
        self.words, self.server = CONTESTANTS[contestant]
        self.count, self.at_once = count, at_once

    def __enter__(self):
        self.there = Program(*self.server)
        port = self.there.hear("ready")["port"]
        counts = ["--count", self.count, "--at-once", self.at_once]
        self.here = Program(*self.words, "--to", port, *counts)
        self.here.hear("ready")
        made = self.here.ask("go", "made")
        if made["connections"] != self.count:
            raise Failed(f"{self.count} connections were to be made: {made}")
        self.per_second = self.count / made["seconds"]
        return self

    def __exit__(self, *error):
        self.here.__exit__(*error)
        self.there.__exit__(*error)


def rate(contestant, count, at_once):
    with Dialled(contestant, count, at_once) as dialled:
        return dialled.per_second


@dataclass
class Idle:
    memory: int
    # Both per second.
    wake_ups: float
    cpu: float


def idle(contestant, count, seconds, at_once=32):
    """Bytes of the process, how often it wakes up and how long it works."""
    with Dialled(contestant, count, at_once) as dialled:
        here = dialled.here
        # The last handshakes' timers and acknowledgements are over by then.
        time.sleep(min(1.0, seconds))
        before = here.wake_ups(), here.cpu_seconds()
        time.sleep(seconds)
        after = here.wake_ups(), here.cpu_seconds()
        wake_ups, cpu = ((late - early) / seconds for early, late in zip(before, after))
        return Idle(here.resident_bytes(), wake_ups, cpu)
