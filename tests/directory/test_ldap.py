"""What the objects of a directory say, without a directory: bytes of attributes become facts, or reasons."""

from __future__ import annotations

import base64
import itertools
import struct
from collections.abc import Mapping, Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory import snapshot
from anontls.directory.exchange_export.place import place_pieces
from anontls.directory.ldap.certificate import certificate_of
from anontls.directory.ldap.connection import LdapSettings, address
from anontls.directory.ldap.entry import MAX_VALUE, Entry, name_in, rdn_values
from anontls.directory.ldap.objects import ATTRIBUTES, CLASSES, Reader
from anontls.errors import UsageError
from anontls.facts import EdgeSubscription, Organization, ReceiveConnector, SendConnector, Server, Unknown, is_unknown
from tests.support.make import common_name, make_der, pkcs7_of, private_key

SITE = "CN=Berlin,CN=Sites,CN=Configuration,DC=contoso,DC=com"
GROUP = "CN=Exchange Administrative Group (FYDIBOHF23SPDLT),CN=Administrative Groups,CN=Contoso,CN=Microsoft Exchange"
SERVERS = f"CN=Servers,{GROUP},CN=Services,CN=Configuration,DC=contoso,DC=com"
CONNECTIONS = f"CN=Connections,CN=Exchange Routing Group (DWBGZMFD01QNBJR),CN=Routing Groups,{SERVERS[11:]}"
ATTRIBUTE = "msExchServerInternalTLSCert"
OTHER = make_der(common_name("MBX2"), names=("mbx2.contoso.com",))

Values = Sequence[bytes]


def read(
    *entries: Entry, adlds: bool = False, as_server: bool = False, unset: Mapping[str, set[str]] | None = None
) -> Organization:
    def known_unset(attribute: str) -> set[str]:
        return {dn.lower() for dn in (unset or {}).get(attribute, set())}

    reader = Reader("ldaps://dc1.contoso.com", adlds=adlds, as_server=as_server, unset=known_unset, collected=None)
    return place_pieces(piece for entry in entries for piece in reader.pieces(entry))[0]


def server_entry(name: str = "MBX1", /, **changed: Values | None) -> Entry:
    attributes: dict[str, Values | None] = {
        "objectClass": [b"top", b"server", b"msExchExchangeServer"],
        ATTRIBUTE: [make_der()],
        "msExchCurrentServerRoles": [b"54"],
        "msExchServerSite": [SITE.encode()],
        "networkAddress": [b"ncacn_vns_spp:MBX1", b"netbios:MBX1", b"ncacn_ip_tcp:mbx1.contoso.com"],
        "serialNumber": [b"Version 15.2 (Build 1544.4)"],
        **changed,
    }
    return Entry(f"CN={name},{SERVERS}", {name: values for name, values in attributes.items() if values is not None})


def server(*, adlds: bool = False, as_server: bool = False, **changed: Values | None) -> Server:
    (found,) = read(server_entry(**changed), adlds=adlds, as_server=as_server).servers
    return found


def connector_entry(kind: str, dn: str, /, **attributes: Values) -> Entry:
    return Entry(dn, {"objectClass": [b"top", kind.encode()], **attributes})


def receive_connector(**attributes: Values) -> ReceiveConnector:
    dn = f"CN=Default MBX1,CN=SMTP Receive Connectors,CN=Protocols,CN=MBX1,{SERVERS}"
    organization = read(server_entry(), connector_entry("msExchSmtpReceiveConnector", dn, **attributes))
    connectors = organization.servers[0].receive_connectors
    assert not is_unknown(connectors)
    return connectors[0]


def send_connector(name: str = "To Internet", unset: Sequence[str] = (), **attributes: Values) -> SendConnector:
    dn = f"CN={name},{CONNECTIONS}"
    entry = connector_entry("msExchRoutingSMTPConnector", dn, **attributes)
    connectors = read(entry, unset={attribute: {dn} for attribute in unset}).send_connectors
    assert not is_unknown(connectors)
    return connectors[0]


