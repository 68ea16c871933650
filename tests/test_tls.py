import contextlib
import hashlib
import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import cache

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from OpenSSL._util import lib

from anontls import tls
from anontls.facts.own_certificate import OwnCertificate, OwnCertificateRefused
from anontls.facts.trust import TrustResult, direct_trust
from anontls.tls import Side, TlsFailed, TlsPump, Version, client_context, server_context
from tests.certstore.make import NOW, Kind, key_of, make, make_weak

VERSIONS: tuple[Version, ...] = ("TLSv1.2", "TLSv1.3")
HTTP = b"GET / HTTP/1.1\r\nHost: mbx1\r\n\r\n"


def carry(one: TlsPump, other: TlsPump, size: int = 1 << 20) -> None:
    """A wire between two pumps, in pieces of ``size``, until nothing moves."""
    moved = True
    while moved:
        moved = False
        for sender, receiver in ((one, other), (other, one)):
            data = sender.output()
            moved |= bool(data)
            for at in range(0, len(data), size):
                receiver.received(data[at : at + size])


def connect(server: SSL.Context, client: SSL.Context, size: int = 1 << 20) -> tuple[TlsPump, TlsPump]:
    pumps = TlsPump(server), TlsPump(client)
    for pump in pumps:
        pump.start()
    carry(*pumps, size)
    assert all(pump.handshake_done for pump in pumps)
    return pumps


@cache
def own(kind: Kind = "ec") -> OwnCertificate:
    return make(kind)


def plain_context(side: Side, shown: OwnCertificate | None, ciphers: bytes = b"DEFAULT@SECLEVEL=0") -> SSL.Context:
    """A peer that is not so strict with itself."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD if side is Side.SERVER else SSL.TLS_CLIENT_METHOD)
    context.set_app_data(side)
    context.set_cipher_list(ciphers)
    if shown is not None:
        assert shown.certificate.x509 is not None
        context.use_certificate(shown.certificate.x509)
        context.use_privatekey(shown.key)
    return context


# --- handshakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("client", ["rsa", "ec", "ed25519", None])
@pytest.mark.parametrize("server", ["rsa", "ec", "ed25519"])
def test_each_side_gets_the_bytes_of_the_other_certificate(server: Kind, client: Kind | None, version: Version) -> None:
    shown = own(client) if client else None
    here, there = connect(server_context(own(server), maximum=version), client_context(shown))
    assert here.protocol == there.protocol == version
    assert here.cipher == there.cipher != ""
    seen = there.peer
    assert seen is not None
    assert seen.der == own(server).der
    seen = here.peer
    assert (seen and seen.der) == (shown and shown.der)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("weak", ["expired", "not yet", "SHA-1", "MD5", "1024 bits"])
def test_any_certificate_of_a_peer_is_taken_on_both_sides(weak: str, version: Version) -> None:
    makers: dict[str, Callable[[], OwnCertificate]] = {
        "expired": lambda: make(start=NOW - timedelta(days=4000), days=10),
        "not yet": lambda: make(start=NOW + timedelta(days=20000)),
        "SHA-1": make_weak,
        "MD5": lambda: make_weak("MD5"),
        "1024 bits": lambda: make("rsa-1024"),
    }
    shown = makers[weak]()
    ours, _ = connect(server_context(own(), maximum=version), plain_context(Side.CLIENT, shown))
    seen = ours.peer
    assert seen is not None
    assert seen.der == shown.der
    _, ours = connect(plain_context(Side.SERVER, shown), client_context(own(), maximum=version))
    seen = ours.peer
    assert seen is not None
    assert seen.der == shown.der
    assert ours.protocol == version


@pytest.mark.parametrize("version", VERSIONS)
def test_our_own_sha1_or_expired_certificate_is_loaded(version: Version) -> None:
    for shown in (make_weak(), make(start=NOW - timedelta(days=4000), days=10)):
        here, there = connect(server_context(shown, maximum=version), client_context(shown))
        for pump in (here, there):
            seen = pump.peer
            assert seen is not None
            assert seen.der == shown.der


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("version", VERSIONS)
def test_pieces_of_any_size(version: Version, size: int) -> None:
    here, there = connect(server_context(own(), maximum=version), client_context(own()), size)
    there.write(b"EHLO mbx2\r\n" * 20)
    carry(here, there, size)
    assert here.read() == b"EHLO mbx2\r\n" * 20


@given(
    st.lists(st.binary(max_size=40_000), max_size=5),
    st.integers(min_value=1, max_value=70_000),
    st.sampled_from(VERSIONS),
)
def test_what_is_written_arrives(messages: list[bytes], size: int, version: Version) -> None:
    here, there = connect(server_context(own(), maximum=version), client_context(own()))
    for sender, receiver in ((here, there), (there, here)):
        for message in messages:
            sender.write(message)
        carry(here, there, size)
        assert receiver.read() == b"".join(messages)
        assert receiver.read() == b""


def test_data_that_comes_with_the_last_message_of_the_client_is_read() -> None:
    here, there = TlsPump(server_context(own())), TlsPump(client_context(own()))
    there.start()
    here.received(there.output())
    there.received(here.output())
    assert [here.handshake_done, there.handshake_done] == [False, True]
    there.write(b"EHLO mbx2\r\n")
    here.received(there.output())
    assert [here.handshake_done, here.read()] == [True, b"EHLO mbx2\r\n"]


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4),
    st.lists(st.integers(min_value=1, max_value=400), max_size=6),
    st.sampled_from(VERSIONS),
)
def test_nothing_waits_wherever_records_are_cut(messages: list[bytes], cuts: list[int], version: Version) -> None:
    """What has arrived whole is read at once, also when the cut is inside the handshake or a record's header."""
    here, there = TlsPump(server_context(own(), maximum=version)), TlsPump(client_context(own()))
    there.start()
    here.received(there.output())
    there.received(here.output())
    flight = there.output()
    if not there.handshake_done:  # TLS 1.2: the server has the last word
        here.received(flight)
        there.received(here.output())
        flight = b""
    for message in messages:
        there.write(message)
    arriving, at = flight + there.output(), 0
    for size in [*cuts, len(arriving)]:
        here.received(arriving[at : at + size])
        at += size
    assert here.read() == b"".join(messages)
    assert not here._connection.pending()


