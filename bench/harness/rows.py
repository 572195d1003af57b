"""What is measured: each row is one kind of work, done by several contestants in turn."""

from dataclasses import dataclass

from . import commands as c


@dataclass
class Contestant:
    name: str
    sender: list
    receiver: list
    note: str = ""


@dataclass
class Row:
    """`goal` is what `against` the ceiling the contestants of `held` must reach."""

    name: str
    title: str
    size: int
    goal: float
    contestants: list


CEILING = "ceiling"
WHOLE = "ceiling, whole"
# Messages to one of ours: the bridge's receiver is the ceiling's, then the whole way between two
# virtual machines, then what OTP has.


def mesh(size, goal, peers=1, more_callers=True):
    there = c.receiver(c.MESH)
    callers = peers
    contestants = [
        Contestant(CEILING, c.ceiling(c.MESH, "joined", peers), there),
        Contestant("core", c.core(peers), there),
        Contestant("send", c.bridge("send", peers, callers), there),
        Contestant("async", c.bridge("async", peers), there),
    ]
    if more_callers:
        contestants += [
            Contestant("send x16", c.bridge("send", peers, 16), there),
            Contestant("async x16", c.bridge("async", peers, 16), there),
        ]
    contestants += [
        Contestant("send to a VM", c.bridge("send", peers, callers), c.bridge_receiver()),
        Contestant("ssl", c.tcp(peers, callers), c.tcp_receiver()),
    ]
    if more_callers:
        contestants.append(Contestant("ssl x16", c.tcp(peers, 16), c.tcp_receiver()))
    name = f"mesh-{label(size)}" + (f"-{peers}" if peers > 1 else "")
    title = f"macula-mesh/1, {label(size)}, {peers} peer{'s' if peers > 1 else ''}"
    return Row(name, title, size, goal, contestants)


def field(size, goal, peers=1):
    there = c.receiver(c.FIELD)
    name = f"macula-{label(size)}" + (f"-{peers}" if peers > 1 else "")
    title = f"macula, a stream each, {label(size)}, {peers} peer{'s' if peers > 1 else ''}"
    return Row(name, title, size, goal, [
        Contestant(CEILING, c.ceiling(c.FIELD, "streams", peers), there),
        Contestant(WHOLE, c.ceiling(c.FIELD, "packets", peers), there),
        Contestant("core", c.core(peers), there),
        Contestant("send", c.bridge("send", peers, peers), there),
        Contestant("async", c.bridge("async", peers), there),
    ])


def label(size):
    return f"{size // 1024}k" if size >= 1024 else str(size)


ROWS = [
    mesh(256, 0.80),
    mesh(4096, 0.90, more_callers=False),
    mesh(4096, 0.90, peers=50, more_callers=False),
    mesh(65536, 0.90, more_callers=False),
    mesh(65536, 0.90, peers=50, more_callers=False),
    field(256, 0.80),
    field(256, 0.80, peers=50),
    field(4096, 0.80),
    field(4096, 0.80, peers=50),
]
