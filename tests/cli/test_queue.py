"""``anontls queue``: with a node that answers, without one, and what hostile text does to neither."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from anontls.cli import Exit
from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport.queue import New, Pending, Work
from anontls.transport.queue_sqlite import SqliteQueue
from tests.cli.conftest import Anontls, Ran
from tests.cli.test_program import PROGRAM
from tests.support.queues import ARRIVED, EDGE, TLS_FAILED, Queues, message, serving

CONFIG = """
[node]
organization = "org.json"
server = "MBX1"
[store]
folder = "mbx1-certificates"
[delivery]
maildir = "mail"
[queue]
database = "queue.db"
"""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A configuration; of what it names nothing is there."""
    path = tmp_path / "node.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def queues(node: Path) -> Iterator[Queues]:
    queues = Queues()
    with answering(node, queues):
        yield queues


@contextmanager
def answering(node: Path, queues: Queues) -> Iterator[None]:
    with serving(node.with_name("queue.db.sock"), queues):
        yield


# --- to look ----------------------------------------------------------------------------------------------------------


def test_queues_as_a_table(anontls: Anontls, node: Path, queues: Queues) -> None:
    ran = anontls("queue", "list", "--config", node)
    assert ran.status == Exit.DONE and not ran.err
    assert [line.rstrip() for line in ran.out.splitlines()] == [
        "Identity  DeliveryType                 Status  MessageCount  NextHopDomain",
        "MBX1\\3    SmtpRelayWithinAdSiteToEdge  Retry   2             EdgeSync - Berlin to Internet",
        f"    {TLS_FAILED}",
        "MBX1\\4    DnsConnectorDelivery         Ready   1             fabrikam.com",
    ]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--status", "retry"], ["MBX1\\3"]),
        (["--status", "Suspended"], []),
        (["--next-hop", "FABRIKAM.com"], ["MBX1\\4"]),
        (["--messages"], ["MBX1\\3\\1", "MBX1\\3\\2", "MBX1\\4\\3"]),
        (["--queue", "MBX1\\4"], ["MBX1\\4\\3"]),
        (["--queue", "MBX1/3", "--status", "Retry"], ["MBX1\\3\\1"]),
        (["--messages", "--next-hop", "fabrikam.com"], ["MBX1\\4\\3"]),
        (["--messages", "--next-hop", "nowhere.com"], []),
        (["--messages", "--result-size", "0"], ["MBX1\\3\\1", "MBX1\\3\\2", "MBX1\\4\\3"]),
    ],
)
def test_what_is_listed(anontls: Anontls, node: Path, queues: Queues, more: list[str], expected: list[str]) -> None:
    ran = anontls("queue", "list", "--config", node, "--json", *more)
    assert ran.status == Exit.DONE and [each["Identity"] for each in ran.documents()] == expected
    lines = anontls("queue", "list", "--config", node, *more).out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("MBX1")] == expected


def test_messages_as_a_table(anontls: Anontls, node: Path, queues: Queues) -> None:
    first, _, *rows = anontls("queue", "list", "--config", node, "--queue", "MBX1/3").out.splitlines()
    assert first.split() == ["Identity", "FromAddress", "Status", "Size", "DateReceived", "Recipients"]
    assert rows[-1].split() == [
        *("MBX1\\3\\2", "anna@contoso.com", "Ready", "4096", "2026-11-24T12:00:00Z", "bert@fabrikam.com")
    ]


@pytest.mark.parametrize("what", [[], ["--messages"]])
def test_more_than_are_shown_is_said(anontls: Anontls, node: Path, queues: Queues, what: list[str]) -> None:
    ran = anontls("queue", "list", "--config", node, "--json", "--result-size", 1, *what)
    assert ran.status == Exit.DONE and len(ran.documents()) == 1 and "there are more than 1" in ran.err
    assert not anontls("queue", "list", "--config", node, "--result-size", 3, *what).err


