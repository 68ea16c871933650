"""A directory that a running node follows: what it says serves from memory, and is read again when it changes.

A thread of its own does all that blocks; the state is the event loop's.  No session ever waits for the directory.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from anontls.directory.exchange_export import read_export
from anontls.directory.ldap import FIRST_REST, LONGEST_REST, LdapDirectory, objects
from anontls.directory.ldap.connection import AccountRefused, Connection, LdapSettings
from anontls.directory.ldap.notification import Means, Notification
from anontls.errors import AnontlsError, Unreachable
from anontls.facts import ATTRIBUTE_ABSENT, DirectoryWord, InternalTlsCert, Organization, Server, is_unknown

INTERVAL: Final = 60.0  # seconds between two looks at what has changed
GRACE: Final = 3600.0  # seconds that the last known value serves
EVERYTHING: Final = 10  # looks after which all is read, changed or not: an inherited permission changes no object
SETTLE: Final = 0.2  # seconds after word of a change, in which more of it may come
SHARE: Final = 10  # between two looks at least this many times what the last one took
REFUSED_REST: Final = 300.0  # seconds between two tries with an account that is refused; each of them is counted
TICK: Final = 1.0  # seconds within which the end of the grace is noticed
ATTRIBUTE: Final = objects.CERTIFICATE
STAMPS: Final = ("uSNChanged", "entryCSN")  # of Active Directory and AD LDS, of OpenLDAP
NOT_THERE: Final = InternalTlsCert(error="the directory shows no such server")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands with a directory that is followed."""

    url: str | None  # the domain controller that answered; None while none does
    means: Means | None  # how word of changes comes
    age: float | None  # seconds since it was last known to say what serves; None: not yet read
    readable: bool  # false: the grace is over, or it was never read
    reads: int  # looks that were answered
    failures: int  # looks that were not
    problem: str | None  # why not, and the cure in parentheses where one is known; None while it answers


class _Look(NamedTuple):
    """What a look at the directory gave."""

    began: float
    at: datetime
    url: str | None = None
    means: Means | None = None
    organization: Organization | None = None  # None: as before
    problem: str | None = None
    pause: float = 0.0  # seconds until the next look


