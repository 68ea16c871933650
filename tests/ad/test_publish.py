"""Naming a certificate in the directory: rights, conflicts, and what is refused before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import click
import msgspec
import pytest

from anontls.certstore import write
from anontls.certstore.bindings import Binding
from anontls.certstore.new import new_internal_certificate
from anontls.cli import Exit, run
from anontls.directory.ldap import LdapDirectory, LdapSettings
from anontls.directory.ldap.publish import Conflict, WriteRefused, publish, server_object
from anontls.errors import Unreachable
from anontls.facts import Certificate
from anontls.facts.own_certificate import OwnCertificate
from lab.exchange import Exchange
from lab.samba import Samba
from lab.slapd import Slapd
from tests.ad.conftest import StartSlapd
from tests.support.make import common_name, make_der

ATTRIBUTE = "msExchServerInternalTLSCert"
OLD, THEIRS, NEW = (make_der(common_name(name)) for name in ("old", "theirs", "new"))
Run = Callable[..., tuple[int, str, str]]


def of_slapd(slapd: Slapd, *, bind: str = "", password: str = "") -> LdapSettings:
    return LdapSettings(
        urls=(slapd.ldaps_url,), bind=bind or slapd.bind_dn, password=password or slapd.password, ca=slapd.ca
    )


def of_samba(samba: Samba, *, bind: str = "") -> LdapSettings:
    return LdapSettings(urls=(samba.ldaps_url,), bind=bind or samba.administrator, password=samba.password, ca=samba.ca)


def value(settings: LdapSettings, name: str = "MBX1") -> bytes | None:
    with LdapDirectory(settings) as directory:
        return directory.call(lambda connection: server_object(connection, name).value)


@pytest.fixture
def exchange(slapd: Slapd) -> Iterator[Exchange]:
    exchange = Exchange(slapd.configuration)
    slapd.add(*exchange.containers())
    yield exchange
    slapd.delete(f"CN=Services,{slapd.configuration}")


@pytest.fixture(scope="module")
def in_samba(samba: Samba) -> Iterator[Exchange]:
    exchange = Exchange(samba.configuration)
    samba.add(*exchange.containers(services=False), exchange.server("MBX1"))
    yield exchange
    samba.delete(exchange.exchange)


@pytest.fixture
def anontls(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([*map(str, arguments)])
        out, err = capsys.readouterr()
        return status, click.unstyle(out), click.unstyle(err)

    return call


def put(folder: Path, *, age: timedelta = timedelta(), key: bool = True, server: str = "MBX1") -> OwnCertificate:
    """A store with a certificate made so long ago (they are good for five years)."""
    own = new_internal_certificate(server, f"{server.lower()}.contoso.com", now=datetime.now(UTC) - age)
    write.prepare(folder)
    write.add(folder, own.certificate, own.key if key else None)
    write.bind(folder, own.thumbprint, Binding(("SMTP",), "Microsoft Exchange"))
    return own


# --- the write ---------------------------------------------------------------------------------------------------------


def check_writes(settings: LdapSettings) -> None:
    """What holds in every directory."""
    with LdapDirectory(settings) as directory, LdapDirectory(settings) as another:

        def change(new: bytes | None) -> None:
            """Somebody else's, whatever there was."""
            replace = [(2, ATTRIBUTE, [new] if new is not None else None)]  # RFC 4511, section 4.6
            another.call(lambda c: c.ldap.modify_ext_s(server_object(c, "MBX1").entry.dn, replace))

        def published(*, between: Callable[[], None] = lambda: None) -> None:
            there = directory.call(lambda connection: server_object(connection, "MBX1"))
            between()
            directory.call(lambda connection: publish(connection, there, NEW))

        for before in (None, OLD, b"garbage"):
            change(before)
            published()
            assert value(settings) == NEW
        for before, by_now in ((OLD, THEIRS), (None, THEIRS), (OLD, None)):
            change(before)
            with pytest.raises(Conflict, match=r"changed by somebody else|somebody else took it away"):
                published(between=partial(change, by_now))
            assert value(settings) == by_now
        change(OLD)
        published(between=lambda: change(NEW))  # the same, or an attempt of ours whose answer was lost


