"""Servers and connectors as facts: roles, enumerations, ranges, and which connector a session hits."""

from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from anontls.facts import AUTH_MECHANISM_BITS, ReceiveConnector, Unknown, connector_for_session, is_unknown
from anontls.facts.organization import Address, binding, ip_range
from tests.support.make import UNKNOWN, make_queue, make_receive_connector, make_send_connector, make_server

# --- enumerations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "exchange_server", "tls"),
    [
        ("Tls, Integrated, BasicAuth, BasicAuthRequireTLS, ExchangeServer", True, True),
        ("exchangeserver,tls", True, True),
        ("ExchangeServer", True, False),
        ("Tls", False, True),
        ("BasicAuthRequireTLS", False, False),
        ("None", False, False),
        ("", False, False),
        (None, False, False),
        (31, True, True),
        ("31", True, True),
        (15, False, True),
        (16, True, False),
        (17, True, None),
        (1, False, None),
        (0, False, False),
    ],
    ids=repr,
)
def test_auth_mechanism(value: Any, exchange_server: bool, tls: bool | None) -> None:
    flags = make_receive_connector(AuthMechanism=value).auth_flags
    assert not is_unknown(flags)
    assert flags.holds("ExchangeServer", AUTH_MECHANISM_BITS) is exchange_server
    held = flags.holds("Tls", AUTH_MECHANISM_BITS)
    assert held is tls if tls is not None else isinstance(held, Unknown)


def test_unknown_enumerations_stay_unknown() -> None:
    assert make_receive_connector(AuthMechanism=UNKNOWN).auth_flags == UNKNOWN
    assert make_send_connector(SmartHostAuthMechanism=UNKNOWN).auth_mechanism == UNKNOWN
    assert make_queue(DeliveryType=UNKNOWN).delivery == UNKNOWN
    assert isinstance(make_send_connector(SmartHostAuthMechanism=4).auth_mechanism, Unknown)
    assert isinstance(make_queue(DeliveryType=4).delivery, Unknown)


@pytest.mark.parametrize("value", [None, "", "None", 0], ids=repr)
def test_no_smart_host_mechanism(value: Any) -> None:
    assert make_send_connector(SmartHostAuthMechanism=value).auth_mechanism == "None"


@pytest.mark.parametrize(
    ("value", "service"),
    [("HubTransport", "HubTransport"), (32, "HubTransport"), (16384, "FrontendTransport")],
    ids=repr,
)
def test_transport_role(value: Any, service: str) -> None:
    assert make_receive_connector(TransportRole=value).transport_service == service


@pytest.mark.parametrize(
    ("value", "role"),
    [("Mailbox", "Mailbox"), ("mailbox", "Mailbox"), ("Edge", "Edge"), (2, "Mailbox"), ("2", "Mailbox")],
    ids=repr,
)
def test_role(value: Any, role: str) -> None:
    assert make_server(ServerRole=value).role == role


@pytest.mark.parametrize(
    "value", [64, 38, "Mailbox, ClientAccess", "HubTransport", "None", "", None, UNKNOWN], ids=repr
)
def test_any_other_role_is_unknown(value: Any) -> None:
    assert isinstance(make_server(ServerRole=value).role, Unknown)


def test_name_and_server_of_a_receive_connector() -> None:
    assert (make_receive_connector().server, make_receive_connector().name) == ("MBX1", "Default MBX1")
    alone = make_receive_connector(Identity="Default")
    assert (alone.server, alone.name) == (None, "Default")


# --- ranges and bindings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
        (" 10.0.0.1-10.0.0.9 ", "10.0.0.1", "10.0.0.9"),
        ("10.0.0.1 - 10.0.0.9", "10.0.0.1", "10.0.0.9"),
        ("10.0.0.0/24", "10.0.0.0", "10.0.0.255"),
        ("10.0.0.7/24", "10.0.0.0", "10.0.0.255"),
        ("10.0.0.0(255.255.255.0)", "10.0.0.0", "10.0.0.255"),
        ("0.0.0.0-255.255.255.255", "0.0.0.0", "255.255.255.255"),
        ("::1", "::1", "::1"),
        ("fd00::/64", "fd00::", "fd00::ffff:ffff:ffff:ffff"),
        ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ],
)
def test_ip_range(text: str, first: str, last: str) -> None:
    assert ip_range(text) == (ip_address(first), ip_address(last))