class Follower:
    """Follows the directory behind ``settings``, and gives what it and ``base`` say together.

    ``base`` is what is known besides, from a file.  What it says of ``msExchServerInternalTLSCert`` does not count: that
    is the directory's word alone.  ``now`` is the clock, and ``clock`` counts seconds that nobody sets back.  When no
    domain controller answers, the last known value serves until it is ``grace`` seconds old; then the attribute of every
    server cannot be read, until one answers again.

    In this order: :meth:`first`, then in the event loop :meth:`start` and at the end :meth:`stop`; or :meth:`first` and
    :meth:`close`, to know what it says now.
    """

    def __init__(
        self,
        settings: LdapSettings,
        base: Organization,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        interval: float = INTERVAL,
        grace: float = GRACE,
    ) -> None:
        self.settings = settings
        self.interval = interval
        self.grace = grace
        self._now = now
        self._clock = clock
        # The event loop's:
        self._known = _with_directory(base, None)
        self._because: str | None = "the directory has not been read"  # why the attribute cannot be read
        self.organization = self._serving(self._known)  #: what serves now
        self.as_of: datetime | None = None  #: when the directory was last known to say so
        self._answered_by = ""
        self._fresh = 0.0
        self._reads = self._failures = 0
        self._last = _Look(0.0, now())
        self._on_change: Callable[[Organization], None] = lambda _: None
        self._say: Callable[[str], None] = lambda _: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.TimerHandle | None = None
        # The thread's:
        self._directory = LdapDirectory(settings)
        self._connection: Connection | None = None
        self._notification: Notification | None = None
        self._stamps: Mapping[str, bytes] | None = None
        self._looks = 0
        self._rest = FIRST_REST
        self._earliest = 0.0
        # Of both:
        self._merging = threading.Lock()  # never taken in the event loop
        self._base = base
        self._said: Organization | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._wakes, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    # --- in the event loop --------------------------------------------------------------------------------------------

    def first(self) -> Organization:
        """Read it for the first time; blocks, and belongs before the event loop runs.

        Without an answer the attribute of every server cannot be read, which at a service start is event 12012.

        Raises:
            UsageError: python-ldap is not installed, or the file of trusted certificates cannot be used.
        """
        self._look()
        return self.organization

    def start(self, on_change: Callable[[Organization], None], say: Callable[[str], None] = lambda _: None) -> None:
        """Follow from now on.

        Both are called in the running event loop: ``on_change`` with what serves from then on, ``say`` with what an
        operator should know.
        """
        self._on_change, self._say = on_change, say
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="directory", daemon=True)
        self._thread.start()
        self._watch_grace(self._loop)

    async def stop(self, patience: float = 5.0) -> None:
        """End it.  A thread that waits for a domain controller longer than ``patience`` is left to its time-out."""
        if self._tick is not None:
            self._tick.cancel()
        self._stopping.set()
        if self._thread is None:
            self.close()
            return
        self._wake()
        await asyncio.to_thread(self._thread.join, patience)

    @property
    def age(self) -> float | None:
        """Seconds since the directory was last known to say what serves; ``None``: not yet read."""
        return None if self.as_of is None else max(self._clock() - self._fresh, 0.0)

    @property
    def word(self) -> DirectoryWord | None:
        """How fresh it is what serves; ``None``: the directory has not been read yet."""
        as_of, age = self.as_of, self.age
        return None if as_of is None or age is None else DirectoryWord(url=self._answered_by, as_of=as_of, age=age)

    @property
    def status(self) -> Status:
        return Status(
            url=self._last.url,
            means=self._last.means,
            age=self.age,
            readable=self._because is None,
            reads=self._reads,
            failures=self._failures,
            problem=self._last.problem,
        )

    def _serving(self, known: Organization) -> Organization:
        return known if self._because is None else _unreadable(known, self._because)

    def _took(self, look: _Look) -> None:
        last, self._last = self._last, look
        if look.problem is not None:
            self._failures += 1
            if self.as_of is None:
                self._cannot_be_read(look.problem)
            self._end_grace()
            if last.problem is None:
                serves = "cannot be read" if self._because else f"is what it was, for {self.grace:g} s"
                self._say(f"the directory does not answer, {ATTRIBUTE} {serves}: {look.problem}")
            return
        if look.url != last.url:
            self._say(f"the directory is read from {look.url}")
        self._reads += 1
        self._fresh, self.as_of, self._answered_by = look.began, look.at, look.url or ""
        if look.organization is None and self._because is None:
            return
        self._because = None
        self._known = self.organization = look.organization or self._known
        self._on_change(self.organization)

    def _rebased(self, known: Organization) -> None:
        self._known, self.organization = known, self._serving(known)

    def _cannot_be_read(self, because: str) -> None:
        if because != self._because:
            self._because = because
            self.organization = self._serving(self._known)
            self._on_change(self.organization)

    def _end_grace(self) -> None:
        if self._because is not None or self.age is None:
            return
        # As long as it answers nothing ends between two looks; nor does a look that never comes back prolong it.
        if self.age > self.grace + (0.0 if self._last.problem else 2 * self._last.pause):
            because = f"the directory has not answered for more than {self.grace:g} s"
            self._cannot_be_read(f"{because}: {self._last.problem}" if self._last.problem else because)
            self._say(f"{ATTRIBUTE} cannot be read: {self._because}")

    def _watch_grace(self, loop: asyncio.AbstractEventLoop) -> None:
        """Here and not in the thread, which a domain controller may keep waiting."""
        self._end_grace()
        self._tick = loop.call_later(min(TICK, self.interval), self._watch_grace, loop)

    # --- in another thread --------------------------------------------------------------------------------------------

    def rebase(self, base: Organization) -> Organization:
        """What serves with another ``base``; ``on_change`` is not called for it.  The directory is asked again at once.

        Blocks while it puts both together, so it is not for the event loop.
        """
        with self._merging:
            self._base = base
            known = _with_directory(base, self._said)
            self._tell(self._rebased, known)
        self._wake()
        return self._serving(known)

    def _tell(self, what: Callable[[Any], None], value: object) -> None:
        """To the event loop; before the start there is one thread only."""
        if self._loop is None:
            what(value)
            return
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(what, value)

    def _wake(self) -> None:
        with suppress(OSError):  # it is awake already, or gone
            self._waker.send(b"\0")

    # --- in the thread that follows -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._wait(self._look())
                except Exception as e:  # noqa: BLE001 whatever comes of hostile input, a later look may be better
                    self._wait(self._failed(self._clock(), e))
        finally:
            self.close()

    def close(self) -> None:
        """Leave; what was said stays.  For whoever does not start it."""
        self._directory.close()
        self._wakes.close()
        self._waker.close()

    def _look(self) -> float:
        """Look whether something has changed, and read it; the seconds until the next time."""
        started, began, at = time.monotonic(), self._clock(), self._now()
        try:
            stamps = self._directory.call(self._changes)
            organization = None
            if stamps is None or stamps != self._stamps or self._looks % EVERYTHING == 0:
                organization = self._directory.organization(collected=at, as_server=True)
            moved = self._directory.call(lambda connection: connection) is not self._connection
        except Unreachable as e:
            return self._failed(began, e)
        self._stamps, self._rest = stamps, FIRST_REST
        self._looks += 1
        url, means = self._directory.url, self._notification.means if self._notification else None
        if moved:  # to another domain controller, half-way: its objects are good, the rest is of the one before
            self._leave()
        took = time.monotonic() - started
        pause = FIRST_REST if moved else max(self.interval, SHARE * took)
        self._earliest = started + (1 + SHARE) * took
        look = _Look(began, at, url, means, pause=pause)
        with self._merging:
            if organization is not None and not _same(organization, self._said):
                self._said = organization
                look = look._replace(organization=_with_directory(self._base, organization))
            self._tell(self._took, look)
        return pause

    def _leave(self) -> None:
        self._directory.close()
        self._connection = self._notification = self._stamps = None

    def _changes(self, connection: Connection) -> Mapping[str, bytes] | None:
        """When each object was last changed, as the domain controller counts it; ``None`` where it does not say."""
        if connection is not self._connection:
            self._stamps = None
            self._notification = Notification(connection)  # first, so that nothing happens between
            self._connection = connection
        stamps: dict[str, bytes] = {}
        complete = True
        wanted = f"(|{''.join(f'(objectClass={each})' for each in objects.CLASSES)})"
        for entry in connection.search(connection.root.configuration, wanted, STAMPS):
            found = [values for name in STAMPS if not is_unknown(values := entry.octets(name)) and values]
            complete = complete and bool(found)
            stamps[entry.dn] = found[0][0] if found else b""
        return stamps if complete else None

    def _failed(self, began: float, error: Exception) -> float:
        self._leave()
        problem = str(error) if isinstance(error, AnontlsError) else f"{type(error).__name__}: {error}"
        if isinstance(error, AnontlsError) and error.hint:
            problem += f" ({error.hint})"
        with self._merging:
            self._tell(self._took, _Look(began, self._now(), problem=problem))
        pause, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
        return REFUSED_REST if isinstance(error, AccountRefused) else min(pause, self.interval)

    def _wait(self, seconds: float) -> None:
        """Until then, or until there is word of a change or somebody wakes it."""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakes, selectors.EVENT_READ)
            if self._notification is not None and self._notification.means != "polling":
                selector.register(self._notification, selectors.EVENT_READ)
            while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
                if self._word():  # asked first: it may have come with an answer, and be in memory
                    self._stopping.wait(max(SETTLE, self._earliest - time.monotonic()))
                    return
                if any(key.fileobj is self._wakes for key, _ in selector.select(left)):
                    self._wakes.recv(1024)
                    return

    def _word(self) -> bool:
        try:
            return self._notification is not None and self._notification.came()
        except Unreachable:
            return True  # the next look finds out why


