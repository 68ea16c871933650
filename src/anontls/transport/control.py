r"""A running node shows its queues and lets them be steered: JSON lines over a Unix socket.

A connection asks once, with one line; a line answers for each queue or message that was asked for, and a last line says
that this was all, or what is wrong::

    {"version":1,"operation":"messages","identity":"MBX1\\3","status":"Retry","limit":1000}

    {"result":{"Identity":"MBX1\\3\\4711",...}}
    {"done":true}        or        {"error":{"message":"no queue MBX1\\3","hint":"known: MBX1\\4","usage":true}}

Times are Unix seconds.  Who may open the socket file may do everything, so its mode is 0600; nobody is asked for more.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from itertools import islice
from pathlib import Path
from typing import Annotated, Generic, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta

from anontls.config import Config
from anontls.errors import AnontlsError, MalformedInput, Unreachable, UsageError
from anontls.facts import same_name
from anontls.transport.status import MessageStatus, QueueStatus

MAX_REQUEST = 16 * 1024  # octets of a request
MAX_CONNECTIONS = 16  # at a time
REQUEST_TIME = 10.0  # seconds to say what is wanted
RETRY = 0.5  # seconds without new connections when one could not be taken
STALLED = 30.0  # seconds in which nothing of an answer is read
PATIENCE = 2.0  # seconds that operations have to end when the node stops
TURN = 0.005  # seconds between two looks at the mail
MAX_HEADING = 64 * 1024  # octets in which Subject and Message-ID are looked for
MAX_FIELD = 2 * 1024  # octets of them that are shown
MOST_NAMES = 1000  # that a hint is chosen from
MAX_PATH = 107  # octets of a socket's path: sockaddr_un has 108, and a NUL ends it

_FIELD = re.compile(rb"^(subject|message-id)[ \t]*:((?:.*\n[ \t])*.*)", re.IGNORECASE | re.MULTILINE)

Shown = TypeVar("Shown", bound=QueueStatus | MessageStatus)


class Operations(Protocol):
    r"""What a node lets be done with its queues.

    A queue is named as ``SERVER\3``, a message as ``SERVER\3\4711``: that message as far as it is in that queue.  All
    raise UsageError for what is not there (its hint names what is near) or cannot be done.
    """

    def queues(self) -> Iterable[QueueStatus]:
        """The queues as they are now."""
        ...

    def messages(self, queue: str | None = None) -> Iterable[MessageStatus]:
        """The messages of one queue, or of all.

        Taken slowly: messages come and go meanwhile.
        """
        ...

    def show(self, identity: str) -> MessageStatus:
        """A message with its Subject and InternetMessageId, which are read from its content."""
        ...

    async def retry(self, queue: str) -> None:
        """Try the queue now, whatever its next retry time is."""
        ...

    async def suspend(self, identity: str) -> None:
        """Let nothing out of a queue, or one message stay; what is being sent is sent."""
        ...

    async def resume(self, identity: str) -> None:
        """Undo suspend."""
        ...

    async def remove(self, message: str, *, with_ndr: bool) -> None:
        """Give up a message; ``with_ndr``: and tell its sender."""
        ...


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client asks for; ``limit`` and ``status`` are of messages."""

    version: Literal[1]
    operation: Literal["queues", "messages", "show", "retry", "suspend", "resume", "remove"]
    identity: Annotated[str, Meta(max_length=1024)] | None = None
    status: str | None = None
    limit: Annotated[int, Meta(ge=1)] | None = None
    with_ndr: bool = True


class Fault(msgspec.Struct, frozen=True):
    """Why a request was not, or not wholly, carried out; ``usage``: because of what it asks for."""

    message: str
    hint: str | None = None
    usage: bool = False


class Answer(msgspec.Struct, Generic[Shown], frozen=True):
    """A line of an answer."""

    result: Shown | None = None
    error: Fault | None = None
    done: bool = False


