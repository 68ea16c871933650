"""``anontls send``: every step shown, and nothing in clear to an Exchange server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anontls.cli import Exit
from tests.certstore.make import key_pem, make, pem
from tests.cli.conftest import Anontls, Ran
from tests.support.fake_server import fake_server
from tests.support.running import running

X = "X-ANONYMOUSTLS"
ANNA = "anna@contoso.com"
SECRET = "nobody in between reads this"


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    path = tmp_path / "mail.eml"
    path.write_text(f"Subject: test\n\n{SECRET}\n")
    return path


def to_mailbox(anontls: Anontls, lab: Path, port: int, mail: Path, *more: object, server: str = "MBX1") -> Ran:
    """From EDGE1, as to an Exchange server."""
    arguments = "--config", lab / "edge1.toml", "--to", f"127.0.0.1:{port}", "--server", server, "--recipient", ANNA
    return anontls("send", *arguments, *more, mail)


def test_every_step_is_shown(anontls: Anontls, lab: Path, mail: Path) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = to_mailbox(anontls, lab, port, mail, "--sender", "ben@contoso.com")
    assert ran.status == Exit.DONE and not ran.err
    steps = [
        "* attempting to connect",
        "< 220 mbx1.contoso.com Microsoft ESMTP",
        "> EHLO edge1.contoso.com",
        f"< 250-{X}",
        f"> {X}",
        "< 220 2.0.0 SMTP server ready",
        "* TLS protocol SP_PROT_TLS1_3_CLIENT negotiation succeeded",
        "* MBX1  Direct trust: match",
        "> EHLO edge1.contoso.com",
        "> MAIL FROM:<ben@contoso.com>",
        f"> RCPT TO:<{ANNA}>",
        "< 250 2.6.0 ",
        "> QUIT",
        "the peer showed ",
        "; the directory says of MBX1: match",
        f"EDGE1 uses {X} on EdgeSync - Inbound to Default-First-Site-Name",
        "4    passed",
        f"{ANNA}: 250 2.6.0 ",
    ]
    place = 0
    for step in steps:
        place = ran.out.index(step, place) + len(step)
    (stored,) = (lab / "mail" / ANNA / "new").iterdir()
    assert all(line.isprintable() and "\\r" not in line for line in ran.out.splitlines())
    assert SECRET in stored.read_text() and f"\n> {SECRET}" not in ran.out
    assert list((lab / "edge1-log" / "SmtpSend").iterdir()), "a session of this server, so in its protocol log"


def test_json(anontls: Anontls, lab: Path, mail: Path) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = to_mailbox(anontls, lab, port, mail, "--json")
    (found,) = ran.documents()
    assert ran.status == Exit.DONE and found["schema"] == "anontls/session/1" and found["failure"] is None
    assert found["to"] == f"127.0.0.1:{port}" and found["trust"] == "match"
    decision: Any = found["decision"]
    peer: Any = found["peer_certificate"]
    dialogue: Any = found["dialogue"]
    assert decision["verb"] == X and peer["subject"] == "CN=MBX1"
    assert {"mark": ">", "data": X, "context": ""} in dialogue
    assert str(found["replies"]).startswith("['250 2.6.0 ")


def test_without_a_message_the_session_is_opened_and_closed(anontls: Anontls, lab: Path) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = anontls("send", "--config", lab / "edge1.toml", "--to", f"127.0.0.1:{port}", "--server", "MBX1")
    assert ran.status == Exit.DONE and "> QUIT" in ran.out and "> MAIL" not in ran.out


def test_from_standard_input_with_any_line_ends(
    anontls: Anontls, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = tmp_path / "mixed"
    mixed.write_bytes(b"Subject: x\r\rone\rtwo\r\nthree\nfour")
    with mixed.open() as stream, running(lab / "mbx1.toml") as port:
        monkeypatch.setattr("sys.stdin", stream)
        ran = to_mailbox(anontls, lab, port, Path("-"))
    assert ran.status == Exit.DONE
    (stored,) = (lab / "mail" / ANNA / "new").iterdir()
    assert stored.read_bytes().replace(b"\r\n", b"\n").endswith(b"\n\none\ntwo\nthree\nfour\n")


def test_a_mailbox_server_sends_to_its_edge(anontls: Anontls, lab: Path, mail: Path) -> None:
    with running(lab / "mbx1.toml") as mailbox, running(with_next_hop(lab, mailbox)) as edge:
        ran = anontls(
            *("send", "--config", lab / "mbx1.toml", "--to", f"127.0.0.1:{edge}", "--server", "EDGE1"),
            *("--recipient", ANNA, mail),
        )
    assert ran.status == Exit.DONE and "* EDGE1  Direct trust: match" in ran.out
    assert f"MBX1 uses {X} for SmtpRelayWithinAdSiteToEdge (hypothetical queue)" in ran.out


def with_next_hop(lab: Path, port: int) -> Path:
    path = lab / "edge1.toml"
    path.write_text(path.read_text().replace('next-hop = "127.0.0.1:0"', f'next-hop = "127.0.0.1:{port}"'))
    return path


# --- not sent ---------------------------------------------------------------------------------------------------------


def in_clear(heard: bytes) -> list[bytes]:
    """What was said in clear besides greetings and the TLS verb."""
    polite = (b"EHLO", b"QUIT", X.encode())
    return [line for line in heard.splitlines() if not line.startswith(polite)]


@pytest.mark.parametrize(
    ("answers", "because"),
    [
        ({"EHLO": b"250-mbx1 Hello\r\n250 8BITMIME\r\n"}, f"the peer does not offer {X}"),
        ({"EHLO": b"250-mbx1 Hello\r\n250-STARTTLS\r\n250 8BITMIME\r\n"}, f"the peer does not offer {X}"),
        ({"EHLO": b"500 what\r\n"}, "EHLO was refused"),
        ({X: b"454 4.7.0 no\r\n"}, f"{X} was refused: 454 4.7.0 no"),
        ({X: b"220 go\r\n250 injected\r\n"}, ""),
        ({X: b"220 go\r\n"}, ""),
    ],
)
def test_nothing_in_clear(anontls: Anontls, lab: Path, mail: Path, answers: dict[str, bytes], because: str) -> None:
    with fake_server(answers=answers, garbage=b"no TLS here\r\n") as server:
        ran = to_mailbox(anontls, lab, server.port, mail, "--timeout", "5")
    assert ran.status == Exit.UNKNOWN and "not sent: " in ran.err and because in ran.err and "Traceback" not in ran.err
    assert in_clear(server.heard) == []


@pytest.mark.parametrize("name", ["MBX1", "stranger"])
def test_nothing_at_all_to_a_peer_that_is_not_the_directorys(
    anontls: Anontls, lab: Path, mail: Path, tmp_path: Path, name: str
) -> None:
    own = make(name=name)
    certificate, key = tmp_path / "crt.pem", tmp_path / "key.pem"
    certificate.write_bytes(pem(own.der))
    key.write_bytes(key_pem(own.key))
    with fake_server(answers={X: b"220 go\r\n"}, tls=(certificate, key)) as server:
        ran = to_mailbox(anontls, lab, server.port, mail)
    assert ran.status == Exit.UNKNOWN and "Direct trust: mismatch" in ran.out and f"CN={name}" in ran.out
    assert "451 5.7.3 Cannot achieve Exchange Server authentication" in ran.err
    assert "> MAIL" not in ran.out and in_clear(server.heard) == []


def test_another_server_of_the_organisation_is_not_the_one_that_was_meant(
    anontls: Anontls, lab: Path, mail: Path
) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = to_mailbox(anontls, lab, port, mail, "--json", server="EDGE1")
    (found,) = ran.documents()
    assert ran.status == Exit.UNKNOWN and found["trust"] == "mismatch" and found["replies"] == []
    assert not (lab / "mail").exists() or not list((lab / "mail").rglob("new/*"))


def test_a_decision_without_the_verb(anontls: Anontls, lab: Path, mail: Path) -> None:
    with fake_server() as server:
        ran = anontls(
            *("send", "--config", lab / "mbx1.toml", "--to", f"127.0.0.1:{server.port}", "--server", "EDGE1"),
            *("--delivery-type", "SmtpDeliveryToMailbox", "--recipient", ANNA, mail),
        )
    assert ran.status == Exit.UNKNOWN and "it ended at step 1.b" in ran.err and "as written: none loaded" in ran.out
    assert server.heard == b"", "not even connected"


@pytest.mark.parametrize("answer", [b"550 5.1.1 User unknown\r\n", b"452 4.2.2 full\r\n"])
def test_a_refused_recipient(anontls: Anontls, lab: Path, mail: Path, answer: bytes) -> None:
    answers = {"EHLO": b"250-mail Hello\r\n250 8BITMIME\r\n", "MAIL": b"250 ok\r\n", "RCPT": answer}
    with fake_server(answers=answers) as server:
        arguments = "--config", lab / "edge1.toml", "--to", f"127.0.0.1:{server.port}", "--recipient", ANNA
        ran = anontls("send", *arguments, mail)
    assert ran.status == Exit.UNKNOWN and f"{ANNA}: {answer.decode().strip()}" in ran.out


def test_nobody_listens(anontls: Anontls, lab: Path, mail: Path) -> None:
    with fake_server() as server:
        port = server.port
    ran = to_mailbox(anontls, lab, port, mail)
    assert ran.status == Exit.UNKNOWN and "4.4.397" in ran.err and ran.err.rstrip().endswith(": Connection refused")


@pytest.mark.parametrize("answers", [{X: b"454 4.7.0 no\r\n"}, {"MAIL": b"250 ok\r\n"}])
def test_the_protocol_log_has_the_end_of_a_session_that_failed(
    anontls: Anontls, lab: Path, mail: Path, answers: dict[str, bytes]
) -> None:
    with fake_server(answers=answers) as server:
        assert to_mailbox(anontls, lab, server.port, mail).status == Exit.UNKNOWN
    (log,) = (lab / "edge1-log" / "SmtpSend").iterdir()
    marks = [row.split(",")[6] for row in log.read_text().splitlines() if not row.startswith("#")]
    assert marks.count("+") == marks.count("-") == 1 and marks[-1] == "-"


def test_silence(anontls: Anontls, lab: Path, mail: Path) -> None:
    with fake_server(banner=b"") as server:
        ran = to_mailbox(anontls, lab, server.port, mail, "--timeout", "0.4")
    assert ran.status == Exit.UNKNOWN and "no answer in 0.4 s" in ran.err


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "host"], "HOST:PORT"),
        (["--to", "::1"], "HOST:PORT"),
        (["--to", "a..b:25"], "no host name"),
        (["--to", "host:0"], "port 0"),
        (["--to", "host:25", "--recipient", ANNA], "a message needs"),
        (["--to", "host:25", "MAIL"], "a message needs"),
        (["--to", "host:25", "--recipient", "anna", "MAIL"], "addresses"),
        (["--to", "host:25", "--recipient", "a@b> SIZE=1", "MAIL"], "addresses"),
        (["--to", "host:25", "--recipient", "a@b\r\nRSET", "MAIL"], "addresses"),
        (["--to", "host:25", "--sender", "x y", "--recipient", ANNA, "MAIL"], "addresses"),
        (["--to", "host:25", "--recipient", ANNA, "nowhere.eml"], "nowhere.eml"),
        (["--to", "host:25", "--server", "MBX9"], "known: MBX1, EDGE1"),
        (["--to", "host:25", "--server", "MBX1", "--connector", "Nonsense"], "known: EdgeSync - Inbound"),
        (["--to", "host:25", "--timeout", "-1"], "--timeout"),
        (["--to", "host:25", "--delivery-type", "SmtpRelayWithinAdSiteToEgde"], "SmtpRelayWithinAdSiteToEdge?"),
        (["--to", "host:25", "--delivery-type", "x"], "known: DeliveryAgent, "),
        ([], "--to"),
    ],
)
def test_wrong_usage(anontls: Anontls, lab: Path, mail: Path, arguments: list[str], said: str) -> None:
    given = [str(mail) if word == "MAIL" else word for word in arguments]
    ran = anontls("send", "--config", lab / "edge1.toml", *given)
    assert ran.status == Exit.USAGE and said in ran.err and not ran.out


def test_a_send_connector_is_an_edge_servers(anontls: Anontls, lab: Path) -> None:
    ran = anontls("send", "--config", lab / "mbx1.toml", "--to", "h:25", "--server", "EDGE1", "--connector", "x")
    assert ran.status == Exit.USAGE and "MBX1 is no Edge server" in ran.err


def test_no_configuration(anontls: Anontls, tmp_path: Path) -> None:
    ran = anontls("send", "--config", tmp_path / "none.toml", "--to", "host:25")
    assert ran.status == Exit.USAGE and "none.toml" in ran.err
