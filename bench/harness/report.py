"""What was measured, as a text for the terminal, and as docs/benchmarks.md with its plots."""

import statistics

from . import plot
from .commands import ROOT

PAGE = ROOT / "docs/benchmarks.md"
PLOTS = ROOT / "docs/benchmarks"

LABELS = {
    "ceiling": "quinn itself, the ceiling",
    "ceiling, whole": "the same, each message whole in a packet",
    "core": "the core crate, from Rust",
    "send": "the bridge, `send/2`",
    "async": "the bridge, `send_async/4`",
    "send x16": "the bridge, `send/2`, 16 callers",
    "async x16": "the bridge, `send_async/4`, 16 callers",
    "send to a VM": "the bridge, `send/2`, from VM to VM",
    "bridge": "the bridge",
    "bridge to a VM": "the bridge, from VM to VM",
    "ssl": "OTP's `ssl`, from VM to VM",
    "ssl x16": "OTP's `ssl`, from VM to VM, 16 callers",
    "ets": "`ets:lookup/2`",
    "echo": "`gen_server:call/2` to an echo",
    "pooled": "the bridge",
    "pooled, against ets": "the bridge, held against `ets:lookup/2`",
    "dialling": "during 100 dials to silent peers",
}

HEAD = """\
# Benchmarks

Written by `make bench`; never edited by hand. How it is done: [bench/README.md](../bench/README.md).

## How to read them

- Every figure is of this machine and this run; the ratios are what holds elsewhere. Contestants take turns,
  and each figure is the median of its repetitions, with the least and the greatest behind it.
- *The ceiling* is a program in Rust that does the same work on quinn itself, with the same transport
  settings but send windows, which are what is best for it; on one thread, without queue, bounds or accounts.
- *The bridge* is a virtual machine with default flags and the default options, by the public API.
- Sender and receiver are two processes on this machine, over loopback with a path MTU of 1,452. Where
  nothing else is said, the receiver is the same program in Rust for the ceiling, the core crate and
  the bridge; rows "from VM to VM" go the whole way, to one process of a node that listens.
- Every message is checked when it arrives: that it was sent, how often, and each of its bytes. Work
  that is lost fails the run. Rates are of messages that arrived, without the first 0.3 s.
- Sender, receiver and, in the bridge's virtual machine, callers and runtime share the cores there are.
  "CPU" is user and system time of both processes for a million messages.
"""


def write(results):
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name, drawing in plots(results).items():
        (PLOTS / name).write_text(drawing)
    PAGE.write_text(page(results))
    print(f"written: {PAGE.relative_to(ROOT)}")


def page(results):
    parts = [HEAD, "## Goals\n", goals(results), "## Machine\n"]
    parts.append("\n".join(["| | |", "|---|---|"] + [
        f"| {key} | {value} |" for key, value in results.facts.items()]) + "\n")
    parts.append("## Figures\n")
    for table in results.tables.values():
        parts.append(f"### {table.title[0].upper()}{table.title[1:]}\n")
        if table.about:
            parts.append(table.about.strip() + "\n")
        parts.append(markdown(table))
    parts.append("## Plots\n")
    for name, title in PLOT_TITLES.items():
        parts.append(f"![{title}](benchmarks/{name})\n")
    return "\n".join(parts)


def goals(results):
    rows = ["| work | who | ratio | goal | met |", "|---|---|---|---|---|"]
    for table, entry in with_goals(results):
        bound = f"{'<=' if entry.at_most else '>='} {entry.goal:g} of {label(entry.against)}"
        met = "yes" if table.is_met(entry) else "**no**"
        rows.append(f"| {table.title} | {label(entry.name)} | {table.ratio(entry):.2f} | {bound} "
                    f"| {met} |")
    return "\n".join(rows) + "\n"


def with_goals(results):
    for table in results.tables.values():
        for entry in table.entries.values():
            if entry.goal:
                yield table, entry


