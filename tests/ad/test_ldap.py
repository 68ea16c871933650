"""Reading a directory: slapd in the place of Active Directory and of AD LDS."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from anontls.cli import run
from anontls.directory import open_organization, snapshot
from anontls.directory.exchange_export import read_export
from anontls.directory.ldap import AccountRefused, LdapDirectory, LdapSettings, ldap_settings
from anontls.directory.ldap.entry import MAX_VALUE
from anontls.errors import Unreachable, UsageError
from anontls.facts import (
    Certificate,
    EdgeSubscription,
    InternalTlsCert,
    Organization,
    Phase,
    Scenario,
    Store,
    is_unknown,
)
from anontls.selection import Result, select
from anontls.selection.sessions import session_facts
from lab.certificates import certificate_for
from lab.exchange import Exchange
from lab.kdc import Kdc
from lab.slapd import Slapd
from tests.ad.conftest import StartSlapd
from tests.support.make import AS_OF, common_name, make_der, pkcs7_of

NOBODY = "ldaps://127.0.0.1:1"


def settings(slapd: Slapd, *urls: str, bind: str = "", password: str = "", timeout: float = 10.0) -> LdapSettings:
    return LdapSettings(
        urls=urls or (slapd.ldaps_url,),
        bind=bind or slapd.bind_dn,
        password=password or slapd.password,
        ca=slapd.ca,
        timeout=timeout,
    )


def read(slapd: Slapd, *urls: str) -> Organization:
    with LdapDirectory(settings(slapd, *urls)) as directory:
        return directory.organization()


def attribute(organization: Organization, name: str) -> InternalTlsCert:
    server = organization.server(name)
    assert server is not None
    return server.internal_tls_cert


@pytest.fixture
def exchange(slapd: Slapd) -> Iterator[Exchange]:
    """The containers of an organisation, gone with all that is in them afterwards."""
    exchange = Exchange(slapd.configuration)
    slapd.add(*exchange.containers())
    yield exchange
    slapd.delete(f"CN=Services,{slapd.configuration}")


class Clock:
    """Seconds as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- what is read ----------------------------------------------------------------------------------------------------


