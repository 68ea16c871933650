"""The control socket: what it answers, to whom, and what it bears."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anontls import config
from anontls.errors import Unreachable, UsageError
from anontls.transport import control
from anontls.transport.control import ControlServer, heading, nearest, socket_path, somebody_listens
from anontls.transport.control_client import ControlClient
from anontls.transport.status import MessageStatus, QueueStatus
from tests.support.queues import EDGE, FABRIKAM, Queues, message, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


def run(path: Path, work: Callable[[ControlServer], Awaitable[None]], queues: Queues | None = None) -> None:
    """``work`` in the loop of a server that runs."""

    async def main() -> None:
        server = ControlServer(path, queues or Queues())
        await server.start()
        try:
            async with asyncio.timeout(10):
                await work(server)
        finally:
            await server.close()

    asyncio.run(main())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 there is no event for it
        await asyncio.sleep(0.01)


def ask(path: Path, data: bytes, *, half_close: bool = False) -> list[dict[str, Any]]:
    """The lines that come back for ``data``."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        with suppress(BrokenPipeError):  # it was too much
            connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):  # not all was read there
            while piece := connection.recv(65536):
                answer += piece
    return [msgspec.json.decode(line) for line in answer.splitlines()]


# --- what it answers --------------------------------------------------------------------------------------------------


def test_queues_and_messages_come_as_they_are(path: Path) -> None:
    queues = Queues()
    with serving(path, queues):
        client = ControlClient(path)
        assert list(client.queues()) == [EDGE, FABRIKAM]
        assert list(client.messages()) == queues.all_messages
        assert [each.identity for each in client.messages("MBX1\\3")] == ["MBX1\\3\\1", "MBX1\\3\\2"]
        assert [each.identity for each in client.messages(status="retry")] == ["MBX1\\3\\1"]
        assert len(list(client.messages(limit=2))) == 2
        assert client.show("MBX1\\3\\1").subject == "Grüße"


def test_what_is_done_is_what_was_asked_for(path: Path) -> None:
    queues = Queues()
    with serving(path, queues):
        client = ControlClient(path)
        client.retry("MBX1\\3")
        client.suspend("MBX1\\3")
        client.resume("MBX1\\3\\1")
        client.remove("MBX1\\3\\1", with_ndr=False)
        client.remove("MBX1\\3\\2", with_ndr=True)
    assert queues.done == [
        ("retry", "MBX1\\3"),
        ("suspend", "MBX1\\3"),
        ("resume", "MBX1\\3\\1"),
        ("remove", "MBX1\\3\\1", "without NDR"),
        ("remove", "MBX1\\3\\2", "with NDR"),
    ]


def test_errors_keep_their_kind_and_their_hint(path: Path) -> None:
    with serving(path, Queues()):
        client = ControlClient(path)
        with pytest.raises(UsageError, match=r"no MBX1\\5") as caught:
            client.retry("MBX1\\5")
        assert caught.value.hint == "known: MBX1\\4, MBX1\\3"
        with pytest.raises(UsageError, match=r"no MBX1\\9"):
            list(client.messages("MBX1\\9"))
        with pytest.raises(Unreachable, match="the disk is full"):
            client.remove("MBX1\\4\\3", with_ndr=True)


def test_a_protocol_that_others_can_speak(path: Path) -> None:
    """What the module's docstring shows."""
    with serving(path, Queues()):
        lines = ask(path, rb'{"version":1,"operation":"messages","identity":"MBX1\\3","limit":1}' + b"\n")
        assert lines[0]["result"]["Identity"] == "MBX1\\3\\1" and lines[0]["result"]["Recipients"][0]["LastError"]
        assert lines[1:] == [{"done": True}]
        (error,) = ask(path, rb'{"version":1,"operation":"retry","identity":"MBX1\\9"}' + b"\n")
        assert error["error"]["usage"] is True and error["error"]["hint"].startswith("known: ")


def test_a_client_that_has_said_all_is_answered(path: Path) -> None:
    with serving(path, Queues()):
        assert ask(path, b'{"version":1,"operation":"retry","identity":"MBX1\\\\3"}\n', half_close=True) == [
            {"done": True}
        ]
        assert ask(path, b"", half_close=True) == [], "who only looks is not talked to"


