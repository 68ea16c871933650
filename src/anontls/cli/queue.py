"""``anontls queue``: the queues of a node and the messages in them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from anontls import config
from anontls.cli import Exit, options
from anontls.errors import UsageError
from anontls.facts import same_name
from anontls.report import json
from anontls.report.printable import printable
from anontls.transport.control import nearest, socket_path, somebody_listens
from anontls.transport.control_client import ControlClient
from anontls.transport.status import MessageStatus, QueueStatus, RecipientStatus

if TYPE_CHECKING:
    from anontls.transport.stored import StoredQueue

STATUSES = ("Active", "Connecting", "Locked", "Ready", "Retry", "Suspended")
RESULT_SIZE = 1000  # as Get-Queue and Get-Message have it
PAGE = 200  # rows that are looked at for the width of a column
COLOUR = {"Retry": "yellow", "Suspended": "red", "Active": "green"}
TIMES = {"FirstRetryTime", "LastRetryTime", "NextRetryTime", "DateReceived", "ExpirationTime"}

F = TypeVar("F", bound=Callable[..., object])


def _configuration(function: F) -> F:
    return click.option(
        "--config",
        "configuration",
        required=True,
        envvar="ANONTLS_CONFIG",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="CONFIG",
        help="The node's configuration (or set ANONTLS_CONFIG).",
    )(function)


class Identity(click.ParamType[str]):
    r"""``MBX1\3`` or ``MBX1\3\4711``; with ``/``, which needs no quotes in a shell, it is the same."""

    name = "identity"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it."""
        return value if "\\" in value else str(value).replace("/", "\\")


def _identities(metavar: str) -> Callable[[F], F]:
    return click.argument("identities", nargs=-1, required=True, metavar=f"{metavar}...", type=Identity())


@contextmanager
def _node(configuration: Path) -> Iterator[ControlClient | StoredQueue]:
    """The running node, or, where none runs, what it has stored."""
    settings = config.load(configuration)
    path = socket_path(settings, configuration.parent)
    if somebody_listens(path):
        yield ControlClient(path)
        return
    from anontls.transport.stored import StoredQueue  # with all of the transport

    with StoredQueue(settings, configuration.parent, options.now()) as stored:
        click.echo(f"no node answers at {path}; this is what its store holds", err=True)
        yield stored


@click.group("queue")
def command() -> None:
    r"""The queues of a node and the messages in them: look, retry, suspend, resume, remove.

    A queue is named as 'MBX1\3', a message in it as 'MBX1\3\4711' (or MBX1/3 and MBX1/3/4711).  Without a running node
    the commands look into its store; then the store is locked, and no node starts.
    """


# --- to look ----------------------------------------------------------------------------------------------------------


@command.command("list")
@_configuration
@click.option("--messages", "of_messages", is_flag=True, help="List messages, not queues.")
@click.option("--queue", metavar="QUEUE", type=Identity(), help="List the messages of this queue.")
@click.option("--status", type=click.Choice(STATUSES, case_sensitive=False), help="Only what has this Status.")
@click.option("--next-hop", metavar="DOMAIN", help="Only queues with this NextHopDomain, or their messages.")
@click.option(
    "--result-size",
    type=click.IntRange(min=0),
    default=RESULT_SIZE,
    show_default=True,
    metavar="N",
    help="No more than this; 0 lists all.",
)
@options.as_json
def list_(
    configuration: Path,
    of_messages: bool,
    queue: str | None,
    status: str | None,
    next_hop: str | None,
    result_size: int,
    as_json: bool,
) -> int:
    """List the queues as Get-Queue does, or messages as Get-Message does.

    \b
    anontls queue list --config mbx1.toml --status Retry
    anontls queue list --config mbx1.toml --messages --queue MBX1/3
    """
    if queue is not None and next_hop is not None:
        raise UsageError("--queue and --next-hop exclude each other: a queue has one NextHopDomain")
    found: Iterator[QueueStatus | MessageStatus]
    limit = result_size + 1 if result_size else None  # one more tells whether there are more
    with _node(configuration) as node:
        queues = (each for each in node.queues() if next_hop is None or same_name(next_hop, each.next_hop_domain))
        if of_messages or queue is not None:
            names = [queue] if queue is not None or next_hop is None else [each.identity for each in queues]
            found = chain.from_iterable(node.messages(name, status=status, limit=limit) for name in names)
        else:
            found = (each for each in queues if status is None or same_name(status, each.status))
        shown: Iterator[QueueStatus | MessageStatus] = islice(found, result_size or None)
        if as_json:
            for each in shown:
                click.echo(json.encode(document(each)))
        else:
            columns = MESSAGE_COLUMNS if of_messages or queue is not None else QUEUE_COLUMNS
            for line in table(shown, columns):
                click.echo(line)
        if result_size and next(found, None) is not None:
            click.echo(f"there are more than {result_size}; --result-size shows them", err=True)
    return Exit.DONE


