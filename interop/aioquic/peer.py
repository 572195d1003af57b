"""The aioquic peer: speaks the lines that interop/README.md lists, on streams of plain bytes.

It owns the QUIC side only; frames.py judges what arrives and counts it.
"""

import argparse
import asyncio
import functools
import socket
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from frames import Inbox, Tally, frame

ALPN = "macula"
LOOPBACK = "127.0.0.1"
# What nodes in the field grant; more streams of ours than that are not opened at once either.
STREAMS_AT_ONCE = 100
# What is asked of the kernel, which may grant less: small buffers lose packets in bursts.
SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
# Flow control of a connection and of each of its streams.
WINDOW_BYTES = 8 * 1024 * 1024
# How long one command may take; the suite gives up later.
CONNECT_SECONDS = 5
SEND_SECONDS = 120
# The reason that aioquic gives for a connection that was silent for too long.
IDLE = "Idle timeout"


class Node:
    """All that the connections of this process share."""

    def __init__(self, args):
        self.args = args
        self.mode = args.mode
        self.tally = Tally()
        self.connection = None

    def configuration(self, is_client):
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            is_client=is_client,
            idle_timeout=self.args.idle_timeout_ms / 1000,
            max_data=WINDOW_BYTES,
            max_stream_data=WINDOW_BYTES,
            verify_mode=ssl.CERT_NONE,
        )
        if not is_client:
            configuration.load_cert_chain(self.args.cert, self.args.key)
        return configuration

    async def listen(self):
        create = functools.partial(Connection, self)
        server = await serve(
            LOOPBACK, 0, configuration=self.configuration(False), create_protocol=create
        )
        enlarge_buffers(server._transport)
        return server

    async def connect(self, port):
        quic = QuicConnection(configuration=self.configuration(True))
        connection = Connection(self, quic)
        await bind(connection)
        connection.connect((LOOPBACK, port))
        await asyncio.wait_for(connection.wait_connected(), CONNECT_SECONDS)
        return connection


