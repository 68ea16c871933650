"""The facts of one decision, written by hand: ``anontls/facts/1`` as a JSON document, or a case a line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from anontls.directory.exchange_export import cmdlets, values
from anontls.directory.exchange_export.cmdlets import ATTRIBUTE, Properties
from anontls.directory.exchange_export.sources import decode, encoding_of
from anontls.errors import AnontlsError, MalformedInput, UsageError
from anontls.facts import (
    Phase,
    Queue,
    ReceiveConnector,
    Scenario,
    SendConnector,
    SessionFacts,
    Store,
    Unknown,
    is_unknown,
)

SCHEMA = "anontls/facts/1"
TOP_LEVEL = (
    "schema",
    "scenario",
    "as_of",
    "phase",
    "server",
    ATTRIBUTE,
    "queue",
    "send_connector",
    "receive_connector",
    "store",
)
# What a cmdlet has when nobody set it; an export that lacks the property says nothing instead.
RECEIVE_DEFAULTS = {"SuppressXAnonymousTls": False, "TlsCertificateName": None, "Fqdn": None}
SEND_DEFAULTS = {"TlsCertificateName": None, "Fqdn": None}

# Names that an object may have beside its table of properties.
KNOWN_OF_SERVER = {*cmdlets.SERVER, "Name", ATTRIBUTE, f"{ATTRIBUTE}_adlds"}
KNOWN_OF_RECEIVE = {*cmdlets.RECEIVE_CONNECTOR, "Identity", "Name"}
KNOWN_OF_SEND = {*cmdlets.SEND_CONNECTOR, "Identity", "Name"}
KNOWN_OF_QUEUE = {*cmdlets.QUEUE, "Identity"}
KNOWN_OF_CERTIFICATE = {*cmdlets.CERTIFICATE, "der", "RawData"}

E = TypeVar("E", Scenario, Phase)


class FaultyCase(msgspec.Struct, frozen=True):
    """A line that cannot be decided on: its number, and why."""

    line: int
    error: AnontlsError


def read_facts(text: bytes, name: str, *, default_as_of: datetime) -> Iterator[SessionFacts | FaultyCase]:
    """The cases of a facts file: of a ``.json`` file the one document, of a ``.jsonl`` file a case a line.

    What any other file is (``-`` too), its content tells.  A faulty line becomes a :class:`FaultyCase`, in its place.

    Raises:
        MalformedInput, UsageError: the file is one document, and that is faulty.
    """
    encoding, start = encoding_of(text)
    # Line by line below: a byte that is none of UTF-8 spoils its line only.
    text = text[start:] if encoding == "UTF-8" else decode(text, name).encode()
    suffix = name.lower().rpartition(".")[2]
    document: Any = None
    if suffix != "jsonl":
        try:
            document = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
            if suffix == "json" or not _is_json_lines(text):
                raise MalformedInput(name, f"not JSON: {e}") from None
            suffix = "jsonl"
    if suffix != "jsonl":
        yield session_facts(document, name, default_as_of=default_as_of)
        return
    for line, case in enumerate(text.split(b"\n"), 1):
        if not case.strip():
            continue
        where = f"{name}: line {line}"
        try:
            yield session_facts(_decode(case, where), where, default_as_of=default_as_of)
        except (MalformedInput, UsageError) as e:
            yield FaultyCase(line, e)


def _is_json_lines(text: bytes) -> bool:
    lines = [line for line in text.split(b"\n") if line.strip()]
    return len(lines) > 1 and all(line.strip()[:1] == b"{" and line.strip()[-1:] == b"}" for line in lines[:2])


def _decode(text: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
        raise MalformedInput(where, f"not JSON: {e}") from None


def session_facts(document: Any, where: str, *, default_as_of: datetime) -> SessionFacts:
    """The facts of one case.

    Raises:
        MalformedInput: a value, object or key is not what it should be; says which.
        UsageError: the case asks for a procedure that does not exist.
    """
    document = _object(document, where)
    for key in document:
        if key not in TOP_LEVEL:
            raise MalformedInput(f"{where}: {key}", f"unknown key; {_nearest(key)}")
    if document.get("schema") != SCHEMA:
        raise MalformedInput(f"{where}: schema", f'expected "{SCHEMA}", found {values.shown(document.get("schema"))}')
    scenario = _choice(Scenario, document.get("scenario"), f"{where}: scenario")
    phase = _choice(Phase, document.get("phase", "session"), f"{where}: phase")
    if phase is Phase.STARTUP and scenario is Scenario.INBOUND_STARTTLS:
        raise UsageError(
            f"{where}: there is no {scenario.value} at the start of a service: STARTTLS is chosen in a session"
        )
    as_of = default_as_of
    if "as_of" in document:
        try:
            as_of = values.time(document["as_of"])
        except values.Unfit as e:
            raise MalformedInput(f"{where}: as_of", f"expected {e}, found {values.shown(document['as_of'])}") from None

    def needed(key: str, known: Collection[str], why: str) -> Properties:
        if key not in document:
            raise MalformedInput(f"{where}: {key}", f"is missing: {why}")
        return _checked(_object(document[key], f"{where}: {key}"), known, f"{where}: {key}")

    server = cmdlets.server(needed("server", KNOWN_OF_SERVER, "the one that decides"), f"{where}: server", strict=True)
    attribute = server.internal_tls_cert
    if ATTRIBUTE in document:
        attribute = cmdlets.internal_tls_cert(document[ATTRIBUTE], f"{where}: {ATTRIBUTE}", strict=True)
    queue: Queue | None = None
    send: SendConnector | None = None
    receive: ReceiveConnector | None = None
    if phase is Phase.SESSION and scenario is Scenario.OUTBOUND_ANONYMOUS:
        if is_unknown(server.server_role) and "ServerRole" not in document["server"]:
            raise MalformedInput(
                f"{where}: server: ServerRole", "is missing: Mailbox and Edge are asked different questions"
            )
        # A role that is neither Mailbox nor Edge ends the procedure; what is given comes along.
        if server.role == "Mailbox" or (server.role != "Edge" and "queue" in document):
            given = needed("queue", KNOWN_OF_QUEUE, "a Mailbox server sends from a queue")
            queue = cmdlets.queue(given, f"{where}: queue", strict=True)
        if server.role == "Edge" or (server.role != "Mailbox" and "send_connector" in document):
            given = needed("send_connector", KNOWN_OF_SEND, "an Edge server sends by a Send connector")
            send = cmdlets.send_connector({**SEND_DEFAULTS, **given}, f"{where}: send_connector", strict=True)
    elif phase is Phase.SESSION:
        given = needed("receive_connector", KNOWN_OF_RECEIVE, "an inbound session hits a Receive connector")
        receive = cmdlets.receive_connector({**RECEIVE_DEFAULTS, **given}, f"{where}: receive_connector", strict=True)
    return SessionFacts(
        scenario=scenario,
        as_of=as_of,
        phase=phase,
        server=server,
        internal_tls_cert=attribute,
        store=_store(document, where),
        queue=queue,
        send_connector=send,
        receive_connector=receive,
    )


def _store(document: Mapping[str, Any], where: str) -> Store | Unknown:
    where = f"{where}: store"
    match document.get("store"):
        case None:
            raise MalformedInput(where, "is missing: the certificates of the server; [] when it has none")
        case list(entries):
            pass
        case {"unknown": str(because)} as given if len(given) == 1:
            return Unknown(because)
        case other:
            raise MalformedInput(where, f"expected a list of certificates, found {values.shown(other)}")
    certificates = []
    for at, entry in enumerate(entries):
        place = f"{where}[{at}]"
        given = _checked(_object(entry, place), KNOWN_OF_CERTIFICATE, place)
        certificates.append(cmdlets.certificate(given, place, strict=True))
    return Store(certificates)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedInput(where, f"expected an object, found {values.shown(value)}")
    return value


def _checked(given: dict[str, Any], known: Collection[str], where: str) -> dict[str, Any]:
    if wrong := cmdlets.misspelt(given, known):
        raise MalformedInput(f"{where}: {wrong[0]}", f"not a property that is read; did you mean {wrong[1]}?")
    return given


def _choice(kinds: type[E], given: Any, where: str) -> E:
    try:
        return kinds(given)
    except ValueError:
        known = " or ".join(v.value for v in kinds)
        raise MalformedInput(where, f"expected {known}, found {values.shown(given)}") from None


def _nearest(key: str) -> str:

    near = get_close_matches(key, TOP_LEVEL, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(TOP_LEVEL)}"
