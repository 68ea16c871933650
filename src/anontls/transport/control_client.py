"""Asks a running node about its queues, over its control socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from anontls.errors import Unreachable, UsageError
from anontls.transport.control import Answer, Request, Shown
from anontls.transport.status import MessageStatus, QueueStatus

MAX_ANSWER = 64 * 1024 * 1024  # octets of a line: a message may have 5,000 recipients, each with its error
TIMEOUT = 60.0  # seconds to wait for the next piece of an answer


class ControlClient:
    """Asks the node at the socket ``path``, with a connection for each question; it has `Operations`, and waits for them.

    All raise UsageError as the node does, and Unreachable when it does not answer, or could not do it.
    """

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self.path = path
        self.timeout = timeout

    def queues(self) -> Iterator[QueueStatus]:
        return self._ask(QueueStatus, Request(version=1, operation="queues"))

    def messages(
        self, queue: str | None = None, *, status: str | None = None, limit: int | None = None
    ) -> Iterator[MessageStatus]:
        """The messages of one queue, or of all; only those with that status, no more than ``limit``."""
        request = Request(version=1, operation="messages", identity=queue, status=status, limit=limit)
        return self._ask(MessageStatus, request)

    def show(self, identity: str) -> MessageStatus:
        for status in self._ask(MessageStatus, Request(version=1, operation="show", identity=identity)):
            return status
        raise Unreachable(f"{self.path}: the node shows nothing")

    def retry(self, queue: str) -> None:
        self._do(Request(version=1, operation="retry", identity=queue))

    def suspend(self, identity: str) -> None:
        self._do(Request(version=1, operation="suspend", identity=identity))

    def resume(self, identity: str) -> None:
        self._do(Request(version=1, operation="resume", identity=identity))

    def remove(self, message: str, *, with_ndr: bool) -> None:
        self._do(Request(version=1, operation="remove", identity=message, with_ndr=with_ndr))

    def _do(self, request: Request) -> None:
        for _ in self._ask(MessageStatus, request):
            pass

    def _ask(self, kind: type[Shown], request: Request) -> Iterator[Shown]:
        try:
            line = msgspec.json.encode(request) + b"\n"
        except UnicodeEncodeError:
            raise UsageError("an identity or a status is text in UTF-8") from None
        try:
            with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as lines:
                connection.settimeout(self.timeout)
                connection.connect(str(self.path))
                with suppress(BrokenPipeError):  # it has hung up, and its answer says why
                    connection.sendall(line)
                while line := lines.readline(MAX_ANSWER):
                    answer: Answer[Shown] = msgspec.json.decode(line, type=Answer[kind])  # type: ignore[valid-type] # it is a type
                    if answer.error is not None:
                        error = UsageError if answer.error.usage else Unreachable
                        raise error(answer.error.message, hint=answer.error.hint)
                    if answer.done:
                        return
                    if answer.result is None:
                        raise msgspec.DecodeError("nothing is in it")
                    yield answer.result
        except TimeoutError:
            raise Unreachable(f"{self.path}: no answer in {self.timeout:.0f} s; it may still be carried out") from None
        except OSError as e:
            raise Unreachable(f"{self.path}: {e.strerror or e}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise Unreachable(f"{self.path}: the answer is not understood: {e}") from None
        raise Unreachable(f"{self.path}: the node broke off its answer")
