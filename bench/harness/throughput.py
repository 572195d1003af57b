"""Messages from a sending process to a receiving one: every one checked, the rate of those that
arrived, the CPU time of both processes."""

import time
from dataclasses import dataclass, field

from . import commands as c
from .programs import Failed, Program

# As in bench/src/work.rs: what arrives in this time is checked, and no part of the rate.
WARM_UP_SECONDS = 0.3

CEILING = "ceiling"
WHOLE = "ceiling, whole"


@dataclass
class Contestant:
    """`sender` and `receiver` are command lines, without what all of them have in common. One that
    `pulls` is the receiver of what the other sends when asked."""

    name: str
    sender: list
    receiver: list
    goal: float = 0.0
    against: str = CEILING
    pulls: bool = False


@dataclass
class Row:
    """One kind of work: messages of one size, by several contestants in turn."""

    name: str
    title: str
    size: int
    about: str
    contestants: list = field(default_factory=list)


@dataclass
class Sample:
    per_second: float
    mb_per_second: float
    # CPU seconds of both processes for a million messages; how many cores they had.
    cpu_per_million: float
    cores: float
    # Messages that came in several chunks.
    cut: int


def measure(row, contestant, seconds):
    asked = f"{seconds + WARM_UP_SECONDS:.3f}"
    with Program(*contestant.receiver, "--size", row.size) as there:
        port = there.hear("ready")["port"]
        common = ["--to", port, "--size", row.size, "--seconds", asked]
        with Program(*contestant.sender, *common) as here:
            here.hear("ready")
            begin = time.monotonic()
            before = here.cpu_seconds() + there.cpu_seconds()
            if contestant.pulls:
                got = here.ask("go", "got")
                sent = there.ask("account", "account")
            else:
                sent = here.ask("go", "sent")
                got = there.ask(f"await {sent['messages']}", "got")
            cpu = here.cpu_seconds() + there.cpu_seconds() - before
            elapsed = time.monotonic() - begin
    if got["messages"] != sent["messages"] or got["wrong"] or got["uneven"]:
        raise Failed(f"{row.name}, {contestant.name}: work was lost or spoiled: {sent} {got}")
    return Sample(
        per_second=got["rate"],
        mb_per_second=got["rate"] * row.size / 1e6,
        cpu_per_million=cpu / got["messages"] * 1e6,
        cores=cpu / elapsed,
        cut=got.get("cut", 0),
    )


def name(kind, size, peers):
    return f"{kind}-{short(size)}" + (f"-{peers}" if peers > 1 else "")


def title(kind, size, peers):
    unit = f"{size // 1024} KiB" if size >= 1024 else f"{size} B"
    return f"{kind}, {unit}, {peers} peer{'s' if peers > 1 else ''}"


def short(size):
    return f"{size // 1024}k" if size >= 1024 else str(size)


def mesh(size, goal, peers=1, more_callers=False, only=None):
    """Messages to one of ours. All but the last contestants send to the same receiver in Rust."""
    there = c.receiver(c.MESH)
    contestants = [
        Contestant(CEILING, c.ceiling(c.MESH, "joined", peers), there),
        Contestant("core", c.core(peers), there),
        Contestant("send", c.bridge("send", peers, peers), there, goal),
        Contestant("async", c.bridge("async", peers), there, goal),
        Contestant("send to a VM", c.bridge("send", peers, peers), c.bridge_receiver()),
        Contestant("ssl", c.tcp(peers, peers), c.tcp_receiver()),
    ]
    if more_callers:
        contestants[4:4] = [
            Contestant("send x16", c.bridge("send", peers, 16), there, goal),
            Contestant("async x16", c.bridge("async", peers, 16), there, goal),
        ]
        contestants.append(Contestant("ssl x16", c.tcp(peers, 16), c.tcp_receiver()))
    if only:
        contestants = [contestant for contestant in contestants if contestant.name in only]
    about = "The ceiling joins the messages into buffers of 32 KiB on one stream" + (
        " per peer, a task each. " if peers > 1 else ". ")
    return Row(name("mesh", size, peers), title("`macula-mesh/1`", size, peers), size, about,
               contestants)


def field_node(size, goal, peers=1):
    """Messages to a node of the field, each on a bidirectional stream."""
    there = c.receiver(c.FIELD)
    contestants = [
        Contestant(CEILING, c.ceiling(c.FIELD, "streams", peers), there),
        Contestant("core", c.core(peers), there),
        Contestant("send", c.bridge("send", peers, peers), there, goal),
        Contestant("async", c.bridge("async", peers), there, goal),
    ]
    about = ("The ceiling gives each message a bidirectional stream of its own, within the 100 that "
             "the receiver grants; the receiver ends its half at once.")
    if size < 1000:
        contestants[1:1] = [Contestant(WHOLE, c.ceiling(c.FIELD, "packets", peers), there)]
        about += (f" “{WHOLE}” keeps in addition what the product promises nodes of the field: each "
                  "message is whole in one packet.")
    return Row(name("macula", size, peers), title("`macula`, a stream each", size, peers), size,
               about, contestants)


BLOCK = 64 * 1024
BULK = [
    Row("bulk-write", "a stream that the user opened, writing 64 KiB blocks", BLOCK,
        "The receiver is the same.", [
            Contestant(CEILING, c.ceiling(c.MESH, "blocks"), c.receiver(c.MESH, "blocks")),
            Contestant("bridge", c.erlang("bench_bulk", "write"), c.receiver(c.MESH, "blocks"),
                       0.90),
            Contestant("bridge to a VM", c.erlang("bench_bulk", "write"), c.bridge_receiver()),
        ]),
    Row("bulk-read", "a stream that the user opened, reading what comes in 64 KiB blocks", BLOCK,
        "The sender is the same, the ceiling's. The bridge gets each block as a message.", [
            Contestant(CEILING, c.rust("read", "--alpn", c.MESH), c.receiver(c.MESH, "source"),
                       pulls=True),
            Contestant("bridge", c.erlang("bench_bulk", "read"), c.receiver(c.MESH, "source"),
                       0.90, pulls=True),
        ]),
    Row("receive", "receiving: one process of a listening node, 64 KiB blocks", BLOCK,
        "The sender is the same, the ceiling's, with one stream.", [
            Contestant(CEILING, c.ceiling(c.MESH, "blocks"), c.receiver(c.MESH, "blocks")),
            Contestant("bridge", c.ceiling(c.MESH, "blocks"), c.bridge_receiver(), 0.80),
        ]),
]

ROWS = [
    mesh(256, 0.80, more_callers=True),
    mesh(4096, 0.90),
    mesh(4096, 0.90, peers=50),
    mesh(BLOCK, 0.90),
    mesh(BLOCK, 0.90, peers=50),
    field_node(256, 0.80),
    field_node(256, 0.80, peers=50),
    field_node(4096, 0.80),
    field_node(4096, 0.80, peers=50),
    *BULK,
]
# For the plot of rates against sizes, besides those of `ROWS`.
SIZES = [mesh(size, 0.0, only=[CEILING, "send", "ssl"]) for size in (64, 1024, 16 * 1024)]