def because(value: object) -> str:
    assert isinstance(value, Unknown)
    return value.because


# --- the certificate in a value -------------------------------------------------------------------------------------


def serialized(*properties: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<III", number, 1, len(data)) + data for number, data in properties)


def request() -> bytes:
    """A certificate request, whose frame is that of a certificate."""
    builder = x509.CertificateSigningRequestBuilder(common_name("MBX1"))
    return builder.sign(private_key("ec"), hashes.SHA256()).public_bytes(Encoding.DER)


def pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\r\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\r\n"


@pytest.mark.parametrize(
    "value",
    [
        make_der(),
        serialized((3, b"\x01" * 20), (11, b"a name"), (32, make_der())),
        pem(make_der()),
        pkcs7_of(make_der()),
    ],
    ids=["DER", "serialized", "PEM", "PKCS#7"],
)
def test_a_certificate_is_found_in_each_form(value: bytes) -> None:
    assert certificate_of(value) == make_der()


def test_a_certificate_that_our_parser_does_not_understand_is_kept() -> None:
    odd = make_der().replace(b"240101000000Z", b"241301000000Z")  # valid from the thirteenth month
    with pytest.raises(ValueError, match="asn1"):
        x509.load_der_x509_certificate(odd)
    assert certificate_of(odd) == odd


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\0", "neither a DER certificate nor a serialized"),
        (b"garbage that is longer than a header", "neither a DER certificate nor a serialized"),
        (b"\x30", "end in the middle"),
        (make_der()[:-1], "end in the middle"),
        (make_der() + b"\0", "not one ASN.1 sequence"),
        (b"\x30\x84\xff\xff\xff\xff" + bytes(50), "end in the middle"),
        (b"\x30\x80" + bytes(50), "not DER"),
        (b"\x30\x89" + bytes(50), "not DER"),
        (b"\x30\x03\x02\x01\x05", "not a certificate"),
        (b"\x30\x00", "not a certificate"),
        (request(), "not a certificate"),
        (serialized((3, b"\x01" * 20)), "neither a DER certificate nor a serialized"),
        (serialized((32, b"nothing")), "not one ASN.1 sequence"),
        (pkcs7_of(make_der(), OTHER), "PKCS #7 with 2 certificates"),
        (b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", "PKCS #7 that cannot be read"),
        (b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----", "PEM that is not base64"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_certificate_says_so(value: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certificate_of(value)


# --- names and bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dn", "values"),
    [
        ("CN=MBX1,CN=Servers,DC=com", ["MBX1", "Servers", "com"]),
        (r"CN=A\, B,DC=com", ["A, B", "com"]),
        (r"CN=A\2C B\c3\bc\\,DC=com", ["A, B\u00fc\\", "com"]),
        (r"CN=MBX1\0ACNF:1234,DC=com", ["MBX1\nCNF:1234", "com"]),
        ("CN=a=b,DC=com", ["a=b", "com"]),
        ("", [""]),
    ],
)
def test_values_of_a_distinguished_name(dn: str, values: list[str]) -> None:
    assert rdn_values(dn) == values


def test_what_lies_in_a_container() -> None:
    assert name_in("Servers", ["Servers", "Protocols", "MBX1", "servers", "X"]) == "MBX1"
    assert name_in("Servers", ["MBX1\nCNF:1", "Servers"]) is None
    assert name_in("Servers", ["MBX1"]) is None


def test_a_value_that_is_too_long_takes_only_its_attribute() -> None:
    found = server(msExchServerInternalTLSCert=[make_der() + bytes(MAX_VALUE)])
    assert isinstance(found.internal_tls_cert.error, str)
    assert "msExchServerInternalTLSCert of CN=MBX1: a value of 1,0" in found.internal_tls_cert.error
    assert found.fqdn == "mbx1.contoso.com"


def test_a_range_is_not_the_whole_list() -> None:
    entry = Entry("CN=X", {"routingList;range=0-1499": [b"SMTP:*;1"], "routingList": []})
    assert "a part of them only" in because(entry.octets("RoutingList"))
    other_order = Entry("CN=X", {"routingList": [], "routingList;range=0-1499": [b"SMTP:*;1"]})
    assert is_unknown(other_order.octets("routingList"))
    assert Entry("CN=X", {"userCertificate;binary": [b"1"]}).octets("userCertificate") == [b"1"]


# --- servers -----------------------------------------------------------------------------------------------------------


def test_a_server() -> None:
    organization = read(server_entry())
    (found,) = organization.servers
    assert organization.name == "Contoso"
    assert (found.name, found.fqdn, found.role, found.site) == ("MBX1", "mbx1.contoso.com", "Mailbox", "Berlin")
    assert found.admin_display_version == "Version 15.2 (Build 1544.4)"
    assert found.internal_tls_cert.der == make_der()
    assert is_unknown(found.receive_connectors)


def test_what_no_directory_holds_names_its_cmdlet() -> None:
    found = server()
    assert "Get-ExchangeCertificate" in because(found.certificates)
    assert "Get-Queue" in because(found.queues)
    assert "Get-MailboxServer" in because(found.database_availability_group)
    thumbprint = because(found.internal_transport_certificate_thumbprint)
    assert "follows from msExchServerInternalTLSCert" in thumbprint and "Get-TransportService" in thumbprint


@pytest.mark.parametrize(
    ("roles", "version", "role"),
    [
        (b"54", b"Version 15.2 (Build 1544.4)", "Mailbox"),
        (b"2", b"Version 15.1 (Build 2507.6)", "Mailbox"),
        (b"54", b"1", "Mailbox"),
        (b"64", b"Version 15.2 (Build 1544.4)", "Edge"),
        (b"70", b"Version 15.2 (Build 1544.4)", "Edge"),
        (b"54", b"Version 14.3 (Build 123.4)", "Mailbox, ClientAccess, UnifiedMessaging, HubTransport"),
        (b"36", b"Version 14.3 (Build 123.4)", "ClientAccess, HubTransport"),
        (b"4", b"Version 15.0 (Build 1497.2)", "ClientAccess"),
    ],
)
def test_roles_are_bits(roles: bytes, version: bytes, role: str) -> None:
    assert server(msExchCurrentServerRoles=[roles], serialNumber=[version]).server_role == role


@pytest.mark.parametrize("roles", [[b"16384"], [b"0"], [b""], [b"many"], [b"2", b"64"], [b"9" * 30], None, [b"\xff"]])
def test_roles_that_say_nothing(roles: Values | None) -> None:
    assert "msExchCurrentServerRoles" in because(server(msExchCurrentServerRoles=roles).server_role)


@pytest.mark.parametrize(
    "addresses",
    [None, [b"netbios:MBX1"], [b"ncacn_ip_tcp:"], [b"ncacn_ip_tcp:a b"], [b"ncacn_ip_tcp:" + b"a." * 200], [b"\xff"]],
)
def test_a_network_address_without_a_host_name(addresses: Values | None) -> None:
    assert "networkAddress" in because(server(networkAddress=addresses).fqdn)


@pytest.mark.parametrize("site", [None, [b""], [b"CN=A,CN=Sites", b"CN=B,CN=Sites"], [rb"CN=\0A,CN=Sites"]])
def test_a_site_without_a_name(site: Values | None) -> None:
    assert "msExchServerSite" in because(server(msExchServerSite=site).site)


def test_an_attribute_that_is_not_shown_is_null_only_when_the_directory_says_so() -> None:
    entry = server_entry(msExchServerInternalTLSCert=None)
    (null,) = read(entry, unset={ATTRIBUTE: {entry.dn}}).servers
    assert null.internal_tls_cert.value is None
    (unread,) = read(entry).servers
    assert "this account may not read it" in str(unread.internal_tls_cert.unknown)
    (own,) = read(entry, as_server=True).servers
    assert "this account may not read it" in str(own.internal_tls_cert.error)


def test_an_empty_value_is_null() -> None:
    assert server(msExchServerInternalTLSCert=[b""]).internal_tls_cert.value is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([b"garbage"], "neither a DER certificate"),
        ([make_der(), OTHER], "2 values"),
        ([b"\x30\0"], "not a certificate"),
    ],
)
def test_a_value_that_cannot_be_read(values: Values, says: str) -> None:
    error = str(server(msExchServerInternalTLSCert=values).internal_tls_cert.error)
    assert "msExchServerInternalTLSCert of CN=MBX1: " in error and says in error


