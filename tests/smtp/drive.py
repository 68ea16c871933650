"""What the tests of the sessions share: a program that drives them, and wires between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from anontls.smtp import (
    ClientSession,
    ClientSettings,
    Recipient,
    RemoteProtocolError,
    Reply,
    ServerSession,
    ServerSettings,
    exchange,
)
from anontls.smtp.events import (
    Authenticate,
    AuthenticationResponse,
    ClientEvent,
    Content,
    MessageAborted,
    MessageBegins,
    MessageEnds,
    ServerClosed,
    ServerEvent,
    StartTls,
)

QUEUED = exchange.queued("<1@mail.example>")
PASSWORD = b"open sesame"


def recipient_by_name(_session: ServerSession, recipient: Recipient) -> Reply | None:
    """``relay@…`` is not ours, ``nobody@…`` does not exist, ``busy@…`` later."""
    return {
        "relay": exchange.UNABLE_TO_RELAY,
        "nobody": exchange.MAILBOX_UNAVAILABLE,
        "busy": exchange.INSUFFICIENT_RESOURCES,
    }.get(recipient.local_part)


class Server:
    """A program around a ServerSession; it does at once what an event asks for, but TLS."""

    def __init__(self, settings: ServerSettings | None = None, *, answer: Reply = QUEUED, **fields: Any) -> None:
        self.session = ServerSession(
            settings or make_settings(**fields), peer="192.0.2.7", recipient=recipient_by_name, trace=None
        )
        self.answer = answer
        self.events: list[ServerEvent] = []
        self.messages: list[bytes] = []
        self._pieces: list[bytes] = []
        self.session.greeting()

    def handle(self, events: Iterable[ServerEvent]) -> None:
        for event in events:
            if not isinstance(event, Content):
                self.events.append(event)
            match event:
                case MessageBegins() | MessageAborted():
                    self._pieces = []
                case Content(data):
                    assert isinstance(data, bytes)
                    assert data
                    self._pieces.append(data)
                case MessageEnds(_, size):
                    message = b"".join(self._pieces)
                    assert len(message) == size
                    self.messages.append(message)
                    self.handle(self.session.settle(self.answer))
                case Authenticate(_, "LOGIN", _, None):
                    self.handle(self.session.continue_authentication(b"Password:"))
                case Authenticate(_, _, _, token) | AuthenticationResponse(token):
                    ok = token == PASSWORD
                    reply = exchange.AUTHENTICATED if ok else exchange.AUTHENTICATION_UNSUCCESSFUL
                    self.handle(self.session.authenticated("user" if ok else None, reply))
                case _:
                    pass

    def receive(self, data: bytes) -> bytes:
        self.handle(self.session.receive(data))
        return self.session.output()

    def say(self, *lines: str | bytes) -> str:
        """Lines in one group; their answer."""
        data = b"".join((line.encode() if isinstance(line, str) else line) + b"\r\n" for line in lines)
        return self.receive(data).decode()

    def codes(self, *lines: str | bytes) -> list[int]:
        """The codes of the replies to a group."""
        return [int(line[:3]) for line in self.say(*lines).split("\r\n") if line and line[3] == " "]

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    @property
    def closed(self) -> str | None:
        return next((event.reason for event in self.events if isinstance(event, ServerClosed)), None)


def make_settings(**fields: Any) -> ServerSettings:
    return ServerSettings(**({"fqdn": "mail.example"} | fields))


def greeted(**fields: Any) -> Server:
    server = Server(**fields)
    server.session.output()
    return server


def hello(**fields: Any) -> Server:
    server = greeted(**fields)
    server.say("EHLO client.example")
    return server


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


class Client:
    """A ClientSession that talks to a script of replies."""

    def __init__(self, settings: ClientSettings | None = None, **fields: Any) -> None:
        self.session = ClientSession(settings or ClientSettings(**({"hello": "client.example"} | fields)))
        self.events: list[ClientEvent] = []

    def hear(self, *lines: str) -> list[ClientEvent]:
        events = self.session.receive("".join(f"{line}\r\n" for line in lines).encode())
        self.events += events
        return events

    def said(self) -> list[str]:
        """Lines sent since the last time."""
        data = b""
        while piece := self.session.output():
            data += piece
        return data.decode("utf-8", "surrogateescape").split("\r\n")[:-1]

    def ready(self, *keywords: str) -> Client:
        self.hear("220 mail.example")
        self.said()
        lines = ["mail.example Hello", *keywords]
        self.hear(*(f"250{' ' if number == len(lines) else '-'}{line}" for number, line in enumerate(lines, 1)))
        return self


def converse(client: ClientSession, server: Server, cuts: Sequence[int] = ()) -> list[ClientEvent]:
    """Carry bytes between the two, cut at will, until neither has more to say."""
    events: list[ClientEvent] = []
    while True:
        moved = False
        for data in iter(server.session.output, b""):
            moved = True
            for piece in cut(data, cuts):
                try:
                    events += client.receive(piece)
                except RemoteProtocolError as error:
                    events += error.events  # type: ignore[arg-type]
                    return events
        for data in iter(client.output, b""):
            moved = True
            for piece in cut(data, cuts):
                server.handle(server.session.receive(piece))
            for event in server.events:
                if isinstance(event, StartTls) and server.session.state.name == "TLS":
                    break
        if not moved:
            return events
