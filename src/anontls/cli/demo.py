"""``anontls demo``: both main jobs on data that the program makes itself."""

from __future__ import annotations

import asyncio
import io
import shlex
import smtplib
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from anontls import config
from anontls.cli import Exit, options, run
from anontls.directory.demo_export import write_demo_export
from anontls.errors import UsageError
from anontls.report import text
from anontls.report.language import Language

WIDTH = 100
RECIPIENT = "anna@contoso.com"


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep everything that the demo makes here; a temporary folder when not given.",
)
@options.language
def command(output: Path | None, language: Language) -> int:
    """Decide on a small export, then send a message for real.

    First an export of three servers is made, imported and decided, one decision explained in full.  Then a Mailbox and
    an Edge server run on loopback, and a message goes from one to the other over X-ANONYMOUSTLS with direct trust.
    """
    if output is not None and output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty")
    with tempfile.TemporaryDirectory(prefix="anontls-demo-") as temporary:
        folder = output or Path(temporary)
        status = _selection(folder, language)
        if status is Exit.DONE:
            status = _session(folder / "lab", language)
        if output is not None:
            click.echo(f"\nkept in {folder}", err=True)
    return status


def _title(what: str) -> None:
    click.echo("\n" + click.style(f"=== {what}", bold=True))


def _selection(folder: Path, language: Language) -> Exit:
    """The main job of an administrator: from an export to decisions."""
    export, snapshot, picture = folder / "export", folder / "org.json", folder / "decision.svg"
    _title("From an export to a decision")
    write_demo_export(export, options.now())
    org, lang = str(snapshot), ["--lang", language]
    sender = ["outbound-anonymous", "--server", "MBX2", "--queue", r"MBX2\2"]
    return max(
        _step(["org", "import", str(export), "-o", org]),
        _step(["select", "--org", org, *lang]),
        _step(["select", "--org", org, *sender, "--svg", str(picture), *lang]),
    )


def _step(arguments: Sequence[str]) -> Exit:
    click.echo(click.style(f"\n$ anontls {shlex.join(arguments)}", bold=True))
    return Exit(run(list(arguments)))


def _session(folder: Path, language: Language) -> Exit:
    """The same selection in two running servers: client -> EDGE1 -> X-ANONYMOUSTLS -> MBX1 -> Maildir."""
    # Imported here: the first half needs no transport.
    from anontls.facts import Scenario
    from anontls.transport.destinations import configured_hop
    from anontls.transport.lab import EDGE, INBOUND, MAILBOX, write_lab
    from anontls.transport.service import Service, system_now

    ports = dict(zip((MAILBOX, EDGE), _free_ports(2), strict=True))
    lab = write_lab(folder, system_now(), ports)
    console = io.StringIO()
    mailbox, edge = (
        Service(config.load(lab.configs[name]), folder, now=system_now, console=console) for name in (MAILBOX, EDGE)
    )

    async def deliver() -> None:
        for service in (mailbox, edge):
            await service.start()
        await asyncio.to_thread(_hand_over, ports[EDGE])
        for service in (edge, mailbox):
            await service.stop(5)

    _title(f"A mail server somewhere hands {EDGE} a message for {RECIPIENT}; {EDGE} hands it to {MAILBOX}")
    asyncio.run(deliver())
    click.echo(console.getvalue().rstrip())
    _title(f"{EDGE} decided")
    hop = configured_hop(edge.node.server, edge.node.organization, edge.config.delivery)
    assert hop is not None
    connector = hop.send_connector
    sent = edge.node.select(Scenario.OUTBOUND_ANONYMOUS, send_connector=connector)
    click.echo(text.explained(sent, language, width=WIDTH))
    _title(f"{MAILBOX} decided")
    receiver = mailbox.receivers[0]
    received = mailbox.node.select(Scenario.INBOUND_ANONYMOUS, receive_connector=receiver.connector)
    click.echo(text.explained(received, language, width=WIDTH))
    _title(f"The protocol log of {EDGE}, {INBOUND}")
    _show_files(folder.glob("edge1-log/SmtpSend/*"))
    _title(f"The protocol log of {MAILBOX}, {receiver.connector.identity}")
    _show_files(folder.glob("mbx1-log/SmtpReceive/*"))
    _title("The message in the Maildir")
    return Exit.DONE if _show_files(folder.glob(f"mail/{RECIPIENT}/new/*")) else Exit.FAILED


def _hand_over(port: int) -> None:
    """Any mail client does."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="mail.fabrikam.com", timeout=20) as client:
        client.sendmail("ben@fabrikam.com", [RECIPIENT], "Subject: over X-ANONYMOUSTLS\r\n\r\nIt went all the way.\r\n")


def _show_files(paths: Iterable[Path]) -> int:
    count = 0
    for path in sorted(paths):
        click.echo(click.style(str(path), dim=True))
        click.echo(path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").rstrip())
        count += 1
    return count


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
