"""The whole benchmark: every measurement in turn, contestants alternating, progress on the way."""

import dataclasses
import time
from dataclasses import dataclass

from . import commands as c
from . import connections, instructions, throughput
from .facts import facts
from .programs import Program
from .results import Results

# Idle connections: of a process to compare with, and of one that is watched.
LEAST, WATCHED = 10, 1_000


@dataclass
class Profile:
    """How much of everything."""

    repetitions: int
    seconds: float
    # Rows and contestants of throughput; everything when empty.
    rows: tuple = ()
    contestants: tuple = ()
    with_sizes: bool = True
    dials: tuple = (("sequential", 300, 1), ("32 at once", 1000, 32))
    idle: tuple = (1_000, 10_000)
    idle_repetitions: int = 2
    # One interval of keep-alives; 0: wake-ups are not counted.
    idle_seconds: float = 20.0
    call_repetitions: int = 3
    with_costs: bool = True
    with_instructions: bool = True


FULL = Profile(repetitions=4, seconds=1.0)
QUICK = Profile(
    repetitions=2,
    seconds=0.7,
    rows=("mesh-256", "mesh-64k", "macula-256", "macula-256-50", "bulk-write", "bulk-read"),
    contestants=("ceiling", "send", "async", "bridge", "ssl"),
    with_sizes=False,
    idle=(1_000,),
    idle_repetitions=1,
    idle_seconds=0.0,
    call_repetitions=1,
    with_instructions=False,
)
# Whether everything still works, not how fast: part of `make test`.
SMOKE = Profile(
    repetitions=1,
    seconds=0.05,
    rows=("mesh-256", "macula-256", "bulk-write", "bulk-read"),
    contestants=("ceiling", "ceiling, whole", "core", "send", "async", "send to a VM", "bridge",
                 "ssl"),
    with_sizes=False,
    dials=(("sequential", 3, 1),),
    idle=(),
    call_repetitions=0,
    with_costs=False,
    with_instructions=False,
)


