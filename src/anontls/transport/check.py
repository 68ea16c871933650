"""Whether a node can start on this machine and do its work: what ``anontls config check`` finds.

Nothing is changed: what is not there yet is not made, and a node that runs meanwhile is not disturbed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from stat import S_ISDIR, S_ISREG, S_ISSOCK
from typing import Final, Literal

import msgspec

from anontls.certstore.files import Passphrase
from anontls.certstore.folder import FolderStore
from anontls.config import Config, host_and_port
from anontls.directory import open_organization
from anontls.directory.ldap.follow import Follower
from anontls.errors import AnontlsError, Unreachable, UsageError
from anontls.eventlog import MemoryEventLog
from anontls.facts import Organization, Phase, ReceiveConnector, Scenario, Server
from anontls.selection import Decision
from anontls.selection.decision import Result
from anontls.transport.authentication import Authentication
from anontls.transport.control import socket_at, socket_path, somebody_listens
from anontls.transport.destinations import configured_hop
from anontls.transport.node import Node
from anontls.transport.queue_file import ONE_AT_A_TIME, foreign, owner
from anontls.transport.service import SPARE_FILES, follower_of, receive_connector

Severity = Literal["error", "warning", "note"]

CLOCKS = timedelta(minutes=5)  # that those of two machines may be apart
PATIENCE = 3.0  # seconds that whoever holds an address has to say who it is
RESOLVERS = 16  # names that are looked up at a time


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    ``error``: the node would not start, or mail would not get on.  ``place`` is a key of the configuration, empty for
    the file or the machine.  ``decision`` is the selection that the finding is about; its explanation belongs to it,
    and its remedy where there is no ``cure``.
    """

    severity: Severity
    place: str
    text: str
    cure: str = ""
    decision: Decision | None = None


def findings(
    config: Config, path: Path, now: datetime, *, bind: bool = True, offline: bool = False
) -> Iterator[Finding]:
    """What is found for the configuration that was read from ``path``; ``bind`` says whether its addresses are tried.

    A directory that the node follows is read once, as at a start, unless ``offline``.  One fault does not hide another,
    unless that cannot be looked at then.
    """
    base = path.parent
    yield from _machine(config, path, now)
    organization = server = store = follower = None
    try:
        organization = open_organization(str(base / config.node.organization))
    except (AnontlsError, OSError) as e:
        yield _failed("node.organization", e)
    if organization is not None and config.directory.urls:
        if offline:
            yield _warning("directory", "it is not asked, so what depends on it is not checked: all of X-ANONYMOUSTLS")
        else:
            try:
                with closing(follower_of(config, base, organization, lambda: now)) as follower:
                    organization = follower.first()
                yield _directory(follower)
            except UsageError as e:
                follower = None
                yield _failed("directory", e)
    if organization is not None:
        server = organization.server(config.node.server)
        if server is None:
            known = ", ".join(s.name for s in organization.servers)
            tell = _error if follower is not None or not config.directory.urls else _warning
            yield tell("node.server", f"no server {config.node.server} in the organisation", f"known: {known}")
    try:
        file = config.store.passphrase_file
        passphrase = Passphrase(file=base / file) if file else None
        store = FolderStore(base / config.store.folder, now=now, passphrase=passphrase)
        for problem in store.problems:
            yield _warning("store.folder", f"{problem.file}: {problem.message}", problem.cure)
    except (AnontlsError, OSError) as e:
        yield _failed("store.folder", e)
    connectors: dict[str, ReceiveConnector] = {}
    if not config.listen:
        yield _error("listen", "nothing to listen on", "a [[listen]] table names a Receive connector and an address")
    for number, entry in enumerate(config.listen if server is not None else ()):
        assert server is not None
        try:
            connectors[f"listen[{number}]"] = receive_connector(server, entry.connector)
        except UsageError as e:
            yield _failed(f"listen[{number}].connector", e)
    if organization is not None and server is not None and store is not None:
        yield from _selections(config, organization, server, store, follower, connectors, now)
    if config.kerberos.wanted and server is not None:
        try:
            Authentication(config.kerberos, base, server)
        except UsageError as e:
            yield _error("kerberos", str(e), e.hint or "")
    if bind:
        yield from _addresses(config, server, connectors)
    yield from _names(config)
    yield from _files(config, base)


