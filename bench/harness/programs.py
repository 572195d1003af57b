"""The programs that a run consists of: started, driven by lines, watched in /proc, ended."""

import os
import select
import subprocess
import time

# Longer than anything a program does between two lines; a program that says nothing is lost.
PATIENCE_SECONDS = 120
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """Work was lost, or a program ended before its time."""


class Program:
    """A process that answers lines with lines of the form `word key=value ...`."""

    def __init__(self, *words):
        self.words = [str(word) for word in words]
        self.process = subprocess.Popen(
            self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Ends the process, which obeys `quit`; one that does not is killed."""
        try:
            self.say("quit")
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def say(self, line):
        self.process.stdin.write(line.encode() + b"\n")

    def ask(self, line, word):
        self.say(line)
        return self.hear(word)

    def hear(self, word):
        """The fields of the next line, which must begin with `word`."""
        try:
            first, fields = self.line()
        except EOFError as end:
            raise Failed(str(end)) from None
        if first != word:
            raise Failed(f"{self}: {word} expected, but: {first} {fields}")
        return fields

    def lines(self, last):
        """The lines before one that is `last`; all that there are if that is nothing."""
        while True:
            try:
                word, fields = self.line()
            except EOFError:
                if last:
                    raise Failed(f"{self}: ended before it said {last}") from None
                return
            if word == last:
                return
            yield word, fields

    def line(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self.rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed(f"{self}: silent for too long")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise EOFError(f"{self}: ended, having said {self.rest!r}")
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        word, *fields = line.decode().split(" ")
        pairs = [field.split("=", 1) for field in fields if "=" in field]
        return word, {key: number(value) for key, value in pairs}

    def __str__(self):
        return " ".join(self.words)

    def cpu_seconds(self):
        """User and system time of all threads so far."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def wake_ups(self):
        """How often its threads have gone to sleep so far: each wakes up again."""
        tasks = f"/proc/{self.process.pid}/task"
        return sum(status(f"{tasks}/{task}/status", "voluntary_ctxt_switches")
                   for task in os.listdir(tasks))

    def resident_bytes(self):
        return status(f"/proc/{self.process.pid}/status", "VmRSS") * 1024


def status(path, key):
    with open(path) as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1])
    raise Failed(f"{path} has no {key}")


def number(text):
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