class Suite:
    def __init__(self, profile, progress):
        self.profile = profile
        self.progress = progress
        self.results = Results()

    def run(self):
        begin = time.monotonic()
        self.results.facts = facts()
        self.run_throughput()
        self.run_dials()
        self.run_idle()
        if self.profile.call_repetitions:
            self.run_calls()
        if self.profile.with_costs:
            self.run_costs()
        if self.profile.with_instructions:
            instructions.measure(self.results, self.progress)
        self.results.facts["duration"] = f"{time.monotonic() - begin:.0f} s"
        return self.results

    def run_rows(self):
        """Those of the profile, or all."""
        wanted = self.profile.rows
        rows = [row for row in throughput.ROWS + throughput.SIZES if row.name in wanted]
        for row in rows if wanted else throughput.ROWS:
            self.run_row(row)

    def run_throughput(self):
        self.run_rows()
        if self.profile.with_sizes:
            for row in throughput.SIZES:
                self.run_row(row)

    def run_row(self, row):
        contestants = [
            contestant
            for contestant in row.contestants
            if not self.profile.contestants or contestant.name in self.profile.contestants
        ]
        table = self.results.table(row.name, row.title, "messages/s", row.about, row.size)
        for repetition in range(self.profile.repetitions):
            for contestant in contestants:
                self.progress(f"{row.name}: {contestant.name}, {repetition + 1} of "
                              f"{self.profile.repetitions}")
                sample = throughput.measure(row, contestant, self.profile.seconds)
                entry = table.entry(contestant.name, against=contestant.against,
                                    goal=contestant.goal)
                entry.values.append(sample.per_second)
                entry.cpu.append(sample.cpu_per_million)

    def run_dials(self):
        for how, count, at_once in self.profile.dials:
            name = f"dials-{at_once}"
            table = self.results.table(name, f"new connections, {how}", "connections/s",
                                       "Full handshakes, all from one socket; the connections stay.")
            for repetition in range(self.profile.repetitions):
                for contestant in connections.CONTESTANTS:
                    self.progress(f"{name}: {contestant}, {repetition + 1} of "
                                  f"{self.profile.repetitions}")
                    entry = table.entry(contestant, against="ceiling",
                                        goal=0.90 if contestant == "bridge" else 0.0)
                    entry.values.append(connections.rate(contestant, count, at_once))

    def run_idle(self):
        if not self.profile.idle:
            return
        least = {}
        for count in (LEAST, *self.profile.idle):
            for repetition in range(self.profile.idle_repetitions):
                for contestant in ("ceiling", "core", "bridge"):
                    self.progress(f"{count} idle connections: {contestant}, {repetition + 1} of "
                                  f"{self.profile.idle_repetitions}")
                    is_watched = (count == WATCHED and repetition == 0
                                  and self.profile.idle_seconds > 0)
                    idle = connections.idle(
                        contestant, count, self.profile.idle_seconds if is_watched else 0.3)
                    if count == LEAST:
                        least[contestant] = min(idle.memory, least.get(contestant, idle.memory))
                    else:
                        self.note_memory(contestant, count, idle.memory - least[contestant])
                    if is_watched:
                        self.note_wake_ups(contestant, idle)

    def note_memory(self, contestant, count, memory):
        table = self.results.table(
            f"memory-{count}", f"memory per idle connection, {count:,} of them", "bytes",
            f"Resident memory of the dialling process beyond that with {LEAST} connections, by "
            "connection.")
        goal = 1.15 if contestant == "bridge" else 0.0
        entry = table.entry(contestant, against="ceiling", goal=goal, at_most=True)
        entry.values.append(memory / (count - LEAST))

    def note_wake_ups(self, contestant, idle):
        table = self.results.table(
            "wake-ups", f"{WATCHED:,} idle connections, {self.profile.idle_seconds:.0f} s",
            "wake-ups/s", "How often a thread of the dialling process has gone to sleep, which is "
            "how often one has woken up. Each connection sends a keep-alive every 20 s.")
        entry = table.entry(contestant, against="ceiling")
        entry.values.append(idle.wake_ups)
        entry.cpu.append(idle.cpu)

    def run_calls(self):
        server = connections.SERVER
        with Program(*server) as there:
            words = c.erlang("bench_calls", "main", "--repetitions", self.profile.call_repetitions)
            port = there.hear("ready")["port"]
            with Program(*words, "--to", port) as here:
                here.hear("ready")
                self.progress("calls of get_or_create_connection/3")
                here.say("go")
                for word, fields in here.lines("done"):
                    getattr(self, f"note_{word}")(**fields)

    def note_rate(self, work, callers, per_second):
        name = f"calls-{callers}"
        title = f"a pooled `get_or_create_connection/3`, {callers} caller{'s' * (callers > 1)}"
        table = self.results.table(name, title, "calls/s",
                                   "All in one virtual machine; work of the same kind takes turns.")
        entry = table.entry(work, against="echo")
        entry.values.append(per_second)
        if work == "pooled":
            entry.goal = 5.0
            # The same samples once more, held against the other bound.
            twin = table.entry("pooled, against ets", against="ets", goal=0.5)
            twin.values.append(per_second)

    def note_latency(self, work, callers, ns):
        quantiles = [int(number) for number in ns.split(",")]
        self.results.latencies.setdefault(f"{work} {callers}", []).append(quantiles)
        if work in ("pooled", "dialling"):
            table = self.results.table(
                f"calls-p99-{callers}", f"the same, 99th percentile, {callers} "
                f"caller{'s' * (callers > 1)}", "ns",
                "Idle, and while 100 dials to silent peers are under way.")
            goal = 1.5 if work == "dialling" else 0.0
            entry = table.entry(work, against="pooled", goal=goal, at_most=True)
            entry.values.append(quantiles[98])

    def run_costs(self):
        self.progress("evicting inserts into pools of 1,000 to 100,000")
        evict = self.results.table("evict", "an evicting insert into a full pool", "ns",
                                   "`pool.rs` alone, without network, in a loop; so are look-ups.")
        lookup = self.results.table("lookup", "a look-up in a full pool", "ns", "The same.")
        with Program(*c.rust("evict")) as program:
            for _, cost in program.lines(None):
                size = f"{cost['size']:,}"
                goal = 1.5 if cost["size"] == 100_000 else 0.0
                evict.entry(size, against="1,000", goal=goal, at_most=True).values.append(
                    cost["insert"])
                lookup.entry(size, against="1,000").values.append(cost["lookup"])


def narrowed(profile, **changes):
    return dataclasses.replace(profile, **{k: v for k, v in changes.items() if v is not None})
