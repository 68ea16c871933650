"""Cmdlet objects of every form become facts; what cannot be read is unknown, or one located error."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory.demo_export import certificate_blob
from anontls.directory.exchange_export import cmdlets
from anontls.directory.exchange_export.cmdlet_object import CmdletObject, LocalTime
from anontls.directory.exchange_export.cmdlets import Kind, misspelt, recognise_kind
from anontls.errors import MalformedInput
from anontls.facts import ABSENT, InternalTlsCert, Unknown, is_unknown, thumbprint_of

NAMESPACE = "{http://schemas.microsoft.com/powershell/2004/04}"
READERS: dict[str, tuple[Callable[..., Any], cmdlets.Table]] = {
    "receive": (cmdlets.receive_connector, cmdlets.RECEIVE_CONNECTOR),
    "send": (cmdlets.send_connector, cmdlets.SEND_CONNECTOR),
    "queue": (cmdlets.queue, cmdlets.QUEUE),
    "server": (cmdlets.server, cmdlets.SERVER),
    "certificate": (cmdlets.certificate, cmdlets.CERTIFICATE),
    "domain": (cmdlets.accepted_domain, cmdlets.ACCEPTED_DOMAIN),
    "subscription": (cmdlets.edge_subscription, cmdlets.EDGE_SUBSCRIPTION),
}


def an_object(properties: dict[str, Any], *types: str) -> CmdletObject:
    return CmdletObject(file="f.xml", where="object 1", format="clixml", properties=properties, types=types)


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "kind"),
    [
        (("Microsoft.Exchange.Data.Directory.Management.ExchangeServer",), Kind.SERVER),
        (("Microsoft.Exchange.Data.Directory.SystemConfiguration.ReceiveConnector",), Kind.RECEIVE_CONNECTOR),
        (("Microsoft.Exchange.Data.Directory.SystemConfiguration.SmtpSendConnectorConfig",), Kind.SEND_CONNECTOR),
        (("x.ExchangeCertificate", "System.x.X509Certificate2"), Kind.CERTIFICATE),
        (("System.x.X509Certificate2",), Kind.BARE_CERTIFICATE),
        (("Microsoft.Exchange.Data.QueueViewer.ExtensibleQueueInfo",), Kind.QUEUE),
        (("Microsoft.Exchange.Data.Directory.SystemConfiguration.ForeignConnector", "x.SendConnector"), None),
        (("Microsoft.Exchange.Data.Directory.SystemConfiguration.HybridConfiguration",), None),
    ],
)
def test_types_tell_the_kind(types: tuple[str, ...], kind: Kind | None) -> None:
    assert recognise_kind(an_object({"RawData": b""}, *types)) is kind


@pytest.mark.parametrize(
    ("properties", "kind"),
    [
        ("Name Fqdn ServerRole Site", Kind.SERVER),
        ("Name ServerRole DatabaseAvailabilityGroup", Kind.MAILBOX_SERVER),
        ("Name InternalTransportCertificateThumbprint", Kind.TRANSPORT_SERVICE),
        ("Identity AuthMechanism Bindings", Kind.RECEIVE_CONNECTOR),
        ("Identity SmartHosts AddressSpaces", Kind.SEND_CONNECTOR),
        ("Identity DeliveryType NextHopDomain", Kind.QUEUE),
        ("Thumbprint Services Subject", Kind.CERTIFICATE),
        ("Thumbprint NotAfter Subject", Kind.BARE_CERTIFICATE),
        ("DomainName DomainType", Kind.ACCEPTED_DOMAIN),
        ("Name Site Domain", Kind.EDGE_SUBSCRIPTION),
        ("Name msExchServerInternalTLSCert", Kind.INTERNAL_TLS_CERT),
        ("cn msexchserverinternaltlscert_adlds", Kind.INTERNAL_TLS_CERT),
        ("Name Colour", None),
    ],
)
def test_properties_tell_the_kind_where_types_do_not(properties: str, kind: Kind | None) -> None:
    values = dict.fromkeys(properties.split(), "x")
    assert recognise_kind(an_object(values)) is kind
    assert recognise_kind(an_object(values, "System.Management.Automation.PSCustomObject")) is kind


def test_a_directory_search_is_recognised() -> None:
    found = an_object(
        {"Path": "LDAP://x", "Properties": {"cn": ["MBX1"], "msexchserverinternaltlscert": [b"0\x82"]}},
        "System.DirectoryServices.SearchResult",
    )
    assert recognise_kind(found) is Kind.INTERNAL_TLS_CERT
    server = cmdlets.server(cmdlets.attribute_of(found.properties), "f")
    assert (server.name, server.internal_tls_cert) == ("MBX1", InternalTlsCert(der=b"0\x82"))


# --- forms of values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("AuthMechanism", "Tls, ExchangeServer", "Tls, ExchangeServer"),
        ("AuthMechanism", 31, 31),
        ("AuthMechanism", ["Tls", "ExchangeServer"], "Tls, ExchangeServer"),
        ("AuthMechanism", {"value": 31, "Value": "Tls"}, "Tls"),
        ("Enabled", "True", True),
        ("SuppressXAnonymousTls", False, False),
        ("RequireTLS", "True", True),
        ("SizeEnabled", 2, 2),
        ("SizeEnabled", "EnabledWithoutValue", "EnabledWithoutValue"),
        ("ChunkingEnabled", False, False),
        ("MaxMessageSize", "36 MB (37,748,736 bytes)", 37_748_736),
        ("MaxMessageSize", "36 MB (37.748.736 bytes)", 37_748_736),
        ("MaxMessageSize", "2 GB (2\u202f147\u202f482\u202f624 bytes)", 2_147_482_624),
        ("MaxMessageSize", 65536, 65536),
        ("MaxRecipientsPerMessage", "200", 200),
        ("Fqdn", {"Domain": "a.b"}, "a.b"),
        ("Fqdn", None, None),
        ("TlsCertificateName", {"CertificateIssuer": "CN=I", "CertificateSubject": "CN=S"}, "<I>CN=I<S>CN=S"),
        ("Bindings", ("[::]:25", "0.0.0.0:25"), ("[::]:25", "0.0.0.0:25")),
        ("Bindings", "[::]:25 0.0.0.0:25", ("[::]:25", "0.0.0.0:25")),
        ("Bindings", "{[::]:25, 0.0.0.0:25}", ("[::]:25", "0.0.0.0:25")),
        ("Bindings", [{"Address": {"IPAddressToString": "::"}, "Port": 25}], ("[::]:25",)),
        ("Bindings", {"value": ["[::]:25"], "Count": 1}, ("[::]:25",)),
        ("RemoteIPRanges", [{"LowerBound": "::", "UpperBound": "::1"}], ("::-::1",)),
        ("RemoteIPRanges", [], ()),
    ],
)
def test_forms_of_receive_connector_values(name: str, value: object, want: object) -> None:
    read = cmdlets.receive_connector({"Identity": "A\\B", name: value}, "f", strict=True)
    assert getattr(read, cmdlets.FIELDS[type(read)][name]) == want


@pytest.mark.parametrize("value", ["36 MB", "36 MB ( bytes)", "36 MB (37 octets)", "-1", 1.5, True, "(1 bytes) more"])
def test_what_is_no_size(value: object) -> None:
    read = cmdlets.receive_connector({"Identity": "A\\B", "MaxMessageSize": value}, "f")
    assert isinstance(read.max_message_size, Unknown)


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("AddressSpaces", [{"Type": "SMTP", "Address": "--", "Cost": 1}], ("SMTP:--;1",)),
        ("AddressSpaces", "SMTP:--;1 SMTP:*;100", ("SMTP:--;1", "SMTP:*;100")),
        ("SmartHosts", [{"IsIPAddress": False, "Domain": "--", "Address": None}], ("--",)),
        ("SmartHosts", [{"IsIPAddress": True, "Address": {"IPAddressToString": "10.0.0.1"}}], ("[10.0.0.1]",)),
        ("SmartHosts", "--", ("--",)),
        ("SourceTransportServers", ["CN=EDGE1,CN=Servers,DC=x"], ("EDGE1",)),
        ("SourceTransportServers", "EDGE1, EDGE 2", ("EDGE1", "EDGE 2")),
        ("SourceTransportServers", [{"Name": "EDGE1"}], ("EDGE1",)),
    ],
)
def test_forms_of_send_connector_values(name: str, value: object, want: object) -> None:
    read = cmdlets.send_connector({"Name": "A", name: value}, "f", strict=True)
    assert getattr(read, cmdlets.FIELDS[type(read)][name]) == want


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("Site", "Solo.com/Configuration/Sites/First", "First"),
        ("Site", {"Name": "First"}, "First"),
        ("Site", "CN=First,CN=Sites,DC=x", "First"),
        ("AdminDisplayVersion", {"Major": 15, "Minor": 2, "Build": 986, "Revision": 5}, "Version 15.2 (Build 986.5)"),
        ("InternalTransportCertificateThumbprint", "ab cd", "ABCD"),
        ("ServerRole", 2, 2),
    ],
)
def test_forms_of_server_values(name: str, value: object, want: object) -> None:
    read = cmdlets.server({"Name": "A", name: value}, "f", strict=True)
    assert getattr(read, cmdlets.FIELDS[type(read)][name]) == want


def test_what_the_file_cut_off_stays_unknown() -> None:
    cut = Unknown("cut off")
    read = cmdlets.receive_connector({"Identity": "A\\B", "Bindings": ("[::]:25", cut), "Fqdn": cut}, "f")
    assert (read.bindings, read.fqdn, read.enabled) == (cut, cut, ABSENT)


@pytest.mark.parametrize(
    ("properties", "identity"),
    [
        ({"Identity": "MBX1\\Default MBX1"}, "MBX1\\Default MBX1"),
        ({"Name": "Default", "Server": "MBX1"}, "MBX1\\Default"),
        ({"Name": "Default", "Server": {"Name": "MBX1"}}, "MBX1\\Default"),
        (
            {"Identity": {"Name": "Default", "DistinguishedName": "CN=Default,CN=Protocols,CN=MBX1,CN=Servers,CN=x"}},
            "MBX1\\Default",
        ),
        ({"Name": "Default"}, "Default"),
        ({}, cmdlets.NOT_NAMED),
    ],
)
def test_a_receive_connector_says_whose_it_is(properties: dict[str, Any], identity: str) -> None:
    assert cmdlets.receive_connector(properties, "f").identity == identity


def test_times_need_a_zone() -> None:
    noon = datetime(2026, 1, 2, 12)  # noqa: DTZ001
    printed = {"NotAfter": LocalTime(text="02.01.2026 12:00", naive=noon), "NotBefore": LocalTime(text="?", naive=None)}
    read = cmdlets.certificate(printed, "f", zone=UTC)
    assert (read.not_after, is_unknown(read.not_before)) == (noon.replace(tzinfo=UTC), True)
    assert cmdlets.certificate(printed, "f").not_after == Unknown("02.01.2026 12:00 was printed without its zone")
    written = {"NotAfter": "2026-01-02T13:00:00+01:00", "NotBefore": "/Date(1767355200000)/"}
    read = cmdlets.certificate(written, "f", strict=True)
    assert read.not_after == read.not_before == noon.replace(tzinfo=UTC)
    with pytest.raises(MalformedInput, match="f: NotAfter: expected a time with its zone"):
        cmdlets.certificate({"NotAfter": "2026-01-02T12:00:00"}, "f", strict=True)


# --- certificates ----------------------------------------------------------------------------------------------------

DER = b"0\x03\x02\x01\x05"


def test_the_blob_tells_services_status_and_whose_it_is() -> None:
    blob = certificate_blob(DER, identity=f"mbx1.contoso.com\\{thumbprint_of(DER)}", services=27, self_signed=False)
    read, identity = cmdlets.exported_certificate({"RawData": DER, "SerializationData": blob}, "f")
    assert (read.services, read.status, read.has_private_key) == (27, 1, True)
    assert identity == f"mbx1.contoso.com\\{thumbprint_of(DER)}"


@pytest.mark.parametrize("blob", [None, b"", b"\0" * 20, certificate_blob(b"0\x00", identity="a\\b", services=1)])
def test_a_bad_blob_leaves_services_and_status_unknown(blob: bytes | None) -> None:
    properties: dict[str, Any] = {"RawData": DER} | ({} if blob is None else {"SerializationData": blob})
    read, identity = cmdlets.exported_certificate(properties, "f")
    assert is_unknown(read.services)
    assert is_unknown(read.status)
    assert (identity, read.has_private_key, read.thumbprint) == (None, True, thumbprint_of(DER))


def test_a_request_has_no_key_by_default() -> None:
    assert cmdlets.certificate({"Status": "PendingRequest"}, "f").has_private_key is ABSENT
    assert cmdlets.certificate({"Status": "Valid"}, "f").has_private_key is True


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (DER, InternalTlsCert(der=DER)),
        ([DER], InternalTlsCert(der=DER)),
        (list(DER), InternalTlsCert(der=DER)),
        ("MAMCAQU=", InternalTlsCert(der=DER)),
        ({"der": "MAMCAQU="}, InternalTlsCert(der=DER)),
        ({"thumbprint": "AB"}, InternalTlsCert(thumbprint="AB")),
        ({"error": "denied"}, InternalTlsCert(error="denied")),
        ({"value": None}, InternalTlsCert(value=None)),
        (None, InternalTlsCert(value=None)),
        ((), InternalTlsCert(value=None)),
        (Unknown("why"), InternalTlsCert(unknown="why")),
    ],
)
def test_forms_of_the_attribute(value: object, want: InternalTlsCert) -> None:
    assert cmdlets.internal_tls_cert(value, "f", strict=True) == want


# --- any value at all ------------------------------------------------------------------------------------------------

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["Address", "Port", "Domain", "Name", "Value", "value", "x"]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_any_value_gives_facts_or_one_located_error(kind: str, data: st.DataObject) -> None:
    reader, table = READERS[kind]
    keys = [*table, "Name", "Identity", "Server", "DistinguishedName", "DomainName", "RawData", cmdlets.ATTRIBUTE]
    properties = data.draw(st.dictionaries(st.sampled_from(keys), ANY))
    tolerant = reader(properties, "file: object 1")
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(tolerant)), type(tolerant))
    try:
        reader(properties, "file: object 1", strict=True)
    except MalformedInput as e:
        assert e.where.startswith("file: object 1: ")  # noqa: PT017
        assert e.where.rpartition(": ")[2] in keys  # noqa: PT017


@given(st.dictionaries(st.sampled_from([*cmdlets.CERTIFICATE, "RawData", "SerializationData", "Identity"]), ANY))
def test_any_certificate_object_is_read(properties: dict[str, Any]) -> None:
    cmdlets.exported_certificate(properties, "f")


# --- misspelt names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "known", "want"),
    [
        ("smarthosts", "SmartHosts", True),
        ("SmartHost", "SmartHosts", True),
        ("AuthMechanisms", "AuthMechanism", True),
        ("SupressXAnonymousTls", "SuppressXAnonymousTls", True),
        ("SmartHostsString", "SmartHosts", False),
        ("PrivateKey", "HasPrivateKey", False),
        ("InternalTransportCertificate", "InternalTransportCertificateThumbprint", False),
    ],
)
def test_misspelt(key: str, known: str, want: bool) -> None:
    assert misspelt([key], [known]) == ((key, known) if want else None)
    assert misspelt([key, known], [known]) is None


# The properties that Get-ExchangeCertificate documents, and those of the class below it.
CERTIFICATE_PROPERTIES = """
AccessRules CertificateDomains HasPrivateKey IsSelfSigned Issuer NotAfter NotBefore PublicKeySize RootCAType
SerialNumber Services Status Subject Thumbprint IISServices PrivateKeyExportable Identity ServicesStringForm Archived
Extensions FriendlyName IssuerName SubjectName PrivateKey PublicKey RawData SignatureAlgorithm Version Handle
KeyIdentifier CertificateRequest PSComputerName RunspaceId PSShowComputerName
"""
QUEUE_PROPERTIES = """
Identity DeliveryType NextHopDomain NextHopConnector NextHopCategory TlsDomain Status MessageCount
MessageCountsPerPriority DeferredMessageCount LockedMessageCount LastError LastRetryTime NextRetryTime FirstRetryTime
RetryCount IncomingRate OutgoingRate Velocity OutboundIPPool OverrideSource PriorityDescriptions IsValid ObjectState
"""


def no_property_is_taken_for_another(properties: list[str], table: cmdlets.Table) -> None:
    known = {*table, "Name", "Identity", cmdlets.ATTRIBUTE}
    for left_out in [None, *(known & set(properties))]:
        assert misspelt([name for name in properties if name != left_out], known) is None, left_out


def test_documented_properties_are_no_misspellings() -> None:
    no_property_is_taken_for_another(CERTIFICATE_PROPERTIES.split(), cmdlets.CERTIFICATE)
    no_property_is_taken_for_another(QUEUE_PROPERTIES.split(), cmdlets.QUEUE)


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("GetReceiveConnector", cmdlets.RECEIVE_CONNECTOR),
        ("GetSendConnector", cmdlets.SEND_CONNECTOR),
        ("GetExchangeServer", cmdlets.SERVER),
        ("GetMailboxServer", cmdlets.SERVER),
        ("GetAcceptedDomain", cmdlets.ACCEPTED_DOMAIN),
    ],
)
def test_real_properties_are_no_misspellings(shared: Path, file: str, table: cmdlets.Table) -> None:
    first = ElementTree.parse(shared / f"data/exports/solo-e19a/{file}.xml").getroot()[0]
    groups = (first.find(f"{NAMESPACE}{group}") for group in ("Props", "MS"))
    properties = [each.attrib["N"] for group in groups if group is not None for each in group]
    assert len(properties) > 20
    no_property_is_taken_for_another(properties, table)
