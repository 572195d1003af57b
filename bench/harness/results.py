"""What was measured: tables of contestants, each with its samples; kept as JSON between a run and
its report."""

import dataclasses
import json
import statistics
from dataclasses import dataclass, field


@dataclass
class Entry:
    """One contestant's samples in one table, and what they are held against.

    `goal` is a bound of the ratio to `against`, least or most as `at_most` says."""

    name: str
    values: list = field(default_factory=list)
    cpu: list = field(default_factory=list)
    against: str = ""
    goal: float = 0.0
    at_most: bool = False

    def median(self):
        return statistics.median(self.values)


@dataclass
class Table:
    """Contestants at one kind of work. `unit` is of the values; `about` says what was done."""

    name: str
    title: str
    unit: str
    about: str = ""
    # Bytes of a message, where the unit is messages.
    size: int = 0
    entries: dict = field(default_factory=dict)

    def entry(self, name, **what):
        return self.entries.setdefault(name, Entry(name, **what))

    def ratio(self, entry):
        """To what the entry is held against, else to the first of the table."""
        base = self.entries.get(entry.against) or next(iter(self.entries.values()))
        return entry.median() / base.median() if base.median() else 0.0

    def is_met(self, entry):
        ratio = self.ratio(entry)
        return ratio <= entry.goal if entry.at_most else ratio >= entry.goal


@dataclass
class Results:
    facts: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    # Distributions of latencies: by label, nanoseconds by share of the calls.
    latencies: dict = field(default_factory=dict)

    def table(self, name, title, unit, about="", size=0):
        return self.tables.setdefault(name, Table(name, title, unit, about, size))

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @staticmethod
    def load(path):
        saved = json.loads(path.read_text())
        tables = {}
        for name, table in saved["tables"].items():
            entries = {key: Entry(**entry) for key, entry in table.pop("entries").items()}
            tables[name] = Table(**table, entries=entries)
        return Results(saved["facts"], tables, saved["latencies"])
