"""What a peer has seen: frames however they were cut, counters, and a way to wait for one.

A frame is version 1, type, flags, reserved (a byte each), the payload's length (four bytes,
big-endian) and the payload: an index of eight bytes, then bytes that follow from it.
"""

import asyncio

HEADER_BYTES = 8
INDEX_BYTES = 8
VERSION = 1
CYCLE = bytes(range(256)) * 2
NUMBERS = (
    "connections_opened connections_closed closed_by_timeout streams finished "
    "messages distinct duplicates corrupt resets stops closes"
).split()
CODES = ("resets", "stops", "closes")


def fill(index, length):
    start = index % 256
    cycle = CYCLE[start : start + 256]
    return (cycle * (length // 256 + 1))[:length]


def frame(index, size):
    header = bytes([VERSION, 1, 0, 0]) + size.to_bytes(4, "big")
    return header + index.to_bytes(INDEX_BYTES, "big") + fill(index, size - INDEX_BYTES)


class Tally:
    """Counters, and the error codes that came with what is counted."""

    def __init__(self):
        self.changed = asyncio.Event()
        self.numbers = dict.fromkeys(NUMBERS, 0)
        self.codes = {kind: {} for kind in CODES}
        self.indices = set()

    def count(self, name):
        self.numbers[name] += 1
        self.changed.set()

    def count_code(self, kind, code):
        self.codes[kind][code] = self.codes[kind].get(code, 0) + 1
        self.count(kind)

    def take(self, index):
        self.count("messages")
        self.count("duplicates" if index in self.indices else "distinct")
        self.indices.add(index)

    async def wait(self, name, least, seconds):
        """Whether the counter gets there in time."""
        try:
            async with asyncio.timeout(seconds):
                while self.numbers[name] < least:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    def term(self, tag):
        numbers = ["%s=>%d" % pair for pair in self.numbers.items()]
        for kind, codes in self.codes.items():
            pairs = ",".join("%d=>%d" % pair for pair in codes.items())
            numbers.append("%s_codes=>#{%s}" % (kind.removesuffix("s"), pairs))
        return "{%s,#{%s}}" % (tag, ",".join(numbers))


class Inbox:
    """The bytes of one stream on their way to frames."""

    def __init__(self, tally, has_old_habit):
        self.tally = tally
        self.has_old_habit = has_old_habit
        self.rest = bytearray()

    def take(self, data):
        self.rest += data
        taken = 0
        while (length := self.frame_length(taken)) and len(self.rest) - taken >= length:
            self.judge(bytes(self.rest[taken : taken + length]))
            taken += length
            if self.has_old_habit:
                break
        del self.rest[:taken]
        if self.has_old_habit:
            # A chunk is a message: what follows in it is dropped, and half of one is broken.
            if taken == 0:
                self.tally.count("corrupt")
            self.rest.clear()

    def frame_length(self, start):
        header = self.rest[start : start + HEADER_BYTES]
        if len(header) < HEADER_BYTES:
            return None
        return HEADER_BYTES + int.from_bytes(header[4:], "big")

    def judge(self, data):
        index = int.from_bytes(data[HEADER_BYTES : HEADER_BYTES + INDEX_BYTES], "big")
        if data[:1] + data[4:] == bytes([VERSION]) + frame(index, len(data) - HEADER_BYTES)[4:]:
            self.tally.take(index)
        else:
            self.tally.count("corrupt")

    def finish(self):
        if self.rest:
            self.tally.count("corrupt")