@command.command("show")
@_configuration
@_identities("QUEUE|MESSAGE")
@options.as_json
def show(configuration: Path, identities: tuple[str, ...], as_json: bool) -> int:
    """Show queues and messages in full: of a message also Subject, InternetMessageId and recipients."""
    with _node(configuration) as node:
        for number, identity in enumerate(identities):
            found: QueueStatus | MessageStatus = (
                node.show(identity) if identity.count("\\") > 1 else _queue(node, identity)
            )
            if as_json:
                click.echo(json.encode(document(found)))
            else:
                click.echo("\n" * (number > 0) + "\n".join(in_full(found)))
    return Exit.DONE


def _queue(node: ControlClient | StoredQueue, identity: str) -> QueueStatus:
    queues = list(node.queues())
    for each in queues:
        if same_name(identity, each.identity) or same_name(identity, each.identity.partition("\\")[2]):
            return each
    raise UsageError(f"no queue {identity}", hint=nearest(identity, [each.identity for each in queues]))


def document(status: QueueStatus | MessageStatus) -> dict[str, object]:
    """A queue as JSON, ``anontls/queue/1``, or a message, ``anontls/message/1``: the properties of the cmdlets."""
    schema = "anontls/queue/1" if isinstance(status, QueueStatus) else "anontls/message/1"
    properties: dict[str, object] = msgspec.to_builtins(status)
    return {"schema": schema} | {name: _time(v) if name in TIMES else v for name, v in properties.items()}


def _time(seconds: object) -> str | None:
    """Unix seconds as ISO 8601; what lies beyond the years that there are is never."""
    if not isinstance(seconds, int | float):
        return None
    try:
        return json.time(datetime.fromtimestamp(round(seconds, 3), UTC))
    except (ValueError, OverflowError, OSError):
        return None


QUEUE_COLUMNS: dict[str, Callable[[Any], str]] = {
    "Identity": lambda queue: queue.identity,
    "DeliveryType": lambda queue: queue.delivery_type,
    "Status": lambda queue: queue.status,
    "MessageCount": lambda queue: str(queue.message_count),
    "NextHopDomain": lambda queue: queue.next_hop_domain,
}
MESSAGE_COLUMNS: dict[str, Callable[[Any], str]] = {
    "Identity": lambda message: message.identity,
    "FromAddress": lambda message: message.from_address,
    "Status": lambda message: message.status,
    "Size": lambda message: str(message.size),
    "DateReceived": lambda message: _time(int(message.date_received)) or "",
    "Recipients": lambda message: _first(message.recipients),
}


def _first(recipients: Sequence[RecipientStatus]) -> str:
    more = f" and {len(recipients) - 1} more" if len(recipients) > 1 else ""
    return recipients[0].address + more if recipients else ""


