"""Reading Active Directory itself, as Samba plays it: who may bind how, and what its directory does differently."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from anontls.directory.ldap import AccountRefused, LdapDirectory, LdapSettings
from anontls.errors import Unreachable
from anontls.facts import Organization, Server
from lab.exchange import Exchange
from lab.samba import Samba
from tests.support.make import common_name, make_der

SERIALIZED = b"".join(
    struct.pack("<III", kind, 1, len(data)) + data for kind, data in ((3, bytes(20)), (32, make_der()))
)


@pytest.fixture(scope="module")
def exchange(samba: Samba) -> Iterator[Exchange]:
    exchange = Exchange(samba.configuration)
    samba.add(
        *exchange.containers(services=False),
        exchange.server("MBX1", make_der()),
        exchange.server("MBX2"),
        exchange.server("MBX3", SERIALIZED),
        *exchange.receive_connector("MBX1", "Default MBX1", msExchSmtpReceiveInboundSecurityFlag=["31"]),
        exchange.send_connector("To Internet", routingList=["SMTP:*;1"]),
    )
    yield exchange
    samba.delete(exchange.exchange)


@pytest.fixture(autouse=True)
def _kerberos(samba: Samba, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in samba.environment.items():
        monkeypatch.setenv(name, value)


def by_password(samba: Samba, url: str, *, password: str = "") -> LdapSettings:
    return LdapSettings(urls=(url,), bind=samba.administrator, password=password or samba.password, ca=samba.ca)


def read(settings: LdapSettings) -> Organization:
    with LdapDirectory(settings) as directory:
        return directory.organization()


def server(organization: Organization, name: str) -> Server:
    found = organization.server(name)
    assert found is not None
    return found


def test_ldaps_and_starttls_with_a_password(samba: Samba, exchange: Exchange) -> None:
    organization = read(by_password(samba, samba.ldaps_url))
    assert [each.name for each in organization.servers] == ["MBX1", "MBX2", "MBX3"]
    assert server(organization, "MBX1").internal_tls_cert.der == make_der()
    assert server(organization, "MBX2").internal_tls_cert.value is None
    assert server(organization, "MBX3").internal_tls_cert.der == make_der()  # from the serialized form
    assert organization.name == exchange.name
    assert organization.sources[0].note == "read from dc1.contoso.com"
    assert read(by_password(samba, samba.ldap_url)).servers == organization.servers


def test_kerberos_signs_and_seals(samba: Samba, exchange: Exchange) -> None:
    samba.kinit(samba.administrator, password=samba.password)
    with LdapDirectory(LdapSettings(urls=(samba.ldap_url,))) as directory:
        assert server(directory.organization(), "MBX1").internal_tls_cert.der == make_der()
        assert directory.call(lambda connection: connection.strength) == 256
    samba.kdestroy()
    with pytest.raises(Unreachable, match="no Kerberos"):
        read(LdapSettings(urls=(samba.ldap_url,)))


def test_a_keytab_is_enough(samba: Samba, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    samba.kdestroy()
    monkeypatch.setenv("KRB5_CLIENT_KTNAME", str(samba.add_computer("READER1")))
    assert server(read(LdapSettings(urls=(samba.ldap_url,))), "MBX1").internal_tls_cert.der == make_der()


def test_what_active_directory_refuses(samba: Samba) -> None:
    with pytest.raises(AccountRefused, match=r"the account is refused: .*data 52e"):
        read(by_password(samba, samba.ldaps_url, password="planted-secret"))
    samba.kinit(samba.administrator, password=samba.password)
    # Windows takes Kerberos inside of TLS; Samba wants to be told to.
    with pytest.raises(AccountRefused, match="stronger authentication is required") as refused:
        read(LdapSettings(urls=(samba.ldaps_url,), ca=samba.ca))
    assert refused.value.hint == "Kerberos through ldap:// signs and seals"


def test_null_changed_and_unreadable(samba: Samba, exchange: Exchange) -> None:
    reader, dn = "reader2", exchange.server_dn("MBX4")
    samba.add(exchange.server("MBX4"))
    samba.tool("user", "create", reader, samba.password)
    settings = LdapSettings(
        urls=(samba.ldaps_url,), bind=f"{reader}@{samba.realm}", password=samba.password, ca=samba.ca
    )
    with LdapDirectory(settings) as directory:
        assert server(directory.organization(), "MBX4").internal_tls_cert.value is None
        other = make_der(common_name("new"))
        samba.set(dn, "msExchServerInternalTLSCert", other)
        assert server(directory.organization(), "MBX4").internal_tls_cert.der == other
        samba.deny_reading(dn, "msExchServerInternalTLSCert", reader)
        # Samba 4.17 takes what may not be read for absent when it is asked for objects without it; Windows does not.
        assert server(directory.organization(as_server=True), "MBX4").internal_tls_cert.names is None
        samba.deny_reading(dn, "", reader)
        assert [each.name for each in directory.organization().servers] == ["MBX1", "MBX2", "MBX3"]
    assert server(read(by_password(samba, samba.ldaps_url)), "MBX4").internal_tls_cert.der == other
    samba.delete(dn)


def test_a_domain_controller_that_was_away_is_used_again(samba: Samba, exchange: Exchange) -> None:
    now = 0.0
    with LdapDirectory(by_password(samba, samba.ldaps_url), clock=lambda: now) as directory:
        directory.organization()
        samba.stop()
        try:
            with pytest.raises(Unreachable, match=r"Connection (refused|reset)"):
                directory.organization()
        finally:
            samba.start()
        now = 1.0
        assert server(directory.organization(), "MBX1").internal_tls_cert.der == make_der()
