"""The configuration of a node: one TOML file, validated whole.

What a server *is* (its connectors, its certificate, its peers) comes from the organisation; the file holds what only
this machine knows: where to listen, where the certificates and keys lie, where mail goes, what is logged.  Relative
paths start at the folder of the file.  All faults of a file are told at once, unknown keys with the nearest known one.
"""

# docs/configuration.md is made from here: `make docs`.

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from anontls.errors import MalformedInput
from anontls.facts import same_name
from anontls.selection.rules import VALUES, Rules, with_value
from anontls.smtp.syntax import valid_address

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1)]
_HOST = re.compile(r"[^\s\[\]/@]{1,255}")


class Table(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A table of the file."""


class Node(Table, frozen=True, kw_only=True, rename="kebab"):
    """Which server this node is."""

    organization: Annotated[str, Meta(description="The organisation snapshot (anontls/org/1), or a folder of exports.")]
    server: Annotated[str, Meta(description="Name or FQDN of the server in it that this node is.")]


class Directory(Table, frozen=True, kw_only=True, rename="kebab"):
    """Active Directory or AD LDS, which a node follows while it runs; what node.organization says of
    msExchServerInternalTLSCert does not count then.  Needs the extra `ad`.
    """

    urls: Annotated[
        tuple[str, ...], Meta(description="Domain controllers, such as ldap://dc1.contoso.com; tried in this order.")
    ] = ()
    bind: Annotated[
        str | None, Meta(description="Name to log on with inside TLS; Kerberos is used when not given.")
    ] = None
    password_file: Annotated[str | None, Meta(description="File that holds its password; mode 0600.")] = None
    ca: Annotated[str | None, Meta(description="File of the certificates that LDAP over TLS is trusted by.")] = None
    interval: Annotated[Seconds, Meta(description="Look for changes this often, where no word of them comes.")] = 60.0
    grace: Annotated[
        float,
        Meta(
            ge=0,
            description="When no domain controller answers, the last known value serves until it is this old; then the"
            " attribute counts as one that cannot be read.",
        ),
    ] = 3600.0


class Store(Table, frozen=True, kw_only=True, rename="kebab"):
    """The local certificate store."""

    folder: Annotated[str, Meta(description="Folder of certificates and keys, with bindings.toml.")]
    passphrase_file: Annotated[
        str | None, Meta(description="File that holds the passphrase of encrypted keys; mode 0600.")
    ] = None


class Limits(Table, frozen=True, kw_only=True, rename="kebab"):
    """What a session may take, for each Receive connector, unless it has `[listen.limits]` of its own.

    Where its properties in the organisation say less (`MaxMessageSize`, `MaxRecipientsPerMessage`), that holds.
    """

    sessions: Annotated[Count, Meta(description="Sessions at a time, as MaxInboundConnection.")] = 5000
    sessions_per_peer: Annotated[
        Count, Meta(description="Sessions of one address, as MaxInboundConnectionPerSource.")
    ] = 1000
    recipients: Annotated[Count, Meta(description="Recipients of a message, as MaxRecipientsPerMessage.")] = 5000
    message_size: Annotated[Count, Meta(description="Octets of a message, as MaxMessageSize.")] = 37_748_736
    command_timeout: Annotated[
        Seconds, Meta(description="Wait this long for a command, as ConnectionInactivityTimeout. [RFC5321 4.5.3.2]")
    ] = 300.0
    session_timeout: Annotated[Seconds, Meta(description="A session lasts no longer, as ConnectionTimeout.")] = 600.0
    handshake_timeout: Annotated[Seconds, Meta(description="Wait this long for a TLS handshake.")] = 30.0


class Listen(Table, frozen=True, kw_only=True, rename="kebab"):
    """Where a Receive connector listens on this machine."""

    connector: Annotated[str, Meta(description="Name of the Receive connector, as Get-ReceiveConnector prints it.")]
    address: Annotated[str, Meta(description="Address and port, such as 127.0.0.1:2525 or [::1]:2525.")]
    limits: Annotated[
        Limits | None,
        Meta(
            description="Limits of this connector: keys of `[limits]` in a table `[listen.limits]` behind its `[[listen]]`;"
            " for the others `[limits]` holds."
        ),
    ] = None


class Delivery(Table, frozen=True, kw_only=True, rename="kebab"):
    """Where accepted mail goes: local recipients to a Maildir, or everything to a next hop."""

    maildir: Annotated[
        str | None, Meta(description="Folder with a Maildir for each local recipient (address in lower case).")
    ] = None
    create_mailboxes: Annotated[
        bool,
        Meta(
            description="Make a Maildir when the first message for an address comes; else such a recipient is unknown."
        ),
    ] = False
    next_hop: Annotated[str | None, Meta(description="HOST:PORT that takes all accepted mail.")] = None
    protocol: Annotated[Literal["smtp", "lmtp"], Meta(description="What the next hop speaks.")] = "smtp"
    next_hop_server: Annotated[
        str | None,
        Meta(
            description="The Exchange server that the next hop is; then X-ANONYMOUSTLS with direct trust is required"
            " and nothing is ever sent in clear."
        ),
    ] = None
    delivery_type: Annotated[
        str, Meta(description="DeliveryType of the queue to the next hop, as the outbound procedure asks about it.")
    ] = "SmartHostConnectorDelivery"
    send_connector: Annotated[
        str | None, Meta(description="Send connector of an Edge server, as the outbound procedure asks about it.")
    ] = None
    timeout: Annotated[Seconds, Meta(description="Wait this long for each answer of the next hop.")] = 300.0
    hosts: Annotated[
        dict[str, str],
        Meta(
            description="Where servers, smart hosts and domains are reached, as HOST:PORT for each name; what is not here"
            " is looked up in DNS."
        ),
    ] = {}


class Queue(Table, frozen=True, kw_only=True, rename="kebab"):
    """The durable queue.  Without a database nothing is queued: 250 comes only when the next hop has given its own."""

    database: Annotated[str | None, Meta(description="File of the queue, made when it is not there.")] = None
    minimum_free: Annotated[
        int, Meta(ge=0, description="Octets that must be free on its disk; with less, new mail is refused with 452.")
    ] = 268_435_456
    max_messages: Annotated[Count, Meta(description="Messages in it; with more, new mail is refused with 452.")] = (
        500_000
    )
    sessions_per_destination: Annotated[
        Count, Meta(description="Sessions to one destination at a time, as MaxPerDomainOutboundConnections.")
    ] = 20
    idle_timeout: Annotated[Seconds, Meta(description="A session without a message is kept this long.")] = 10.0
    glitch_retry_count: Annotated[
        int, Meta(ge=0, description="Retries of a destination that cannot be reached, at first; QueueGlitchRetryCount.")
    ] = 4
    glitch_retry_interval: Annotated[Seconds, Meta(description="Time between these, as QueueGlitchRetryInterval.")] = (
        60.0
    )
    transient_failure_retry_count: Annotated[
        int, Meta(ge=0, description="Retries after these, as TransientFailureRetryCount.")
    ] = 6
    transient_failure_retry_interval: Annotated[
        Seconds, Meta(description="Time between these, as TransientFailureRetryInterval.")
    ] = 300.0
    outbound_connection_failure_retry_interval: Annotated[
        Seconds, Meta(description="Time between all later ones, as OutboundConnectionFailureRetryInterval.")
    ] = 600.0
    message_retry_interval: Annotated[
        Seconds,
        Meta(description="A message that the peer deferred is tried again after this, as MessageRetryInterval."),
    ] = 900.0
    delay_notification_timeout: Annotated[
        float,
        Meta(gt=0, description="A sender is told of a delay after this many seconds, as DelayNotificationTimeout."),
    ] = 14_400.0
    message_expiration_timeout: Annotated[
        float, Meta(gt=0, description="A message is returned after this many seconds, as MessageExpirationTimeout.")
    ] = 172_800.0
    postmaster: Annotated[
        str | None,
        Meta(
            description="Address that notifications come from, as ExternalPostmasterAddress; postmaster at the first"
            " accepted domain when not given."
        ),
    ] = None
    control: Annotated[
        str | None,
        Meta(description="Unix socket for `anontls queue`, mode 0600; beside the database when not given."),
    ] = None


class Kerberos(Table, frozen=True, kw_only=True, rename="kebab"):
    """How Mailbox servers prove to each other which they are.  Without keytab and credential cache there is no Kerberos."""

    keytab: Annotated[
        str | None,
        Meta(
            description="File with the keys of the computer account (`MBX1$`) and of SMTPSVC/<FQDN>; mode 0600. Without"
            " it nothing is accepted."
        ),
    ] = None
    credential_cache: Annotated[
        str | None,
        Meta(
            description="Credential cache, such as FILE:/run/anontls/ccache, that somebody else fills or the keytab"
            " does; in memory when not given."
        ),
    ] = None
    realm: Annotated[
        str | None,
        Meta(description="Realm of the computer accounts; when not given, the DNS domain of each server in capitals."),
    ] = None
    exchangeauth: Annotated[
        Literal["off", "anontls"],
        Meta(
            description="X-EXPS EXCHANGEAUTH between nodes of this program, with a token of its own: not that of"
            " Exchange, which is not published."
        ),
    ] = "off"
    deadline: Annotated[Seconds, Meta(description="Wait this long for a ticket.")] = 10.0

    @property
    def wanted(self) -> bool:
        """Whether there is Kerberos at all."""
        return self.keytab is not None or self.credential_cache is not None


class Metrics(Table, frozen=True, kw_only=True, rename="kebab"):
    """Figures for Prometheus at /metrics, the state at /health, the last selections at /decisions."""

    listen: Annotated[str | None, Meta(description="Address and port, such as 127.0.0.1:9464.")] = None


class Log(Table, frozen=True, kw_only=True, rename="kebab"):
    """Events and protocol logs."""

    events: Annotated[str | None, Meta(description="File of events as JSON lines; standard error always has them.")] = (
        None
    )
    syslog: Annotated[str | None, Meta(description="Socket of a syslog daemon, such as /dev/log.")] = None
    protocol: Annotated[
        str | None, Meta(description="Folder of the SMTP protocol logs (SmtpReceive and SmtpSend below it).")
    ] = None
    layout: Annotated[
        Literal["row", "rows"],
        Meta(description="Certificates in one row (later 2016 and 2019) or a row a property (earlier)."),
    ] = "row"
    max_file_size: Annotated[Count, Meta(description="Octets of one protocol log file.")] = 10_485_760
    max_directory_size: Annotated[Count, Meta(description="Octets of a protocol log folder; the oldest files go.")] = (
        262_144_000
    )
    max_age_days: Annotated[Count, Meta(description="Days that protocol logs are kept.")] = 30
    console: Annotated[
        Literal["text", "json"], Meta(description="Standard error as text, or as a JSON document a line.")
    ] = "text"


class Config(Table, frozen=True, kw_only=True, rename="kebab"):
    """The whole file."""

    node: Node
    store: Store
    directory: Directory = Directory()
    listen: tuple[Listen, ...] = ()
    limits: Limits = Limits()
    delivery: Delivery = Delivery()
    queue: Queue = Queue()
    kerberos: Kerberos = Kerberos()
    metrics: Metrics = Metrics()
    log: Log = Log()
    rules: Annotated[dict[str, str], Meta(description="Rules of selection other than the default.")] = {}

    def limits_of(self, connector: str) -> Limits:
        """The limits of a Receive connector, called by its name or identity."""
        found = [entry.limits for entry in self.listen if same_connector(entry.connector, connector) and entry.limits]
        return found[0] if found else self.limits

    @property
    def selection_rules(self) -> Rules:
        """The rules in force."""
        rules = Rules()
        for name, value in self.rules.items():
            rules = with_value(rules, name, value)
        return rules


class ConfigError(MalformedInput):
    """The configuration cannot be used; ``faults`` lists all that is wrong with it, each with its place."""

    def __init__(self, name: str, faults: list[str]) -> None:
        super().__init__(name, "\n  ".join(["", *faults]) if len(faults) > 1 else faults[0])
        self.faults = faults


def load(path: Path) -> Config:
    """Read and validate ``path``; relative paths in it are relative to its folder.

    Raises:
        ConfigError: it cannot be used; all faults at once, unknown keys with the nearest known one.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(str(path), [f"cannot be read: {e}"]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(str(path), [f"not TOML: {e}"]) from None
    faults: list[str] = []
    config: Config | None = _table(given, Config, "", faults)
    if config is not None:
        config = _with_limits(config, given)
        faults += _contradictions(config)
    if faults or config is None:
        raise ConfigError(str(path), faults)
    return config


def _with_limits(config: Config, given: Mapping[str, Any]) -> Config:
    """The limits of each entry of ``listen`` made whole: what it does not say, [limits] says."""
    listen = []
    for entry, table in zip(config.listen, given.get("listen", ()), strict=True):
        if entry.limits is not None:
            own = {
                field.name: getattr(entry.limits, field.name)
                for field in msgspec.structs.fields(Limits)
                if field.encode_name in table["limits"]
            }
            entry = msgspec.structs.replace(entry, limits=msgspec.structs.replace(config.limits, **own))
        listen.append(entry)
    return msgspec.structs.replace(config, listen=tuple(listen))


def same_connector(a: str, b: str) -> bool:
    """Whether two names are those of one Receive connector of this server: ``MBX1\\Default MBX1`` or ``Default MBX1``."""
    return same_name(a.rpartition("\\")[2], b.rpartition("\\")[2])


def _table(given: Mapping[str, Any], kind: type[Any], where: str, faults: list[str]) -> Any:
    """``given`` as ``kind``; what is wrong goes to ``faults``, and then the result is ``None``."""
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    before = len(faults)
    values: dict[str, Any] = {}
    for key, value in given.items():
        place = f"{where}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            faults.append(
                f"{place}: unknown key"
                + (f"; did you mean {where}{near[0]}?" if near else f"; known: {', '.join(known)}")
            )
            continue
        field = known[key]
        inner, array = _table_type(field.type), get_origin(field.type) is tuple
        if inner is not None and not array and isinstance(value, dict):
            values[field.name] = _table(value, inner, f"{place}.", faults)
        elif inner is not None and array and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            values[field.name] = tuple(_table(v, inner, f"{place}[{i}].", faults) for i, v in enumerate(value))
        elif isinstance(value, str) and "\0" in value:
            faults.append(f"{place}: holds a NUL, which no name of a file or host can have")
        else:
            try:
                values[field.name] = msgspec.convert(value, field.type)
            except msgspec.ValidationError as e:
                faults.append(f"{place}: {e}")
    faults += [f"{where}{name}: is missing" for name, field in known.items() if field.required and name not in given]
    return None if len(faults) > before else kind(**values)


def _table_type(kind: Any) -> type[Any] | None:
    """The table that a field of type ``kind`` holds, alone or in an array."""
    if isinstance(kind, type) and issubclass(kind, Table):
        return kind
    return next((table for each in get_args(kind) if (table := _table_type(each)) is not None), None)


def _contradictions(config: Config) -> Iterator[str]:
    for name, value in config.rules.items():
        try:
            with_value(Rules(), name, value)
        except ValueError as e:
            yield f"rules.{name}: {e}"
    for i, entry in enumerate(config.listen):
        for other in config.listen[:i]:
            if entry.limits and other.limits and same_connector(entry.connector, other.connector):
                yield f"listen[{i}].limits: all addresses of {entry.connector} share its limits, and it has some already"
    delivery = config.delivery
    if config.queue.database is None and (delivery.maildir is None) == (delivery.next_hop is None) and config.listen:
        yield "delivery: either maildir or next-hop is needed, and not both; with queue.database any of them may be"
    for name, address in [
        *((f"listen[{i}].address", entry.address) for i, entry in enumerate(config.listen)),
        ("delivery.next-hop", delivery.next_hop),
        *((f"delivery.hosts.{name}", address) for name, address in delivery.hosts.items()),
        ("metrics.listen", config.metrics.listen),
    ]:
        if address is not None:
            try:
                host_and_port(address)
            except ValueError as e:
                yield f"{name}: {e}"
    postmaster = config.queue.postmaster
    if postmaster is not None and ("@" not in postmaster or not valid_address(postmaster)):
        yield f"queue.postmaster: {postmaster!r} is no address, such as postmaster@contoso.com"
    directory = config.directory
    if not directory.urls and directory != Directory():
        yield "directory: urls are not given, so nothing else here has an effect"
    if (directory.bind is None) != (directory.password_file is None):
        yield "directory: bind and password-file belong together; without both, Kerberos is used"
    if not config.kerberos.wanted and config.kerberos != Kerberos():
        yield "kerberos: neither keytab nor credential-cache is given, so nothing else here has an effect"
    if delivery.next_hop_server is not None and delivery.protocol == "lmtp":
        yield "delivery.protocol: an Exchange server as the next hop speaks smtp"


def host_and_port(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    # An IPv6 address without brackets is refused: nobody can tell its last group from a port.
    named = _HOST.fullmatch(host) is not None and (bracketed or ":" not in host)
    if not colon or not named or not (port.isascii() and port.isdecimal()) or not 0 <= int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT or [IPv6]:PORT")
    try:
        host.encode("idna")  # as the resolver will
    except UnicodeError:
        raise ValueError(f"{host!r} is no host name") from None
    return host, int(port)


def describe() -> str:
    """The configuration reference, Markdown."""
    parts = ["# Configuration", "", (__doc__ or "").partition("\n\n")[2].replace("``", "`").strip(), ""]
    for field in msgspec.structs.fields(Config):
        table = _table_type(field.type)
        if table is None:
            lines = [
                f"- `{name}`: {' (default) or '.join(f'`{v}`' for v in values)}" for name, values in VALUES.items()
            ]
            parts += [f"## `[{field.encode_name}]`", "", _doc(Config, field.name), "", *lines, ""]
            continue
        head = f"[[{field.encode_name}]]" if get_origin(field.type) is tuple else f"[{field.encode_name}]"
        parts += [
            f"## `{head}`",
            "",
            cleandoc(table.__doc__ or ""),
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for key in msgspec.structs.fields(table):
            default = (
                "required"
                if key.required
                else "-"
                if key.default is None or key.default is msgspec.NODEFAULT  # a table of names, empty
                else f"`{msgspec.json.encode(key.default).decode()}`"
            )
            parts.append(f"| `{key.encode_name}` | {_type_name(key.type)} | {default} | {_doc(table, key.name)} |")
        parts.append("")
    return "\n".join(parts)


def _doc(table: type[Any], name: str) -> str:
    hint = get_type_hints(table, include_extras=True)[name]
    return next((m.description for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta) and m.description), "")


def _type_name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        return _type_name(get_args(kind)[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(each) for each in get_args(kind) if each is not type(None))
    if origin is dict:
        return "table of text"
    if _table_type(kind) is not None:
        return "table"
    if origin is tuple:
        return f"list of {_type_name(get_args(kind)[0])}"
    return {str: "text", int: "number", float: "seconds", bool: "true or false"}.get(kind, str(kind))
