"""Where accepted mail goes: local recipients to a Maildir, or everything to a next hop.

A message is acknowledged only when it lies on the disk or the next hop has accepted it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

import msgspec

from anontls.delivery.retry import LOOP, MAX_HOPS, hops
from anontls.protocol_log import ProtocolLog
from anontls.smtp import Reply, exchange
from anontls.smtp.content import Needs
from anontls.smtp.syntax import Envelope
from anontls.transport.body import Body
from anontls.transport.node import Node
from anontls.transport.send import NextHop, OutboundSession, SessionFailed

WRITERS = 2  # threads that wait for the disk
GROUP = 64  # messages that one of them writes at a time
# Lets the kernel begin to write a file and does not wait, so that the disk has a whole group when its files are synced.
BEGIN_TO_WRITE = getattr(os, "posix_fadvise", None)
DONT_NEED = getattr(os, "POSIX_FADV_DONTNEED", 0)
MAX_NAME = 255  # octets of a file name
NOT_NOW = Reply(451, ("4.3.0 Mailbox cannot be reached; try again",))
DECLARED: Mapping[Needs, str] = {Needs.EIGHT_BIT: "8BITMIME", Needs.BINARY: "BINARYMIME"}
PARTLY = Reply(451, ("4.4.0 Some recipients were refused by the next hop; none is acknowledged",))


class _Message:
    """A message that waits to be written, and who waits for it."""

    __slots__ = ("body", "done", "error", "file", "head", "mailboxes", "name", "small")

    def __init__(self, mailboxes: tuple[Path, ...], head: bytes, body: Body, name: str) -> None:
        self.mailboxes = mailboxes
        self.head = head
        self.body = body
        self.small = body.in_memory()
        self.name = name
        self.file = -1  # open while the group is being written
        self.error: OSError | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class MaildirDelivery:
    """A Maildir for each local recipient: ``folder/user@contoso.com/{tmp,new,cur}``.

    A mailbox is a folder that exists; with ``create`` it is made when the first message comes.  What arrives while the
    disk is busy is written and synced together.
    """

    def __init__(self, folder: Path, server: str, *, create: bool = False) -> None:
        self.folder = folder
        self.create = create
        self._server = quote(server, safe="")
        self._unique = secrets.token_hex(4)
        self._count = itertools.count()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="maildir")
        self._writing = 0
        self._waiting: list[_Message] = []

    def mailbox(self, address: str) -> Path:
        """The Maildir of an address; no address leads out of the folder."""
        return self.folder / quote(address.lower(), safe="@+_=-")

    def accepts(self, address: str, *, local: bool) -> Reply | None:
        """A recipient without a mailbox is unknown; with a disk that is not there nobody is.  From here nothing goes on."""
        if not local:
            return exchange.UNABLE_TO_RELAY
        mailbox = self.mailbox(address)
        if len(mailbox.name) > MAX_NAME:
            return exchange.MAILBOX_UNAVAILABLE
        if self.create:
            return None
        try:
            if stat.S_ISDIR(mailbox.stat().st_mode):
                return None
        except FileNotFoundError:
            return exchange.MAILBOX_UNAVAILABLE if self.folder.is_dir() else NOT_NOW
        except OSError:
            return NOT_NOW
        return exchange.MAILBOX_UNAVAILABLE

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Write, sync, and only then acknowledge."""
        name = f"{int(time.time())}.P{os.getpid()}Q{next(self._count)}R{self._unique}.{self._server}"
        mailboxes = tuple(dict.fromkeys(self.mailbox(r.address) for r in envelope.recipients))
        head = f"Return-Path: <{envelope.sender}>\r\n".encode() + received
        message = _Message(mailboxes, head, body, name)
        self._waiting.append(message)
        self._write_on()
        await message.done
        return exchange.queued(f"<{name}>")

    def _write_on(self) -> None:
        while self._waiting and self._writing < WRITERS:
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            self._writing += 1
            job = asyncio.get_running_loop().run_in_executor(self._writers, self._write, group)
            job.add_done_callback(partial(self._written, group))

    def _written(self, group: list[_Message], job: asyncio.Future[None]) -> None:
        self._writing -= 1
        failed = job.exception()
        for message in group:
            if message.done.done():
                continue  # nobody waits any more
            error = message.error or failed
            if error is None:
                message.done.set_result(None)
            else:
                message.done.set_exception(error)
        self._write_on()

    def _write(self, group: list[_Message]) -> None:
        """Write the messages, sync each file, rename all, sync each folder once."""
        for message in group:
            message.error = _tried(self._write_file, message)
        for message in group:
            if message.error is None:
                message.error = _tried(_sync_file, message)
            if message.file >= 0:
                os.close(message.file)
        folders: dict[Path, list[_Message]] = {}
        for message in group:
            if message.error is None:
                message.error = _tried(self._publish, message)
            if message.error is not None:
                with suppress(OSError):
                    _temporary(message.mailboxes[0], message).unlink()
                continue
            for mailbox in message.mailboxes:
                folders.setdefault(mailbox, []).append(message)
        for mailbox, messages in folders.items():
            try:
                _sync(mailbox / "new")
            except OSError as e:
                for message in messages:
                    message.error = e

    def _write_file(self, message: _Message) -> None:
        for mailbox in message.mailboxes:
            if not (mailbox / "new").is_dir():  # made last
                self._make(mailbox)
        message.file = _written_file(message.mailboxes[0], message)
        if BEGIN_TO_WRITE is not None:
            BEGIN_TO_WRITE(message.file, 0, 0, DONT_NEED)

    def _publish(self, message: _Message) -> None:
        """Into each mailbox or into none; where that can be, the message for several lies on the disk once."""
        first, *others = message.mailboxes
        try:
            for mailbox in others:
                try:
                    os.link(_temporary(first, message), _final(mailbox, message))
                except OSError:
                    file = _written_file(mailbox, message)
                    try:
                        os.fsync(file)
                    finally:
                        os.close(file)
                    _temporary(mailbox, message).rename(_final(mailbox, message))
            _temporary(first, message).rename(_final(first, message))
        except OSError:
            for mailbox in others:
                for path in (_temporary(mailbox, message), _final(mailbox, message)):
                    with suppress(OSError):
                        path.unlink()
            raise

    def _make(self, mailbox: Path) -> None:
        for part in ("tmp", "cur", "new"):
            (mailbox / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (mailbox, self.folder):
            _sync(folder)


def _tried(step: Callable[[_Message], None], message: _Message) -> OSError | None:
    try:
        step(message)
    except (OSError, ValueError) as e:  # ValueError: the body was closed, nobody waits for it
        return OSError(str(e)) if isinstance(e, ValueError) else e
    return None


def _temporary(mailbox: Path, message: _Message) -> Path:
    return mailbox / "tmp" / message.name


def _final(mailbox: Path, message: _Message) -> Path:
    return mailbox / "new" / message.name


def _written_file(mailbox: Path, message: _Message) -> int:
    """A new file with the message in it, still open."""
    file = os.open(_temporary(mailbox, message), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if message.small is not None:
            _write_all(file, message.head + message.small)
        else:
            _write_all(file, message.head)
            for piece in message.body.pieces():
                _write_all(file, piece)
    except (OSError, ValueError):
        os.close(file)
        raise
    return file


def _sync_file(message: _Message) -> None:
    os.fsync(message.file)


def _write_all(file: int, data: bytes) -> None:
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, data[written:])


def _sync(folder: Path) -> None:
    """A name in a folder is safe only when the folder is."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class NextHopDelivery:
    """One session to the next hop for each message; its answer is ours."""

    def __init__(self, node: Node, hop: NextHop, log: ProtocolLog | None) -> None:
        self.node = node
        self.hop = hop
        self.log = log
        self._leaving: set[asyncio.Task[None]] = set()  # sessions that say goodbye

    def accepts(self, address: str, *, local: bool) -> Reply | None:
        """The next hop will say."""
        return None

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Send it on; 250 only when the next hop has taken it for every recipient."""
        small = body.in_memory()
        if hops(next(body.pieces(), b"")) >= MAX_HOPS:
            return LOOP
        if small is None:
            # Many senders declare nothing and send eight bits; what is sent in pieces is held to what was declared.
            need = await asyncio.to_thread(body.needs)
            envelope = msgspec.structs.replace(
                envelope, size=len(received) + body.size, body=DECLARED.get(need, envelope.body)
            )
        session = OutboundSession(self.node, self.hop, self.log)
        try:
            await session.open()
            replies = await session.deliver(
                envelope, received + small if small is not None else _joined(received, body)
            )
        except SessionFailed as e:
            return relayed(e.reply)
        finally:
            task = asyncio.get_running_loop().create_task(session.close())  # nobody has to wait for its goodbye
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        return answer(replies)


def _joined(received: bytes, body: Body) -> Iterator[bytes]:
    yield received
    yield from body.pieces()


def relayed(reply: Reply) -> Reply:
    """A reply of the next hop as one of ours: a 421 was about its session, not about the one with our client."""
    return Reply(451, (f"4.4.397 Error communicating with target host. -> {reply}",)) if reply.code == 421 else reply


def answer(replies: tuple[Reply, ...]) -> Reply:
    """One answer for all recipients: theirs where they agree; otherwise a temporary one, and the sender tries again.

    Recipients that were taken get the message twice then; without a queue there is no way to keep the others.
    """
    positive = [reply for reply in replies if reply.positive]
    if len(positive) == len(replies):
        return replies[0]
    return PARTLY if positive else relayed(min(replies, key=lambda reply: reply.code))