def table(found: Iterable[QueueStatus | MessageStatus], columns: dict[str, Callable[[Any], str]]) -> Iterator[str]:
    """The lines of a table whose end is not known yet; below a row is its LastError."""
    width = max(60, min(160, shutil.get_terminal_size((120, 24)).columns))
    widths = [len(title) for title in columns]
    rest = iter(found)
    heading = True
    while page := list(islice(rest, PAGE)):
        rows = [[printable(cell(each)) for cell in columns.values()] for each in page]
        widths = [max(was, *map(len, cells)) for was, *cells in zip(widths, *rows, strict=True)]
        if heading:
            yield click.style("  ".join(map(str.ljust, columns, widths)).rstrip(), bold=True)
            heading = False
        for each, row in zip(page, rows, strict=True):
            cells = [
                click.style(cell.ljust(size), fg=COLOUR.get(each.status)) if title == "Status" else cell.ljust(size)
                for title, cell, size in zip(columns, row, widths, strict=True)
            ]
            yield "  ".join(cells).rstrip()
            yield from textwrap.wrap(printable(each.last_error), width, initial_indent="    ", subsequent_indent="    ")


def in_full(status: QueueStatus | MessageStatus) -> Iterator[str]:
    """A line for each property, as Format-List prints them."""
    properties = document(status)
    del properties["schema"]
    width = max(map(len, properties))
    for name, value in properties.items():
        shown = [str(value)] if value is not None else [""]
        if isinstance(status, MessageStatus) and name == "Recipients":
            shown = ["  ".join(filter(None, (r.address, r.status, r.last_error))) for r in status.recipients]
        for line in shown:
            yield f"{name:<{width}} : {printable(line)}".rstrip()
            name = ""


# --- to act -----------------------------------------------------------------------------------------------------------


@command.command("retry")
@_configuration
@_identities("QUEUE")
def retry(configuration: Path, identities: tuple[str, ...]) -> int:
    """Try QUEUEs now, and not first at their NextRetryTime."""
    with _node(configuration) as node:
        return _each(identities, node.retry, "is tried now")


@command.command("suspend")
@_configuration
@_identities("QUEUE|MESSAGE")
def suspend(configuration: Path, identities: tuple[str, ...]) -> int:
    """Let nothing more out of QUEUEs, or hold MESSAGEs back; what is being sent is sent.

    A message stays suspended until it is resumed, a queue until then or until the node stops.
    """
    with _node(configuration) as node:
        return _each(identities, node.suspend, "is suspended")


@command.command("resume")
@_configuration
@_identities("QUEUE|MESSAGE")
def resume(configuration: Path, identities: tuple[str, ...]) -> int:
    """Undo suspend."""
    with _node(configuration) as node:
        return _each(identities, node.resume, "is resumed")


@command.command("remove")
@_configuration
@_identities("MESSAGE")
@click.option("--with-ndr/--without-ndr", default=True, show_default=True, help="Tell the sender, as -WithNDR does.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove(configuration: Path, identities: tuple[str, ...], with_ndr: bool, yes: bool) -> int:
    """Take MESSAGEs out of their queues for good; a message that is in another queue too stays there.

    Asks before, on a terminal; elsewhere --yes is needed.
    """
    if not yes and not sys.stdin.isatty():
        raise UsageError("nobody can be asked whether to remove", hint="--yes removes without asking")
    if not yes:
        with _node(configuration) as node:
            for identity in identities:
                found = node.show(identity)
                click.echo(printable(f"{found.identity}  {found.from_address}  {found.subject or ''}"), err=True)
        # The store is not locked meanwhile: the answer may take long, and a node may be started.
        told = "with a non-delivery report to the sender" if with_ndr else "without telling the sender"
        if not click.confirm(f"Remove {told}?", err=True):
            return Exit.DONE
    with _node(configuration) as node:
        return _each(identities, lambda identity: node.remove(identity, with_ndr=with_ndr), "is removed")


def _each(identities: Sequence[str], act: Callable[[str], object], done: str) -> int:
    """One that cannot be had does not keep the others waiting: it may have been delivered just now."""
    failures: list[UsageError] = []
    for identity in identities:
        try:
            act(identity)
        except UsageError as e:
            failures.append(e)
        else:
            click.echo(printable(f"{identity} {done}"))
    if len(failures) > 1:
        raise UsageError("\n  ".join(["", *map(str, failures)]), hint=failures[0].hint)
    if failures:
        raise failures[0]
    return Exit.DONE