def test_json_has_the_names_of_the_cmdlets_and_times_in_utc(anontls: Anontls, node: Path, queues: Queues) -> None:
    queue = anontls("queue", "show", "--config", node, "--json", "MBX1/3").documents()[0]
    assert queue["schema"] == "anontls/queue/1" and queue["NextRetryTime"] == "2026-11-24T12:02:00.500000Z"
    assert set(queue) == {"schema", *(field.encode_name for field in msgspec.structs.fields(EDGE))}
    assert {"NextHopConnector", "TlsDomain", "DeferredMessageCount", "IncomingRate", "Velocity"} < set(queue)
    shown = anontls("queue", "show", "--config", node, "--json", "MBX1/3/1").documents()[0]
    assert shown["schema"] == "anontls/message/1" and shown["Subject"] == "Grüße"
    assert shown["DateReceived"] == "2026-11-24T12:00:00Z" and shown["InternetMessageId"] == "<1@contoso.com>"


def test_in_full(anontls: Anontls, node: Path, queues: Queues) -> None:
    lines = anontls("queue", "show", "--config", node, "3", "mbx1\\4", "MBX1/3/1").out.splitlines()
    assert lines.count("") == 2
    properties = [re.split(" +: ?", line, maxsplit=1) for line in lines if line]
    assert ["LastError", TLS_FAILED] in properties and ["FirstRetryTime", "2026-11-24T12:00:00Z"] in properties
    assert ["FirstRetryTime", ""] in properties, "of the other queue"
    assert ["Subject", "Grüße"] in properties
    assert ["Recipients", f"bert@fabrikam.com  Retry  {TLS_FAILED}"] in properties


def test_a_queue_or_message_that_is_not_there(anontls: Anontls, node: Path, queues: Queues) -> None:
    for wanted in ("MBX1/9", "MBX1/9/9"):
        ran = anontls("queue", "show", "--config", node, wanted)
        assert ran.status == Exit.USAGE and "known: MBX1\\" in ran.err and not ran.out
    assert anontls("queue", "list", "--config", node, "--queue", "MBX1/9").status == Exit.USAGE
    assert anontls("queue", "list", "--config", node, "--queue", "x", "--next-hop", "y").status == Exit.USAGE


HOSTILE = "\x1b[2J\u202e\n\x00"


def test_hostile_text_does_not_reach_the_terminal(anontls: Anontls, node: Path) -> None:
    queue = msgspec.structs.replace(EDGE, last_error=f"550 {HOSTILE}", next_hop_domain=HOSTILE)
    bad = message("MBX1\\3", 1, from_address=HOSTILE, last_error=HOSTILE, date_received=1e300)
    with answering(node, Queues([queue], [bad])):
        for arguments in (["list"], ["list", "--messages"], ["show", "3", "MBX1/3/1"]):
            for form in ([], ["--json"]):
                ran = anontls("queue", *arguments, "--config", node, *form)
                assert ran.status == Exit.DONE and ran.out
                assert all(line.isprintable() for line in ran.out.split("\n"))
                assert len(ran.out.splitlines()) < 40
        ran = anontls("queue", "show", "--config", node, HOSTILE.replace("\0", ""))
        assert ran.status == Exit.USAGE and "\x1b" not in ran.err


def test_a_long_list_is_shown_as_it_comes(anontls: Anontls, node: Path) -> None:
    with answering(node, Queues(messages=[message("MBX1\\3", number) for number in range(1, 1501)])):
        lines = anontls("queue", "list", "--config", node, "--messages").out.splitlines()
        assert len(lines) == 1001 and sum(line.startswith("Identity") for line in lines) == 1
        assert (
            len(anontls("queue", "list", "--config", node, "--messages", "--result-size", 0).out.splitlines()) == 1501
        )


# --- to act -----------------------------------------------------------------------------------------------------------


