"""Certificates between Active Directory and AD LDS of an Edge server: slapd in the place of both, and Samba of the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
import pytest

from anontls.cli import Exit, run
from anontls.directory import edge_subscription
from anontls.directory.ldap import LdapDirectory, LdapSettings
from anontls.directory.ldap.edge_sync import Edge, EdgeSync, Report
from anontls.directory.ldap.publish import server_object
from anontls.errors import MalformedInput
from anontls.facts import Certificate, thumbprint_of
from lab.exchange import Exchange
from lab.samba import Samba
from lab.slapd import Slapd
from tests.ad.conftest import StartSlapd
from tests.support.make import common_name, make_der

ATTRIBUTE = "msExchServerInternalTLSCert"
IN_ADLDS = "CN=Configuration,CN={5B2C0C0E-3E2C-4F5B-9D51-6C2B1A7C9A11}"
EDGE1, EDGE2, MBX1, MBX2 = (make_der(common_name(name)) for name in ("EDGE1", "EDGE2", "MBX1", "MBX2"))
ON_EDGE = Exchange(IN_ADLDS, "First Organization")


def settings(slapd: Slapd) -> LdapSettings:
    return LdapSettings(urls=(slapd.ldaps_url,), bind=slapd.bind_dn, password=slapd.password, ca=slapd.ca)


def subscription(
    der: bytes = EDGE1, server: str = "EDGE1", fqdn: str = "edge1.contoso.com"
) -> edge_subscription.Subscription:
    return edge_subscription.make(server, fqdn, Certificate(der=der))


def value(slapd: Slapd, name: str) -> bytes | None:
    with LdapDirectory(settings(slapd)) as directory:
        return directory.call(lambda connection: server_object(connection, name).value)


def said(reports: list[Report]) -> list[tuple[str, str]]:
    return sorted((each.what, each.server) for each in reports)


@pytest.fixture(scope="module")
def adlds_daemon(start_slapd: StartSlapd) -> Iterator[Slapd]:
    with start_slapd(suffix=IN_ADLDS, configuration=IN_ADLDS) as running:
        yield running


@pytest.fixture
def adlds(adlds_daemon: Slapd) -> Iterator[Slapd]:
    """The Edge's own directory: it knows itself and MBX1."""
    adlds_daemon.add(
        *ON_EDGE.containers(), ON_EDGE.server("EDGE1", EDGE1, roles=64), ON_EDGE.server("MBX1", make_der())
    )
    yield adlds_daemon
    adlds_daemon.delete(f"CN=Services,{IN_ADLDS}")


@pytest.fixture
def exchange(slapd: Slapd) -> Iterator[Exchange]:
    """Active Directory: two Mailbox servers, and an Edge server that was just subscribed."""
    exchange = Exchange(slapd.configuration)
    slapd.add(
        *exchange.containers(),
        exchange.server("MBX1", MBX1),
        exchange.server("MBX2", MBX2),
        exchange.server("EDGE1", roles=64),
    )
    yield exchange
    slapd.delete(f"CN=Services,{slapd.configuration}")


