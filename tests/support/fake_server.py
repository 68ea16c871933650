"""A server that says what a test tells it, on a port of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BANNER = b"220 mbx1.contoso.com Microsoft ESMTP MAIL Service ready\r\n"
EHLO = b"250-mbx1.contoso.com Hello [127.0.0.1]\r\n250-PIPELINING\r\n250-X-ANONYMOUSTLS\r\n250 8BITMIME\r\n"
AFTER_TLS = b"250-mbx1.contoso.com Hello [127.0.0.1]\r\n250 8BITMIME\r\n"


class FakeServer:
    """What it was told to say, and what it heard (everything that came in clear)."""

    def __init__(
        self,
        *,
        banner: bytes = BANNER,
        answers: Mapping[str, bytes] | None = None,
        garbage: bytes = b"",
        tls: tuple[Path, Path] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.banner = banner
        self.answers = {"EHLO": EHLO, "QUIT": b"221 bye\r\n", **(answers or {})}
        self.garbage = garbage  # what follows a 220 to a TLS verb, instead of TLS
        self.tls = tls
        self.heard = b""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, 0), family=family)
        self.port = int(self.listener.getsockname()[1])

    def run(self) -> None:
        """One session after the other, until the listener is closed."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with contextlib.ExitStack() as closing, contextlib.suppress(OSError):
                connection.settimeout(10)
                self.session(closing.enter_context(connection), closing)

    def session(self, connection: socket.socket, closing: contextlib.ExitStack) -> None:
        secured = False
        if self.banner:
            connection.sendall(self.banner)
        while line := self.line(connection, secured=secured):
            verb = line.split()[0].decode("ascii").upper()
            answer = AFTER_TLS if secured and verb == "EHLO" else self.answers.get(verb, b"500 unknown\r\n")
            connection.sendall(answer)
            if verb in {"X-ANONYMOUSTLS", "STARTTLS"} and answer.startswith(b"220"):
                if self.tls is None:
                    connection.recv(1024)  # the ClientHello
                    connection.sendall(self.garbage)
                    while not self.garbage and connection.recv(1024):
                        pass  # silence
                    return
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self.tls)
                connection = closing.enter_context(context.wrap_socket(connection, server_side=True))
                secured = True
            if verb == "QUIT":
                return

    def line(self, connection: socket.socket, *, secured: bool) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte:
                return b""
            line += byte
        if not secured:
            self.heard += line
        return line


@contextmanager
def fake_server(**told: object) -> Iterator[FakeServer]:
    """A running one."""
    server = FakeServer(**told)  # type: ignore[arg-type] # the tests' own keywords
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        # accept() in another thread is woken by a shutdown, not by a close
        with contextlib.suppress(OSError):
            server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join(12)
