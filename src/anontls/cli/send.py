"""``anontls send``: one outbound session as this server would open it, every step shown."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import click

from anontls import config
from anontls.cli import Exit, options
from anontls.errors import UsageError
from anontls.facts import Queue, same_name
from anontls.protocol_log import Mark
from anontls.report import json, text
from anontls.report.language import Language, show
from anontls.report.printable import printable
from anontls.selection.sessions import send_connectors
from anontls.smtp.syntax import Envelope, Recipient, valid_envelope
from anontls.transport.destinations import check_delivery_type
from anontls.transport.send import GOODBYE, NextHop, OutboundSession, SessionFailed
from anontls.transport.service import Service, system_now


@click.command("send")
@click.option(
    "--config",
    "configuration",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="CONFIG",
    help="The node that sends.",
)
@click.option("--to", "target", required=True, metavar="HOST:PORT", help="Where to.")
@click.option(
    "--server",
    metavar="NAME",
    help="The Exchange server that listens there: X-ANONYMOUSTLS with direct trust is then required.",
)
@click.option(
    "--delivery-type",
    default="SmtpRelayWithinAdSiteToEdge",
    show_default=True,
    metavar="TYPE",
    help="DeliveryType of the queue (Mailbox server).",
)
@click.option("--connector", metavar="NAME", help="Send connector (Edge server).")
@click.option("--sender", default="", metavar="ADDRESS", help="Envelope sender; empty when not given.")
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    metavar="ADDRESS",
    help="Envelope recipient; may be repeated. Without one the session is opened and closed.",
)
@click.option(
    "--timeout",
    type=options.Seconds(0.1, 600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for the session to be ready, and for the verdict.",
)
@click.argument("message", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[MESSAGE]")
@options.language
@options.as_json
def command(
    configuration: Path,
    target: str,
    server: str | None,
    delivery_type: str,
    connector: str | None,
    sender: str,
    recipients: tuple[str, ...],
    timeout: float,
    message: Path | None,
    language: Language,
    as_json: bool,
) -> int:
    """Send MESSAGE (a file, or - for standard input) in one session, and show the decision, the dialogue and the trust.

    Exit 0 when every recipient was accepted, 3 when not: then the reply stands there, and nothing was sent in clear to an
    Exchange server.

    \b
    anontls send --config edge1.toml --to 127.0.0.1:2525 --server MBX1 --recipient anna@contoso.com mail.eml
    """
    check_delivery_type(delivery_type, "--delivery-type")
    settings = config.load(configuration)
    try:
        host, port = config.host_and_port(target)
    except ValueError as e:
        raise UsageError(f"--to {e}") from None
    if port == 0:
        raise UsageError(f"--to {target!r}: nothing listens on port 0")
    envelope = Envelope(sender, [Recipient(address) for address in recipients])
    if not valid_envelope(envelope):
        raise UsageError("--sender and --recipient are addresses such as anna@contoso.com")
    if bool(recipients) != (message is not None):
        raise UsageError("a message needs --recipient, and a --recipient a message")
    content = b"" if message is None else sys.stdin.buffer.read() if str(message) == "-" else _read(message)
    service = Service(settings, configuration.parent, now=system_now)
    node = service.node
    if server is not None and node.organization.server(server) is None:
        known_servers = ", ".join(s.name for s in node.organization.servers)
        raise UsageError(f"no server {server} in the organisation", hint=f"known: {known_servers}")
    if connector is not None and node.server.role != "Edge":
        raise UsageError(f"--connector: {node.server.name} is no Edge server; its procedure asks for the queue")
    send_connector = None
    if node.server.role == "Edge" and (server is not None or connector is not None):
        known = send_connectors(node.server, node.organization)
        wanted = connector or settings.delivery.send_connector
        send_connector = next((c for c in known if wanted is None or same_name(c.identity, wanted)), None)
        if send_connector is None:
            names = ", ".join(c.identity for c in known) or "none"
            raise UsageError(f"no Send connector {wanted or ''}".rstrip(), hint=f"known: {names}")
        if server is None and send_connector.auth_mechanism == "ExchangeServer":
            raise UsageError(
                f"--connector: SmartHostAuthMechanism of {send_connector.identity} is ExchangeServer, so nothing may be"
                " sent in clear",
                hint="--server names the Exchange server that listens there",
            )
    hop = NextHop(
        host=host,
        port=port,
        server=server,
        queue=Queue(delivery_type=delivery_type, hypothetical=True) if node.server.role == "Mailbox" else None,
        send_connector=send_connector,
        timeout=timeout,
    )
    return asyncio.run(_send(service, hop, envelope, _crlf(content), language, as_json=as_json))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None


def _crlf(content: bytes) -> bytes:
    """A message from a file has the line ends of its system; on the wire they are CRLF [RFC5321 2.3.8]."""
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return content if content.endswith(b"\r\n") or not content else content + b"\r\n"


async def _send(
    service: Service, hop: NextHop, envelope: Envelope, content: bytes, language: Language, *, as_json: bool
) -> int:
    lines: list[dict[str, str]] = []
    watched = not as_json

    def trace(mark: Mark, data: str, context: str) -> None:
        nonlocal watched
        lines.append({"mark": mark.value, "data": data, "context": context})
        try:
            for line in data.replace("\r\n", "\n").split("\n") if watched else ():
                click.echo(f"{mark.value} {printable(line)}{'  ' if line and context else ''}{context}".rstrip())
        except OSError:
            watched = False  # nobody reads on, or the device is full; the message is sent all the same

    session = OutboundSession(service.node, hop, service.send_log, trace)
    failure: SessionFailed | None = None
    replies: tuple[str, ...] = ()
    try:
        await session.open()
        if envelope.recipients:
            replies = tuple(str(reply) for reply in await session.deliver(envelope, content))
        await session.close()
    except SessionFailed as e:
        failure = e
    session.abort()
    await asyncio.wait((session.ended,), timeout=GOODBYE)  # its end stands in the log, too
    if service.send_log is not None:
        service.send_log.flush()
    positive = failure is None and all(reply.startswith("2") for reply in replies)
    if as_json:
        click.echo(
            json.encode(
                {
                    "schema": "anontls/session/1",
                    "to": f"{hop.host}:{hop.port}",
                    "decision": json.decision_json(session.decision, language) if session.decision else None,
                    "trust": session.trust.result.value if session.trust else None,
                    "peer_certificate": json.certificate(session.peer),
                    "dialogue": lines,
                    "replies": list(replies),
                    "failure": str(failure) if failure else None,
                }
            )
        )
    else:
        if session.peer is not None:
            click.echo("\n" + _peer(session, language))
        if session.decision is not None:
            width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
            click.echo("\n" + text.explained(session.decision, language, width=width))
        for recipient, reply in zip(envelope.recipients, replies, strict=True) if replies else ():
            click.echo(f"{recipient.address}: {printable(reply)}")
        if failure is not None:
            click.echo(click.style("not sent: ", fg="red", bold=True) + printable(str(failure)), err=True)
    return Exit.DONE if positive else Exit.UNKNOWN


def _peer(session: OutboundSession, language: Language) -> str:
    peer = session.peer
    assert peer is not None
    line = f"the peer showed {show(language, peer.thumbprint)} ({printable(show(language, peer.subject))}"
    line += f", valid to {show(language, peer.not_after)})"
    if session.trust is not None:
        line += f"; the directory says of {session.hop.server}: {session.trust.result.value}"
        line += ", expired" if session.trust.expired else ""
    return line