def _with_directory(base: Organization, directory: Organization | None) -> Organization:
    """What both say; of the attribute, and of the thumbprint that follows from it, what the directory says alone."""
    servers = tuple(
        msgspec.structs.replace(
            server,
            internal_tls_cert=ATTRIBUTE_ABSENT,
            internal_tls_cert_adlds=ATTRIBUTE_ABSENT,
            internal_transport_certificate_thumbprint=objects.THUMBPRINT,
        )
        for server in base.servers
    )
    base = msgspec.structs.replace(base, servers=servers)
    if directory is None:
        return base
    both = read_export([], also=[base, directory])
    return msgspec.structs.replace(both, servers=tuple(map(_there, both.servers)))


def _there(server: Server) -> Server:
    if server.internal_tls_cert == ATTRIBUTE_ABSENT == server.internal_tls_cert_adlds:
        return msgspec.structs.replace(server, internal_tls_cert=NOT_THERE)
    return server


def _unreadable(organization: Organization, because: str) -> Organization:
    """The same, where the attribute of no server can be read."""
    attribute = InternalTlsCert(error=because)
    servers = tuple(
        msgspec.structs.replace(server, internal_tls_cert=attribute, internal_tls_cert_adlds=attribute)
        for server in organization.servers
    )
    return msgspec.structs.replace(organization, servers=servers)


def _same(organization: Organization, other: Organization | None) -> bool:
    """Whether they differ at most in when and from whom they were read."""
    return other is not None and msgspec.structs.replace(organization, sources=()) == msgspec.structs.replace(
        other, sources=()
    )