def test_several_at_once(anontls: Anontls, node: Path, queues: Queues) -> None:
    for verb, word in (("retry", "tried"), ("suspend", "suspended"), ("resume", "resumed")):
        ran = anontls("queue", verb, "--config", node, "MBX1/3", "MBX1\\4")
        assert ran.status == Exit.DONE and ran.out.count(word) == 2
    assert queues.done == [(verb, queue) for verb in ("retry", "suspend", "resume") for queue in ("MBX1\\3", "MBX1\\4")]


def test_one_that_is_not_there_does_not_keep_the_others_waiting(anontls: Anontls, node: Path, queues: Queues) -> None:
    ran = anontls("queue", "remove", "--yes", "--config", node, "MBX1/3/9", "MBX1/3/1", "MBX1/3/8", "MBX1/3/2")
    assert ran.status == Exit.USAGE and "no MBX1\\3\\9" in ran.err and "no MBX1\\3\\8" in ran.err
    assert [each[1] for each in queues.done] == ["MBX1\\3\\1", "MBX1\\3\\2"]


@pytest.mark.parametrize(
    ("more", "how"), [([], "with NDR"), (["--with-ndr"], "with NDR"), (["--without-ndr"], "without NDR")]
)
def test_who_is_told_of_a_removal(anontls: Anontls, node: Path, queues: Queues, more: list[str], how: str) -> None:
    ran = anontls("queue", "remove", "--config", node, "MBX1/3/1", "--yes", *more)
    assert ran.status == Exit.DONE and queues.done == [("remove", "MBX1\\3\\1", how)]


def test_what_the_node_could_not_do_is_exit_3(anontls: Anontls, node: Path, queues: Queues) -> None:
    ran = anontls("queue", "remove", "--yes", "--config", node, "MBX1/4/3")
    assert ran.status == Exit.UNKNOWN and "the disk is full" in ran.err