def test_an_edge_server_in_active_directory_is_subscribed_to_its_site() -> None:
    organization = read(server_entry("EDGE1", msExchCurrentServerRoles=[b"64"]))
    assert organization.edge_subscriptions == (EdgeSubscription(name="EDGE1", site="Berlin"),)
    assert "in its own directory" in because(organization.servers[0].receive_connectors)


def test_the_copy_in_adlds_is_beside_that_of_active_directory() -> None:
    organization = read(server_entry("EDGE1", msExchCurrentServerRoles=[b"64"]), adlds=True)
    (edge,) = organization.servers
    assert edge.internal_tls_cert_adlds.der == make_der()
    assert isinstance(edge.internal_tls_cert.unknown, str)
    assert is_unknown(organization.edge_subscriptions)


def test_servers_of_one_name_do_not_become_one() -> None:
    other = server_entry(networkAddress=[b"ncacn_ip_tcp:mbx1.fabrikam.com"])
    conflict = server_entry(r"MBX1\0ACNF:12345678-1234-1234-1234-123456789012")
    organization = read(server_entry(), other, conflict)
    assert [each.fqdn for each in organization.servers] == ["mbx1.contoso.com"]
    assert sorted(each.because for each in organization.unplaced) == [
        "another server of that name is there already: mbx1.contoso.com",
        "it has no name",
    ]
    assert r"MBX1\0ACNF" in organization.unplaced[1].identity


