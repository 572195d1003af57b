"""Messages per second from a sending process to a receiving one, everything checked."""

import time
from dataclasses import dataclass

from .programs import Failed, Program

# As in bench/src/work.rs: what arrives in this time is checked, and no part of the rate.
WARM_UP_SECONDS = 0.3


@dataclass
class Sample:
    """One run: what was delivered, how fast, and the CPU time of both processes."""

    per_second: float
    mb_per_second: float
    cpu_per_million: float
    cpu_share: float
    cut: int


def run(size, seconds, sender, receiver):
    """`sender` and `receiver` are command lines, the sender's without what all have in common."""
    with Program(*receiver, "--size", size) as there:
        port = there.hear("ready")["port"]
        common = ["--to", port, "--size", size, "--seconds", f"{seconds + WARM_UP_SECONDS:.3f}"]
        with Program(*sender, *common) as here:
            here.hear("ready")
            begin = time.monotonic()
            before = here.cpu_seconds() + there.cpu_seconds()
            sent = here.ask("go", "sent")
            got = there.ask(f"await {sent['messages']}", "got")
            cpu = here.cpu_seconds() + there.cpu_seconds() - before
            elapsed = time.monotonic() - begin
            check(sent, got)
    rate = got["rate"]
    return Sample(
        per_second=rate,
        mb_per_second=rate * size / 1e6,
        cpu_per_million=cpu / got["messages"] * 1e6,
        cpu_share=cpu / elapsed,
        cut=got.get("cut", 0),
    )


def check(sent, got):
    if got["messages"] != sent["messages"] or got["wrong"] or got["uneven"]:
        raise Failed(f"work was lost or spoiled: {sent} {got}")
