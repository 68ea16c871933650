"""A domain controller that tells of changes by itself.  It is a reason to read again; what has changed is not taken from it."""

from __future__ import annotations

from typing import Any, Final, Literal

from anontls.directory.ldap import objects
from anontls.directory.ldap.connection import Connection, DomainControllerFailed, python_ldap
from anontls.directory.ldap.entry import Entry
from anontls.facts import is_unknown

CHANGE_NOTIFICATION: Final = "1.2.840.113556.1.4.528"  # MS-ADTS, LDAP_SERVER_NOTIFICATION_OID
CONTENT_SYNCHRONIZATION: Final = "1.3.6.1.4.1.4203.1.9.1.1"  # RFC 4533: syncrepl
MOST_AT_ONCE: Final = 1_000_000  # messages that are thrown away before the connection is given up

Means = Literal["notification", "syncrepl", "polling"]


class Notification:
    """A search on ``connection`` that never ends and gives what changes in the configuration naming context.

    Of one that can do neither there is never word (``means`` is ``polling``).
    """

    def __init__(self, connection: Connection) -> None:
        """Ask for it.

        Raises:
            DomainControllerFailed: it does not answer.
        """
        self._ldap = python_ldap()
        self._connection = connection
        self._message: int | None = None
        self.means: Means = "polling"
        with connection.told():
            found = connection.ldap.search_s("", self._ldap.SCOPE_BASE, "(objectClass=*)", ["supportedControl"])
        supported = Entry("", found[0][1] if found else {}).texts("supportedControl")
        if is_unknown(supported):
            return
        if CHANGE_NOTIFICATION in supported:
            # Of a whole tree only at the root of a naming context, and with no other filter.
            self._ask(self._ldap.controls.RequestControl(CHANGE_NOTIFICATION, True, None), "(objectClass=*)")
            self.means = "notification"
        elif CONTENT_SYNCHRONIZATION in supported:
            from ldap.syncrepl import SyncRequestControl

            wanted = f"(|{''.join(f'(objectClass={each})' for each in objects.CLASSES)})"
            self._ask(SyncRequestControl(criticality=True, mode="refreshAndPersist"), wanted)
            self.means = "syncrepl"

    def _ask(self, control: Any, search_filter: str) -> None:
        with self._connection.told():
            self._message = self._connection.ldap.search_ext(
                self._connection.root.configuration,
                self._ldap.SCOPE_SUBTREE,
                search_filter,
                ["1.1"],
                serverctrls=[control],
            )

    def fileno(self) -> int:
        """The connection's socket, to wait on."""
        return int(self._connection.ldap.fileno())

    def came(self) -> bool:
        """Whether there was word since the last call.  It does not block.

        Raises:
            DomainControllerFailed: the connection is broken, or no more word will come.
        """
        if self._message is None:
            return False
        message, self._message = self._message, None  # unless it goes on
        means, self.means = self.means, "polling"
        came = False
        for _ in range(MOST_AT_ONCE):
            with self._connection.told():
                kind, *_ = self._connection.ldap.result4(message, 0, 0, add_intermediates=1)
            if kind is None:
                self._message, self.means = message, means
                return came
            if kind == self._ldap.RES_SEARCH_RESULT:
                break
            came = True
        raise DomainControllerFailed(f"{self._connection.url}: it tells of changes no longer")
