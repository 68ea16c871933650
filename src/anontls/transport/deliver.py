"""Where accepted mail goes: local recipients to a Maildir, or everything to a next hop.

A message is acknowledged only when it lies on the disk or the next hop has accepted it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from anontls.protocol_log import ProtocolLog
from anontls.smtp import Reply, exchange
from anontls.smtp.syntax import Envelope
from anontls.transport.body import Body
from anontls.transport.node import Node
from anontls.transport.send import NextHop, OutboundSession, SessionFailed

WRITERS = 4  # threads that wait for the disk
PARTLY = Reply(451, ("4.4.0 Some recipients were refused by the next hop; none is acknowledged",))


class MaildirDelivery:
    """A Maildir for each local recipient: ``folder/user@contoso.com/{tmp,new,cur}``.

    A mailbox is a folder that exists; with ``create`` it is made when the first message comes.
    """

    def __init__(self, folder: Path, server: str, *, create: bool = False) -> None:
        self.folder = folder
        self.create = create
        self._server = quote(server, safe="")
        self._count = itertools.count()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="maildir")

    def mailbox(self, address: str) -> Path:
        """The Maildir of an address; no address leads out of the folder."""
        return self.folder / quote(address.lower(), safe="@+_=-")

    def accepts(self, address: str) -> Reply | None:
        """A recipient without a mailbox is unknown."""
        return None if self.create or self.mailbox(address).is_dir() else exchange.MAILBOX_UNAVAILABLE

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Write, sync, and only then acknowledge."""
        name = f"{int(time.time())}.P{os.getpid()}Q{next(self._count)}R{secrets.token_hex(4)}.{self._server}"
        await asyncio.get_running_loop().run_in_executor(self._writers, self._write, envelope, body, received, name)
        return exchange.queued(f"<{name}>")

    def _write(self, envelope: Envelope, body: Body, received: bytes, name: str) -> None:
        head = f"Return-Path: <{envelope.sender}>\r\n".encode()
        first: Path | None = None
        for recipient in dict.fromkeys(r.address.lower() for r in envelope.recipients):
            mailbox = self.mailbox(recipient)
            if self.create:
                for part in ("tmp", "new", "cur"):
                    (mailbox / part).mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary, final = mailbox / "tmp" / name, mailbox / "new" / name
            if first is not None and self._linked(first, final):
                _sync(mailbox / "new")
                continue
            try:
                with temporary.open("xb") as file:
                    file.writelines((head, received, *body.pieces()))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(final)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            _sync(mailbox / "new")
            first = final

    @staticmethod
    def _linked(first: Path, final: Path) -> bool:
        try:
            os.link(first, final)  # the same message for several recipients lies on the disk once
        except OSError:
            return False
        return True


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

    def accepts(self, address: str) -> Reply | None:
        """The next hop will say."""
        return None

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Send it on; 250 only when the next hop has taken it for every recipient."""
        session = OutboundSession(self.node, self.hop, self.log)
        try:
            await session.open()
            small = body.in_memory()
            content = received + small if small is not None else _joined(received, body)
            replies = await session.deliver(envelope, content)
        except SessionFailed as e:
            session.abort()
            return e.reply
        await session.close()
        return answer(replies)


def _joined(received: bytes, body: Body) -> Iterator[bytes]:
    yield received
    yield from body.pieces()


def answer(replies: tuple[Reply, ...]) -> Reply:
    """One answer for all recipients: theirs where they agree; otherwise a temporary one, and the sender tries again.

    Recipients that were taken get the message twice then; without a queue there is no way to keep the others.
    """
    positive = [reply for reply in replies if reply.positive]
    if len(positive) == len(replies):
        return replies[0]
    return PARTLY if positive else min(replies, key=lambda reply: reply.code)
