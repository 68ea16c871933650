"""Active Directory, and AD LDS of an Edge server, as a source of facts (extra ``ad``: python-ldap)."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Container, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import msgspec

from anontls.directory.exchange_export.place import place_pieces
from anontls.directory.ldap import objects
from anontls.directory.ldap.connection import AccountRefused, Connection, DomainControllerFailed, LdapSettings
from anontls.directory.ldap.entry import Entry
from anontls.errors import Unreachable, UsageError
from anontls.facts import Organization, Source, is_unknown

__all__ = ["AccountRefused", "Connection", "DomainControllerFailed", "LdapDirectory", "LdapSettings", "ldap_settings"]

T = TypeVar("T")

FIRST_REST: Final = 1.0  # seconds that a domain controller which failed is left alone; doubled each time
LONGEST_REST: Final = 60.0
MAX_PASSWORD: Final = 4096  # bytes of the file


def ldap_settings(
    urls: str,
    *,
    bind: str | None = None,
    password_file: Path | None = None,
    ca: Path | None = None,
    ask: Callable[[str], str | None] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> LdapSettings:
    """Settings for ``urls``: one domain controller, or several with commas between.

    What is not given is taken from ``ANONTLS_LDAP_BIND``, ``ANONTLS_LDAP_PASSWORD_FILE`` and ``ANONTLS_LDAP_CA`` of the
    ``environment``, where the password is that of the name beside it; ``ask`` is asked for one that nothing else holds.

    Raises:
        UsageError: an address is none, or there is a name to bind with and no password.
    """

    def path(variable: str) -> Path | None:
        return Path(value) if (value := environment.get(variable)) else None

    if not bind:
        bind = environment.get("ANONTLS_LDAP_BIND") or None
        password_file = password_file or path("ANONTLS_LDAP_PASSWORD_FILE")
    password = None
    if bind:
        password = _password(password_file) if password_file else ask(bind) if ask else None
        if not password:
            hint = "--ldap-password-file, ANONTLS_LDAP_PASSWORD_FILE; of a node directory.password-file"
            raise UsageError(f"no password for {bind}", hint=hint)
    return LdapSettings(
        urls=tuple(url.strip() for url in urls.split(",")),
        bind=bind,
        password=password or "",
        ca=ca or path("ANONTLS_LDAP_CA"),
    )


def _password(file: Path) -> str:
    """The first line of ``file``, which others may not read."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            lines = opened.read(MAX_PASSWORD).decode().splitlines()
    except OSError as e:
        raise UsageError(f"the password's file {file}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the password's file {file}: not UTF-8") from None
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:  # modes say nothing elsewhere, nor of a pipe
        because = f"it is open to others (mode {stat.S_IMODE(mode):04o})"
        raise UsageError(f"the password's file {file}: {because}", hint=f"chmod 600 {file}")
    if not lines or not lines[0]:
        raise UsageError(f"the password's file {file}: the first line, which should be the password, is empty")
    return lines[0]


class _DomainController:
    """One address, and how long it is left alone."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.failure: Unreachable | None = None
        self.due = 0.0
        self.rest = FIRST_REST


class LdapDirectory:
    """The directory behind several domain controllers: the first that answers is used for as long as it does.

    For one thread: whoever wants several domain controllers watched at once makes one of these for each, with a thread.
    Every call blocks, up to the settings' time-out for each answer and domain controller.  Nothing is connected before
    the first call, and a connection that broke is made anew by the next one.
    """

    def __init__(self, settings: LdapSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._connection: Connection | None = None
        self._controllers = [_DomainController(url) for url in settings.urls]

    def __enter__(self) -> LdapDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave; the next call comes again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def url(self) -> str | None:
        """The domain controller that is connected."""
        return self._connection.url if self._connection else None

    def call(self, operation: Callable[[Connection], T]) -> T:
        """What ``operation`` gives with a domain controller that answers; it may be run again with another one.

        One that failed is left alone for a second, then for two, up to a minute.

        Raises:
            Unreachable: none answers, each with its reason; at once while all are left alone.
            AccountRefused: the account is; the other domain controllers are not asked, as they may count it.
        """
        if self._connection is not None:
            try:
                return operation(self._connection)
            except DomainControllerFailed:  # closed for being idle, or restarted: that says nothing of a new connection
                self.close()
        now = self._clock()
        for controller in self._controllers:
            if controller.failure is not None and now < controller.due:
                continue
            try:
                self._connection = Connection(controller.url, self.settings)
                result = operation(self._connection)
            except AccountRefused as e:
                self._failed(self._controllers, e)
                raise
            except DomainControllerFailed as e:
                self._failed([controller], e)
            else:
                controller.failure, controller.rest = None, FIRST_REST
                return result
        raise self._unreachable()

    def _failed(self, controllers: list[_DomainController], failure: Unreachable) -> None:
        self.close()
        for controller in controllers:
            controller.failure = failure
            controller.due = self._clock() + controller.rest
            controller.rest = min(2 * controller.rest, LONGEST_REST)

    def _unreachable(self) -> Unreachable:
        failures = list(dict.fromkeys(str(each.failure) for each in self._controllers))
        hints = [each.failure.hint for each in self._controllers if each.failure and each.failure.hint]
        return Unreachable("; ".join(failures), hint=hints[0] if hints else None)

    def organization(self, *, collected: datetime | None = None, as_server: bool = False) -> Organization:
        """All that the directory holds of Exchange.

        ``collected`` is the present moment, for the snapshot to keep.  ``as_server``: the account is the one that the
        server itself reads with, so that what it may not read cannot be read; otherwise that is unknown.

        Raises:
            Unreachable: as :meth:`call`.
        """
        return self.call(lambda connection: _read(connection, collected, as_server))


def _read(connection: Connection, collected: datetime | None, as_server: bool) -> Organization:
    root = connection.root

    def search(search_filter: str, *attributes: str) -> list[Entry]:
        return list(connection.search(root.configuration, search_filter, attributes))

    @cache
    def unset(attribute: str) -> Container[str]:
        """The objects without it: where the account may not read it, a filter is neither true nor false of them."""
        of_class = objects.NULL_MATTERS[attribute]
        without = search(f"(&(objectClass={of_class})(!({attribute}=*)))", "1.1")
        return frozenset(entry.dn.lower() for entry in without)

    entries = search(f"(|{''.join(f'(objectClass={each})' for each in objects.CLASSES)})", *objects.ATTRIBUTES)
    reader = objects.Reader(connection.url, adlds=root.adlds, as_server=as_server, unset=unset, collected=collected)
    organization, notes = place_pieces(piece for entry in entries for piece in reader.pieces(entry))
    said = [f"read from {root.host}"] if root.host else []
    source = Source(
        kind="ldap",
        file=connection.url,
        objects=len(entries),
        collected=collected,
        note="; ".join([*said, *list(notes.get(connection.url, ()))[:5]]) or None,
    )
    lists: dict[str, Any] = {"accepted_domains": objects.ACCEPTED_DOMAINS}
    if root.adlds:
        lists["edge_subscriptions"] = objects.NOT_SUBSCRIBED_HERE
    elif organization.servers and is_unknown(organization.edge_subscriptions):
        lists["edge_subscriptions"] = ()  # no Edge server has an object
    return msgspec.structs.replace(organization, sources=(source,), **lists)