def test_slapd_takes_only_what_replaces_the_value_that_was_read(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(exchange.server("MBX1"))
    check_writes(of_slapd(slapd))


def test_active_directory_takes_only_what_replaces_the_value_that_was_read(samba: Samba, in_samba: Exchange) -> None:
    check_writes(of_samba(samba))


def test_kerberos_is_enough_to_write(samba: Samba, in_samba: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in samba.environment.items():
        monkeypatch.setenv(name, text)
    samba.kinit(samba.administrator, password=samba.password)
    try:
        with LdapDirectory(LdapSettings(urls=(samba.ldap_url,))) as directory:
            directory.call(lambda c: publish(c, server_object(c, "MBX1"), THEIRS))
    finally:
        samba.kdestroy()
    assert value(of_samba(samba)) == THEIRS


def test_an_object_that_is_gone_is_a_refusal(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(exchange.server("MBX1", OLD))
    with LdapDirectory(of_slapd(slapd)) as directory:
        there = directory.call(lambda connection: server_object(connection, "MBX1"))
        slapd.delete(exchange.server_dn("MBX1"))
        with pytest.raises(WriteRefused, match="No such object"):
            directory.call(lambda connection: publish(connection, there, NEW))


def test_an_account_without_the_right_is_told_so(
    samba: Samba, in_samba: Exchange, anontls: Run, tmp_path: Path
) -> None:
    samba.tool("user", "create", "reader3", samba.password)
    samba.set(in_samba.server_dn("MBX1"), ATTRIBUTE, OLD)
    own = put(tmp_path / "store")
    password = tmp_path / "password"
    password.write_text(samba.password)
    password.chmod(0o600)
    status, out, err = anontls(
        *("cert", "publish", own.thumbprint, "--store", tmp_path / "store", "--server", "MBX1"),
        *("--ldap", samba.ldaps_url, "--ldap-ca", samba.ca, "--ldap-bind", f"reader3@{samba.realm}"),
        *("--ldap-password-file", password),
    )
    assert (status, out) == (Exit.UNKNOWN, "")
    assert f"{ATTRIBUTE} of MBX1 is not written: Insufficient access" in err
    assert f"the account needs the right to write {ATTRIBUTE}" in err
    assert samba.password not in err
    assert value(of_samba(samba)) == OLD


def test_a_value_that_the_account_may_not_read_is_not_overwritten(start_slapd: StartSlapd) -> None:
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    writer = "CN=writer,DC=contoso,DC=com"
    account = (writer, {"objectClass": ["person"], "cn": ["writer"], "sn": ["w"], "userPassword": ["of the writer"]})
    rules = f"""
access to attrs={ATTRIBUTE} by dn.exact="{writer}" =w by * none
access to attrs=userPassword by * auth
access to * by users read by * none"""
    with start_slapd(entries=[account, *exchange.containers(), exchange.server("MBX1", OLD)], after=rules) as slapd:
        with (
            LdapDirectory(of_slapd(slapd, bind=writer, password="of the writer")) as directory,
            pytest.raises(WriteRefused, match="may have a value that this account may not read"),
        ):
            directory.call(lambda c: publish(c, server_object(c, "MBX1"), NEW))
        assert value(of_slapd(slapd)) == OLD
        slapd.set(exchange.server_dn("MBX1"), ATTRIBUTE, None)
        with (
            LdapDirectory(of_slapd(slapd, bind=writer, password="of the writer")) as directory,
            pytest.raises(Conflict, match="this account may write and not read it"),
        ):
            directory.call(lambda c: publish(c, server_object(c, "MBX1"), NEW))


def test_a_directory_that_goes_away_is_tried_again(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(exchange.server("MBX1", OLD))
    now = 0.0
    with LdapDirectory(of_slapd(slapd), clock=lambda: now) as directory:
        there = directory.call(lambda connection: server_object(connection, "MBX1"))
        slapd.stop()
        try:
            with pytest.raises(Unreachable, match="Connection refused"):
                directory.call(lambda connection: publish(connection, there, NEW))
        finally:
            slapd.start()
        now = 1.0
        directory.call(lambda connection: publish(connection, there, NEW))
    assert value(of_slapd(slapd)) == NEW


def test_a_directory_that_says_nothing_does_not_hold_the_write(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(exchange.server("MBX1", OLD))
    settings = msgspec.structs.replace(of_slapd(slapd), timeout=0.2)
    with LdapDirectory(settings) as directory:
        there = directory.call(lambda connection: server_object(connection, "MBX1"))
        with slapd.frozen(), pytest.raises(Unreachable, match=r"no answer within 0\.2 s"):
            directory.call(lambda connection: publish(connection, there, NEW))


def test_a_directory_that_is_read_only_is_a_refusal(start_slapd: StartSlapd) -> None:
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    with (
        start_slapd(entries=[*exchange.containers(), exchange.server("MBX1", OLD)], after="restrict write") as slapd,
        LdapDirectory(of_slapd(slapd)) as directory,
        pytest.raises(WriteRefused, match="Server is unwilling to perform"),
    ):
        directory.call(lambda c: publish(c, server_object(c, "MBX1"), NEW))


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cert_publish(slapd: Slapd, exchange: Exchange, anontls: Run, tmp_path: Path) -> Run:
    slapd.add(exchange.server("MBX1", OLD))
    password = tmp_path / "password"
    password.write_text(slapd.password)
    password.chmod(0o600)

    def call(*arguments: object) -> tuple[int, str, str]:
        return anontls(
            *("cert", "publish", "--store", tmp_path / "store", "--ldap", slapd.ldaps_url, "--ldap-ca", slapd.ca),
            *("--ldap-bind", slapd.bind_dn, "--ldap-password-file", password, *arguments),
        )

    return call


def test_publish_shows_before_and_after(cert_publish: Run, slapd: Slapd, tmp_path: Path) -> None:
    own = put(tmp_path / "store")
    arguments = ("--server", "mbx1", "CN=MBX1")
    status, out, err = cert_publish(*arguments, "--dry-run")
    assert (status, err) == (Exit.DONE, "")
    assert "nothing was written" in out
    assert value(of_slapd(slapd)) == OLD

    status, out, err = cert_publish(*arguments)
    assert (status, err) == (Exit.DONE, "")
    assert f"before  {Certificate(der=OLD).thumbprint}  CN=old  until 2029-01-01" in out
    assert f"after   {own.thumbprint}  CN=MBX1  until " in out
    assert out.endswith(f"written to {slapd.ldaps_url}, and read back\n")
    assert value(of_slapd(slapd)) == own.certificate.der

    status, out, _ = cert_publish(*arguments, "--json")
    document = json.loads(out)
    assert (status, document["result"], document["server"]) == (Exit.DONE, "unchanged", "MBX1")
    assert document["before"]["thumbprint"] == document["after"]["thumbprint"] == own.thumbprint


@pytest.mark.parametrize(
    ("age", "key", "says"),
    [
        (timedelta(days=6 * 365), True, "it expired on"),
        (timedelta(days=-1), True, "it is not valid before"),
        (timedelta(), False, "its private key is not in the store"),
    ],
)
def test_a_certificate_of_no_use_needs_force(
    cert_publish: Run, slapd: Slapd, tmp_path: Path, age: timedelta, key: bool, says: str
) -> None:
    own = put(tmp_path / "store", age=age, key=key)
    status, _, err = cert_publish("--server", "MBX1", own.thumbprint)
    assert status == Exit.USAGE
    assert says in err
    assert value(of_slapd(slapd)) == OLD
    status, _, err = cert_publish("--server", "MBX1", own.thumbprint, "--force")
    assert status == Exit.DONE
    assert says in err
    assert value(of_slapd(slapd)) == own.certificate.der


def test_what_is_named_has_to_be_one(cert_publish: Run, slapd: Slapd, tmp_path: Path) -> None:
    first, second = put(tmp_path / "store"), put(tmp_path / "store")
    status, _, err = cert_publish("--server", "MBX1", "mbx1")
    assert status == Exit.USAGE
    assert "2 certificates" in err
    assert first.thumbprint in err and second.thumbprint in err
    status, _, err = cert_publish("--server", "MBX1", "CN=MBX9")
    assert status == Exit.USAGE
    assert "no certificate in" in err
    for wrong in ("MBX9", "*"):
        status, _, err = cert_publish("--server", wrong, first.thumbprint)
        assert status == Exit.USAGE
        assert f"no server is called {wrong}" in err
    assert value(of_slapd(slapd)) == OLD


def test_another_servers_certificate_is_pointed_out(cert_publish: Run, tmp_path: Path) -> None:
    own = put(tmp_path / "store", server="MBX2")
    status, _, err = cert_publish("--server", "MBX1", own.thumbprint, "--dry-run")
    assert status == Exit.DONE
    assert "the certificate does not name MBX1" in err
