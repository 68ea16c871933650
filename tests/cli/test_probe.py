"""``anontls probe`` against nodes of a lab and against servers that say anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from anontls.cli import Exit
from anontls.directory import open_organization, snapshot
from anontls.facts import ATTRIBUTE_ABSENT
from tests.certstore.make import key_pem, make, pem
from tests.cli.conftest import Anontls
from tests.support.fake_server import AFTER_TLS, fake_server
from tests.support.running import running

X = "X-ANONYMOUSTLS"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key that no directory holds."""
    own = make(name="stranger")
    folder = tmp_path_factory.mktemp("stranger")
    certificate, key = folder / "crt.pem", folder / "key.pem"
    certificate.write_bytes(pem(own.der))
    key.write_bytes(key_pem(own.key))
    return certificate, key


def document(anontls: Anontls, *arguments: object) -> tuple[int, dict[str, Any]]:
    ran = anontls("probe", *arguments, "--json")
    (found,) = ran.documents()
    assert found["schema"] == "anontls/probe/1"
    return ran.status, found


def without(lab: Path, name: str) -> Path:
    """The organisation, its directory without this server's certificate."""
    organization = open_organization(str(lab / "org.json"))
    servers = tuple(
        msgspec.structs.replace(server, internal_tls_cert=ATTRIBUTE_ABSENT) if server.name == name else server
        for server in organization.servers
    )
    path = lab / "without.json"
    path.write_bytes(snapshot.dump(msgspec.structs.replace(organization, servers=servers)))
    return path


# --- nodes of a lab ---------------------------------------------------------------------------------------------------


def test_what_a_node_advertises_and_presents(anontls: Anontls, lab: Path) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = anontls("probe", f"127.0.0.1:{port}")
        status, found = document(anontls, f"127.0.0.1:{port}")
    assert ran.status == status == Exit.DONE
    assert "banner   220 mbx1.contoso.com Microsoft ESMTP" in ran.out and "directory" not in ran.out
    assert found["name"] == "mbx1.contoso.com" and found["masked"] == [] and found["failure"] is None
    assert {X, "STARTTLS", "PIPELINING"} <= set(found["extensions"])
    for behind in found["behind"]:
        assert behind["offered"] and behind["failure"] is None and behind["protocol"] == "TLSv1.3"
        assert behind["certificate"]["subject"] == "CN=MBX1" and behind["certificate"]["self_signed"] is True
        assert not {X, "STARTTLS"} & set(behind["extensions"]), "both verbs vanish behind either"
        assert behind["directory"] is None


@pytest.mark.parametrize("more", [[], ["--expect-match"], ["--server", "MBX1"], ["--server", "mbx1.contoso.com"]])
def test_match(anontls: Anontls, lab: Path, more: list[str]) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = anontls("probe", f"127.0.0.1:{port}", "--org", lab / "org.json", *more)
    assert ran.status == Exit.DONE and "directory    match" in ran.out


@pytest.mark.parametrize("more", [[], ["--expect-match"]])
def test_mismatch(anontls: Anontls, lab: Path, more: list[str]) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = anontls("probe", f"127.0.0.1:{port}", "--org", lab / "org.json", "--server", "EDGE1", *more)
    assert ran.status == Exit.NOT_MET and "directory    mismatch" in ran.out


def test_a_stranger_with_the_name_of_a_server_is_a_mismatch(
    anontls: Anontls, lab: Path, stranger: tuple[Path, Path]
) -> None:
    with fake_server(answers={X: b"220 go\r\n"}, tls=stranger) as server:
        status, found = document(anontls, f"127.0.0.1:{server.port}", "--org", lab / "org.json")
    anonymous, starttls = found["behind"]
    assert status == Exit.NOT_MET and anonymous["directory"] == "mismatch" and not starttls["offered"]
    assert anonymous["certificate"]["subject"] == "CN=stranger" and anonymous["extensions"] == ["8BITMIME"]
    assert anonymous["expired"] is False