def _error(place: str, text: str, cure: str = "") -> Finding:
    return Finding(severity="error", place=place, text=text, cure=cure)


def _warning(place: str, text: str, cure: str = "") -> Finding:
    return Finding(severity="warning", place=place, text=text, cure=cure)


def _note(place: str, text: str) -> Finding:
    return Finding(severity="note", place=place, text=text)


def _failed(place: str, error: AnontlsError | OSError) -> Finding:
    return _error(place, str(error), (error.hint if isinstance(error, AnontlsError) else None) or "")


def _directory(follower: Follower) -> Finding:
    """Which domain controller has answered."""
    status = follower.status
    if status.problem is None:
        return _note("directory", f"it is read from {status.url}")
    text = f"no domain controller answers, so a start would be without a certificate (event 12012): {status.problem}"
    return _error("directory", text, "a node asks again by itself; one that runs already goes on for directory.grace")


# --- the machine ------------------------------------------------------------------------------------------------------


def _machine(config: Config, path: Path, now: datetime) -> Iterator[Finding]:
    if os.name == "posix" and os.geteuid() == 0:
        yield _warning("", "checked as root, who may read and write everything", "check as the user of the service")
    for place, file in (("", path), ("node.organization", path.parent / config.node.organization)):
        with suppress(OSError, ValueError):
            changed = datetime.fromtimestamp(file.stat().st_mtime, UTC)
            if changed > now + CLOCKS:
                text = f"{file} was changed at {changed:%Y-%m-%d %H:%M:%SZ}, which is still to come"
                yield _warning(place, text, "set the clock of this machine: certificates expire by it")
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    least = len({entry.connector.lower() for entry in config.listen}) * config.limits.sessions + SPARE_FILES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < least:
        text = f"{most} files may be open, and so many sessions need {least}"
        yield _warning("limits.sessions", text, "LimitNOFILE= of the unit, ulimit -n of a shell")


# --- the selections ---------------------------------------------------------------------------------------------------


def _selections(
    config: Config,
    organization: Organization,
    server: Server,
    store: FolderStore,
    follower: Follower | None,
    connectors: Mapping[str, ReceiveConnector],
    now: datetime,
) -> Iterator[Finding]:
    """Those of a start and of sessions, made as the node makes them.

    Without the word of a directory that it follows, only those that need no internal transport certificate.
    """
    rules = config.selection_rules
    node = Node(organization, server, store, MemoryEventLog(), lambda: now, rules, follower=follower)
    known = follower is not None or not config.directory.urls
    if known:
        startup = node.select(Scenario.INBOUND_ANONYMOUS, phase=Phase.STARTUP)
        yield _decided("node.server", startup, needed=True)
    for place, connector in connectors.items():
        if known:
            yield _decided(place, node.select(Scenario.INBOUND_ANONYMOUS, receive_connector=connector))
        yield _decided(place, node.select(Scenario.INBOUND_STARTTLS, receive_connector=connector))
    try:
        hop = configured_hop(server, organization, config.delivery)
    except UsageError as e:
        yield _failed("delivery", e)
        return
    if known and hop is not None and hop.server is not None:
        decision = node.select(Scenario.OUTBOUND_ANONYMOUS, queue=hop.queue, send_connector=hop.send_connector)
        yield _decided("delivery.next-hop-server", decision, needed=True)
        read = follower is None or follower.word is not None
        if read and not node.peer_certificates(hop.server):
            text = f"the directory holds no certificate of {hop.server}, so it cannot prove itself and gets no mail"
            yield _error("delivery.next-hop-server", text)


