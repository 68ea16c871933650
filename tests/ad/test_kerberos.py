"""Kerberos contexts against a real KDC: who is accepted, and what is refused for which reason."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anontls.errors import UsageError
from anontls.kerberos import (
    Acceptor,
    Initiator,
    Kerberos,
    computer_account,
    realm_of,
    same_account,
)
from anontls.kerberos.failure import KerberosFailed, Reason
from anontls.kerberos.request import AES, request_of
from lab.kdc import Kdc, Realm
from tests.ad.tickets import BINDING, HOSTS, Tickets, tickets_of

OTHER = b"tls-server-end-point:" + b"\2" * 32


@pytest.fixture
def two(kdc: Kdc) -> Tickets:
    return tickets_of(kdc)


@pytest.fixture(autouse=True)
def _environment(kdc: Kdc, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in kdc.environment.items():
        monkeypatch.setenv(name, value)


def meet(initiator: Initiator, acceptor: Acceptor) -> None:
    token = acceptor.step(initiator.step() or b"")
    assert token is not None
    assert initiator.step(token) is None
    assert initiator.complete
    assert acceptor.complete


def refused(step: Callable[..., object], *arguments: object) -> KerberosFailed:
    with pytest.raises(KerberosFailed) as raised:
        step(*arguments)
    return raised.value


# --- accepted ---------------------------------------------------------------------------------------------------------


def test_each_proves_itself_to_the_other_on_the_same_channel(two: Tickets) -> None:
    initiator, acceptor = two.initiator(), two.acceptor()
    meet(initiator, acceptor)
    assert acceptor.peer == two.account == f"MBX1$@{two.realm}"
    assert acceptor.bound
    initiator.verify(b"this", acceptor.sign(b"this"))
    assert refused(initiator.verify, b"that", acceptor.sign(b"this")).reason is Reason.MALFORMED


def test_the_spn_of_the_other_class_and_of_the_short_name(two: Tickets) -> None:
    for name in ("SMTP/mbx2.contoso.com", "SMTPSVC/MBX2"):
        acceptor = two.acceptor(keytab=two.kdc.add_principal(name))
        meet(two.initiator(target=f"{name}@{two.realm}"), acceptor)


def test_in_clear_nothing_is_bound(two: Tickets) -> None:
    acceptor = two.acceptor(binding=None)
    meet(two.initiator(), acceptor)
    assert acceptor.peer == two.account
    assert not acceptor.bound


def test_a_cache_that_somebody_else_fills(two: Tickets) -> None:
    meet(two.initiator(cache=two.kdc.kinit(two.account, keytab=two.keytab, ccache="filled")), two.acceptor())


def test_a_ticket_that_has_run_out_is_renewed_by_the_keytab(two: Tickets, tmp_path: Path) -> None:
    keytab = two.kdc.add_principal("MBX3$", '-maxlife "1 sec"')
    kerberos = Kerberos(computer_account("MBX3", two.realm), keytab=keytab)
    meet(kerberos.initiator(two.target, BINDING), two.acceptor())
    time.sleep(1.2)
    meet(kerberos.initiator(two.target, BINDING), two.acceptor())


def test_the_keytab_is_read_each_time(two: Tickets, tmp_path: Path) -> None:
    keytab = tmp_path / "keytab"
    kerberos = Kerberos("unused", keytab=keytab)
    assert refused(kerberos.acceptor(HOSTS, BINDING).step, two.initiator().step() or b"").reason is (
        Reason.NO_CREDENTIALS
    )
    keytab.write_bytes(two.service_keytab.read_bytes())
    meet(two.initiator(), kerberos.acceptor(HOSTS, BINDING))


# --- refused by the acceptor ------------------------------------------------------------------------------------------


def test_another_channel(two: Tickets) -> None:
    token = two.initiator(binding=OTHER).step() or b""
    assert refused(two.acceptor().step, token).reason is Reason.WRONG_BINDING


def test_no_channel(two: Tickets) -> None:
    """GSSAPI itself accepts this."""
    acceptor = two.acceptor()
    token = two.lax().step()
    assert refused(acceptor.step, token).reason is Reason.NO_BINDING
    assert not acceptor.complete
    assert not acceptor.bound
    assert acceptor.peer == ""


def test_an_initiator_that_does_not_ask_who_we_are(two: Tickets) -> None:
    token = two.lax("integrity", binding=BINDING).step()
    assert refused(two.acceptor().step, token).reason is Reason.NOT_MUTUAL


def test_a_ticket_to_act_for_somebody_is_not_taken(
    two: Tickets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwardable = Realm(two.realm, tmp_path, two.kdc.address, more="forwardable = true")
    monkeypatch.setenv("KRB5_CONFIG", forwardable.environment["KRB5_CONFIG"])
    cache = forwardable.kinit(two.account, keytab=two.keytab)
    context = two.lax("mutual_authentication", "delegate_to_peer", binding=BINDING, cache=cache)
    assert refused(two.acceptor().step, context.step()).reason is Reason.DELEGATION


def test_the_same_token_again(two: Tickets) -> None:
    token = two.initiator().step() or b""
    assert two.acceptor().step(token)
    assert refused(two.acceptor().step, token).reason is Reason.REPLAY


def test_a_ticket_for_another_service_of_the_same_keytab(two: Tickets) -> None:
    keytab = two.kdc.add_principal("HTTP/mbx2.contoso.com")
    token = two.initiator(target=f"HTTP/mbx2.contoso.com@{two.realm}").step() or b""
    failure = refused(two.acceptor(keytab=keytab).step, token)
    assert failure.reason is Reason.WRONG_SPN
    assert "HTTP/mbx2.contoso.com" in str(failure)


def test_a_ticket_for_another_server(two: Tickets) -> None:
    two.kdc.add_principal("SMTPSVC/mbx9.contoso.com")
    token = two.initiator(target=f"SMTPSVC/mbx9.contoso.com@{two.realm}").step() or b""
    assert refused(two.acceptor().step, token).reason is Reason.WRONG_SPN


def test_a_key_that_is_not_the_kdcs_any_more(two: Tickets, tmp_path: Path) -> None:
    keytab = two.kdc.add_principal("SMTPSVC/mbx2")
    old = tmp_path / "old.keytab"
    old.write_bytes(keytab.read_bytes())
    two.kdc.kadmin("cpw -randkey SMTPSVC/mbx2")
    token = two.initiator(target=f"SMTPSVC/mbx2@{two.realm}").step() or b""
    assert refused(two.acceptor(keytab=old).step, token).reason in {Reason.WRONG_KEY, Reason.WRONG_SPN}


def test_clocks_that_are_too_far_apart(two: Tickets, tmp_path: Path) -> None:
    token = two.initiator(cache=two.skewed(tmp_path / "ccache")).step() or b""
    assert refused(two.acceptor().step, token).reason is Reason.CLOCK_SKEW


def test_an_expired_ticket(two: Tickets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Realm(two.realm, tmp_path, two.kdc.address, more="clockskew = 1")
    monkeypatch.setenv("KRB5_CONFIG", strict.environment["KRB5_CONFIG"])
    service = "SMTPSVC/brief.contoso.com"
    cache, keytab = two.expired(tmp_path / "ccache", service)
    token = two.initiator(cache=cache, target=f"{service}@{two.realm}").step() or b""
    acceptor = Kerberos("unused", keytab=keytab).acceptor(("brief.contoso.com",), BINDING)
    assert refused(acceptor.step, token).reason is Reason.EXPIRED


def test_rc4_tickets_on_both_sides(two: Tickets) -> None:
    """Though the session key is AES: what Active Directory gives for an account whose encryption types nobody has set."""
    name = "SMTPSVC/rc4.contoso.com"
    keytab = two.kdc.add_principal(name, enctypes="arcfour-hmac:normal")
    failure = refused(two.initiator(target=f"{name}@{two.realm}").step)
    assert failure.reason is Reason.NO_AES
    assert "msDS-SupportedEncryptionTypes" in str(failure)
    shown = two.lax(binding=BINDING, target=f"{name}@{two.realm}").step()
    assert request_of(shown) == (name, 23, 18)
    acceptor = Kerberos("unused", keytab=keytab).acceptor(("rc4.contoso.com",), BINDING)
    assert refused(acceptor.step, shown).reason is Reason.NO_AES


def test_a_session_key_of_rc4(two: Tickets) -> None:
    """A KDC that still gives one is hard to find; the authenticator of a good token says that it is encrypted so."""
    token = bytearray(two.initiator().step() or b"")
    assert request_of(bytes(token)) == ("SMTPSVC/mbx2.contoso.com", 18, 18)
    token[token.rindex(b"\xa0\3\2\1\x12") + 4] = 23
    assert request_of(bytes(token)).session_key == 23
    assert refused(two.acceptor().step, bytes(token)).reason is Reason.NO_AES


GARBAGE = (
    b"",
    b"NTLMSSP\0\1\0\0\0",
    b"\x60",
    b"\x60\x84\xff\xff\xff\xff",
    b"\x60\x80" + b"\0" * 40,
    b"\x60\x0d" + bytes.fromhex("06092a864886f712010202") + b"\1\0",
    bytes.fromhex("601906062b0601050502a00f300da00b3009060a2a864886f71201020202"),  # SPNEGO
)


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: data[:8].hex() or "empty")
def test_what_is_no_token(two: Tickets, data: bytes) -> None:
    assert refused(two.acceptor().step, data).reason is Reason.MALFORMED


def test_a_token_that_is_cut_or_changed(two: Tickets) -> None:
    whole = two.initiator().step() or b""
    for at in range(0, len(whole), 7):
        assert refused(two.acceptor().step, whole[:at]).reason is Reason.MALFORMED
    for at in range(len(whole) // 3, len(whole), 29):  # names in front of it are in clear, and bind nobody
        changed = bytearray(whole)
        changed[at] ^= 0x40
        refused(two.acceptor().step, bytes(changed))
    assert two.acceptor().step(whole), "and it was good"


# --- refused by the initiator -----------------------------------------------------------------------------------------


def test_a_service_that_the_kdc_does_not_know(two: Tickets) -> None:
    failure = refused(two.initiator(target=f"SMTPSVC/nowhere.contoso.com@{two.realm}").step)
    assert failure.reason is Reason.UNKNOWN_SPN
    assert "SMTPSVC/nowhere.contoso.com" in str(failure)


def test_an_account_that_is_not_in_the_keytab(two: Tickets) -> None:
    kerberos = Kerberos(computer_account("MBX8", two.realm), keytab=two.keytab)
    failure = refused(kerberos.initiator(two.target, BINDING).step)
    assert failure.reason is Reason.NO_CREDENTIALS
    assert str(failure).startswith(f"no credentials: MBX8$@{two.realm}: "), "the library says nothing of whose"


def test_a_cache_that_is_not_there(two: Tickets, tmp_path: Path) -> None:
    initiator = two.initiator(cache=f"FILE:{tmp_path / 'nothing'}")
    assert refused(initiator.step).reason is Reason.NO_CREDENTIALS


def test_a_kdc_that_is_down(two: Tickets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("KRB5_CONFIG", Realm(two.realm, tmp_path, nobody).environment["KRB5_CONFIG"])
    kerberos = Kerberos(two.account, keytab=two.keytab, credential_cache="MEMORY:down")
    assert refused(kerberos.initiator(two.target, BINDING).step).reason is Reason.KDC_UNREACHABLE


@pytest.mark.parametrize("answer", [b"", b"garbage", b"\x60\x05\1\2\3\4\5"])
def test_a_server_that_answers_rubbish(two: Tickets, answer: bytes) -> None:
    initiator = two.initiator()
    initiator.step()
    refused(initiator.step, answer)
    assert not initiator.complete


def test_a_server_whose_answer_is_anothers(two: Tickets) -> None:
    initiator, other = two.initiator(), two.initiator()
    initiator.step()
    answer = two.acceptor().step(other.step() or b"")
    refused(initiator.step, answer)


# --- names, and what is not there -------------------------------------------------------------------------------------


def test_the_account_of_a_server() -> None:
    assert realm_of("mbx1.contoso.com") == "CONTOSO.COM"
    assert realm_of("mbx1") == ""
    assert computer_account("mbx1", "CONTOSO.COM") == "MBX1$@CONTOSO.COM"


@pytest.mark.parametrize(
    ("principal", "same"),
    [
        ("MBX1$@CONTOSO.COM", True),
        ("mbx1$@CONTOSO.COM", True),
        ("MBX1@CONTOSO.COM", False),  # a user, or a computer whose name was changed
        ("MBX1$@contoso.com", False),
        ("MBX1$@FABRIKAM.COM", False),  # the computer of that name in a realm that is trusted
        ("MBX1$", False),
        ("MBX1$\\@CONTOSO.COM@CONTOSO.COM", False),  # an enterprise name
        ("host/mbx1.contoso.com@CONTOSO.COM", False),  # may be any account's userPrincipalName
        ("SMTPSVC/mbx1.contoso.com@CONTOSO.COM", False),
        ("MBX1$/x@CONTOSO.COM", False),
        ("WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", False),
        ("", False),
    ],
)
def test_which_principal_is_that_account(principal: str, same: bool) -> None:
    assert same_account(principal, "MBX1$@CONTOSO.COM") is same


def test_letters_that_only_look_the_same_are_nobodys() -> None:
    kelvin = "\N{KELVIN SIGN}BX1$@CONTOSO.COM"
    assert kelvin.lower() == "KBX1$@CONTOSO.COM".lower()
    assert not same_account(kelvin, "KBX1$@CONTOSO.COM")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    with pytest.raises(UsageError) as raised:
        Kerberos("MBX1$@CONTOSO.COM")
    assert raised.value.hint == "pip install 'anontls[ad]'"


def test_what_the_peer_makes_the_library_say_is_one_short_line() -> None:
    failure = KerberosFailed(Reason.WRONG_SPN, "a\r\nb\x1b[2J" + "x" * 10_000)
    assert str(failure).isprintable()
    assert len(str(failure)) < 400


def test_aes_is_all_that_is_taken() -> None:
    assert {17, 18, 19, 20} == AES
    assert os.environ["KRB5_CONFIG"], "every test here has a realm of its own"