# --- what it bears ----------------------------------------------------------------------------------------------------

HOSTILE = [
    b"\n",
    b"\xff\xfe\n",
    b"null\n",
    b"[]\n",
    b"{}\n",
    b"[" * 16_000 + b"\n",
    b'{"version":2,"operation":"queues"}\n',
    b'{"version":1,"operation":"stop"}\n',
    b'{"version":1,"operation":"queues","more":1}\n',
    b'{"version":1,"operation":"messages","limit":0}\n',
    b'{"version":1,"operation":"messages","limit":-1}\n',
    b'{"version":1,"operation":"messages","limit":1e999}\n',
    b'{"version":1,"operation":"show"}\n',
    b'{"version":1,"operation":"remove"}\n',
    b'{"version":1,"operation":"retry","identity":"' + b"x" * 1025 + b'"}\n',
    b'{"version":1,"operation":"retry","identity":"\\ud800"}\n',
    b'{"version":1,"operation":"retry","identity":"\xff"}\n',
    b'{"version":1,"operation":"retry","identity":"MBX1\\u0000\\u001b"}\n',
    b"GET / HTTP/1.1\r\n\r\n",
    b"x" * 20_000,
    b"x" * 1_000_000 + b"\n",
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_a_bad_request_is_told_why_and_does_nothing(path: Path, data: bytes) -> None:
    queues = Queues()
    with serving(path, queues):
        (answer,) = ask(path, data)
        assert answer["error"]["usage"] is True and answer["error"]["message"]
        assert len(list(ControlClient(path).queues())) == 2
    assert not queues.done


def test_a_request_that_breaks_off_is_not_carried_out(path: Path) -> None:
    queues = Queues()
    with serving(path, queues):
        (answer,) = ask(path, b'{"version":1,"operation":"retry","identity":"MBX1\\\\3"}', half_close=True)
    assert "line feed" in answer["error"]["message"] and not queues.done


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300)
    | st.text(max_size=100).map(lambda text: msgspec.json.encode({"version": 1, "operation": text}))
)
def test_no_line_is_a_fault_of_ours(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader(limit=control.MAX_REQUEST)
        reader.feed_data(data + b"\n")
        reader.feed_eof()
        with suppress(UsageError):
            await control._request(reader)

    asyncio.run(read())


def test_a_fault_of_ours_takes_nothing_else_along(path: Path) -> None:
    class Broken(Queues):
        def queues(self) -> Any:
            yield EDGE
            raise ZeroDivisionError

    told: list[dict[str, Any]] = []

    async def work(_: ControlServer) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        client = ControlClient(path)
        seen: list[QueueStatus] = []
        with pytest.raises(Unreachable, match="the node failed: ZeroDivisionError"):
            await asyncio.to_thread(lambda: seen.extend(client.queues()))
        assert len(await asyncio.to_thread(lambda: list(client.messages()))) == 3

    run(path, work, Broken())
    assert [type(each["exception"]) for each in told] == [ZeroDivisionError]


def test_only_so_many_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 2)

    async def work(_server: ControlServer) -> None:
        waiting = [await asyncio.open_unix_connection(str(path)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Unreachable, match="2 others are asking"):
            await asyncio.to_thread(lambda: list(ControlClient(path).queues()))
        for _reader, writer in waiting:
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.05)
        assert len(await asyncio.to_thread(lambda: list(ControlClient(path).queues()))) == 2

    run(path, work)


def test_who_says_nothing_is_sent_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_TIME", 0.05)

    async def work(_: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"version":1,')
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(path, work)


MANY = 100_000


class Long(Queues):
    """A queue that is never whole in memory."""

    def messages(self, queue: str | None = None) -> Iterator[MessageStatus]:
        one = message("MBX1\\3", 1)
        for self.taken in range(1, MANY + 1):
            yield one


def test_who_does_not_read_on_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "STALLED", 0.1)
    queues = Long()

    async def work(server: ControlServer) -> None:
        _reader, writer = await asyncio.open_unix_connection(str(path), limit=1000)
        writer.write(b'{"version":1,"operation":"messages"}\n')
        await until(lambda: queues.taken > 0 and not server._sessions)
        writer.close()

    run(path, work, queues)
    assert 0 < queues.taken < MANY