def _decided(place: str, decision: Decision, *, needed: bool = False) -> Finding:
    """As severe as the events that it raises; without a verb that is ``needed``, or not known, an error."""
    levels = {event.type.level for event in decision.events}
    severity: Severity = "error" if "error" in levels else "warning" if "warning" in levels else "note"
    if decision.result is Result.UNKNOWN or (needed and decision.verb is None):
        severity = "error"
    cure = _CURES.get(decision.last.because, "")
    return Finding(severity=severity, place=place, text="", cure=cure, decision=decision)


#: Where the explanation's own remedy is for `anontls select`, which is asked about any queue under any rules.
_CURES: Final = {
    "1.b.mailbox": 'mailbox-to-mailbox = "verb-without-certificate" in the table [rules]',
    "1.b.other-type": "delivery.delivery-type says what kind of queue leads to the next hop, such as"
    ' "SmtpRelayWithinAdSiteToEdge"',
}


# --- addresses and names ----------------------------------------------------------------------------------------------


def _addresses(config: Config, server: Server | None, connectors: Mapping[str, ReceiveConnector]) -> Iterator[Finding]:
    """Each is bound for a moment, and nobody is listened to."""
    taken: list[tuple[str, str]] = []
    for number, entry in enumerate(config.listen):
        place = f"listen[{number}]"
        connector = connectors.get(place)
        names = (connector and connector.fqdn, server and server.fqdn, server and server.name)
        fqdn = next((name for name in names if isinstance(name, str) and name), "")
        yield from _bound(f"{place}.address", entry.address, b"", f"220 {fqdn} ".encode())
        yield from _twice(f"{place}.address", entry.address, taken)
        taken.append((place, entry.address))
    listen = config.metrics.listen
    if listen is not None:
        yield from _bound("metrics.listen", listen, b"GET /health HTTP/1.0\r\n\r\n", b"HTTP/1.0 ")
        yield from _twice("metrics.listen", listen, taken)
        if not _loopback(host_and_port(listen)[0]):
            yield _warning("metrics.listen", f"whoever reaches {listen} can read the figures", "listen on 127.0.0.1")


def _twice(place: str, address: str, taken: list[tuple[str, str]]) -> Iterator[Finding]:
    for other_place, other in taken:
        if _same(address, other):
            yield _error(place, f"{address}: {other_place} listens on {other} already", "give each its own port")


def _same(one: str, other: str) -> bool:
    """Whether nobody can listen on both: they are equal, or one of them is all addresses of the machine."""
    (host, port), (other_host, other_port) = host_and_port(one), host_and_port(other)
    if port != other_port or not port:
        return False
    with suppress(ValueError):
        a, b = ip_address(host), ip_address(other_host)
        return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))
    return host.lower() == other_host.lower()


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _bound(place: str, text: str, question: bytes, answer: bytes) -> Iterator[Finding]:
    """An address in use is no fault when whoever holds it answers as this node would."""
    host, port = host_and_port(text)
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind(address)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            said = _said(host, port, question)
            if said.startswith(answer):
                yield _note(place, f"{text} is in use by a node that is this one, as far as it says")
            else:
                yield _error(place, f"{text} is in use; whoever holds it says {said[:100]!r}")
        elif e.errno == errno.EACCES:
            yield _warning(place, f"{text}: {e.strerror}", "CAP_NET_BIND_SERVICE, which the systemd unit gives")
        else:
            yield _error(place, f"{text}: cannot listen: {e.strerror or e}")


def _said(host: str, port: int, question: bytes) -> bytes:
    try:
        with socket.create_connection((host, port), PATIENCE) as peer:
            peer.sendall(question)
            return peer.recv(512)
    except OSError:
        return b""


def _names(config: Config) -> Iterator[Finding]:
    """Hosts that the configuration names; those that only DNS knows are looked up when there is mail."""
    named = {f"delivery.hosts.{name}": place for name, place in config.delivery.hosts.items()}
    if config.delivery.next_hop is not None:
        named["delivery.next-hop"] = config.delivery.next_hop

    def look_up(place: str) -> str:
        try:
            socket.getaddrinfo(*host_and_port(named[place]), type=socket.SOCK_STREAM)
        except OSError as e:
            return f"{named[place]}: {e.strerror or e}"
        return ""

    with ThreadPoolExecutor(RESOLVERS) as threads:
        for place, why in zip(named, threads.map(look_up, named), strict=True):
            if why:
                yield _error(place, why)


