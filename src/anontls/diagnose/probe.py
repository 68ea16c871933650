"""A live probe of one server: banner, EHLO before and after TLS, the certificate behind each TLS verb.

It opens one session for each verb, sends no mail, and shows no certificate of its own.
"""

from __future__ import annotations

import asyncio
import os
from datetime import datetime

import msgspec

from anontls.facts import Certificate, Organization
from anontls.facts.certificate import certificate_bytes
from anontls.facts.trust import Trust, direct_trust
from anontls.smtp import ClientSession, ClientSettings, RemoteProtocolError, Reply, TlsVerb, exchange
from anontls.smtp.events import ClientEvent, Ready, Refused, StartTlsNow, TlsRefused
from anontls.tls import TlsFailed, TlsPump, client_context

READ = 64 * 1024
VERBS: tuple[TlsVerb, ...] = ("X-ANONYMOUSTLS", "STARTTLS")


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """What is behind one TLS verb: the certificate and what EHLO says then; or why it could not be seen."""

    verb: TlsVerb
    offered: bool
    certificate: Certificate | None = None
    protocol: str | None = None
    cipher: str | None = None
    extensions: tuple[str, ...] = ()
    failure: str | None = None
    trust: Trust | None = None  # compared with the directory, when one was given and the handshake was complete


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What one server advertises and presents.

    ``failure`` says why nothing could be seen.  ``masked`` are signs that something between rewrites the session.
    """

    host: str
    port: int
    banner: str | None = None
    name: str | None = None  # the server's own name for itself, from the EHLO answer
    extensions: tuple[str, ...] = ()
    behind: tuple[Behind, ...] = ()
    masked: tuple[str, ...] = ()
    failure: str | None = None


async def probe(
    host: str,
    port: int,
    *,
    hello: str,
    timeout: float,
    now: datetime,
    organization: Organization | None = None,
    server: str | None = None,
) -> Probed:
    """Probe one server.  With an ``organization`` its certificates are compared with what the directory holds for
    ``server``, or for the name by which the server calls itself.  Never raises on account of the peer.
    """
    first = await _session(host, port, None, hello, timeout)
    if first.failure is not None and first.greeting is None:
        return Probed(host=host, port=port, failure=first.failure)
    extensions = _lines(first.extensions)
    name = first.name
    behind = []
    for verb in VERBS:
        if verb not in first.extensions:
            behind.append(Behind(verb=verb, offered=False))
            continue
        seen = await _session(host, port, verb, hello, timeout)
        trust = None
        if organization is not None and seen.protocol is not None:
            trust = direct_trust(seen.certificate, _held(organization, server or name or host), now)
        behind.append(
            Behind(
                verb=verb,
                offered=True,
                certificate=seen.certificate,
                protocol=seen.protocol,
                cipher=seen.cipher,
                extensions=_lines(seen.extensions),
                failure=seen.failure,
                trust=trust,
            )
        )
    return Probed(
        host=host,
        port=port,
        banner=str(first.greeting) if first.greeting else None,
        name=name,
        extensions=extensions,
        behind=tuple(behind),
        masked=tuple(_masks(first)),
        failure=first.failure,
    )


def _held(organization: Organization, name: str) -> list[bytes]:
    found = organization.server(name)
    held = []
    for attribute in (found.internal_tls_cert, found.internal_tls_cert_adlds) if found else ():
        if isinstance(attribute.der, bytes):
            try:
                held.append(certificate_bytes(attribute.der))
            except ValueError:
                continue
    return held


def _lines(extensions: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(" ".join((keyword, *words)) for keyword, words in extensions.items())


class _Seen(msgspec.Struct):
    """What one session saw."""

    greeting: Reply | None = None
    name: str | None = None
    extensions: dict[str, tuple[str, ...]] = {}
    hello: Reply | None = None  # the answer to EHLO in clear
    certificate: Certificate | None = None
    protocol: str | None = None
    cipher: str | None = None
    failure: str | None = None


async def _session(host: str, port: int, verb: TlsVerb | None, hello: str, timeout: float) -> _Seen:
    seen = _Seen()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            await _Talk(seen, verb, hello, reader, writer).run()
    except TimeoutError:
        seen.failure = f"no answer in {timeout:g} s"
    except ConnectionError as e:
        seen.failure = os.strerror(e.errno) if e.errno else str(e) or type(e).__name__
    except (OSError, EOFError) as e:
        seen.failure = getattr(e, "strerror", None) or str(e) or type(e).__name__
    except (TlsFailed, RemoteProtocolError) as e:
        seen.failure = str(e)
    finally:
        if writer is not None:
            writer.close()
    return seen


class _Talk:
    """One session, until all that it is for has been seen."""

    def __init__(
        self, seen: _Seen, verb: TlsVerb | None, hello: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.seen = seen
        self.verb = verb
        self.reader, self.writer = reader, writer
        self.session = ClientSession(ClientSettings(hello=hello, allow_helo=True))
        self.pump: TlsPump | None = None
        self.done = False

    async def run(self) -> None:
        while not self.done:
            data = await self.reader.read(READ)
            if not data:
                raise EOFError("the peer closed the connection")
            pump = self.pump
            if pump is not None:
                secured = pump.handshake_done
                pump.received(data)
                if not secured and pump.handshake_done:
                    self.seen.certificate = pump.peer
                    self.seen.protocol, self.seen.cipher = pump.protocol, pump.cipher
                    self.session.tls_established()
                data = pump.read()
            if data:
                self.handle(self.session.receive(data))
            self.seen.greeting = self.session.greeting
            await self.flush()

    def handle(self, events: list[ClientEvent]) -> None:
        for event in events:
            match event:
                case Ready():
                    self.seen.extensions = event.extensions
                    self.seen.hello = self.seen.hello or event.reply
                    self.seen.name = next(iter(event.reply.lines[0].split()), None)
                    if self.verb is None or self.session.tls is not None:
                        self.session.quit()
                        self.done = True
                    else:
                        self.session.start_tls(self.verb)
                case StartTlsNow():
                    self.pump = TlsPump(client_context())
                    self.pump.start()
                case TlsRefused():
                    self.seen.failure = f"{event.verb} was refused: {event.reply}"
                    self.done = True
                case Refused():
                    if event.command == "EHLO":
                        self.seen.hello = event.reply
                    self.seen.failure = f"{event.command} was refused: {event.reply}"
                    self.done = True
                case _:
                    pass

    async def flush(self) -> None:
        pump = self.pump
        if pump is None or pump.handshake_done:
            data = self.session.output()
            if pump is not None and data:
                pump.write(data)
                data = b""
        else:
            data = b""
        sent = data if pump is None else pump.output()
        if sent:
            self.writer.write(sent)
            await self.writer.drain()


def _masks(seen: _Seen) -> list[str]:
    """Signs of a firewall that inspects SMTP [FACT B 8]."""
    found = exchange.masking(seen.greeting, seen.hello)
    signs = [f"keyword {keyword} is a mask" for keyword in found.keywords]
    if found.banner:
        signs.append("the banner is masked")
    if found.hello:
        signs.append("EHLO was rewritten to HELO on the way, or its answer cut")
    return signs