def socket_path(config: Config, base: Path) -> Path:
    """Where the node of ``config`` has its control socket; ``base`` is the folder of the file.

    Raises:
        UsageError: there is no queue, or the path is longer than a socket's may be.
    """
    queue = config.queue
    if queue.database is None:
        raise UsageError(
            "the configuration has no queue", hint="queue.database names its file; without one nothing is queued"
        )
    path = base / (queue.control or f"{queue.database}.sock")
    if len(os.fsencode(path)) > MAX_PATH:
        raise UsageError(
            f"{path}: longer than the {MAX_PATH} octets that the path of a Unix socket may have",
            hint="queue.control in the configuration names another place",
        )
    return path


def nearest(wanted: str, known: Iterable[str]) -> str:
    """The hint that says which names like ``wanted`` there are."""
    names = list(islice(known, MOST_NAMES))
    near = difflib.get_close_matches(wanted, names, 5) or names[:5]
    return f"known: {', '.join(near)}{', …' if len(names) > len(near) else ''}" if near else "there is none"


def heading(pieces: Iterable[bytes]) -> tuple[str | None, str | None]:
    """Subject and Message-ID of a content, as far as they are near its beginning; both are what a stranger wrote."""
    head = b""
    for piece in pieces:
        head += piece[: MAX_HEADING - len(head)]
        if len(head) == MAX_HEADING or b"\r\n\r\n" in head:
            break
    found: dict[bytes, str] = {}
    for name, value in _FIELD.findall(head.partition(b"\r\n\r\n")[0]):
        found.setdefault(name.lower(), " ".join(value[:MAX_FIELD].decode(errors="replace").split()))
    subject = found.get(b"subject")
    if subject is not None:
        with suppress(ValueError, LookupError, HeaderParseError):  # else it is shown as it was written
            # a charset such as UTF-7 may decode to half a character, which no answer can hold
            subject = str(make_header(decode_header(subject))).encode(errors="replace").decode()
    return subject, found.get(b"message-id")


def socket_at(path: Path) -> bool:
    """Whether there is a socket, of a node that runs or of one that has crashed.

    Raises:
        UsageError: something else is there.
        OSError: it cannot be seen.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path}: is there, and is no socket")
    return True


def somebody_listens(path: Path) -> bool:
    """Whether a process has the socket open.

    Raises:
        Unreachable: it must not be asked.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (BlockingIOError, TimeoutError):  # so many wait that it takes no more
            return True
        except OSError as e:
            raise Unreachable(
                f"{path}: {e.strerror}", hint="the socket is for the user that the node runs as; try as that one"
            ) from None
        return True


# --- the server --------------------------------------------------------------------------------------------------


