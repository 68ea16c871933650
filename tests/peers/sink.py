"""A small mail server that takes everything and remembers exactly what it was told."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

KEYWORDS = ("PIPELINING", "SIZE 50000000", "DSN", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8")


class Received(NamedTuple):
    """A message: the arguments of its commands, and its content with the dots undone."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @property
    def parameters(self) -> set[str]:
        """Those of MAIL and RCPT, but for SIZE and BODY."""
        words = [word for command in (self.sender, *self.recipients) for word in command.split()[1:]]
        return {word for word in words if not word.upper().startswith(("SIZE=", "BODY="))}


class Sink(socketserver.ThreadingTCPServer):
    """Listens on a free port of loopback."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.messages: list[Received] = []
        self.port = int(self.server_address[1])

    def wait(self, count: int, timeout: float = 30.0) -> list[Received]:
        """The messages, when there are that many."""
        end = time.monotonic() + timeout
        while len(self.messages) < count:
            assert time.monotonic() < end, f"{len(self.messages)} of {count} messages came in {timeout:g} s"
            time.sleep(0.02)
        return list(self.messages)


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Sink)
        sender, recipients = "", list[str]()
        self.say("220 sink.test ESMTP")
        while line := self.rfile.readline().decode("utf-8").rstrip("\r\n"):
            verb, argument = line.partition(" ")[0].upper(), line.partition(":")[2]
            match verb:
                case "EHLO":
                    self.say(
                        "\r\n".join([*(f"250-{word}" for word in ("sink.test", *KEYWORDS[:-1])), f"250 {KEYWORDS[-1]}"])
                    )
                case "MAIL":
                    sender, recipients = argument, []
                    self.say("250 2.1.0 Ok")
                case "RCPT":
                    recipients.append(argument)
                    self.say("250 2.1.5 Ok")
                case "DATA":
                    self.say("354 Go on")
                    self.server.messages.append(Received(sender, tuple(recipients), self.content()))
                    self.say("250 2.0.0 Ok: kept")
                case "QUIT":
                    self.say("221 2.0.0 Bye")
                    return
                case _:
                    self.say("250 2.0.0 Ok")

    def say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def content(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            assert line.endswith(b"\r\n"), line
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)


@contextmanager
def sink() -> Iterator[Sink]:
    """A sink that runs in a thread."""
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="sink")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
