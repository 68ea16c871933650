"""What is missing is named with the cmdlet that brings it, what contradicts itself is said."""

import re
from typing import Any

import msgspec
import pytest

from anontls.directory.completeness import Missing, attribute_search, missing
from anontls.directory.exchange_export.place import NO_SUCH_SERVER, mailbox_delivery
from anontls.facts import ABSENT, EdgeSubscription, InternalTlsCert, Organization, Server, Source, Unplaced
from anontls.report.language import completeness_de, completeness_en
from tests.support.make import (
    ITC,
    OTHER,
    UNKNOWN,
    make_certificate,
    make_queue,
    make_receive_connector,
    make_send_connector,
    make_server,
)


def a_server(**changed: Any) -> Server:
    """A server of which everything is known."""
    known = {
        "certificates": (make_certificate(),),
        "receive_connectors": (
            make_receive_connector(Bindings=("[::]:25",), RemoteIPRanges=("::-::1",)),
            mailbox_delivery("MBX1"),
        ),
        "queues": (make_queue(),),
    }
    return make_server(**(known | changed))


def edge(**changed: Any) -> Server:
    return a_server(Name="EDGE1", Fqdn="edge1.contoso.com", ServerRole="Edge", queues=ABSENT, **changed)


TO_EDGE = make_send_connector(SourceTransportServers=("EDGE1",))


def organization(*servers: Server, **changed: Any) -> Organization:
    known: dict[str, Any] = {"edge_subscriptions": (EdgeSubscription(name="EDGE1"),), "send_connectors": ()}
    return Organization(schema="anontls/org/1", servers=servers, **(known | changed))


def keys(*servers: Server, **changed: Any) -> list[str]:
    return [item.key for item in missing(organization(*servers, **changed))]


def test_nothing_is_missing_where_everything_is_known() -> None:
    assert keys(a_server(), edge(), send_connectors=(TO_EDGE,)) == []


@pytest.mark.parametrize(
    ("changed", "key", "cmdlet"),
    [
        ({"ServerRole": UNKNOWN}, "missing.role", "Get-ExchangeServer MBX1 | Export-Clixml"),
        ({"Fqdn": UNKNOWN}, "missing.fqdn", "Get-ExchangeServer MBX1 | Export-Clixml"),
        ({"certificates": ABSENT}, "missing.certificates", "Get-ExchangeCertificate -Server MBX1 | Export-Clixml"),
        ({"receive_connectors": ABSENT}, "missing.receive-connectors", "Get-ReceiveConnector -Server MBX1 | Export"),
        ({"queues": ABSENT}, "missing.queues", "Get-Queue -Server MBX1 | Export-Clixml"),
        (
            {"certificates": (make_certificate(Services=UNKNOWN),)},
            "missing.certificate-properties",
            "Get-ExchangeCertificate -Server MBX1 | Format-List Thumbprint,Services",
        ),
        (
            {"receive_connectors": (make_receive_connector(AuthMechanism=UNKNOWN),)},
            "missing.receive-connector-properties",
            "Get-ReceiveConnector -Server MBX1",
        ),
        ({"ServerRole": "Mailbox, HubTransport"}, "finding.role", ""),
        ({"AdminDisplayVersion": "Version 14.3 (Build 123.4)"}, "finding.version", ""),
        ({"msExchServerInternalTLSCert": InternalTlsCert(thumbprint=OTHER)}, "finding.thumbprints-differ", ""),
    ],
)
def test_each_gap_of_a_server(changed: dict[str, Any], key: str, cmdlet: str) -> None:
    (item,) = [each for each in missing(organization(a_server(**changed))) if each.key == key]
    assert item.server == "MBX1"
    assert item.cmdlet.startswith(cmdlet)


def test_properties_are_named() -> None:
    (item,) = missing(organization(a_server(certificates=(make_certificate(Services=UNKNOWN, Status=UNKNOWN),))))
    assert item.values["properties"] == "Services, Status"
    request = make_certificate(Status="PendingRequest", HasPrivateKey=UNKNOWN)
    assert keys(a_server(certificates=(request,))) == []


def test_the_thumbprint_and_the_attribute_are_one_value() -> None:
    nothing = a_server(InternalTransportCertificateThumbprint=ABSENT)
    assert keys(nothing) == ["missing.thumbprint", "missing.attribute"]
    for name in ("msExchServerInternalTLSCert", "msExchServerInternalTLSCert_adlds"):
        one = a_server(InternalTransportCertificateThumbprint=ABSENT, **{name: InternalTlsCert(value=None)})
        assert keys(one) == []


def test_an_edge_server_needs_send_connectors_and_no_queues() -> None:
    (item,) = missing(organization(edge()))
    assert (item.key, item.cmdlet.split(" | ")[0]) == ("missing.send-connectors", "Get-SendConnector")
    unknown = make_send_connector(SourceTransportServers=UNKNOWN)
    assert keys(edge(), send_connectors=(unknown,)) == []
    by_fqdn = make_send_connector(SourceTransportServers=("edge1.contoso.com",))
    assert keys(edge(), send_connectors=(by_fqdn,)) == []