def test_close_notify_is_the_end_and_what_follows_is_nothing() -> None:
    here, there = connect(server_context(own()), client_context())
    there.write(b"QUIT\r\n")
    there.close()
    data = there.output()
    here.received(data + b"rubbish")
    assert here.eof
    assert here.read() == b"QUIT\r\n"
    here.received(b"rubbish")
    here.write(b"221 2.0.0 bye\r\n")  # the other direction is still open
    there.received(here.output())
    assert there.read() == b"221 2.0.0 bye\r\n"
    assert not there.eof


def test_close_is_harmless_at_any_time() -> None:
    pump = TlsPump(client_context())
    pump.close()
    pump.start()
    pump.close()
    with pytest.raises(TlsFailed):
        pump.received(HTTP)
    pump.close()
    here, there = connect(server_context(own()), client_context())
    here.close()
    here.close()
    there.close()
    carry(here, there)
    assert here.eof
    assert there.eof


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_resumed(version: Version) -> None:
    context = plain_context(Side.CLIENT, own(), b"DEFAULT")
    server = server_context(own(), maximum=version)
    _, there = connect(server, context)
    session = there._connection.get_session()
    assert session is not None
    here, again = TlsPump(server), TlsPump(context)
    again._connection.set_session(session)
    again.start()
    carry(here, again)
    assert here.handshake_done
    assert not lib.SSL_session_reused(again._connection._ssl)
    seen = here.peer
    assert seen is not None
    assert seen.der == own().der


def test_old_protocols_are_refused() -> None:
    old = SSL.Context(SSL.TLS_CLIENT_METHOD)
    old.set_app_data(Side.CLIENT)
    old.set_cipher_list(b"ALL@SECLEVEL=0")
    old.set_min_proto_version(SSL.TLS1_VERSION)
    old.set_max_proto_version(SSL.TLS1_1_VERSION)
    here, there = TlsPump(server_context(own())), TlsPump(old)
    try:
        there.start()
    except TlsFailed:
        return  # the library no longer speaks them at all
    with pytest.raises(TlsFailed, match="unsupported protocol"):
        here.received(there.output())
    with pytest.raises(TlsFailed) as caught:
        there.received(here.output())
    assert caught.value.alert == "protocol version"