# --- connectors --------------------------------------------------------------------------------------------------------


def test_a_receive_connector_shows_what_is_not_verified_and_rests_nothing_on_it() -> None:
    found = receive_connector(
        msExchSmtpReceiveBindings=[b"0.0.0.0:25", b"[::]:25"],
        msExchSmtpReceiveInboundSecurityFlag=[b"31"],
        msExchSMTPReceiveConnectorFQDN=[b"mbx1.contoso.com"],
    )
    assert found.identity == "MBX1\\Default MBX1"
    assert because(found.bindings) == (
        "msExchSmtpReceiveBindings is 0.0.0.0:25, [::]:25, and that this is Bindings is not verified: "
        "Get-ReceiveConnector shows it"
    )
    assert "msExchSmtpReceiveInboundSecurityFlag is 31" in because(found.auth_mechanism)
    assert "mbx1.contoso.com" in because(found.fqdn)
    assert "not verified: Get-ReceiveConnector" in because(found.permission_groups)
    assert is_unknown(found.enabled) and is_unknown(found.suppress_x_anonymous_tls)


def test_the_certificate_name_of_a_connector_is_documented() -> None:
    name = "<I>CN=A<S>CN=B"
    assert receive_connector(msExchSmtpTLSCertificate=[name.encode()]).tls_certificate_name == name
    assert send_connector(msExchSmtpTLSCertificate=[name.encode()]).tls_certificate_name == name
    assert is_unknown(receive_connector(msExchSmtpTLSCertificate=[b"something"]).tls_certificate_name)
    assert is_unknown(receive_connector().tls_certificate_name)


