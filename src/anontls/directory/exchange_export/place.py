"""Objects from many servers and files, attached to the server that each says it belongs to.

``PSComputerName`` is where a cmdlet ran, not whose object it printed, so it decides nothing alone.  What fits nowhere
is kept as :class:`~anontls.facts.Unplaced`, and finds its place when a later import brings its server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import msgspec

from anontls.directory.exchange_export import cmdlets
from anontls.directory.exchange_export.cmdlets import Kind
from anontls.directory.exchange_export.pieces import OF_A_SERVER, OF_THE_ORGANIZATION, Piece, key_of
from anontls.directory.snapshot import certificate_builtins
from anontls.errors import UsageError
from anontls.facts import (
    ABSENT,
    Certificate,
    InternalTlsCert,
    Organization,
    ReceiveConnector,
    SendConnector,
    Server,
    Unplaced,
    is_unknown,
)

S = TypeVar("S", bound=msgspec.Struct)

ALL_ADDRESSES = ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0-255.255.255.255")
INTRA_ORGANIZATION = "Intra-Organization SMTP Send Connector"
NO_SUCH_SERVER = "no server of that name in the sources"
CURE = ": org import --server NAME "  # and the file


# --- two sources for one object --------------------------------------------------------------------------------------


def merge(old: S, new: S) -> tuple[S, list[str]]:
    """One object from two sources, ``new`` the later one; and the properties in which they contradict each other.

    What is known beats what is not, then the later beats the earlier.
    """
    if old == new:
        return old, []
    fields: dict[str, Any] = {}
    differing: list[str] = []
    for name, property_name in _fields(type(old)):
        was, now = getattr(old, name), getattr(new, name)
        fields[name] = now
        if was == now:
            continue
        # The same enumeration value as text and as number: the text says more.
        same_value = {type(was), type(now)} == {str, int}
        if (
            _says_nothing(now)
            or (name == "addresses" and not now)
            or name in ("name", "identity")
            or (same_value and isinstance(was, str))
        ):
            fields[name] = was
        elif not _says_nothing(was) and not same_value:
            differing.append(property_name)
    if isinstance(old, Certificate) and fields["der"] is not None:
        own = ("HasPrivateKey", "IsSelfSigned", "Services", "Status")  # all else follows from the bytes
        names = {cmdlets.FIELDS[Certificate][name] for name in own} | {"der"}
        fields = {name: value for name, value in fields.items() if name in names}
        differing = [name for name in differing if name in own]
    return type(old)(**fields), differing


@cache
def _fields(struct: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    return tuple((field.name, field.encode_name) for field in msgspec.structs.fields(struct))


def _says_nothing(value: object) -> bool:
    if isinstance(value, InternalTlsCert):
        return isinstance(value.unknown, str)
    return is_unknown(value)


class _Shelf:
    """Objects of one kind in one place, each once."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[Any, str]] = {}

    def add(self, piece: Piece, notes: Mapping[str, list[str]]) -> None:
        key = key_of(piece.kind, piece.facts)
        facts, file = self.objects.get(key, (piece.facts, piece.file))
        facts, differing = merge(facts, piece.facts)
        self.objects[key] = (facts, piece.file if differing else file)
        _note_difference(piece, differing, file, notes)

    def __iter__(self) -> Iterator[Any]:
        return (facts for facts, _ in self.objects.values())


def _note_difference(piece: Piece, differing: list[str], other: str, notes: Mapping[str, list[str]]) -> None:
    if differing:
        names = ", ".join(differing)
        notes[piece.file].append(
            f"{piece.kind.value} {piece.identity}: {names} differs from {other}; the later is kept"
        )


class _Draft:
    """A server while its objects come in."""

    def __init__(self, facts: Server, file: str) -> None:
        self.file = file
        # A snapshot may know that there are none; an export without such objects does not.
        self.shelves: dict[Kind, _Shelf] = {}
        self.facts = self.without_lists(facts)

    def without_lists(self, facts: Server) -> Server:
        known = [kind for kind, field in OF_A_SERVER.items() if not is_unknown(getattr(facts, field))]
        for kind in known:
            self.shelves.setdefault(kind, _Shelf())
        absent: dict[str, Any] = {OF_A_SERVER[kind]: ABSENT for kind in known}
        return msgspec.structs.replace(facts, **absent)

    def add(self, piece: Piece, notes: Mapping[str, list[str]]) -> None:
        self.facts, differing = merge(self.facts, self.without_lists(piece.facts))
        _note_difference(piece, differing, self.file, notes)

    def server(self) -> Server:
        lists: dict[str, Any] = {OF_A_SERVER[kind]: tuple(shelf) for kind, shelf in self.shelves.items()}
        if self.facts.role == "Mailbox" and "receive_connectors" in lists:
            lists["receive_connectors"] = _with_implicit(lists["receive_connectors"], mailbox_delivery(self.facts.name))
        return msgspec.structs.replace(self.facts, **lists)