async def bind(connection):
    """Gives a client's connection a new socket, and returns its port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: connection, local_addr=(LOOPBACK, 0)
    )
    enlarge_buffers(transport)
    return transport.get_extra_info("sockname")[1]


def enlarge_buffers(transport):
    udp = transport.get_extra_info("socket")
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        udp.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BUFFER_BYTES)


class Connection(QuicConnectionProtocol):
    """One connection, dialled or accepted."""

    def __init__(self, node, quic, stream_handler=None):
        super().__init__(quic)
        self.node = node
        self.inboxes = {}
        self.ends = {}
        self.stopped = set()
        self.newest_stream = None

    def quic_event_received(self, event):
        tally = self.node.tally
        match event:
            case events.HandshakeCompleted():
                self.node.connection = self
                tally.count("connections_opened")
            case events.StreamDataReceived():
                self.take(event.stream_id, event.data, event.end_stream)
            case events.StreamReset():
                tally.count_code("resets", event.error_code)
                self.end(event.stream_id)
            case events.StopSendingReceived():
                tally.count_code("stops", event.error_code)
                # aioquic has reset our half, and takes no more for it.
                self.stopped.add(event.stream_id)
            case events.ConnectionTerminated():
                self.terminated(event)

    def terminated(self, event):
        tally = self.node.tally
        if event.reason_phrase == IDLE:
            tally.count("closed_by_timeout")
        elif event.frame_type is None:
            tally.count_code("closes", event.error_code)
        tally.count("connections_closed")
        for end in self.ends.values():
            end.cancel()

    def take(self, stream, data, is_last):
        if stream not in self.inboxes:
            self.inboxes[stream] = Inbox(self.node.tally, self.node.mode == "chunks")
            self.newest_stream = stream
            if stream not in self.ends:
                self.node.tally.count("streams")
        if data:
            self.inboxes[stream].take(data)
        # Whoever opened the stream has the first word: what comes back is not sent back again.
        if stream not in self.ends and (is_last or self.node.mode == "echo"):
            if stream not in self.stopped:
                echo = data if self.node.mode == "echo" else b""
                self._quic.send_stream_data(stream, echo, end_stream=is_last)
                self._transmit_soon()
        if is_last:
            self.node.tally.count("finished")
            self.inboxes[stream].finish()
            self.end(stream)

    def end(self, stream):
        self.inboxes.pop(stream, None)
        self.stopped.discard(stream)
        end = self.ends.get(stream)
        if end and not end.done():
            end.set_result(None)

    def open(self):
        stream = self._quic.get_next_available_stream_id()
        # Known to the connection before the next one is asked for.
        self._quic.send_stream_data(stream, b"")
        self.ends[stream] = asyncio.get_running_loop().create_future()
        self.newest_stream = stream
        return stream

    def write(self, stream, data, is_last=False):
        self._quic.send_stream_data(stream, data, end_stream=is_last)
        self.transmit()

    async def send_streams(self, messages):
        """A stream for each message, a list of writes; returns when the other end has finished."""
        room = asyncio.Semaphore(STREAMS_AT_ONCE)
        ends = []
        for writes in messages:
            await room.acquire()
            stream = self.open()
            end = self.ends[stream]
            end.add_done_callback(lambda _: room.release())
            ends.append(end)
            for write in writes[:-1]:
                self.write(stream, write)
            self.write(stream, writes[-1], is_last=True)
            if len(ends) % STREAMS_AT_ONCE == 0:
                # What has arrived gets its turn.
                await asyncio.sleep(0)
        await asyncio.gather(*ends)


def cut(data, length):
    return [data[start : start + length] for start in range(0, len(data), length)]


async def answer(node, words):
    connection = node.connection
    match words:
        case ["stats"]:
            return node.tally.term("stats")
        case ["wait", field, least, milliseconds]:
            is_reached = await node.tally.wait(field, int(least), int(milliseconds) / 1000)
            return node.tally.term("stats" if is_reached else "timeout")
        case ["connect", port]:
            node.connection = await node.connect(int(port))
            return "connected"
        case ["streams", count, size]:
            messages = ([frame(index, int(size))] for index in range(int(count)))
            await asyncio.wait_for(connection.send_streams(messages), SEND_SECONDS)
            return "{sent,%s}" % count
        case ["messages", count, size, length]:
            joined = b"".join(frame(index, int(size)) for index in range(int(count)))
            sending = connection.send_streams([cut(joined, int(length))])
            await asyncio.wait_for(sending, SEND_SECONDS)
            return "{sent,%s}" % count
        case ["split", size]:
            count, messages = splits(int(size))
            await asyncio.wait_for(connection.send_streams(messages), SEND_SECONDS)
            return "{sent,%d}" % count
        case ["open", size]:
            connection.write(connection.open(), frame(0, int(size)))
            return "ok"
        case ["reset", code]:
            connection._quic.reset_stream(connection.newest_stream, int(code))
            connection.transmit()
            return "ok"
        case ["stop", code]:
            connection._quic.stop_stream(connection.newest_stream, int(code))
            connection.transmit()
            return "ok"
        case ["close", code]:
            connection.close(error_code=int(code))
            return "ok"
        case ["key_update"]:
            connection.request_key_update()
            return "ok"
        case ["ping"]:
            await connection.ping()
            return "ok"
        case ["rebind"]:
            former = connection._transport
            port = await bind(connection)
            former.close()
            return "{port,%d}" % port
    return "{error,unknown_command}"


def splits(size):
    """Two frames a stream, cut at each of their bytes in turn."""
    cuts = range(1, 2 * len(frame(0, size)))
    messages = []
    for index, position in enumerate(cuts):
        both = frame(2 * index, size) + frame(2 * index + 1, size)
        messages.append([both[:position], both[position:]])
    return 2 * len(cuts), messages


async def run(args):
    node = Node(args)
    server = await node.listen()
    say("{ready,%d}" % server._transport.get_extra_info("sockname")[1])
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    # Ends with `quit`, or when whoever drives us is gone.
    while line := await lines.readline():
        if line == b"quit\n":
            break
        try:
            say(await answer(node, line.decode().split()))
        except (AssertionError, ConnectionError, TimeoutError, asyncio.CancelledError) as error:
            say("{error,%s}" % type(error).__name__.lower())
    server.close()


def say(term):
    print(term + ".", flush=True)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="count", choices=["count", "echo", "chunks"])
    parser.add_argument("--idle-timeout-ms", type=int, default=60_000)
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(run(arguments()))