def test_a_send_connector() -> None:
    found = send_connector(
        routingList=[b"SMTP:*;1", b"smtp:fabrikam.com;5"],
        msExchSmtpSmartHost=[b"[192.0.2.1], mail.contoso.com;--"],
        msExchSourceBridgeheadServersDN=[
            f"CN=MBX1,{SERVERS}".encode(),
            f"CN=SMTP,CN=Protocols,CN=MBX2,{SERVERS}".encode(),
            rb"CN=A\, B,DC=com",
            b"MBX4",
        ],
        msExchSmtpSendFlags=[b"131073"],
    )
    assert found.identity == "To Internet"
    assert found.address_spaces == ("SMTP:*;1", "smtp:fabrikam.com;5")
    assert found.smart_hosts == ("[192.0.2.1]", "mail.contoso.com", "--")
    assert found.source_transport_servers == ("MBX1", "MBX2", "A, B", "MBX4")
    assert "msExchSmtpSendFlags is 131073" in because(found.smart_host_auth_mechanism)
    assert is_unknown(found.dns_routing_enabled) and is_unknown(found.fqdn)


def test_smart_hosts_that_are_not_shown() -> None:
    assert send_connector(unset=["msExchSmtpSmartHost"]).smart_hosts is None
    assert "this account may not read it" in because(send_connector().smart_hosts)


def test_connectors_of_nobody_are_kept() -> None:
    dn = f"CN=Lost,CN=SMTP Receive Connectors,CN=Protocols,CN=MBX9,{SERVERS}"
    (item,) = read(server_entry(), connector_entry("msExchSmtpReceiveConnector", dn)).unplaced
    assert (item.identity, item.because) == ("MBX9\\Lost", "no server of that name in the sources")


# --- hostile -------------------------------------------------------------------------------------------------------------

hostile_values = st.lists(st.binary(max_size=40) | st.sampled_from([make_der(), b"54", b"64", b"", b"\0"]), max_size=3)
hostile_entries = st.builds(
    lambda dn, kind, attributes: Entry(dn, {**attributes, "objectClass": [kind.encode()]}),
    st.text(max_size=40) | st.sampled_from([f"CN=MBX1,{SERVERS}", f"CN=A,CN=B,CN=C,CN=MBX1,{SERVERS}", ",,\\", "\\=,"]),
    st.sampled_from(CLASSES),
    st.dictionaries(st.sampled_from(ATTRIBUTES) | st.text(max_size=10), hostile_values, max_size=8),
)


@given(st.lists(hostile_entries, max_size=5), st.booleans())
def test_whatever_a_directory_holds_makes_a_snapshot(entries: list[Entry], adlds: bool) -> None:
    organization = read(*entries, adlds=adlds)
    assert snapshot.load(snapshot.dump(organization), "org.json") == organization


# --- addresses and accounts ------------------------------------------------------------------------------------------------


def test_an_address() -> None:
    assert address("ldaps://dc1.contoso.com") == ("dc1.contoso.com", 636, True)
    assert address("LDAP://[::1]:50389/") == ("::1", 50389, False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "dc1",
        "http://dc1",
        "ldap://",
        "ldap://dc1/DC=contoso",
        "ldap://dc1?x",
        "ldap://a@dc1",
        "ldap://dc1:x",
        "ldap://[",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError):
        address(url)


@pytest.mark.parametrize(("bind", "password"), [("cn=reader", ""), ("", "secret"), (" ", "secret")])
def test_an_anonymous_bind_is_refused(bind: str, password: str) -> None:
    with pytest.raises(UsageError, match="name and a password"):
        LdapSettings(urls=("ldaps://dc1.contoso.com",), bind=bind, password=password)


def test_a_password_does_not_show() -> None:
    settings = LdapSettings(urls=("ldaps://dc1.contoso.com",), bind="cn=reader", password="planted-secret")
    assert "planted-secret" not in f"{settings!r} {settings}"
