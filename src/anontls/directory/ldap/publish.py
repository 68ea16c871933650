"""Writes ``msExchServerInternalTLSCert`` of a server object, and nothing that somebody else has written since.

What was read is taken away by the same modification that puts the new value there (RFC 4511, section 4.6: all of it or
nothing), so the directory itself refuses it when the value is another one by now.  What was written is read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from anontls.directory.ldap.certificate import certificate_of
from anontls.directory.ldap.connection import Connection, python_ldap, reason
from anontls.directory.ldap.entry import Entry
from anontls.directory.ldap.objects import CERTIFICATE, ROLES, SERVER, Reader
from anontls.errors import Unreachable, UsageError
from anontls.facts import Certificate, Server, in_ldap_filter, is_unknown, thumbprint_of

READ: Final = ("objectClass", CERTIFICATE, ROLES, "networkAddress", "serialNumber")
COPIED: Final = (ROLES, "networkAddress", "serialNumber")  #: what a server is, without what only one directory knows


class WriteRefused(Unreachable):
    """The directory does not let this account write, or does not take the value."""


class Conflict(Unreachable):
    """The value is not the one that was read: somebody else has written."""


class ServerObject(NamedTuple):
    """A server object with what is looked at before it is written."""

    entry: Entry
    server: Server  #: the same as facts

    @property
    def name(self) -> str:
        """Its short name."""
        return self.server.name

    @property
    def value(self) -> bytes | None:
        """The attribute as it is; ``None`` where the directory shows none.

        Raises:
            WriteRefused: there are several values, or one that is too large to be read.
        """
        values = self.entry.octets(CERTIFICATE)
        if is_unknown(values):
            raise WriteRefused(values.because, hint="what cannot be read is not replaced; clear the attribute by hand")
        if len(values) > 1:
            raise WriteRefused(f"{CERTIFICATE} of {self.name}: {len(values)} values", hint="clear it by hand")
        return values[0] if values else None

    @property
    def certificate(self) -> bytes | None:
        """The certificate in the attribute; ``None`` where the directory shows no value.

        Raises:
            WriteRefused: as :attr:`value`.
            ValueError: the value is not a certificate; says what it is.
        """
        if not self.value:
            return None
        der = certificate_of(self.value)
        if Certificate(der=der).x509 is None:
            raise ValueError(f"{len(der):,} bytes that have the outline of a certificate and are none")
        return der

    @property
    def shown(self) -> str | None:
        """The thumbprint of what is there, or what is there instead."""
        try:
            der = self.certificate
        except (ValueError, WriteRefused) as e:
            return str(e)
        return thumbprint_of(der) if der else None


def server_objects(connection: Connection, name: str | None = None) -> Iterator[ServerObject]:
    """The server objects of the directory; only those called ``name``.

    Raises:
        DomainControllerFailed: as :meth:`Connection.search`.
    """
    called = f"(cn={in_ldap_filter(name)})" if name is not None else ""
    reader = Reader(connection.url, adlds=connection.root.adlds, as_server=False, unset=lambda _: (), collected=None)
    for entry in connection.search(connection.root.configuration, f"(&(objectClass={SERVER}){called})", READ):
        yield ServerObject(entry, reader.server(entry))


def server_object(connection: Connection, name: str) -> ServerObject:
    """The one server object called ``name``.

    Raises:
        UsageError: there is none, or there are several.
        DomainControllerFailed: as :meth:`Connection.search`.
    """
    found = list(server_objects(connection, name))
    if len(found) != 1:
        there = f"{len(found)} servers are" if found else "no server is"
        raise UsageError(
            f"{connection.url}: {there} called {name}", hint="the short name, as Get-ExchangeServer has it"
        )
    return found[0]


def publish(connection: Connection, there: ServerObject, certificate: bytes) -> None:
    """Put ``certificate`` (DER) into the object in place of the value that ``there`` has.

    It may be called again after a failure: a value that is the new one already is no conflict.

    Raises:
        Conflict: the value is another one than ``there`` has, before or after the writing.
        WriteRefused: no rights, a read-only domain controller, or the directory does not take the value.
        DomainControllerFailed: it does not answer; the value may be written or not.
    """
    ldap, old = python_ldap(), there.value
    changes = [(ldap.MOD_ADD, CERTIFICATE, [certificate])]
    if old is not None:
        changes.insert(0, (ldap.MOD_DELETE, CERTIFICATE, [old]))
    where = f"{connection.url}: {CERTIFICATE} of {there.name}"
    refusal: Exception | None = None
    with connection.told():
        try:
            connection.ldap.modify_ext_s(there.entry.dn, changes)
        except (ldap.NO_SUCH_ATTRIBUTE, ldap.TYPE_OR_VALUE_EXISTS, ldap.CONSTRAINT_VIOLATION) as e:
            refusal = e  # the old value is not there, or another one is; reading says which
        except _refusals(ldap) as e:
            raise WriteRefused(f"{where} is not written: {_said(ldap, e)}", hint=_cure(ldap, e)) from None
    now = _read_again(connection, there)
    if now == certificate:
        return
    if refusal is not None and now == old:
        hidden = "; it may have a value that this account may not read" if old is None else ""
        raise WriteRefused(f"{where} is not written: {_said(ldap, refusal)}{hidden}")
    if now is None:
        raise Conflict(f"{where} shows no value: somebody else took it away, or this account may write and not read it")
    raise Conflict(
        f"{where} was changed by somebody else: it is {_named(now)} now, and was {_named(old)}",
        hint="read it again and decide again; nothing of theirs was overwritten",
    )


def create(connection: Connection, beside: ServerObject, like: ServerObject, certificate: bytes) -> None:
    """Make a server object in the container of ``beside``: what ``like`` is, with ``certificate`` (DER).

    The name of ``like`` is one that needs no escape in a distinguished name.

    Raises:
        WriteRefused: no rights, or the directory does not take such an object.
        Conflict: there is one by now.
        DomainControllerFailed: it does not answer.
    """
    ldap = python_ldap()
    attributes = [("objectClass", [SERVER.encode()]), ("cn", [like.name.encode()]), (CERTIFICATE, [certificate])]
    for name in COPIED:
        values = like.entry.octets(name)
        if not is_unknown(values) and values:
            attributes.append((name, list(values)))
    dn = f"CN={like.name},{beside.entry.dn.partition(',')[2]}"
    where = f"{connection.url}: the object of {like.name}"
    with connection.told():
        try:
            connection.ldap.add_ext_s(dn, attributes)
        except ldap.ALREADY_EXISTS:
            raise Conflict(f"{where} is there by now") from None
        except (*_refusals(ldap), ldap.CONSTRAINT_VIOLATION) as e:
            raise WriteRefused(f"{where} is not made: {_said(ldap, e)}", hint=_cure(ldap, e)) from None


def _read_again(connection: Connection, there: ServerObject) -> bytes | None:
    entry = next(iter(connection.search(there.entry.dn, "(objectClass=*)", READ, scope=0)), None)
    if entry is None:
        raise Conflict(f"{connection.url}: the object of {there.name} is not there any more")
    return ServerObject(entry, there.server).value


def _named(value: bytes | None) -> str:
    if not value:
        return "not set"
    try:
        return thumbprint_of(certificate_of(value))
    except ValueError as e:
        return str(e)


def _refusals(ldap: Any) -> tuple[type[Exception], ...]:
    """Answers that another domain controller would give too."""
    return (
        ldap.INSUFFICIENT_ACCESS,
        ldap.NO_SUCH_OBJECT,  # also: not shown to this account
        ldap.UNDEFINED_TYPE,
        ldap.OBJECT_CLASS_VIOLATION,
        ldap.INVALID_SYNTAX,
        ldap.UNWILLING_TO_PERFORM,
        ldap.REFERRAL,
    )


def _said(ldap: Any, error: Exception) -> str:
    if isinstance(error, ldap.REFERRAL):
        return "it refers to another domain controller, as a read-only one does"
    return reason(error)


def _cure(ldap: Any, error: Exception) -> str | None:
    if isinstance(error, ldap.INSUFFICIENT_ACCESS):
        return f"the account needs the right to write {CERTIFICATE} of the server's object"
    return "name a writable domain controller" if isinstance(error, ldap.REFERRAL) else None