def test_an_organisation_by_ldaps_and_by_starttls(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(
        exchange.server("MBX1", make_der()),
        exchange.server("EDGE1", make_der(common_name("EDGE1")), roles=64),
        *exchange.receive_connector("MBX1", "Default MBX1", msExchSmtpReceiveInboundSecurityFlag=["31"]),
        exchange.send_connector(
            "To Edge", routingList=["SMTP:*;1"], msExchSourceBridgeheadServersDN=[exchange.server_dn("MBX1")]
        ),
    )
    organization = read(slapd)
    assert organization.name == "Contoso"
    edge, mailbox = organization.servers
    assert (mailbox.name, mailbox.role, mailbox.internal_tls_cert.der) == ("MBX1", "Mailbox", make_der())
    assert (edge.name, edge.role) == ("EDGE1", "Edge")
    assert organization.edge_subscriptions == (EdgeSubscription(name="EDGE1", site="Default-First-Site-Name"),)
    assert not is_unknown(mailbox.receive_connectors)
    assert [each.name for each in mailbox.receive_connectors] == ["Default MBX1", "Default Mailbox Delivery MBX1"]
    assert not is_unknown(organization.send_connectors)
    to_edge = organization.send_connectors[0]
    assert (to_edge.address_spaces, to_edge.smart_hosts) == (("SMTP:*;1",), None)
    assert to_edge.source_transport_servers == ("MBX1",)
    (source,) = organization.sources
    assert (source.kind, source.file, source.objects) == ("ldap", slapd.ldaps_url, 4)
    assert snapshot.load(snapshot.dump(organization), "org.json") == organization

    assert read(slapd, slapd.url).servers == organization.servers


def test_null_changed_and_removed(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(exchange.server("MBX1"))
    with LdapDirectory(settings(slapd)) as directory:
        assert attribute(directory.organization(), "MBX1").value is None
        for value in (make_der(), make_der(common_name("new"))):
            slapd.set(exchange.server_dn("MBX1"), "msExchServerInternalTLSCert", value)
            assert attribute(directory.organization(), "MBX1").der == value
        slapd.set(exchange.server_dn("MBX1"), "msExchServerInternalTLSCert", None)
        assert attribute(directory.organization(), "MBX1").value is None


def test_an_attribute_that_the_account_may_not_read_is_not_null(start_slapd: StartSlapd) -> None:
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    reader = "CN=reader,DC=contoso,DC=com"
    account = (reader, {"objectClass": ["person"], "cn": ["reader"], "sn": ["r"], "userPassword": ["of the reader"]})
    servers = [exchange.server("MBX1", make_der()), exchange.server("MBX2", make_der()), exchange.server("MBX3")]
    rules = f"""
access to dn.exact="{exchange.server_dn("MBX2")}" attrs=msExchServerInternalTLSCert by * none
access to dn.exact="{exchange.server_dn("MBX1")}" attrs=msExchCurrentServerRoles by * none
access to attrs=userPassword by * auth
access to * by users read by * none"""
    entries = [account, *exchange.containers(), *servers]
    with (
        start_slapd(entries=entries, after=rules) as slapd,
        LdapDirectory(settings(slapd, bind=reader, password="of the reader")) as directory,
    ):
        organization, own = directory.organization(), directory.organization(as_server=True)
        everything = read(slapd)
    assert attribute(organization, "MBX1").der == make_der()
    assert "this account may not read it" in str(attribute(organization, "MBX2").unknown)
    assert attribute(organization, "MBX3").value is None
    assert "this account may not read it" in str(attribute(own, "MBX2").error)
    assert is_unknown(organization.servers[0].role)
    assert attribute(everything, "MBX2").der == make_der()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"garbage", "neither a DER certificate"),
        (b"\0", "neither a DER certificate"),
        (b"\x30\x03\x02\x01\x05", "not a certificate"),
        (make_der()[:100], "end in the middle"),
        (pkcs7_of(make_der(), make_der(common_name("second"))), "PKCS #7 with 2 certificates"),
        (b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", "PKCS #7 that cannot be read"),
        (bytes(MAX_VALUE), "neither a DER certificate"),
        (bytes(MAX_VALUE + 1), "a value of 1,048,577 bytes"),
    ],
    ids=[
        *("garbage", "NUL", "other ASN.1", "cut off", "PKCS#7 with two", "PKCS#7 with nothing", "1 MiB"),
        "1 MiB and a byte",
    ],
)
def test_a_hostile_value_is_of_one_server_only(slapd: Slapd, exchange: Exchange, value: bytes, says: str) -> None:
    slapd.add(exchange.server("MBX1", value), exchange.server("MBX2", make_der()))
    organization = read(slapd)
    assert says in str(attribute(organization, "MBX1").error)
    assert attribute(organization, "MBX2").der == make_der()