def test_a_long_list_is_a_stream_on_both_sides(path: Path) -> None:
    queues = Long()
    with serving(path, queues):
        tracemalloc.start()
        assert sum(1 for _ in ControlClient(path).messages(limit=10_000)) == 10_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000
        assert queues.taken == 10_000, "the limit ends the search"


def test_who_has_seen_enough_may_leave(path: Path) -> None:
    queues = Long()
    with serving(path, queues):
        messages = ControlClient(path).messages()
        next(messages)
        messages.close()  # type: ignore[attr-defined] # a generator
        assert len(list(ControlClient(path).queues())) == 2
    assert queues.taken < MANY


def test_the_mail_goes_on_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TURN", 0.0002)  # many turns, however fast the machine is
    queues = Long()
    turns = 0

    async def work(_: ControlServer) -> None:
        nonlocal turns
        request = asyncio.create_task(asyncio.to_thread(lambda: list(ControlClient(path).messages(status="Retry"))))
        while not request.done():
            await asyncio.sleep(0)
            turns += 0 < queues.taken < MANY
        assert await request == []

    run(path, work, queues)
    assert turns >= 5


# --- the socket -------------------------------------------------------------------------------------------------------


def test_nobody_else_may_ever_connect(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode is right when connections begin to be taken, whatever the umask is."""
    modes: list[int] = []
    listen = socket.socket.listen

    def noting(listening: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
            early.connect(str(path))
        listen(listening, backlog)

    monkeypatch.setattr(socket.socket, "listen", noting)
    before = os.umask(0)
    try:
        with serving(path, Queues()):
            assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_the_socket_goes_with_the_server(path: Path) -> None:
    with serving(path, Queues()):
        assert somebody_listens(path)
    assert not path.exists() and not somebody_listens(path)


def test_a_socket_that_a_crash_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    assert path.exists() and not somebody_listens(path)
    with serving(path, Queues()):
        assert len(list(ControlClient(path).queues())) == 2


def test_a_second_server_is_refused_and_harms_nothing(path: Path) -> None:
    with serving(path, Queues()):
        with pytest.raises(UsageError, match="another node answers there"), serving(path, Queues()):
            pass
        assert len(list(ControlClient(path).queues())) == 2


def test_a_socket_where_nobody_takes_connections_is_somebodys(path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as busy,
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as two,
    ):
        busy.bind(str(path))
        busy.listen(0)
        for each in (one, two):
            each.setblocking(False)
            try:
                each.connect(str(path))
            except BlockingIOError:
                break
        assert somebody_listens(path)


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("mail")
    with pytest.raises(UsageError, match="is no socket"), serving(path, Queues()):
        pass
    assert path.read_text() == "mail"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="no socket can be made there"),
        serving(tmp_path / "none" / "control", Queues()),
    ):
        pass


def test_a_socket_of_a_later_node_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as later:
        with serving(path, Queues()):
            path.rename(path.with_name("away"))
            later.bind(str(path))
            later.listen()
        assert path.exists()


def test_an_operation_is_let_end_when_the_node_stops(path: Path) -> None:
    class Slow(Queues):
        async def retry(self, queue: str) -> None:
            await asyncio.sleep(0.1)
            await super().retry(queue)

    queues = Slow()

    async def work(server: ControlServer) -> None:
        asking = asyncio.create_task(asyncio.to_thread(ControlClient(path).retry, "MBX1\\3"))
        await until(lambda: bool(server._sessions))
        await server.close()
        await asking

    run(path, work, queues)
    assert queues.done == [("retry", "MBX1\\3")]


def test_what_never_ends_is_ended_when_the_node_stops(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.05)

    async def work(server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        await until(lambda: bool(server._sessions))
        await server.close()
        assert await reader.read() == b"" and not server._sessions
        writer.close()

    run(path, work)


# --- the client -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "broke off its answer"),
        (msgspec.json.encode({"result": EDGE}) + b"\n", "broke off its answer"),
        (b"{}\n", "not understood"),
        (b"null\n", "not understood"),
        (b"\xff\n", "not understood"),
        (b'{"result":{"Identity":1}}\n', "not understood"),
        (b'{"result":' + b"[" * 100_000 + b"\n", "not understood"),
    ],
)
def test_a_node_that_answers_nonsense(path: Path, answer: bytes, said: str) -> None:
    def node() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=node)
        thread.start()
        with pytest.raises(Unreachable, match=said):
            list(ControlClient(path, timeout=10).queues())
        thread.join()


def test_a_node_that_hangs(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(Unreachable, match="no answer in"):
            list(ControlClient(path, timeout=0.05).queues())


def test_nobody_there(path: Path) -> None:
    with pytest.raises(Unreachable, match="No such file"):
        list(ControlClient(path).queues())


def test_an_identity_that_is_no_text(path: Path) -> None:
    with serving(path, Queues()), pytest.raises(UsageError, match="UTF-8"):
        ControlClient(path).retry("MBX1\\\udcff")


def test_a_socket_that_must_not_be_asked(path: Path) -> None:
    path.symlink_to(path)
    with pytest.raises(Unreachable, match="symbolic links") as caught:
        somebody_listens(path)
    assert caught.value.hint


# --- where it is, what is shown ---------------------------------------------------------------------------------------


def configured(**queue: Any) -> config.Config:
    return config.Config(
        node=config.Node(organization="org.json", server="MBX1"),
        store=config.Store(folder="store"),
        queue=config.Queue(**queue),
    )


def test_where_the_socket_is(tmp_path: Path) -> None:
    assert socket_path(configured(database="q/mail.db"), tmp_path) == tmp_path / "q/mail.db.sock"
    assert socket_path(configured(database="mail.db", control="here"), tmp_path) == tmp_path / "here"
    assert socket_path(configured(database="mail.db", control="/run/node"), tmp_path) == Path("/run/node")
    with pytest.raises(UsageError, match="has no queue"):
        socket_path(configured(), tmp_path)


def test_a_path_that_is_too_long_is_told_before_it_is_tried(tmp_path: Path) -> None:
    room = control.MAX_PATH - len(os.fsencode(tmp_path)) - 1
    longest = socket_path(configured(database="x", control="y" * room), tmp_path)
    with serving(longest, Queues()):
        assert len(list(ControlClient(longest).queues())) == 2
    with pytest.raises(UsageError, match="longer than the 107 octets") as caught:
        socket_path(configured(database="x", control="y" * (room + 1)), tmp_path)
    assert "queue.control" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("head", "subject", "message_id"),
    [
        (b"Subject: Hello\r\nMessage-ID: <1@contoso.com>\r\n\r\n", "Hello", "<1@contoso.com>"),
        (b"SUBJECT:one\r\n\ttwo\r\n three\r\nMessage-Id :<2@x>\r\n\r\n", "one two three", "<2@x>"),
        (b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= =?utf-8?b?IQ==?=\r\n\r\n", "Grüße!", None),
        ("Subject: Grüße\r\n\r\n".encode(), "Grüße", None),
        (b"Subject: \xff\r\n\r\n", "\ufffd", None),
        (b"Subject: =?nonsense?q?x?=\r\n\r\n", "=?nonsense?q?x?=", None),
        (b"Subject: =?utf-8?b?x?=\r\n\r\n", "=?utf-8?b?x?=", None),
        (b"Subject: =?utf-7?q?+2AA-?=\r\n\r\n", "?", None),
        (b"Subject: first\r\nSubject: second\r\n\r\n", "first", None),
        (b"To: x\r\n\r\nSubject: of the body\r\n", None, None),
        (b"X: " + b"y" * 100_000 + b"\r\nSubject: too late\r\n\r\n", None, None),
        (b"Subject: " + b"z" * 100_000, "z" * (control.MAX_FIELD - 1), None),
        (b"", None, None),
    ],
)
def test_what_a_message_is_about(head: bytes, subject: str | None, message_id: str | None) -> None:
    assert heading(iter((head,))) == (subject, message_id)
    assert heading(head[i : i + 7] for i in range(0, len(head), 7)) == (subject, message_id)


def test_names_that_are_near() -> None:
    names = [f"MBX1\\{number}" for number in range(20)]
    assert nearest("MBX1\\1", names).startswith("known: MBX1\\1, ") and nearest("MBX1\\1", names).endswith(", …")
    assert nearest("x", ["MBX1\\1"]) == "known: MBX1\\1"
    assert nearest("x", []) == "there is none"