@pytest.mark.parametrize(("more", "status"), [([], Exit.UNKNOWN), (["--expect-match"], Exit.NOT_MET)])
def test_the_directory_does_not_know_it(anontls: Anontls, lab: Path, more: list[str], status: Exit) -> None:
    with running(lab / "mbx1.toml") as port:
        ran = anontls("probe", f"127.0.0.1:{port}", "--org", without(lab, "MBX1"), *more)
    assert ran.status == status and "directory    unknown server" in ran.out


def test_expect_match_where_the_verb_is_not_offered(anontls: Anontls, lab: Path) -> None:
    plain = {"EHLO": b"250-mbx1.contoso.com Hello\r\n250 8BITMIME\r\n"}
    with fake_server(answers=plain) as server:
        arguments = f"127.0.0.1:{server.port}", "--org", lab / "org.json"
        assert anontls("probe", *arguments).status == Exit.DONE
        ran = anontls("probe", *arguments, "--expect-match")
    assert ran.status == Exit.NOT_MET and f"{X}  not offered" in ran.out


# --- what stands between ----------------------------------------------------------------------------------------------


def test_masked_keywords_and_banner(anontls: Anontls, lab: Path) -> None:
    masked = b"250-mbx1.contoso.com Hello [127.0.0.1]\r\n250-XXXXXXXA\r\n250-XXXXXXXXXXXXXB\r\n250 8BITMIME\r\n"
    with fake_server(banner=b"220 " + b"*" * 60 + b"\r\n", answers={"EHLO": masked}) as server:
        ran = anontls("probe", f"127.0.0.1:{server.port}")
        compared = anontls("probe", f"127.0.0.1:{server.port}", "--org", lab / "org.json")
    assert (ran.status, compared.status) == (Exit.DONE, Exit.NOT_MET), "a finding where something was to be compared"
    assert "masked   keyword XXXXXXXA is a mask" in ran.out and "keyword XXXXXXXXXXXXXB is a mask" in ran.out
    assert "masked   the banner is masked" in ran.out
    assert f"{X}  not offered" in ran.out


def test_ehlo_refused_and_helo_answered(anontls: Anontls) -> None:
    answers = {"EHLO": b"500 5.3.3 Unrecognized command\r\n", "HELO": b"250 mbx1.contoso.com Hello [127.0.0.1]\r\n"}
    with fake_server(answers=answers) as server:
        status, found = document(anontls, f"127.0.0.1:{server.port}")
        ran = anontls("probe", f"127.0.0.1:{server.port}")
    assert status == Exit.DONE and found["extensions"] == [] and found["failure"] is None
    assert found["masked"] == ["EHLO was rewritten to HELO on the way, or its answer cut"]
    assert "HELO     mbx1.contoso.com, no extensions" in ran.out
    assert server.heard.startswith(b"EHLO ") and b"HELO " in server.heard


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_verb_that_is_offered_and_refused(anontls: Anontls, lab: Path) -> None:
    with fake_server(answers={X: b"454 4.7.0 TLS not available\r\n"}) as server:
        status, found = document(anontls, f"127.0.0.1:{server.port}", "--org", lab / "org.json", "--expect-match")
    assert status == Exit.UNKNOWN
    assert found["behind"][0]["failure"] == f"{X} was refused: 454 4.7.0 TLS not available"
    assert found["behind"][0]["directory"] is None, "nothing was shown, so nothing can be compared"


def test_garbage_instead_of_tls(anontls: Anontls, lab: Path) -> None:
    with fake_server(answers={X: b"220 go\r\n"}, garbage=b"\x00not TLS at all\r\n" * 20) as server:
        ran = anontls("probe", f"127.0.0.1:{server.port}", "--org", lab / "org.json")
    assert ran.status == Exit.UNKNOWN and f"{X}  failed: " in ran.out and "Traceback" not in ran.err


def test_plain_text_glued_behind_the_220(anontls: Anontls) -> None:
    with fake_server(answers={X: b"220 go\r\n250 injected\r\n"}, garbage=b"x") as server:
        ran = anontls("probe", f"127.0.0.1:{server.port}")
    assert ran.status == Exit.UNKNOWN and f"{X}  failed: " in ran.out


@pytest.mark.parametrize("told", [{"banner": b""}, {"answers": {"EHLO": b""}}, {"answers": {X: b"220 go\r\n"}}])
def test_silence(anontls: Anontls, told: dict[str, Any]) -> None:
    with fake_server(**told) as server:
        ran = anontls("probe", f"127.0.0.1:{server.port}", "--timeout", "0.4")
    assert ran.status == Exit.UNKNOWN and "no answer in 0.4 s" in ran.out