def test_copies_in_ad_and_ad_lds_are_compared() -> None:
    copies = {
        "msExchServerInternalTLSCert": InternalTlsCert(thumbprint=ITC),
        "msExchServerInternalTLSCert_adlds": InternalTlsCert(thumbprint=OTHER),
    }
    found = missing(organization(edge(**copies), send_connectors=(TO_EDGE,)))
    assert [item.key for item in found] == ["finding.copies-differ", "finding.thumbprints-differ"]
    assert found[0].values == {"server": "EDGE1", "ad": ITC, "adlds": OTHER}


@pytest.mark.parametrize(
    ("version", "in_scope"),
    [
        ("Version 15.1 (Build 2507.6)", True),
        ("Version 15.2 (Build 2562.17)", True),
        ("15.2 (Build 1544.4)", True),
        ("15.02.1544.004", True),
        ("Version 15.0 (Build 1497.2)", False),
        ("Version 15.20 (Build 1.1)", False),
    ],
)
def test_versions(version: str, in_scope: bool) -> None:
    assert (keys(a_server(AdminDisplayVersion=version)) == []) is in_scope


def test_the_organisation_and_its_sources() -> None:
    sources = (
        Source(kind="export", file="a.xml", computers=("mbx1.contoso.com", "mbx2.contoso.com")),
        Source(kind="export", file="b.xml", computers=("x.fabrikam.com",), note="not read: no XML"),
    )
    left = [
        Unplaced(file="c.xml", type="ReceiveConnector", identity=f"OTHER\\{n}", because=NO_SUCH_SERVER)
        for n in range(5)
    ]
    nobody = Unplaced(
        file="d.xml",
        type="ExchangeCertificate",
        identity="AB",
        because="it does not say whose it is: org import --server NAME d.xml",
    )
    foreign = make_send_connector(Identity="Out", SourceTransportServers=("OTHER",))
    found = missing(
        organization(
            a_server(),
            edge_subscriptions=ABSENT,
            send_connectors=(foreign,),
            sources=sources,
            unplaced=(*left, nobody),
        )
    )
    assert [(item.key, item.cmdlet.split(" |")[0]) for item in found] == [
        ("missing.edge-subscriptions", "Get-EdgeSubscription"),
        ("finding.foreign-send-connector", "Get-ExchangeServer OTHER"),
        ("finding.not-read", ""),
        ("finding.mixed-origins", ""),
        ("finding.unplaced", "Get-ExchangeServer OTHER"),
        ("finding.unplaced", "anontls org import --server NAME d.xml"),
    ]
    assert found[4].values["identities"] == "OTHER\\0, OTHER\\1, OTHER\\2 (+2)"
    assert found[5].values["because"] == "it does not say whose it is"


def test_without_servers_that_is_all_there_is_to_say() -> None:
    assert keys(edge_subscriptions=ABSENT) == ["missing.servers"]


def test_the_search_escapes_what_a_filter_or_a_text_would_read() -> None:
    line = attribute_search("a'b*(c)\\")
    assert "(cn=a''b\\2a\\28c\\29\\5c)" in line
    assert "Export-Clixml ServerInternalTLSCert-a_b__c__.xml" in line
    assert "LDAP://localhost:50389/" in attribute_search("EDGE1", edge=True)


# --- the sentences ---------------------------------------------------------------------------------------------------

FIELD = re.compile(r"{(\w+)}")


def test_both_languages_have_the_same_sentences_and_fields() -> None:
    english, german = completeness_en.TEXTS, completeness_de.TEXTS
    assert english.keys() == german.keys()
    for key, text in english.items():
        assert sorted(FIELD.findall(text)) == sorted(FIELD.findall(german[key])), key


def test_every_sentence_can_be_filled() -> None:
    broken = a_server(
        ServerRole=UNKNOWN,
        Fqdn=UNKNOWN,
        InternalTransportCertificateThumbprint=ABSENT,
        certificates=(make_certificate(Services=UNKNOWN),),
        receive_connectors=(make_receive_connector(Bindings=UNKNOWN),),
    )
    copies = {
        "msExchServerInternalTLSCert": InternalTlsCert(thumbprint=ITC),
        "msExchServerInternalTLSCert_adlds": InternalTlsCert(error="no access"),
    }
    bare = make_server(Name="B", AdminDisplayVersion="Version 8.0", ServerRole="HubTransport", **copies)
    differs = a_server(Name="D", msExchServerInternalTLSCert=InternalTlsCert(thumbprint=OTHER))
    left = Unplaced(file="c", type="Queue", identity="x", because="y")
    sources = (Source(kind="export", file="b", computers=("a.b", "a.c"), note="not read: x"),)
    foreign = make_send_connector(SourceTransportServers=("OTHER",))
    servers = (broken, bare, differs, msgspec.structs.replace(a_server(Name="Q"), queues=ABSENT), edge(Site="x"))
    found: list[Missing] = [
        *missing(organization(edge_subscriptions=ABSENT)),
        *missing(
            organization(
                *servers, edge_subscriptions=ABSENT, send_connectors=(foreign,), sources=sources, unplaced=(left,)
            )
        ),
    ]
    assert {item.key for item in found} == completeness_en.TEXTS.keys()
    for item in found:
        for texts in (completeness_en.TEXTS, completeness_de.TEXTS):
            assert "{" not in texts[item.key].format_map(item.values)