class ControlServer:
    """Answers at the socket ``path``, from start to close."""

    def __init__(self, path: Path, operations: Operations) -> None:
        self.path = path
        self.operations = operations
        self._listening: socket.socket | None = None
        self._inode = 0
        self._sessions: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.  A socket that a crash has left is replaced, one that answers is not.

        Raises:
            UsageError: the path cannot be listened on.
        """
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.setblocking(False)
            self._make_room()
            # Between bind and listen every connection is refused, so nobody gets in before the mode is right.  A umask
            # would be that of all threads, and a folder that another one makes then could not be entered.
            listening.bind(str(self.path))
            self.path.chmod(0o600)
            listening.listen(MAX_CONNECTIONS)
            self._inode = self.path.stat().st_ino
        except OSError as e:
            listening.close()
            raise UsageError(f"{self.path}: no socket can be made there: {e.strerror or e}") from None
        except BaseException:
            listening.close()
            raise
        self._listening = listening
        self._watch()

    def _make_room(self) -> None:
        if not socket_at(self.path):
            return
        if somebody_listens(self.path):
            raise UsageError(f"{self.path}: another node answers there")
        self.path.unlink()

    async def close(self) -> None:
        """Let operations end, and take the socket away."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        asyncio.get_running_loop().remove_reader(listening)
        listening.close()
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=PATIENCE)
        for session in tuple(self._sessions):
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await asyncio.sleep(0)  # what was cut off is closed by now
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:  # else it is that of a node that has started meanwhile
                self.path.unlink()

    def _watch(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    def _accept(self, listening: socket.socket) -> None:
        # asyncio.Server loses a connection that comes while it closes, in Python 3.11.
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listening.accept()
        except OSError:  # the client has gone, or there are no more descriptors for files
            loop.remove_reader(listening)
            loop.call_later(RETRY, self._watch)
            return
        session = loop.create_task(self._session(connection))
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    async def _session(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_REQUEST)
        try:
            last = await self._answered(reader, writer)
            if last is not None:
                await _send(writer, [msgspec.json.encode(last)])
            writer.close()
            async with asyncio.timeout(STALLED):
                await writer.wait_closed()
        except (ConnectionError, TimeoutError):
            pass  # it has left, or sleeps
        finally:
            writer.transport.abort()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, object] | None:
        """Carry out what is asked for; the last line of the answer, ``None`` where nothing was asked."""
        try:
            if len(self._sessions) > MAX_CONNECTIONS:
                raise AnontlsError(f"{MAX_CONNECTIONS} others are asking this node already", hint="try again")
            request = await _request(reader)
            if request is None:
                return None
            await self._carry_out(request, writer)
        except AnontlsError as e:
            return {"error": Fault(str(e), e.hint, isinstance(e, UsageError | MalformedInput))}
        except (ConnectionError, TimeoutError):
            raise
        except Exception as e:  # noqa: BLE001 a fault of ours must not take the mail along
            asyncio.get_running_loop().call_exception_handler({"message": "control socket", "exception": e})
            return {"error": Fault(f"the node failed: {type(e).__name__}", "what it has logged says more")}
        return {"done": True}

    async def _carry_out(self, request: Request, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        lines: list[bytes] = []
        found = 0
        end = loop.time() + TURN
        for status in await self._results(request):
            if request.status is None or same_name(request.status, status.status):
                lines.append(msgspec.json.encode({"result": status}))
                found += 1
            if found == request.limit:
                break
            if loop.time() >= end:
                await _send(writer, lines)
                lines.clear()
                await asyncio.sleep(0)  # a client that reads as fast as we write must not stop the mail
                end = loop.time() + TURN
        await _send(writer, lines)

    async def _results(self, request: Request) -> Iterable[QueueStatus | MessageStatus]:
        operations, identity = self.operations, request.identity
        if request.operation == "queues":
            return operations.queues()
        if request.operation == "messages":
            return operations.messages(identity)
        if identity is None:
            raise UsageError(f"{request.operation} needs an identity")
        match request.operation:
            case "show":
                return (operations.show(identity),)
            case "retry":
                await operations.retry(identity)
            case "suspend":
                await operations.suspend(identity)
            case "resume":
                await operations.resume(identity)
            case "remove":
                await operations.remove(identity, with_ndr=request.with_ndr)
        return ()


async def _request(reader: asyncio.StreamReader) -> Request | None:
    """What the client wants; ``None``: it only looked whether somebody is there."""
    try:
        async with asyncio.timeout(REQUEST_TIME):
            line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as e:
        if not e.partial:
            return None
        raise UsageError("a request ends with a line feed") from None
    except asyncio.LimitOverrunError:
        raise UsageError(f"a request has no more than {MAX_REQUEST} octets") from None
    try:
        return msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UsageError(f"not understood: {e}", hint="a request is a JSON object of version 1") from None


async def _send(writer: asyncio.StreamWriter, lines: list[bytes]) -> None:
    writer.write(b"".join(line + b"\n" for line in lines))
    async with asyncio.timeout(STALLED):
        await writer.drain()
