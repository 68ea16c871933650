"""The way of a relayed message through our own code: the relay of ``bench.relay`` without sockets and without peers.

Fifty sessions in lock-step, as smtp-source has them, hand messages to a node with queue, routing, protocol log, events
and metrics, which passes them to a next hop that answers like smtp-sink.  The transports are objects, so nothing of the
kernel is in the figure but the writes of the database, and its file is in memory where ``/dev/shm`` is there.

``python -m bench.path [--new] [MESSAGES]`` prints the time of the event loop's thread for each message.  With
``--instructions`` it prints the instructions of the process in the place of time, which valgrind counts: these are the
same again whatever else the machine does, so a change of one per cent can be seen.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from anontls import config
from anontls.cli.serve import event_loop
from anontls.transport.lab import EDGE
from anontls.transport.receive import Receiver
from anontls.transport.send import OutboundSession
from anontls.transport.service import Service, system_now
from bench import peers
from bench.relay import SOURCES

CONTENT = b"From: <a@fabrikam.com>\r\nTo: <anna@contoso.com>\r\nSubject: x\r\n\r\n" + (b"X" * 78 + b"\r\n") * 50
WARM_UP = 300  # messages


class Wire(asyncio.Transport):
    """A transport that hands what is written to ``peer``."""

    def __init__(self, peer: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        super().__init__()
        self._peer = peer
        self._lost = lost
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 25 if name == "sockname" else 40000)

    def write(self, data: Any) -> None:
        self._peer(data)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._lost)

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Source:
    """A client that sends message after message, each in a new session with ``new``; ``done`` hears of each."""

    def __init__(self, receiver: Receiver, done: Callable[[], None], *, new: bool) -> None:
        self._receiver = receiver
        self._done = done
        self._new = new
        self._loop = asyncio.get_running_loop()
        message = [
            b"MAIL FROM:<a@fabrikam.com>\r\n",
            b"RCPT TO:<anna@contoso.com>\r\n",
            b"DATA\r\n",
            CONTENT + b".\r\n",
        ]
        self._says = [b"EHLO load.fabrikam.com\r\n", *message, b"QUIT\r\n"]
        self._connect()

    def _connect(self) -> None:
        self._step = 0
        self._connection = self._receiver()
        self._wire = Wire(self._heard, self._lost)
        self._connection.connection_made(self._wire)

    def _heard(self, data: bytes) -> None:
        if data[:1] not in b"23":
            raise RuntimeError(f"refused: {data!r}")
        if self._step == 5:
            self._done()
            if not self._new:
                self._step = 1
        if self._step < len(self._says):
            said = self._says[self._step]
            self._step += 1
            self._loop.call_soon(self._say, said)

    def _say(self, data: bytes) -> None:
        if not self._wire.is_closing():
            self._connection.data_received(data)

    def _lost(self) -> None:
        self._connection.connection_lost(None)
        self._connect()


class Sink:
    """A next hop with PIPELINING and nothing else."""

    def __init__(self, session: OutboundSession) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._in_content = False
        self._wire = Wire(self._heard, lambda: session.connection_lost(None))
        session.connection_made(self._wire)
        self._loop.call_soon(self._say, b"220 sink\r\n")

    def _heard(self, data: bytes) -> None:
        answers = b""
        if self._in_content:
            end = data.find(b"\r\n.\r\n")
            if end < 0:
                return
            data, self._in_content, answers = data[end + 5 :], False, b"250 2.0.0 Ok\r\n"
        for line in data.split(b"\r\n")[:-1]:
            if line.startswith(b"EHLO"):
                answers += b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
            elif line == b"DATA":
                answers, self._in_content = answers + b"354 End data with <CR><LF>.<CR><LF>\r\n", True
            else:
                answers += b"221 2.0.0 Bye\r\n" if line == b"QUIT" else b"250 2.0.0 Ok\r\n"
        self._loop.call_soon(self._say, answers)

    def _say(self, data: bytes) -> None:
        if not self._wire.is_closing():
            self._session.data_received(data)


class Loop:
    """The event loop, but its connections lead to a sink."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, made: Callable[[], OutboundSession], host: str, port: int) -> None:
        Sink(made())


async def _run(folder: Path, messages: int, *, new: bool) -> float:
    """Seconds of this thread for all messages."""
    lab = peers.write_lab(folder / "lab", "ec")
    path = lab.folder / "node.toml"
    path.write_text(
        f'[node]\norganization = "org.json"\nserver = "{EDGE}"\n[store]\nfolder = "{lab.stores[EDGE].name}"\n'
        f'[[listen]]\nconnector = "{peers.CONNECTORS[EDGE]}"\naddress = "127.0.0.1:{peers.free_ports(1)[0]}"\n'
        '[delivery]\nnext-hop = "127.0.0.1:25"\n[queue]\ndatabase = "queue.sqlite"\n'
        '[log]\nevents = "events.jsonl"\nprotocol = "log"\n'
    )
    service = Service(config.load(path), lab.folder, now=system_now)
    await service.start()
    count, wanted, reached = 0, WARM_UP, asyncio.get_running_loop().create_future()

    def done() -> None:
        nonlocal count
        count += 1
        if count == wanted:
            reached.set_result(None)

    for _ in range(SOURCES):
        Source(service.receivers[0], done, new=new)
    await reached
    count, wanted, reached = 0, messages, asyncio.get_running_loop().create_future()
    start = time.thread_time()
    await reached
    return time.thread_time() - start


def measure(messages: int, *, new: bool) -> NoReturn:
    """Print the microseconds of the event loop's thread for each message, and end the process."""
    begun = OutboundSession.__init__

    def to_a_sink(self: OutboundSession, *arguments: Any, **more: Any) -> None:
        begun(self, *arguments, **more)
        self._loop = Loop()  # type: ignore[assignment] # all that the session asks of it

    OutboundSession.__init__ = to_a_sink  # type: ignore[method-assign] # the session itself is not touched
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="anontls-bench-", dir=memory if memory.is_dir() else None))
    runner = asyncio.Runner(loop_factory=event_loop)
    status = 1
    try:
        print(f"{runner.run(_run(folder, messages, new=new)) / messages * 1e6:.0f} µs", flush=True)
        status = 0
    except BaseException:  # noqa: BLE001 the process ends before anybody else could say it
        traceback.print_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)  # messages are on their way for ever


def instructions(messages: int, *, new: bool) -> float:
    """Thousands of instructions of the whole process for each message: the difference between two runs.

    Raises:
        Missing: valgrind is not installed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise peers.Missing("valgrind is not installed")
    environment = {**os.environ, "PYTHONHASHSEED": "0", "UV_USE_IO_URING": "0"}  # which valgrind does not know
    counts = []
    for number in (100, 100 + messages):
        command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        command += [sys.executable, "-m", "bench.path", *(["--new"] if new else []), str(number)]
        done = subprocess.run(command, env=environment, cwd=peers.HERE.parent, capture_output=True, text=True)
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or found is None:
            raise RuntimeError(f"valgrind failed: {done.stderr[-500:]}")
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / messages / 1000


def main() -> None:
    """As the command line says."""
    words = sys.argv[1:]
    messages = next((int(word) for word in words if word.isdigit()), 1000)
    if "--instructions" in words:
        print(f"{instructions(messages, new='--new' in words):.0f} thousand instructions")
    else:
        measure(messages, new="--new" in words)


if __name__ == "__main__":
    main()