# --- files ------------------------------------------------------------------------------------------------------------


def _files(config: Config, base: Path) -> Iterator[Finding]:
    delivery, log, queue = config.delivery, config.log, config.queue
    if delivery.maildir is not None:
        yield from _writable("delivery.maildir", base / delivery.maildir, folder=True)
        if not delivery.create_mailboxes and not S_ISDIR(_mode(base / delivery.maildir)):
            yield _warning("delivery.maildir", f"{base / delivery.maildir} is not there, so nobody has a mailbox")
    if log.events is not None:
        yield from _writable("log.events", base / log.events)
    if log.protocol is not None:
        yield from _writable("log.protocol", base / log.protocol, folder=True)
    if log.syslog is not None and not S_ISSOCK(_mode(Path(log.syslog))):
        yield _warning(
            "log.syslog", f"{log.syslog} is no socket that this user sees: no syslog daemon hears the events"
        )
    if queue.database is not None:
        yield from _queue(config, base, base / queue.database)


def _writable(place: str, path: Path, *, folder: bool = False) -> Iterator[Finding]:
    """Whether a file or folder can be written, or made where it is not there."""
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    is_folder = S_ISDIR(_mode(there))
    if not os.access(there, os.W_OK | (os.X_OK if is_folder else 0)):
        yield _error(place, f"{there} cannot be written by this user", "chown it to the user of the service")
    elif is_folder != (folder or there != path):
        yield _error(place, f"{there} is {'a folder' if is_folder else 'no folder'}")
    elif there != path:
        try:
            path.lstat()
        except FileNotFoundError:
            pass
        except OSError as e:  # a name that is too long
            yield _error(place, f"{path}: {e.strerror}")


def _mode(path: Path) -> int:
    """What stat says; 0 where nothing is there, or this user may not look: there `Path.is_dir` raises."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _queue(config: Config, base: Path, database: Path) -> Iterator[Finding]:
    faults = list(_writable("queue.database", database))
    yield from faults
    if S_ISREG(_mode(database)):
        with suppress(OSError):
            why = foreign(database)
            if why:
                yield _error("queue.database", f"{database}: {why}")
    with suppress(OSError):
        disk = os.statvfs(next(each for each in database.parents if S_ISDIR(_mode(each))))
        free = disk.f_bavail * disk.f_frsize
        if free < config.queue.minimum_free:
            text = f"{free} octets are free on the disk of {database}, so new mail is refused with 452"
            yield _error("queue.minimum-free", text, "make room, or lower queue.minimum-free")
    process = ""
    try:
        process = "" if faults else owner(database)
    except OSError as e:
        yield _error("queue.database", f"{e.filename}: {e.strerror}", "chown it to the user of the service")
    answers = False
    if config.queue.control or not faults:  # else it lies beside the database
        try:
            control = socket_path(config, base)
            unusable = list(_socket_folder(control.parent, database))
            yield from unusable
            answers = not unusable and socket_at(control) and somebody_listens(control)
        except Unreachable as e:
            yield _warning("queue.control", str(e), e.hint or "")
            return
        except (UsageError, OSError) as e:
            yield _failed("queue.control", e)
    if process and answers:
        yield _note("queue.database", f"{database} is in use by a running node")
    elif process:
        yield _error("queue.database", f"{database}: process {process} has it", ONE_AT_A_TIME)
    elif answers:
        yield _error("queue.control", "another node answers there", "give each its own socket")


def _socket_folder(folder: Path, database: Path) -> Iterator[Finding]:
    if S_ISDIR(_mode(folder)):
        if not os.access(folder, os.W_OK | os.X_OK):
            yield _error(
                "queue.control", f"{folder} cannot be written by this user", "chown it to the user of the service"
            )
    elif folder not in database.parents:  # a start makes those
        yield _error("queue.control", f"{folder} is no folder", "make it, or leave queue.control out")