def test_an_empty_value_is_null_and_pkcs_7_with_one_certificate_is_that(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(exchange.server("MBX1", b""), exchange.server("MBX2", pkcs7_of(make_der())))
    organization = read(slapd)
    assert attribute(organization, "MBX1").value is None
    assert attribute(organization, "MBX2").der == make_der()


def test_referrals_are_not_followed(start_slapd: StartSlapd) -> None:
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    elsewhere = (
        f"CN=Elsewhere,{exchange.servers}",
        {"objectClass": ["referral", "extensibleObject"], "cn": ["Elsewhere"], "ref": [f"{NOBODY}/DC=fabrikam"]},
    )
    entries = [*exchange.containers(), exchange.server("MBX1", make_der()), elsewhere]
    with start_slapd(entries=entries) as slapd:
        organization = read(slapd)
    assert [server.name for server in organization.servers] == ["MBX1"]


def test_ten_thousand_servers_are_read_and_decided_in_time(start_slapd: StartSlapd) -> None:
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    servers = [exchange.server(f"MBX{number}", make_der()) for number in range(10_000)]
    with start_slapd(entries=[*exchange.containers(), *servers]) as slapd:
        before = time.process_time()
        organization = read(slapd)
        store = Store((Certificate(der=make_der(), has_private_key=True),))
        for server in organization.servers:
            facts = session_facts(server, Scenario.INBOUND_ANONYMOUS, AS_OF, phase=Phase.STARTUP)
            decision = select(msgspec.structs.replace(facts, store=store))
            assert decision.result is Result.CERTIFICATE
        # 10 s are promised; it takes 2 s
        assert time.process_time() - before < 10
    assert len({server.name for server in organization.servers}) == 10_000
    assert all(server.internal_tls_cert.der == make_der() for server in organization.servers)


def test_a_directory_that_gives_less_than_all_is_an_error(start_slapd: StartSlapd) -> None:
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    account = ("CN=reader,DC=contoso,DC=com", {"objectClass": ["person"], "cn": ["reader"], "sn": ["r"]})
    account[1]["userPassword"] = ["of the reader"]
    servers = [exchange.server(f"MBX{number}") for number in range(5)]
    with (
        start_slapd(entries=[account, *exchange.containers(), *servers], after="limits * size=2") as slapd,
        pytest.raises(Unreachable, match="Size limit exceeded"),
        LdapDirectory(settings(slapd, bind=account[0], password="of the reader")) as directory,
    ):
        directory.organization()


@pytest.mark.parametrize("limit", ["MAX_OBJECTS", "MAX_BYTES", "MAX_SECONDS"])
def test_a_search_that_gives_too_much_is_left(
    slapd: Slapd, exchange: Exchange, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    slapd.add(exchange.server("MBX1", make_der()), exchange.server("MBX2", make_der()))
    monkeypatch.setattr(f"anontls.directory.ldap.connection.{limit}", 1 if limit != "MAX_SECONDS" else 0)
    with pytest.raises(Unreachable, match="a search gives more than"):
        read(slapd)


# --- AD LDS ------------------------------------------------------------------------------------------------------------


def test_adlds_of_an_edge_server(start_slapd: StartSlapd) -> None:
    configuration = "CN=Configuration,CN={5B2C0C0E-3E2C-4F5B-9D51-6C2B1A7C9A11}"
    exchange = Exchange(configuration, "First Organization")
    entries = [
        *exchange.containers(),
        exchange.server("EDGE1", make_der(), roles=64),
        exchange.server("MBX1", make_der(common_name("MBX1"))),
        exchange.send_connector("EdgeSync - Inbound to Berlin", msExchSmtpSmartHost=["--"], routingList=["SMTP:--;1"]),
    ]
    with start_slapd(suffix=configuration, configuration=configuration, entries=entries) as slapd:
        organization = read(slapd)
    edge, mailbox = organization.servers
    assert (edge.name, edge.internal_tls_cert_adlds.der) == ("EDGE1", make_der())
    assert isinstance(edge.internal_tls_cert.unknown, str)
    assert mailbox.internal_tls_cert_adlds.der == make_der(common_name("MBX1"))
    assert is_unknown(organization.edge_subscriptions)
    assert not is_unknown(organization.send_connectors)
    assert organization.send_connectors[0].smart_hosts == ("--",)


# --- who may read, and how ---------------------------------------------------------------------------------------------


def test_a_wrong_password_is_refused_once(slapd: Slapd) -> None:
    with (
        LdapDirectory(settings(slapd, slapd.ldaps_url, slapd.url, password="planted-secret")) as directory,
        pytest.raises(AccountRefused, match="the account is refused") as refused,
    ):
        directory.organization()
    assert slapd.url not in str(refused.value).replace(slapd.ldaps_url, "")  # not asked: it may count it too
    assert "planted-secret" not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize("starttls", [False, True])
def test_a_certificate_of_somebody_else_is_refused_with_the_reason(
    slapd: Slapd, tmp_path: Path, starttls: bool
) -> None:
    other = tmp_path / "other.pem"
    certificate_for("dc1.contoso.com", "127.0.0.1", other, tmp_path / "key.pem")
    url = slapd.url if starttls else slapd.ldaps_url
    wrong = LdapSettings(urls=(url,), bind=slapd.bind_dn, password=slapd.password, ca=other)
    with pytest.raises(Unreachable, match="its certificate is not trusted: ") as failed:
        LdapDirectory(wrong).organization()
    assert "--ldap-ca" in str(failed.value.hint)


def test_a_certificate_of_another_name_is_refused(slapd: Slapd) -> None:
    with pytest.raises(Unreachable, match="not trusted: Hostname mismatch"):
        read(slapd, slapd.ldaps_url.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize(("text", "says"), [(None, "No such file"), ("nothing", "no certificate in it")])
def test_authorities_that_are_none(slapd: Slapd, tmp_path: Path, text: str | None, says: str) -> None:
    ca = tmp_path / "ca.pem"
    if text is not None:
        ca.write_text(text)
    with pytest.raises(UsageError, match=says):
        LdapDirectory(
            LdapSettings(urls=(slapd.ldaps_url,), bind=slapd.bind_dn, password=slapd.password, ca=ca)
        ).organization()


def test_no_password_passes_in_clear(slapd: Slapd) -> None:
    """A server without TLS gets none."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        listening.settimeout(5)
        directory = LdapDirectory(settings(slapd, f"ldap://127.0.0.1:{port}", timeout=0.3))
        with pytest.raises(Unreachable, match="no answer within"):
            directory.organization()
        heard, _ = listening.accept()
        with heard:
            heard.settimeout(5)
            assert b"1.3.6.1.4.1.1466.20037" in heard.recv(4096)
            assert heard.recv(4096) == b""


def test_a_server_that_refuses_starttls_gets_no_password() -> None:
    heard = b""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            nonlocal heard
            for _ in range(2):  # what looks for the reason of a fault comes first
                connection, _ = listening.accept()
                with connection, suppress(ConnectionError):
                    connection.settimeout(5)
                    while request := connection.recv(4096):
                        heard += request
                        # ExtendedResponse, unwillingToPerform (RFC 4511, section 4.12)
                        connection.sendall(b"\x30\x0c\x02\x01" + request[4:5] + b"\x78\x07\x0a\x01\x35\x04\x00\x04\x00")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        url = f"ldap://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(Unreachable, match="it offers no StartTLS, and in clear no password is sent") as failed:
            LdapDirectory(LdapSettings(urls=(url,), bind="reader", password="planted-secret")).organization()
        thread.join(5)
    assert failed.value.hint == "ldaps://, or Kerberos"
    assert b"1.3.6.1.4.1.1466.20037" in heard
    assert b"planted-secret" not in heard


def test_kerberos_signs_and_seals(start_slapd: StartSlapd, kdc: Kdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a keytab, from which the library gets its ticket by itself."""
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    service, client = kdc.add_principal("ldap/127.0.0.1"), kdc.add_principal("reader")
    for name, value in {**kdc.environment, "KRB5_CLIENT_KTNAME": str(client)}.items():
        monkeypatch.setenv(name, value)
    kdc.kdestroy()
    before = f"sasl-host 127.0.0.1\nsasl-realm {kdc.realm}"
    environment = {**kdc.environment, "KRB5_KTNAME": str(service)}
    entries = [*exchange.containers(), exchange.server("MBX1", make_der())]
    with (
        start_slapd(entries=entries, before=before, environment=environment) as slapd,
        LdapDirectory(LdapSettings(urls=(slapd.url,))) as directory,
    ):
        assert attribute(directory.organization(), "MBX1").der == make_der()
        assert directory.call(lambda connection: connection.strength) == 256


def test_without_a_ticket_there_is_no_kerberos(slapd: Slapd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path / 'none'}")
    monkeypatch.setenv("KRB5_CLIENT_KTNAME", f"FILE:{tmp_path / 'none either'}")
    with pytest.raises(Unreachable, match="no Kerberos: ") as failed:
        LdapDirectory(LdapSettings(urls=(slapd.url,))).organization()
    assert "kinit" in str(failed.value.hint)


def test_without_python_ldap_the_extra_is_named(slapd: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ldap", None)
    with pytest.raises(UsageError, match="python-ldap") as failed:
        read(slapd)
    assert failed.value.hint == "pip install 'anontls[ad]'"


def test_a_directory_without_a_configuration_is_none(start_slapd: StartSlapd) -> None:
    with start_slapd() as slapd:
        (slapd.folder / "rootdse.ldif").write_text("dn:\n")
        slapd.stop()
        slapd.start()
        with pytest.raises(Unreachable, match="neither Active Directory nor AD LDS"):
            read(slapd)


# --- domain controllers that come and go ---------------------------------------------------------------------------------


def test_the_next_domain_controller_is_asked(slapd: Slapd, exchange: Exchange) -> None:
    slapd.add(exchange.server("MBX1", make_der()))
    with LdapDirectory(settings(slapd, NOBODY, slapd.url)) as directory:
        assert len(directory.organization().servers) == 1
        assert directory.url == slapd.url


def test_all_reasons_are_told(slapd: Slapd) -> None:
    urls = (NOBODY, "ldap://nowhere.invalid")
    with pytest.raises(Unreachable) as failed:
        read(slapd, *urls)
    first, second = str(failed.value).split("; ")
    assert first == f"{NOBODY}: Connection refused"
    assert second.startswith("ldap://nowhere.invalid: ")


def test_a_domain_controller_that_failed_rests_longer_each_time(start_slapd: StartSlapd) -> None:
    clock = Clock()
    with start_slapd() as slapd, LdapDirectory(settings(slapd), clock=clock) as directory:
        directory.organization()
        slapd.stop()
        for rest in (1.0, 2.0, 4.0):
            with pytest.raises(Unreachable, match="Connection refused"):
                directory.organization()
            clock.now += rest - 0.1
            with pytest.raises(Unreachable, match="Connection refused"):
                directory.call(lambda connection: pytest.fail("asked while it rests"))
            clock.now += 0.1
        slapd.start()
        assert directory.organization().servers == ()  # needs no restart of ours


def test_a_restart_between_two_calls_is_not_noticed(start_slapd: StartSlapd) -> None:
    with start_slapd() as slapd, LdapDirectory(settings(slapd)) as directory:
        directory.organization()
        slapd.stop()
        slapd.start()
        directory.organization()


@pytest.mark.parametrize("starttls", [False, True])
def test_one_that_says_nothing_holds_nobody(slapd: Slapd, starttls: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"{'ldap' if starttls else 'ldaps'}://127.0.0.1:{mute.getsockname()[1]}"
        with LdapDirectory(settings(slapd, url, slapd.ldaps_url, timeout=0.3)) as directory:
            before = time.monotonic()
            directory.organization()
            assert directory.url == slapd.ldaps_url
            assert time.monotonic() - before < 5


def test_one_that_stops_answering_is_left(start_slapd: StartSlapd) -> None:
    with start_slapd() as slapd, LdapDirectory(settings(slapd, timeout=0.3)) as directory:
        directory.organization()
        with slapd.frozen(), pytest.raises(Unreachable, match=r"no answer within 0\.3 s"):
            directory.organization()
        directory._controllers[0].due = 0.0  # as if it had rested
        directory.organization()


# --- as a source of an import, and as ORG ----------------------------------------------------------------------------------


def test_an_export_beside_it_brings_what_it_lacks(slapd: Slapd, exchange: Exchange, tmp_path: Path) -> None:
    slapd.add(exchange.server("MBX1", make_der()))
    (tmp_path / "Get-TransportService.json").write_text(
        '{"Name": "MBX1", "InternalTransportCertificateThumbprint": "0123456789ABCDEF0123456789ABCDEF01234567"}'
    )
    (tmp_path / "Get-AcceptedDomain.json").write_text('{"DomainName": "contoso.com", "DomainType": "Authoritative"}')
    organization = read_export([tmp_path], also=[read(slapd)])
    (server,) = organization.servers
    assert server.internal_transport_certificate_thumbprint == "0123456789ABCDEF0123456789ABCDEF01234567"
    assert server.internal_tls_cert.der == make_der()
    assert not is_unknown(organization.accepted_domains)
    assert [source.kind for source in organization.sources] == ["ldap", "export", "export"]


def test_import_and_select(
    slapd: Slapd,
    exchange: Exchange,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def anontls(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    slapd.add(exchange.server("MBX1", make_der()))
    password, org = tmp_path / "password", tmp_path / "org.json"
    password.write_text(f"{slapd.password}\n")
    password.chmod(0o600)
    options = ("--ldap-ca", slapd.ca, "--ldap-bind", slapd.bind_dn)
    status, _, err = anontls("org", "import", slapd.ldaps_url, *options, "--ldap-password-file", password, "-o", org)
    assert (status, err.splitlines()[0][:10]) == (0, "servers: 1")
    assert "a directory holds no certificate stores" in err
    assert slapd.password not in err + org.read_text()
    organization = open_organization(str(org))
    assert organization.sources[0].collected is not None

    status, _, err = anontls("org", "import", slapd.ldaps_url, *options)
    assert status == 2 and "no password for" in err
    password.write_text("planted-secret")
    status, _, err = anontls("org", "import", slapd.ldaps_url, *options, "--ldap-password-file", password)
    assert status == 3 and "the account is refused" in err and "planted-secret" not in err
    status, _, err = anontls("org", "show", "ldap://127.0.0.1:1")
    assert status == 3

    password.write_text(slapd.password)
    monkeypatch.setenv("ANONTLS_LDAP_CA", str(slapd.ca))
    monkeypatch.setenv("ANONTLS_LDAP_BIND", slapd.bind_dn)
    monkeypatch.setenv("ANONTLS_LDAP_PASSWORD_FILE", str(password))
    status, out, _ = anontls("select", "--phase", "startup", "--org", f"{NOBODY},{slapd.url}", "--server", "MBX1")
    assert status == 3 and "Get-ExchangeCertificate" in out
    assert f"the directory ({slapd.url}) last answered 0 s before this decision" in out
    status, out, _ = anontls("org", "check", slapd.ldaps_url)
    assert status == 1 and "Get-Queue" in out


@pytest.mark.parametrize(("content", "says"), [(None, "No such file"), ("\n", "is empty"), (b"\xff", "not UTF-8")])
def test_a_file_without_a_password(tmp_path: Path, content: str | bytes | None, says: str) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(0o600)
    with pytest.raises(UsageError, match=says):
        ldap_settings("ldaps://dc1.contoso.com", bind="reader", password_file=file)


def test_a_password_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("planted-secret")
    file.chmod(0o640)
    with pytest.raises(UsageError, match=r"open to others \(mode 0640\)") as refused:
        ldap_settings("ldaps://dc1.contoso.com", bind="reader", password_file=file)
    assert refused.value.hint == f"chmod 600 {file}"
    file.chmod(0o600)
    assert ldap_settings("ldaps://dc1.contoso.com", bind="reader", password_file=file).password == "planted-secret"


def test_a_password_from_a_pipe() -> None:
    """As ``<(pass show ad)`` gives it: its mode says nothing."""
    reading, writing = os.pipe()
    try:
        os.fchmod(reading, 0o666)
        os.write(writing, b"of the pipe\n")
        os.close(writing)
        found = ldap_settings("ldaps://dc1.contoso.com", bind="reader", password_file=Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    assert found.password == "of the pipe"


@pytest.mark.parametrize(
    "url", ["ldaps://reader:planted-secret@dc1", "ldap://planted-secret@dc1:389", "ldaps://a:planted-secret/x@dc1"]
)
def test_an_account_in_an_address_is_not_told(url: str) -> None:
    with pytest.raises(UsageError, match=r"^\.\.\.@dc1(:389)?: not of the form ldaps://HOST") as refused:
        LdapSettings(urls=(url,))
    assert "--ldap-bind" in str(refused.value.hint)
    assert "planted" not in f"{refused.value} {refused.value.hint}"


def test_the_password_of_the_environment_is_that_of_the_name_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("planted-secret\n")
    file.chmod(0o600)
    environment = {"ANONTLS_LDAP_BIND": "reader", "ANONTLS_LDAP_PASSWORD_FILE": str(file)}
    found = ldap_settings("ldaps://dc1", environment=environment)
    assert (found.bind, found.password) == ("reader", "planted-secret")
    with pytest.raises(UsageError, match="no password for another"):
        ldap_settings("ldaps://dc1", bind="another", environment=environment)
    assert ldap_settings("ldaps://dc1", environment={}).bind is None


def test_a_terminal_is_asked_for_the_password() -> None:
    assert (
        ldap_settings("ldaps://dc1.contoso.com", bind="reader", ask=lambda name: f"of {name}").password == "of reader"
    )