# --- what no export holds --------------------------------------------------------------------------------------------


def mailbox_delivery(server: str) -> ReceiveConnector:
    """The Receive connector of the Mailbox Transport Delivery service, which no cmdlet lists [FACT D 6.3].

    Nobody can configure it, so what has a default has it.
    """
    return ReceiveConnector(
        identity=f"{server}\\Default Mailbox Delivery {server}",
        enabled=True,
        bindings=("[::]:475", "0.0.0.0:475"),
        remote_ip_ranges=ALL_ADDRESSES,
        auth_mechanism="ExchangeServer",
        permission_groups="ExchangeServers",
        tls_certificate_name=None,
        suppress_x_anonymous_tls=False,
        implicit=True,
    )


def _with_implicit(known: tuple[S, ...], implicit: Any) -> tuple[S, ...]:
    there = {str(getattr(each, "identity", "")).lower() for each in known}
    return known if implicit.identity.lower() in there else (*known, implicit)


# --- placing ---------------------------------------------------------------------------------------------------------


def place_pieces(
    pieces: Iterable[Piece | Unplaced], *, server: str | None = None
) -> tuple[Organization, Mapping[str, list[str]]]:
    """Every piece in its place or among the unplaced; and what is to be said about each file.

    ``server`` is whose the objects are that do not say it themselves.

    Raises:
        UsageError: no such server in the sources.
    """
    return _Placing(list(pieces), server).result()


# Servers before what belongs to them; certificates without a word last, as they are known by their thumbprints.
_ORDER = {kind: at for at, kind in enumerate(Kind)}
_ORDER[Kind.BARE_CERTIFICATE] = len(_ORDER)
_EVER = datetime(1, 1, 1, tzinfo=UTC)


def _argument(file: str) -> str:
    return f'"{file}"' if " " in file else file