# --- what breaks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
def test_plain_text_is_named(side: Side) -> None:
    broken = TlsPump(server_context(own()) if side is Side.SERVER else client_context())
    broken.start()
    broken.output()
    with pytest.raises(TlsFailed, match="plain text where TLS begins"):
        broken.received(HTTP)
    with pytest.raises(TlsFailed):
        broken.received(b"more")
    with pytest.raises(TlsFailed):
        broken.write(b"more")


def test_an_alert_goes_out_and_is_understood() -> None:
    here, there = (
        TlsPump(server_context(own(), maximum="TLSv1.2")),
        TlsPump(plain_context(Side.CLIENT, None, b"AES128-SHA")),
    )
    there.start()
    hello = there.output()
    # a client without a suite of ours: TLS 1.3 is not offered to the server, so nothing is left
    with pytest.raises(TlsFailed, match="no shared cipher"):
        here.received(hello)
    with pytest.raises(TlsFailed) as caught:
        there.received(here.output())
    assert caught.value.alert == "handshake failure"
    assert here.read() == b""


@given(st.binary(max_size=3000), st.booleans(), st.booleans())
def test_garbage_raises_nothing_but_tls_failed(data: bytes, server: bool, tls_record: bool) -> None:
    pump = TlsPump(server_context(own()) if server else client_context())
    pump.start()
    pump.output()
    record = b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data if tls_record else data
    try:
        pump.received(record)
        pump.received(record)
    except TlsFailed as e:
        assert e.reason  # noqa: PT017 raising is one of two good ends
    assert not pump.handshake_done
    pump.output()


#: For each flight: where to change a byte, what to change, and how much of it to deliver; places as parts of 1000.
DAMAGE = st.tuples(st.integers(0, 999), st.integers(0, 255), st.integers(500, 1000))