def test_a_pipe_is_not_asked(anontls: Anontls, node: Path, queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    ran = anontls("queue", "remove", "--config", node, "MBX1/3/1")
    assert ran.status == Exit.USAGE and "--yes" in ran.err and not queues.done


@pytest.mark.parametrize(("answer", "done"), [(b"y\n", 1), (b"n\n", 0)])
def test_a_terminal_is_asked(node: Path, queues: Queues, answer: bytes, done: int) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "wb", buffering=0) as terminal, open(theirs, "rb", buffering=0) as stdin:  # noqa: PTH123 descriptors
        terminal.write(answer)
        ran = subprocess.run(
            [str(PROGRAM), "queue", "remove", "--config", str(node), "MBX1/3/1"],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == Exit.DONE and "Remove with a non-delivery report to the sender?" in ran.stderr
    assert "anna@contoso.com" in ran.stderr and len(queues.done) == done


# --- what a node needs ------------------------------------------------------------------------------------------------


def test_the_configuration_may_be_in_the_environment(
    anontls: Anontls, node: Path, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONTLS_CONFIG", str(node))
    assert anontls("queue", "list").status == Exit.DONE


def test_a_configuration_without_a_queue(anontls: Anontls, node: Path) -> None:
    node.write_text(CONFIG.replace('database = "queue.db"', ""))
    ran = anontls("queue", "list", "--config", node)
    assert ran.status == Exit.USAGE and "has no queue" in ran.err


def test_a_path_that_is_too_long(anontls: Anontls, node: Path) -> None:
    node.write_text(CONFIG + f'control = "{"x" * 120}"\n')
    ran = anontls("queue", "list", "--config", node)
    assert ran.status == Exit.USAGE and "queue.control" in ran.err


@pytest.mark.parametrize("arguments", [["retry"], ["list", "--status", "Gone"], ["list", "--result-size", "-1"]])
def test_wrong_usage(anontls: Anontls, node: Path, arguments: list[str]) -> None:
    assert anontls("queue", *arguments, "--config", node).status == Exit.USAGE


# --- without a node ---------------------------------------------------------------------------------------------------


def new(sender: str, *recipients: str) -> New:
    content = b"Subject: Hello\r\nMessage-ID: <1@contoso.com>\r\n\r\nHello.\r\n"
    return New(
        envelope=Envelope(sender, [Recipient(each) for each in recipients]), arrived=ARRIVED, head=b"", body=content
    )


@pytest.fixture
def stored(node: Path) -> list[int]:
    """Two messages, one of them to two domains; one recipient was deferred."""

    async def fill() -> list[int]:
        store = SqliteQueue(node.with_name("queue.db"), minimum_free=0, max_messages=1000)
        work = Work(
            accepted=[new("anna@contoso.com", "bert@fabrikam.com", "carl@contoso.com"), new("", "dora@fabrikam.com")]
        )
        numbers = await store.commit(work)
        late = Pending(number=0, recipient=Recipient("bert@fabrikam.com"), attempts=2, due=4e9, last_error=TLS_FAILED)
        await store.commit(Work(deferred=[(numbers[0], late)]))
        await store.close()
        return numbers

    return asyncio.run(fill())


def identities(ran: Ran) -> list[object]:
    assert ran.status == Exit.DONE, ran.err
    return [each["Identity"] for each in ran.documents()]


def test_without_a_node_the_store_is_shown(anontls: Anontls, node: Path, stored: list[int]) -> None:
    """Organisation and certificates are not there either: the domain stands for the destination."""
    one, two = stored
    ran = anontls("queue", "list", "--config", node, "--json")
    assert "no node answers" in ran.err
    assert identities(ran) == ["MBX1\\fabrikam.com", "MBX1\\contoso.com"]
    fabrikam = ran.documents()[0]
    assert (
        fabrikam["MessageCount"] == 2 and fabrikam["DeferredMessageCount"] == 1 and fabrikam["LastError"] == TLS_FAILED
    )
    ran = anontls("queue", "list", "--config", node, "--messages", "--json")
    assert identities(ran) == [f"MBX1\\fabrikam.com\\{one}", f"MBX1\\contoso.com\\{one}", f"MBX1\\fabrikam.com\\{two}"]
    assert [each["Status"] for each in ran.documents()] == ["Retry", "Ready", "Ready"]
    assert ran.documents()[2]["FromAddress"] == "<>"
    ran = anontls("queue", "list", "--config", node, "--json", "--messages", "--next-hop", "contoso.com")
    assert identities(ran) == [f"MBX1\\contoso.com\\{one}"]
    ran = anontls("queue", "list", "--config", node, "--json", "--messages", "--result-size", 1)
    assert identities(ran) == [f"MBX1\\fabrikam.com\\{one}"] and "more than 1" in ran.err
    ran = anontls("queue", "show", "--config", node, "--json", f"MBX1/contoso.com/{one}", "MBX1/fabrikam.com")
    assert [each.get("Subject") for each in ran.documents()] == ["Hello", None]


def test_without_a_node_the_organisation_tells_where_mail_would_go(anontls: Anontls, lab: Path) -> None:
    path = lab / "mbx1.toml"
    path.write_text(re.sub(r"\[queue\]\n(.+\n)*", "", path.read_text()) + '\n[queue]\ndatabase = "queue.db"\n')

    async def fill() -> None:
        store = SqliteQueue(lab / "queue.db", minimum_free=0, max_messages=1000)
        await store.commit(Work(accepted=[new("anna@contoso.com", "bert@fabrikam.com", "carl@contoso.com")]))
        await store.close()

    asyncio.run(fill())
    ran = anontls("queue", "list", "--config", path, "--json")
    nowhere, here = ran.documents()
    assert nowhere["DeliveryType"] == "Unreachable" and nowhere["LastError"] == "no Send connector holds fabrikam.com"
    assert here["DeliveryType"] == "SmtpDeliveryToMailbox"


def test_without_a_node_messages_are_suspended_resumed_and_removed(
    anontls: Anontls, node: Path, stored: list[int]
) -> None:
    one = stored[0]
    both = [f"MBX1/fabrikam.com/{one}", f"MBX1/contoso.com/{one}"]

    def status() -> list[object]:
        ran = anontls("queue", "list", "--config", node, "--messages", "--json")
        return [each["Status"] for each in ran.documents()]

    assert anontls("queue", "suspend", "--config", node, both[0]).status == Exit.DONE
    assert status() == ["Suspended", "Suspended", "Ready"], "a message is suspended as a whole"
    assert anontls("queue", "resume", "--config", node, both[0]).status == Exit.DONE
    assert status() == ["Retry", "Ready", "Ready"]
    ran = anontls("queue", "remove", "--yes", "--config", node, both[0])
    assert ran.status == Exit.USAGE and "--without-ndr" in ran.err and len(status()) == 3
    assert anontls("queue", "remove", "--yes", "--without-ndr", "--config", node, both[0]).status == Exit.DONE
    assert status() == ["Ready", "Ready"], "the other recipient is still there"
    assert anontls("queue", "remove", "--yes", "--without-ndr", "--config", node, both[1]).status == Exit.DONE
    assert status() == ["Ready"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["retry", "MBX1/fabrikam.com"], "no node runs that could try"),
        (["suspend", "MBX1/fabrikam.com"], "suspended messages, not queues"),
        (["suspend", "MBX1/3/1"], "no message MBX1\\3\\1 without a running node"),
        (["show", "MBX1/fabrikam.com/9999999999999999999"], "no message"),
        (["show", "MBX1/3"], "known: MBX1\\fabrikam.com"),
        (["list", "--queue", "MBX1/3"], "known: MBX1\\fabrikam.com"),
    ],
)
def test_what_needs_a_node(anontls: Anontls, node: Path, stored: list[int], arguments: list[str], said: str) -> None:
    ran = anontls("queue", *arguments, "--config", node)
    assert ran.status == Exit.USAGE and said in ran.err