class Clock:
    """Seconds as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sync(slapd: Slapd, exchange: Exchange, adlds: Slapd, clock: Clock) -> Iterator[EdgeSync]:
    with (
        LdapDirectory(settings(slapd), clock=clock) as active_directory,
        LdapDirectory(settings(adlds), clock=clock) as on_edge,
    ):
        yield EdgeSync(active_directory, [Edge(subscription(), on_edge)])


# --- what is written ---------------------------------------------------------------------------------------------------


def test_both_directions_and_then_only_what_differs(
    sync: EdgeSync, slapd: Slapd, adlds: Slapd, exchange: Exchange
) -> None:
    reports = sync.round()
    assert said(reports) == [("created", "MBX2"), ("written", "EDGE1"), ("written", "MBX1")]
    mailbox = next(each for each in reports if each.server == "MBX1")
    assert (mailbox.before, mailbox.after) == (thumbprint_of(make_der()), thumbprint_of(MBX1))
    assert (value(adlds, "MBX1"), value(adlds, "MBX2"), value(slapd, "EDGE1")) == (MBX1, MBX2, EDGE1)
    with LdapDirectory(settings(adlds)) as directory:
        made = directory.organization().server("MBX2")
    assert made is not None
    assert (made.role, made.fqdn) == ("Mailbox", "mbx2.contoso.com")
    assert made.internal_tls_cert_adlds.der == MBX2  # what an Edge node compares with
    assert sync.round() == []
    assert not sync.failed

    renewed = make_der(common_name("renewed"))
    slapd.set(exchange.server_dn("MBX2"), ATTRIBUTE, renewed)
    assert said(sync.round()) == [("written", "MBX2")]
    assert value(adlds, "MBX2") == renewed


def test_somebody_elses_change_in_the_copy_is_told_and_undone(sync: EdgeSync, adlds: Slapd) -> None:
    sync.round()
    adlds.set(ON_EDGE.server_dn("MBX1"), ATTRIBUTE, EDGE2)
    (report,) = sync.round()
    assert (report.what, report.server) == ("written", "MBX1")
    assert "changed by somebody else" in report.because
    assert value(adlds, "MBX1") == MBX1


def test_what_is_no_certificate_goes_nowhere_and_is_told_once(
    sync: EdgeSync, slapd: Slapd, adlds: Slapd, exchange: Exchange
) -> None:
    sync.round()
    outline = bytes.fromhex("30 19 30 12 02 01 01 30 00 30 00 30 00 30 00 30 00 02 01 01 02 00 30 00 03 01 00")
    for bad in (b"garbage", outline, MBX1[:-5], b"\x30\x80" + MBX1, b"x" * (1 << 20 | 1)):
        slapd.set(exchange.server_dn("MBX1"), ATTRIBUTE, bad)
        (report,) = sync.round()
        assert (report.what, report.server) == ("skipped", "MBX1")
        assert report.because.startswith("what Active Directory has is not a certificate: ")
        assert sync.round() == []
        assert sync.failed
    slapd.set(exchange.server_dn("MBX1"), ATTRIBUTE, None)
    (report,) = sync.round()
    assert "shows no msExchServerInternalTLSCert" in report.because
    assert value(adlds, "MBX1") == MBX1  # never taken away


def test_a_server_that_is_gone_is_pointed_out(sync: EdgeSync, slapd: Slapd, adlds: Slapd, exchange: Exchange) -> None:
    sync.round()
    slapd.delete(exchange.server_dn("MBX1"))
    (report,) = sync.round()
    assert (report.what, report.server) == ("skipped", "MBX1")
    assert "trusts its certificate until the object is deleted" in report.because
    assert sync.round() == []
    assert value(adlds, "MBX1") == MBX1


def test_garbage_in_the_copy_is_replaced(sync: EdgeSync, adlds: Slapd) -> None:
    adlds.set(ON_EDGE.server_dn("MBX1"), ATTRIBUTE, b"garbage")
    (report,) = (each for each in sync.round() if each.server == "MBX1")
    assert report.before == "neither a DER certificate nor a serialized certificate of Windows"
    assert value(adlds, "MBX1") == MBX1


# --- a subscription is a file from outside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "fqdn", "because"),
    [
        ("EDGE1", "edge1.fabrikam.com", "its name is edge1.contoso.com, not edge1.fabrikam.com"),
        ("EDGE9", "edge9.contoso.com", "no server object EDGE9"),
    ],
)
def test_a_subscription_writes_to_its_own_edge_server_only(
    slapd: Slapd, exchange: Exchange, adlds: Slapd, server: str, fqdn: str, because: str
) -> None:
    with LdapDirectory(settings(slapd)) as active_directory, LdapDirectory(settings(adlds)) as on_edge:
        reports = EdgeSync(active_directory, [Edge(subscription(EDGE2, server, fqdn), on_edge)]).round()
    assert any(because in each.because for each in reports if each.directory == slapd.ldaps_url)
    assert (value(slapd, "MBX1"), value(slapd, "EDGE1")) == (MBX1, None)


def test_a_subscription_of_a_mailbox_server_ends_it_before_anything_is_written(
    slapd: Slapd, exchange: Exchange, adlds: Slapd
) -> None:
    where = f"in Active Directory ({slapd.ldaps_url})"
    with LdapDirectory(settings(slapd)) as active_directory, LdapDirectory(settings(adlds)) as on_edge:
        wrong = Edge(subscription(EDGE2, "MBX1", "mbx1.contoso.com"), on_edge, "mbx1.subscription")
        sync = EdgeSync(active_directory, [Edge(subscription(), on_edge), wrong])
        with pytest.raises(MalformedInput) as raised:
            sync.round()
    assert str(raised.value) == f"mbx1.subscription: $.server: MBX1 is a Mailbox server {where}, not an Edge server"
    assert "edge subscribe" in str(raised.value.hint)
    assert (value(slapd, "MBX1"), value(slapd, "EDGE1"), value(adlds, "MBX1")) == (MBX1, None, make_der())


def test_another_edge_servers_directory_is_not_written(slapd: Slapd, exchange: Exchange, adlds: Slapd) -> None:
    slapd.add(exchange.server("EDGE2", roles=64))
    with LdapDirectory(settings(slapd)) as active_directory, LdapDirectory(settings(adlds)) as on_edge:
        edge = Edge(subscription(EDGE2, "EDGE2", "edge2.contoso.com"), on_edge)
        reports = EdgeSync(active_directory, [edge]).round()
    assert said(reports) == [("skipped", ""), ("written", "EDGE2")]
    assert value(adlds, "MBX1") == make_der()


def test_a_subscription_from_before_a_renewal_is_pointed_out(sync: EdgeSync, adlds: Slapd) -> None:
    adlds.set(ON_EDGE.server_dn("EDGE1"), ATTRIBUTE, EDGE2)
    (report,) = (each for each in sync.round() if each.what == "skipped")
    assert "another certificate for it" in report.because
    assert "edge subscribe" in report.hint


def test_the_directories_are_not_mixed_up(slapd: Slapd, exchange: Exchange, adlds: Slapd) -> None:
    with LdapDirectory(settings(adlds)) as on_edge, LdapDirectory(settings(slapd)) as active_directory:
        (report,) = EdgeSync(on_edge, [Edge(subscription(), active_directory)]).round()
    assert "AD LDS, not Active Directory" in report.because
    with LdapDirectory(settings(slapd)) as active_directory, LdapDirectory(settings(slapd)) as same:
        reports = EdgeSync(active_directory, [Edge(subscription(), same)]).round()
    assert any("not AD LDS" in each.because for each in reports)
    assert value(slapd, "MBX1") == MBX1


def test_two_servers_of_one_name_and_roles_that_differ(
    sync: EdgeSync, slapd: Slapd, adlds: Slapd, exchange: Exchange
) -> None:
    twin = f"CN=MBX1,{exchange.connections}"
    slapd.add((twin, exchange.server("MBX1", EDGE2)[1]))
    adlds.add(ON_EDGE.server("MBX2", EDGE2, roles=64))
    reasons = {each.server: each.because for each in sync.round() if each.what == "skipped"}
    assert reasons == {
        "MBX1": "several servers have this name",
        "MBX2": "in the Edge's directory this is an Edge server",
    }
    assert (value(adlds, "MBX1"), value(adlds, "MBX2")) == (make_der(), EDGE2)


# --- directories that fail ---------------------------------------------------------------------------------------------


def test_a_directory_that_is_down_is_said_once_and_tried_again(
    sync: EdgeSync, slapd: Slapd, adlds: Slapd, exchange: Exchange, clock: Clock
) -> None:
    sync.round()
    for down in (adlds, slapd):
        down.stop()
        try:
            (report,) = sync.round()
            assert (report.what, report.directory) == ("unreachable", down.ldaps_url)
            waits = []
            for _ in range(4):
                waits.append(sync.next_round(30))
                clock.now += waits[-1]
                assert sync.round() == []
            assert waits == [5, 10, 20, 30]
        finally:
            down.start()
        clock.now += 60
        assert sync.round() == [Report(what="reachable", directory=down.ldaps_url)]
        assert sync.next_round(30) == 30


def test_one_edge_that_is_down_does_not_hold_up_another(slapd: Slapd, exchange: Exchange, adlds: Slapd) -> None:
    nobody = LdapSettings(urls=("ldaps://127.0.0.1:1",), bind="CN=x", password="x")
    slapd.add(exchange.server("EDGE2", roles=64))
    with (
        LdapDirectory(settings(slapd)) as active_directory,
        LdapDirectory(nobody) as away,
        LdapDirectory(settings(adlds)) as on_edge,
    ):
        edges = [Edge(subscription(EDGE2, "EDGE2", "edge2.contoso.com"), away), Edge(subscription(), on_edge)]
        sync = EdgeSync(active_directory, edges)
        reports = sync.round()
    assert said(reports) == [
        ("created", "MBX2"),
        ("unreachable", ""),
        ("written", "EDGE1"),
        ("written", "EDGE2"),
        ("written", "MBX1"),
    ]


def test_an_account_without_the_right_is_reported_for_each_server(
    start_slapd: StartSlapd, slapd: Slapd, exchange: Exchange
) -> None:
    reader = f"CN=reader,{IN_ADLDS}"
    account = (reader, {"objectClass": ["person"], "cn": ["reader"], "sn": ["r"], "userPassword": ["of the reader"]})
    rules = "access to attrs=userPassword by * auth\naccess to * by users read by * none"
    entries = [account, *ON_EDGE.containers(), ON_EDGE.server("EDGE1", EDGE1, roles=64), ON_EDGE.server("MBX1")]
    with start_slapd(suffix=IN_ADLDS, configuration=IN_ADLDS, entries=entries, after=rules) as adlds:
        own = LdapSettings(urls=(adlds.ldaps_url,), bind=reader, password="of the reader", ca=adlds.ca)
        with LdapDirectory(settings(slapd)) as active_directory, LdapDirectory(own) as on_edge:
            sync = EdgeSync(active_directory, [Edge(subscription(), on_edge)])
            reports = [each for each in sync.round() if each.directory == adlds.ldaps_url]
            assert sync.round() == []
    assert said(reports) == [("skipped", "MBX1"), ("skipped", "MBX2")]
    assert all("Insufficient access" in each.because for each in reports)


def test_the_certificate_of_the_edge_into_active_directory(samba: Samba, adlds: Slapd) -> None:
    exchange = Exchange(samba.configuration)
    samba.add(*exchange.containers(services=False), exchange.server("MBX1", MBX1), exchange.server("EDGE1", roles=64))
    own = LdapSettings(urls=(samba.ldaps_url,), bind=samba.administrator, password=samba.password, ca=samba.ca)
    try:
        with LdapDirectory(own) as active_directory, LdapDirectory(settings(adlds)) as on_edge:
            sync = EdgeSync(active_directory, [Edge(subscription(), on_edge)])
            assert said(sync.round()) == [("written", "EDGE1"), ("written", "MBX1")]
            assert sync.round() == []
            there = active_directory.call(lambda connection: server_object(connection, "EDGE1").value)
        assert there == EDGE1
    finally:
        samba.delete(exchange.exchange)


# --- the command ------------------------------------------------------------------------------------------------------


def test_sync_as_a_program(
    slapd: Slapd, exchange: Exchange, adlds: Slapd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, password = tmp_path / "edge1.subscription", tmp_path / "password"
    path.write_bytes(edge_subscription.dump(subscription()))
    password.write_text(slapd.password)
    password.chmod(0o600)
    arguments = [
        *("edge", "sync", "--subscription", str(path), "--json"),
        *("--ldap", slapd.ldaps_url, "--ldap-ca", str(slapd.ca)),
        *("--ldap-bind", slapd.bind_dn, "--ldap-password-file", str(password)),
        *("--adlds", adlds.ldaps_url, "--adlds-ca", str(adlds.ca)),
        *("--adlds-bind", adlds.bind_dn, "--adlds-password-file", str(password)),
    ]
    command = [sys.executable, "-c", "from anontls.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = list(islice(process.stdout, 3))
            started = time.monotonic()
        finally:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (Exit.DONE, ""), err
    assert time.monotonic() - started < 10  # the interval is three minutes
    told = [json.loads(line) for line in lines]
    assert sorted((line["what"], line["server"]) for line in told) == [
        ("created", "MBX2"),
        ("written", "EDGE1"),
        ("written", "MBX1"),
    ]
    assert {line["schema"] for line in told} == {"anontls/edge-sync/1"}
    assert subscription().fingerprint in err
    assert slapd.password not in out + err

    path.write_bytes(edge_subscription.dump(subscription(MBX1, "MBX1", "mbx1.contoso.com")))
    for once in ([], ["--once"]):
        assert run([*arguments, *once]) == Exit.USAGE
        assert f"{path}: $.server: MBX1 is a Mailbox server" in capsys.readouterr().err
    path.write_bytes(edge_subscription.dump(subscription()))

    assert run([*arguments, "--interval", "nan"]) == Exit.USAGE
    assert "not a number of seconds" in capsys.readouterr().err
    assert run([*arguments, "--once"]) == Exit.DONE
    assert capsys.readouterr().out == ""
    slapd.set(exchange.server_dn("MBX1"), ATTRIBUTE, b"garbage")
    assert run([*arguments[:4], *arguments[5:], "--once"]) == Exit.NOT_MET
    assert click.unstyle(capsys.readouterr().out).startswith(f"skipped      {adlds.ldaps_url}  MBX1: what Active")
    adlds.stop()
    try:
        assert run([*arguments, "--once"]) == Exit.UNKNOWN
    finally:
        adlds.start()
    assert json.loads(capsys.readouterr().out)["what"] == "unreachable"


def test_the_account_of_active_directory_is_not_used_at_the_edge(
    slapd: Slapd,
    adlds: Slapd,
    exchange: Exchange,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, password, of_others = tmp_path / "edge1.subscription", tmp_path / "password", tmp_path / "open"
    path.write_bytes(edge_subscription.dump(subscription()))
    password.write_text(slapd.password)
    password.chmod(0o600)
    of_others.write_text(slapd.password)
    of_others.chmod(0o644)
    monkeypatch.setenv("ANONTLS_LDAP_BIND", slapd.bind_dn)
    monkeypatch.setenv("ANONTLS_LDAP_PASSWORD_FILE", os.fspath(password))
    monkeypatch.setenv("ANONTLS_LDAP_CA", os.fspath(slapd.ca))
    monkeypatch.setenv("KRB5CCNAME", os.fspath(tmp_path / "none"))
    arguments = ["edge", "sync", "--once", "--subscription", str(path), "--ldap", slapd.ldaps_url]
    assert run([*arguments, "--adlds", adlds.ldaps_url, "--adlds-ca", str(adlds.ca)]) == Exit.UNKNOWN
    assert f"unreachable  {adlds.ldaps_url}" in click.unstyle(capsys.readouterr().out)
    assert (
        run([*arguments, "--adlds", adlds.ldaps_url, "--adlds-bind", "CN=x", "--adlds-password-file", str(of_others)])
        == 2
    )
    assert "chmod" in capsys.readouterr().err  # others may read it
    assert run([*arguments, "--adlds", adlds.ldaps_url, "--adlds", adlds.url]) == Exit.USAGE