def test_a_session_that_ends_after_tls_still_shows_the_certificate(
    anontls: Anontls, stranger: tuple[Path, Path], lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.fake_server.AFTER_TLS", b"421 4.3.2 Service not active\r\n")
    assert AFTER_TLS.startswith(b"250")
    with fake_server(answers={X: b"220 go\r\n"}, tls=stranger) as server:
        ran = anontls("probe", f"127.0.0.1:{server.port}", "--org", lab / "org.json")
    assert ran.status == Exit.NOT_MET and "CN=stranger" in ran.out and "failed: EHLO was refused: 421" in ran.out


@pytest.mark.parametrize("banner", [b"554 5.7.1 no\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"220\x00\r\n", b"250" * 5000])
def test_something_else_listens_there(anontls: Anontls, banner: bytes) -> None:
    with fake_server(banner=banner) as server:
        ran = anontls("probe", f"127.0.0.1:{server.port}", "--timeout", "2")
    assert ran.status == Exit.UNKNOWN and "failed: " in ran.out and not ran.err


def test_what_a_peer_says_is_no_command_to_the_terminal(anontls: Anontls) -> None:
    answers = {
        "EHLO": b"250-mbx1\x1b[31m Hello\r\n250-\x1b]0;owned\x07\r\n250 X-ANONYMOUSTLS\r\n",
        X: b"454 \x1b[2J\r\n",
    }
    with fake_server(banner=b"220 \x1b[2J\x9b31m\r\n", answers=answers) as server:
        ran = anontls("probe", f"127.0.0.1:{server.port}")
    assert "\\x1b[2J" in ran.out
    assert all(c.isprintable() or c == "\n" for c in ran.out)


def test_nobody_listens(anontls: Anontls, lab: Path) -> None:
    with fake_server() as server:
        port = server.port
    for more in ([], ["--org", lab / "org.json", "--expect-match"]):
        ran = anontls("probe", f"127.0.0.1:{port}", *more)
        assert ran.status == Exit.UNKNOWN and "Connection refused" in ran.out


# --- targets ----------------------------------------------------------------------------------------------------------


def test_ipv6(anontls: Anontls, stranger: tuple[Path, Path]) -> None:
    try:
        with fake_server(address="::1", answers={X: b"220 go\r\n"}, tls=stranger) as server:
            status, found = document(anontls, f"[::1]:{server.port}")
    except OSError:
        pytest.skip("no IPv6 here")
    assert status == Exit.DONE and (found["host"], found["port"]) == ("::1", server.port)
    assert found["behind"][0]["certificate"]["subject"] == "CN=stranger"


@pytest.mark.parametrize(
    "target",
    [
        "",
        ":25",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "::1",
        "2001:db8::25",
        "[::1]:x",
        "a b",
        "a..b",
        "smtp://host",
    ],
)
def test_no_target(anontls: Anontls, target: str) -> None:
    ran = anontls("probe", target)
    assert ran.status == Exit.USAGE and ran.err and not ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--expect-match"],
        ["--server", "MBX1"],
        ["--hello", "two words"],
        ["--hello", "a\r\nQUIT"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--org", "nowhere.json"],
    ],
)
def test_wrong_usage(anontls: Anontls, arguments: list[str]) -> None:
    ran = anontls("probe", "127.0.0.1:1", *arguments)
    assert ran.status == Exit.USAGE and ran.err and not ran.out


def test_a_server_that_the_organisation_does_not_have(anontls: Anontls, lab: Path) -> None:
    ran = anontls("probe", "127.0.0.1:1", "--org", lab / "org.json", "--server", "MBX9")
    assert ran.status == Exit.USAGE and "known: MBX1, EDGE1" in ran.err


def test_port_25_is_the_default() -> None:
    from anontls.cli.probe import _target

    assert _target("mail.contoso.com") == ("mail.contoso.com", 25)
    assert _target("[::1]") == ("::1", 25)
    assert _target("[::1]:587") == ("::1", 587)