def markdown(table):
    heads = ["", table.unit, "least to greatest", "ratio"]
    heads += ["MB/s"] * bool(table.size) + [cpu_unit(table)] * has_cpu(table)
    rows = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for entry in table.entries.values():
        cells = [label(entry.name), number(entry.median()),
                 f"{number(min(entry.values))} to {number(max(entry.values))}",
                 f"{table.ratio(entry):.2f}"]
        if table.size:
            cells.append(f"{entry.median() * table.size / 1e6:,.0f}")
        if has_cpu(table):
            cells.append(f"{statistics.median(entry.cpu):.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def has_cpu(table):
    return all(entry.cpu for entry in table.entries.values())


def cpu_unit(table):
    return "CPU s per million" if table.unit == "messages/s" else "CPU s per s"


def text(results):
    """The same tables for a terminal."""
    lines = []
    for table in results.tables.values():
        lines.append(f"\n{table.title} ({table.name})".replace("`", ""))
        for entry in table.entries.values():
            figures = f"{number(entry.median()):>14} {table.unit}"
            spread = f"[{number(min(entry.values))} .. {number(max(entry.values))}]"
            more = f" {entry.median() * table.size / 1e6:8,.1f} MB/s" if table.size else ""
            if has_cpu(table):
                base = next(iter(table.entries.values()))
                cpu, least = statistics.median(entry.cpu), statistics.median(base.cpu)
                more += f"  cpu {cpu:.2f}" + (f" x{cpu / least:.2f}" if least else "")
            goal = ""
            if entry.goal:
                sign = "<=" if entry.at_most else ">="
                goal = f"  {sign} {entry.goal:g}: {'met' if table.is_met(entry) else 'NOT MET'}"
            lines.append(f"  {entry.name:20}{figures} x{table.ratio(entry):.2f}{more}  {spread}{goal}")
    return "\n".join(lines)


def label(name):
    return LABELS.get(name, name)


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


PLOT_TITLES = {
    "rate-by-size.svg": "Delivered bytes against message size, one peer of ours",
    "latency.svg": "Latency of a pooled get_or_create_connection/3",
    "cost-by-pool-size.svg": "Cost of the pool's bookkeeping against its size",
}


def plots(results):
    drawings = {}
    titles = PLOT_TITLES
    rates = rate_by_size(results)
    if rates:
        drawings["rate-by-size.svg"] = plot.chart(
            titles["rate-by-size.svg"], "bytes of a message", "MB/s", rates)
    if results.latencies:
        drawings["latency.svg"] = plot.chart(
            titles["latency.svg"], "one call in so many takes longer than", "microseconds",
            latencies(results))
    if "evict" in results.tables:
        series = {
            name: [(int(size.replace(",", "")), entry.median())
                   for size, entry in results.tables[key].entries.items()]
            for name, key in (("an evicting insert", "evict"), ("a look-up", "lookup"))
        }
        drawings["cost-by-pool-size.svg"] = plot.chart(
            titles["cost-by-pool-size.svg"], "connections in the pool", "ns", series)
    return drawings


def rate_by_size(results):
    series = {}
    for table in results.tables.values():
        if table.name.startswith("mesh-") and table.name.count("-") == 1:
            for name in ("ceiling", "send", "ssl"):
                if name in table.entries:
                    point = (table.size, table.entries[name].median() * table.size / 1e6)
                    series.setdefault(plain(name), []).append(point)
    return series


def latencies(results):
    """How long the calls take, by how few take longer: the median of the repetitions."""
    shares = [*(percent / 100 for percent in range(1, 100)), 0.995, 0.999]
    names = {"ets": "ets:lookup/2", "echo": "gen_server:call/2", "pooled": "pooled, idle",
             "dialling": "pooled, during 100 dials"}
    series = {}
    for key, runs in results.latencies.items():
        work, callers = key.split(" ")
        times = [statistics.median(run[at] for run in runs) for at in range(len(shares))]
        who = f"{names[work]}, {callers} caller{'s' if callers != '1' else ''}"
        series[who] = [(1 / (1 - share), max(1, ns) / 1000) for ns, share in zip(times, shares)]
    return series


def plain(name):
    return label(name).replace("`", "").removeprefix("the bridge, ")