def test_the_store_is_free_while_a_terminal_is_asked(node: Path, stored: list[int]) -> None:
    """A node may be started before somebody answers."""
    ours, theirs = pty.openpty()
    with (
        open(ours, "wb", buffering=0) as terminal,  # noqa: PTH123 descriptors
        open(theirs, "rb", buffering=0) as stdin,  # noqa: PTH123
        subprocess.Popen(
            [str(PROGRAM), "queue", "remove", "--without-ndr", "--config", str(node), f"MBX1/contoso.com/{stored[0]}"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as asking,
    ):
        assert asking.stderr is not None
        shown = b""
        while b"Remove without telling the sender?" not in shown:
            piece = os.read(asking.stderr.fileno(), 4096)
            assert piece, shown
            shown += piece

        async def count() -> int:
            store = SqliteQueue(node.with_name("queue.db"), minimum_free=0, max_messages=1000)
            await store.close()
            return store.count

        try:
            assert asyncio.run(count()) == 2
        finally:
            terminal.write(b"y\n")
        out, _ = asking.communicate(timeout=60)
    assert asking.returncode == Exit.DONE and b"is removed" in out


def test_nothing_is_made_where_nothing_is(anontls: Anontls, node: Path) -> None:
    ran = anontls("queue", "list", "--config", node)
    assert ran.status == Exit.USAGE and "no node runs" in ran.err
    assert list(node.parent.iterdir()) == [node]


def test_a_store_that_another_process_has(anontls: Anontls, node: Path, stored: list[int]) -> None:
    """A node that does not answer yet."""

    async def hold() -> Ran:
        store = SqliteQueue(node.with_name("queue.db"), minimum_free=0, max_messages=1000)
        try:
            return await asyncio.to_thread(anontls, "queue", "list", "--config", node)
        finally:
            await store.close()

    ran = asyncio.run(hold())
    assert ran.status == Exit.UNKNOWN and "queue.db" in ran.err and not ran.out


def test_a_store_that_is_something_else(anontls: Anontls, node: Path) -> None:
    other = sqlite3.connect(node.with_name("queue.db"))
    other.execute("CREATE TABLE mail (x)")
    other.commit()
    other.close()
    ran = anontls("queue", "list", "--config", node)
    assert ran.status == Exit.USAGE and "queue.db" in ran.err