class _Placing:
    def __init__(self, pieces: list[Piece | Unplaced], server: str | None) -> None:
        self.notes: dict[str, list[str]] = {}
        self.unplaced: dict[tuple[str, str], list[Unplaced]] = {}
        for item in pieces:
            if isinstance(item, Unplaced):
                self.keep(item)
        self.drafts: dict[str, _Draft] = {}
        self.by_fqdn: dict[str, _Draft] = {}
        self.by_thumbprint: dict[str, list[_Draft]] | None = None
        self.shelves: dict[Kind, _Shelf] = {}
        self.names: list[str] = []
        self.pieces = [item for item in pieces if isinstance(item, Piece)]
        # From the earliest to the latest: the later one is kept.
        self.pieces.sort(key=lambda piece: (_ORDER[piece.kind], piece.collected or _EVER))
        for piece in self.pieces:
            self.notes.setdefault(piece.file, [])
        at = sum(piece.kind is Kind.SERVER for piece in self.pieces)
        for piece in self.pieces[:at]:
            self.add_server(piece)
        self.default: _Draft | None = self.find(server) if server else None
        if server and self.default is None:
            known = ", ".join(sorted(draft.facts.name for draft in self.drafts.values())) or "none"
            raise UsageError(f"no server {server} in the sources", hint=f"servers in the sources: {known}")
        for piece in self.pieces[at:]:
            self.add(piece)

    def add_server(self, piece: Piece) -> None:
        facts: Server = piece.facts
        if piece.owner is None:
            return self.leave(piece, "it has no name")
        draft = self.drafts.get(facts.name.lower())
        if draft is None:
            draft = self.drafts[facts.name.lower()] = _Draft(facts, piece.file)
        else:
            was, now = draft.facts.fqdn, facts.fqdn
            if isinstance(was, str) and isinstance(now, str) and was.lower() != now.lower():
                return self.leave(piece, f"another server of that name is there already: {was}")
            draft.add(piece, self.notes)
        if isinstance(draft.facts.fqdn, str):
            self.by_fqdn[draft.facts.fqdn.lower()] = draft
        if piece.organization:
            # An Edge server has a directory of its own, which does not know the organisation's name.
            self.names.insert(0 if facts.role == "Mailbox" else len(self.names), piece.organization)
        return None

    def find(self, owner: str) -> _Draft | None:
        """The server of that name or FQDN; a FQDN also finds a server by its first label whose own is not known."""
        wanted = owner.lower()
        found = self.drafts.get(wanted) or self.by_fqdn.get(wanted)
        if found is None and "." in wanted:
            found = self.drafts.get(wanted.partition(".")[0])
            if found and isinstance(found.facts.fqdn, str):
                return None
        return found

    def add(self, piece: Piece) -> None:
        if piece.kind in OF_THE_ORGANIZATION:
            self.shelves.setdefault(piece.kind, _Shelf()).add(piece, self.notes)
            return
        if piece.kind is Kind.BARE_CERTIFICATE:
            self.add_bare(piece)
            return
        draft = self.find(piece.owner) if piece.owner else self.default or self.by_computer(piece)
        if draft is None:
            cure = f"it does not say whose it is{CURE}{_argument(piece.file)}"
            self.leave(piece, NO_SUCH_SERVER if piece.owner else cure)
        elif isinstance(piece.facts, Server):
            draft.add(piece, self.notes)
        else:
            draft.shelves.setdefault(piece.kind, _Shelf()).add(piece, self.notes)

    def by_computer(self, piece: Piece) -> _Draft | None:
        """The only server in the sources, when the cmdlet that printed the certificate ran there."""
        if piece.kind is not Kind.CERTIFICATE or piece.computer is None or len(self.drafts) != 1:
            return None
        draft = self.find(piece.computer)
        if draft is not None:
            note = (
                f"the certificates do not say whose they are; the cmdlet ran on {piece.computer}, so they are its own"
            )
            if note not in self.notes[piece.file]:
                self.notes[piece.file].append(note)
        return draft

    def add_bare(self, piece: Piece) -> None:
        """A certificate alone in a file: the value of ``msExchServerInternalTLSCert`` of a server that it fits."""
        certificate: Certificate = piece.facts
        drafts = [self.default] if self.default else self.of_certificate(certificate)
        if not drafts:
            because = "it is not known as the internal transport certificate of a server in the sources"
            return self.leave(piece, f"{because}{CURE}{_argument(piece.file)}")
        der, thumbprint = certificate.der, str(certificate.thumbprint)
        value = InternalTlsCert(der=der) if der else InternalTlsCert(thumbprint=thumbprint)
        for draft in drafts:
            facts = Server(name=draft.facts.name, internal_tls_cert=value)
            draft.add(msgspec.structs.replace(piece, facts=facts, identity=draft.facts.name), self.notes)
        return None

    def of_certificate(self, certificate: Certificate) -> list[_Draft]:
        if self.by_thumbprint is None:
            self.by_thumbprint = {}
            for draft in self.drafts.values():
                shown = draft.facts.internal_transport_certificate_thumbprint
                if isinstance(shown, str) and shown:
                    self.by_thumbprint.setdefault(shown, []).append(draft)
        if drafts := self.by_thumbprint.get(str(certificate.thumbprint)):
            return drafts
        only = next(iter(self.drafts.values())) if len(self.drafts) == 1 else None
        names = (only.facts.name, only.facts.fqdn) if only else ()
        if only and any(isinstance(name, str) and certificate.named(name) is True for name in names):
            return [only]
        return []

    def leave(self, piece: Piece, because: str) -> None:
        facts = piece.facts
        plain = certificate_builtins(facts) if isinstance(facts, Certificate) else facts
        item = Unplaced(
            file=piece.file,
            type=piece.kind.value,
            identity=piece.identity,
            because=because,
            object=msgspec.json.decode(msgspec.json.encode(plain)),  # as the snapshot will hold it
        )
        self.keep(item)

    def keep(self, item: Unplaced) -> None:
        same = self.unplaced.setdefault((item.type, item.identity), [])
        if all(other.object != item.object for other in same):
            same.append(item)

    def result(self) -> tuple[Organization, Mapping[str, list[str]]]:
        lists: dict[str, Any] = {OF_THE_ORGANIZATION[kind]: tuple(shelf) for kind, shelf in self.shelves.items()}
        if "send_connectors" in lists:
            implicit = SendConnector(identity=INTRA_ORGANIZATION, implicit=True)  # no cmdlet lists it [FACT D 6.2]
            lists["send_connectors"] = _with_implicit(lists["send_connectors"], implicit)
        organization = Organization(
            schema="anontls/org/1",
            name=self.names[0] if self.names else None,
            servers=tuple(self.drafts[name].server() for name in sorted(self.drafts)),
            unplaced=tuple(item for same in self.unplaced.values() for item in same),
            **lists,
        )
        return organization, self.notes