@given(st.lists(DAMAGE, min_size=8, max_size=8), st.sampled_from(VERSIONS))
def test_a_broken_handshake_raises_nothing_but_tls_failed(damage: list[tuple[int, int, int]], version: Version) -> None:
    here, there = TlsPump(server_context(own(), maximum=version)), TlsPump(client_context(own()))
    there.start()
    with contextlib.suppress(TlsFailed):
        for turn, (place, change, part) in enumerate(damage):
            sender, receiver = ((there, here), (here, there))[turn % 2]
            wire = bytearray(sender.output())
            if wire:
                wire[place * len(wire) // 1000] ^= change
            receiver.received(wire[: part * len(wire) // 1000])
    for pump in (here, there):
        pump.output()
        pump.read()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_changed_record_breaks_the_session_but_not_what_was_read(version: Version) -> None:
    here, there = connect(server_context(own(), maximum=version), client_context())
    there.write(b"EHLO mbx2\r\n")
    here.received(there.output())
    there.write(b"MAIL FROM:<>\r\n")
    wire = bytearray(there.output())
    wire[-1] ^= 1
    with pytest.raises(TlsFailed):
        here.received(wire)
    assert here.read() == b"EHLO mbx2\r\n"
    with pytest.raises(TlsFailed, match="the peer gave up"):
        there.received(here.output())


def test_an_endless_handshake_is_ended() -> None:
    pump = TlsPump(server_context(own()))
    # ClientHello of 16 MB, in records as large as they may be
    record = b"\x16\x03\x01\x40\x00" + b"\x01\x00\x80\x00" + b"a" * (0x4000 - 4)
    with pytest.raises(TlsFailed):
        pump.received(record * (tls.MAX_HANDSHAKE // len(record) + 2))


def test_unread_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MAX_UNREAD", 100_000)
    here, there = connect(server_context(own()), client_context())
    there.write(bytes(100_001))
    with pytest.raises(TlsFailed, match="wait to be read"):
        here.received(there.output())


def test_renegotiation_is_refused() -> None:
    here, there = connect(server_context(own(), maximum="TLSv1.2"), plain_context(Side.CLIENT, None))
    there._connection.renegotiate()
    with contextlib.suppress(SSL.Error):
        there._connection.do_handshake()
    here.received(there._connection.bio_read(1 << 20))
    assert here.read() == b""
    assert here.output()[:1] == bytes([21])  # no_renegotiation is an alert [RFC5246 7.2.2]
    assert here.protocol == "TLSv1.2"


def test_a_context_of_somebody_else_and_writing_too_early_are_our_own_faults() -> None:
    with pytest.raises(ValueError, match="server_context or client_context"):
        TlsPump(SSL.Context(SSL.TLS_METHOD))
    pump = TlsPump(client_context())
    with pytest.raises(ValueError, match="before the handshake"):
        pump.write(b"EHLO")
    with pytest.raises(ValueError, match="before the handshake"):
        tls.exporter(pump, b"EXPORTER-Channel-Binding", 32)
    assert pump.cipher == ""
    assert pump.peer is None
    assert "CLIENT" in repr(pump)


# --- own certificates -------------------------------------------------------------------------------------------------


def test_contexts_are_kept_for_each_certificate_and_side() -> None:
    one, other = make(), make()
    same = OwnCertificate(one.certificate, one.key)
    assert server_context(one) is server_context(same)
    assert client_context(one) is client_context(same)
    assert client_context() is client_context(None)
    assert server_context(one) is not server_context(other)
    assert server_context(one) is not server_context(one, maximum="TLSv1.2")
    assert server_context(one).get_session_cache_mode() == SSL.SESS_CACHE_OFF


@pytest.mark.parametrize("context", [server_context, client_context])
def test_a_certificate_that_the_library_refuses_is_a_clear_error(
    context: Callable[[OwnCertificate], SSL.Context],
) -> None:
    small = make("rsa-1024")
    with pytest.raises(OwnCertificateRefused, match=r"RSA 1024.*key too small") as caught:
        context(small)
    assert caught.value.thumbprint == small.thumbprint
    assert caught.value.hint
    with pytest.raises(OwnCertificateRefused, match="mismatch"):
        context(OwnCertificate(make("ec").certificate, key_of("ec", 1)))
    with pytest.raises(OwnCertificateRefused):
        context(OwnCertificate(make("ec").certificate, key_of("rsa")))


def test_the_key_shows_nowhere() -> None:
    one = make("rsa")
    shown = repr(one) + str(one) + repr(vars(one)["certificate"])
    assert one.thumbprint in shown
    assert "PrivateKey" not in repr(one)
    with pytest.raises(TypeError):
        pickle.dumps(one)
    assert one == OwnCertificate(one.certificate, one.key)
    assert one != make("rsa")


def test_the_chain_is_sent() -> None:
    root = make(name="root", ca=True, number=1)
    leaf = make(issuer=root)
    _, there = connect(server_context(leaf), client_context())
    chain = there._connection.get_peer_cert_chain(as_cryptography=True)
    assert chain is not None
    assert len(chain) == 2
    seen = there.peer
    assert seen is not None
    assert seen.der == leaf.der


# --- channel bindings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_exported_material_is_equal_at_both_ends(version: Version) -> None:
    here, there = connect(server_context(own(), maximum=version), client_context(own()))
    other, _ = connect(server_context(own(), maximum=version), client_context(own()))
    binding = tls.exporter(here, b"EXPORTER-Channel-Binding", 32)
    assert binding == tls.exporter(there, b"EXPORTER-Channel-Binding", 32)
    assert len(binding) == 32
    assert binding != tls.exporter(other, b"EXPORTER-Channel-Binding", 32)
    assert binding != tls.exporter(here, b"EXPERIMENTAL", 32)


RFC5929_HASHES: dict[str, tuple[Callable[[], OwnCertificate], str]] = {
    "RSA SHA-256": (lambda: make("rsa", digest=hashes.SHA256()), "sha256"),
    "RSA SHA-384": (lambda: make("rsa", digest=hashes.SHA384()), "sha384"),
    "RSA SHA-512": (lambda: make("rsa", digest=hashes.SHA512()), "sha512"),
    "PSS SHA-384": (lambda: make("rsa", digest=hashes.SHA384(), pss=True), "sha384"),
    "ECDSA SHA-384": (lambda: make("p384", digest=hashes.SHA384()), "sha384"),
    "ECDSA SHA-224": (lambda: make("ec", digest=hashes.SHA224()), "sha224"),
    "SHA-1": (make_weak, "sha256"),
    "MD5": (lambda: make_weak("MD5"), "sha256"),
}


@pytest.mark.parametrize("case", RFC5929_HASHES)
def test_server_end_point_takes_the_hash_of_the_signature(case: str) -> None:
    certificate, name = RFC5929_HASHES[case]
    der = certificate().der
    assert tls.server_end_point(der) == hashlib.new(name, der).digest()


def test_server_end_point_is_not_guessed() -> None:
    for der in (make("ed25519").der, b"", b"0\x03\x02\x01\x01"):
        with pytest.raises(tls.BindingUndefined):
            tls.server_end_point(der)


# --- the log line -----------------------------------------------------------------------------------------------------


def test_the_line_of_the_protocol_log() -> None:
    aes128 = plain_context(Side.CLIENT, None, b"ECDHE-RSA-AES128-GCM-SHA256")
    here, there = connect(server_context(own("rsa"), maximum="TLSv1.2"), aes128)
    line = tls.schannel_line(here)
    assert line.startswith(
        "TLS protocol SP_PROT_TLS1_2_SERVER negotiation succeeded using bulk encryption algorithm CALG_AES_128"
        " with strength 128 bits, MAC hash algorithm CALG_SHA_256 with strength 0 bits"
        " and key exchange algorithm CALG_ECDH_EPHEM with strength 25"
    )
    assert "SP_PROT_TLS1_2_CLIENT" in tls.schannel_line(there)


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        (
            b"ECDHE-RSA-AES256-GCM-SHA384",
            "CALG_AES_256 with strength 256 bits, MAC hash algorithm CALG_SHA_384 with strength 0",
        ),
        (
            b"ECDHE-RSA-AES128-SHA256",
            "CALG_AES_128 with strength 128 bits, MAC hash algorithm CALG_SHA_256 with strength 256",
        ),
        (
            b"ECDHE-RSA-AES256-SHA384",
            "CALG_AES_256 with strength 256 bits, MAC hash algorithm CALG_SHA_384 with strength 384",
        ),
        (b"ECDHE-RSA-CHACHA20-POLY1305", "strength 256 bits, MAC hash algorithm CALG_SHA_256 with strength 0"),
    ],
)
def test_the_line_for_each_suite(suite: bytes, words: str) -> None:
    here, _ = connect(server_context(own("rsa"), maximum="TLSv1.2"), plain_context(Side.CLIENT, None, suite))
    assert here.cipher.encode() == suite
    assert words in tls.schannel_line(here)


def test_the_line_of_tls_1_3() -> None:
    here, _ = connect(server_context(own()), client_context())
    assert "SP_PROT_TLS1_3_SERVER" in tls.schannel_line(here)
    assert "strength 0 bits and key" in tls.schannel_line(here)
    assert not tls.schannel_line(here).endswith("strength 0 bits")


# --- direct trust -----------------------------------------------------------------------------------------------------


def test_direct_trust() -> None:
    peer, other = make().certificate, make().certificate
    expired = make(start=NOW - timedelta(days=400), days=10).certificate
    assert peer.der
    assert other.der
    assert expired.der
    match = direct_trust(peer, [other.der, peer.der], NOW)
    assert (match.result, match.trusted, match.expired) == (TrustResult.MATCH, True, False)
    assert match.fingerprint == hashlib.sha256(peer.der).hexdigest().upper()
    mismatch = direct_trust(peer, [other.der], NOW)
    assert (mismatch.result, mismatch.trusted) == (TrustResult.MISMATCH, False)
    unknown = direct_trust(peer, [], NOW)
    assert (unknown.result, unknown.trusted) == (TrustResult.UNKNOWN_SERVER, False)
    for expected in ([], [peer.der]):
        nothing = direct_trust(None, expected, NOW)
        assert (nothing.result, nothing.trusted, nothing.expired) == (TrustResult.NO_CERTIFICATE, False, False)
    late = direct_trust(expired, [expired.der], NOW)
    assert (late.result, late.trusted, late.expired) == (TrustResult.MATCH, True, True)
    assert direct_trust(expired, [peer.der], NOW).expired
    assert not direct_trust(expired, [expired.der], NOW).result.value.startswith("mis")


def test_the_last_second_is_in_date() -> None:
    peer = make(start=NOW - timedelta(days=10), days=10).certificate
    assert peer.der
    assert not direct_trust(peer, [peer.der], NOW).expired
    assert direct_trust(peer, [peer.der], NOW + timedelta(seconds=1)).expired


def test_a_thumbprint_alone_never_matches() -> None:
    peer = make().certificate
    assert peer.der
    assert direct_trust(peer, [str(peer.thumbprint).encode()], NOW).result is TrustResult.MISMATCH
    assert direct_trust(peer, [peer.der[:-1], peer.der + b"\0"], NOW).result is TrustResult.MISMATCH