@pytest.mark.parametrize(
    "text",
    ["", "x", "10.0.0", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "10.0.0.0/33", "10.0.0.1-", "-", "10.0.0.0(x)", "*"],
)
def test_no_ip_range(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ip_range(text)


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("0.0.0.0:25", "0.0.0.0", 25),
        ("[::]:25", "::", 25),
        (" 10.0.0.1:2525 ", "10.0.0.1", 2525),
        ("[fd00::1]:587", "fd00::1", 587),
    ],
)
def test_binding(text: str, address: str, port: int) -> None:
    assert binding(text) == (ip_address(address), port)


@pytest.mark.parametrize(
    "text", ["", "25", "0.0.0.0", "0.0.0.0:", "0.0.0.0:0", "0.0.0.0:65536", "0.0.0.0:smtp", "x:25", ":25"]
)
def test_no_binding(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        binding(text)


# --- which connector --------------------------------------------------------------------------------------------------


def connector(name: str, *ranges: str, bindings: Any = ("0.0.0.0:25", "[::]:25"), **changed: Any) -> ReceiveConnector:
    return make_receive_connector(
        Identity=f"MBX1\\{name}", Bindings=bindings, RemoteIPRanges=ranges, **{"Enabled": True, **changed}
    )


EVERYBODY = connector("everybody", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0-255.255.255.255")
NET = connector("net", "10.0.0.0/8", "fd00::/16")
HOST = connector("host", "192.0.2.1", "10.1.1.1")
SUBMISSION = connector("submission", "0.0.0.0-255.255.255.255", bindings=("0.0.0.0:587",))
V4_ONLY = connector("v4", "10.9.0.0/16", "fd09::/32", bindings=("0.0.0.0:25",))


def hit(peer: str, port: int, *connectors: ReceiveConnector) -> str | Unknown:
    found = connector_for_session(make_server(receive_connectors=connectors), ip_address(peer), port)
    return found if is_unknown(found) else found.name


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("peer", "port", "name"),
    [
        ("198.51.100.1", 25, "everybody"),
        ("10.2.2.2", 25, "net"),
        ("10.1.1.1", 25, "host"),
        ("192.0.2.1", 25, "host"),
        ("::ffff:10.1.1.1", 25, "host"),
        ("::ffff:10.2.2.2", 25, "net"),
        ("10.1.1.1", 587, "submission"),
        ("fd00::1", 25, "net"),
        ("2001:db8::1", 25, "everybody"),
        ("10.9.1.1", 25, "v4"),
        ("fd09::1", 25, "everybody"),
    ],
)
def test_the_narrowest_range_wins(peer: str, port: int, name: str, turned: bool) -> None:
    connectors = [EVERYBODY, NET, HOST, SUBMISSION, V4_ONLY]
    assert hit(peer, port, *(reversed(connectors) if turned else connectors)) == name


def test_a_disabled_connector_takes_nobody() -> None:
    disabled = connector("host", "10.1.1.1", Enabled=False)
    assert hit("10.1.1.1", 25, EVERYBODY, disabled) == "everybody"
    assert isinstance(hit("10.1.1.1", 25, disabled), Unknown)


def test_a_connector_that_is_not_said_to_be_disabled_is_enabled() -> None:
    silent = make_receive_connector(Identity="MBX1\\silent", Bindings=("0.0.0.0:25",), RemoteIPRanges=("10.1.1.1",))
    assert hit("10.1.1.1", 25, EVERYBODY, silent) == "silent"


def test_ties_and_misses_are_unknown() -> None:
    tie = hit("10.2.2.2", 25, NET, connector("net2", "10.0.0.0-10.255.255.255"))
    assert isinstance(tie, Unknown)
    assert "net2" in tie.because
    for peer, port in (("10.1.1.1", 26), ("192.0.2.9", 25)):
        assert isinstance(hit(peer, port, NET, HOST), Unknown)
    assert isinstance(hit("10.1.1.1", 25), Unknown)


def test_what_is_not_known_of_a_connector() -> None:
    doubtful = connector("doubtful", bindings=UNKNOWN)
    assert isinstance(hit("10.1.1.1", 25, EVERYBODY, doubtful), Unknown)
    assert isinstance(hit("10.1.1.1", 25, EVERYBODY, connector("odd", "no range")), Unknown)
    nobody = make_server(receive_connectors=UNKNOWN)
    peer: Address = IPv4Address("10.1.1.1")
    assert connector_for_session(nobody, peer, 25) == UNKNOWN


def test_what_is_not_known_of_a_connector_on_another_port_does_not_matter() -> None:
    elsewhere = make_receive_connector(
        Identity="MBX1\\x", Bindings=("0.0.0.0:587",), RemoteIPRanges=UNKNOWN, Enabled=True
    )
    assert hit("10.1.1.1", 25, EVERYBODY, elsewhere) == "everybody"
