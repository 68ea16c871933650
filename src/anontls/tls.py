"""TLS over memory: bytes in, bytes out; no sockets.  The transport drives it.

The TLS step of X-ANONYMOUSTLS proves nobody: both sides take whatever certificate the peer shows, and what it proves
is decided afterwards by its bytes (``anontls.facts.trust``).  pyOpenSSL is the binding that allows this: it asks for
a client certificate, accepts a self-signed or expired one, and shows it.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from OpenSSL import SSL, crypto

from anontls.errors import AnontlsError
from anontls.facts import Certificate
from anontls.facts.own_certificate import OwnCertificate, OwnCertificateRefused

#: Forward secrecy always.  Authenticated encryption first; the CBC suites at the end are the only forward-secret ones
#: that Windows Server 2012 R2, where Exchange 2016 may run, has for RSA certificates.
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES+SHA384:ECDHE+AES+SHA256:!aNULL:!eNULL:!PSK"
#: TLS 1.3.  AES-128 first: nothing is known to be weaker with it, and SHA-256 in the place of SHA-384 saves 6 % of a
#: handshake, which derives keys two dozen times.
CIPHERS_1_3 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
MAX_CONTEXTS = 1024  #: contexts kept; a renewal leaves the old one behind until it falls out
MAX_KEPT = 8 * 1024  #: bytes of a peer's certificate that is read once and kept; as many as contexts
MAX_HANDSHAKE = 256 * 1024  #: bytes that a peer may send before the handshake is complete
MAX_UNREAD = 4 * 1024 * 1024  #: decrypted bytes that may wait for :meth:`TlsPump.read`
RECORD = 16 * 1024  #: plaintext of one TLS record at most; also what is passed at a time, so idle buffers stay small
RECORD_HEADER = 5  #: its last two bytes are the length of what follows [RFC8446 5.1]
OUTPUT = 32 * 1024  #: bytes taken from the library at a time

REFUSED = (
    SSL.Error,
    crypto.Error,
    ValueError,
    TypeError,
)  #: what the library raises when it does not take a certificate
TAKEN = "a certificate with an RSA key of 2048 bits, as `anontls cert new` makes it, is taken"
UNREADABLE = "its bytes are not a certificate that can be read"

Version = Literal["TLSv1.2", "TLSv1.3"]
_VERSION = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}


class Side(enum.Enum):
    """Who we are in a session."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"


class TlsFailed(AnontlsError):
    """The handshake or the session broke; what :meth:`TlsPump.output` still holds is the alert for the peer."""

    def __init__(self, reason: str, *, alert: str | None = None) -> None:
        super().__init__(f"TLS failed: {reason}")
        self.reason = reason
        self.alert = alert  #: the peer's alert, when it was the peer that gave up


class BindingUndefined(AnontlsError):
    """``tls-server-end-point`` is not defined for this certificate."""


# --- contexts ---------------------------------------------------------------------------------------------------------


def server_context(own: OwnCertificate, *, maximum: Version = "TLSv1.3") -> SSL.Context:
    """The receiver's context: shows ``own``, asks for a client certificate and takes any, or none.

    The same object for the same certificate and chain.

    Raises:
        OwnCertificateRefused: the TLS library does not take the certificate or its key.
    """
    return _context(Side.SERVER, own, maximum)


def client_context(own: OwnCertificate | None = None, *, maximum: Version = "TLSv1.3") -> SSL.Context:
    """The sender's context: takes any server certificate, and shows ``own`` when asked.

    Raises:
        OwnCertificateRefused: the TLS library does not take the certificate or its key.
    """
    return _context(Side.CLIENT, own, maximum)


@lru_cache(maxsize=MAX_CONTEXTS)
def _context(side: Side, own: OwnCertificate | None, maximum: Version) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD if side is Side.SERVER else SSL.TLS_CLIENT_METHOD)
    context.set_app_data(side)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(_VERSION[maximum])
    context.set_cipher_list(CIPHERS)
    context.set_tls13_ciphersuites(CIPHERS_1_3)
    # No resumption: a resumed session would not show the peer's certificate again.  A TLS 1.3 server still sends its two
    # tickets of 79 bytes, which lead to nothing; the binding has no way to stop them, contrib/openssl.cnf has.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(
        SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    if side is Side.SERVER:
        # VERIFY_PEER asks for the certificate; the callback takes every one, self-signed, expired or weak.
        context.set_verify(SSL.VERIFY_PEER, _accept)
    else:
        # A client always gets the server's certificate; there is nothing to ask for, so nothing needs a callback.
        context.set_verify(SSL.VERIFY_NONE)
    if own is not None:
        _show(context, own)
    return context


def _accept(_connection: SSL.Connection, _certificate: crypto.X509, _error: int, _depth: int, _ok: int) -> bool:
    return True


def _show(context: SSL.Context, own: OwnCertificate) -> None:
    certificate = own.certificate.x509
    if certificate is None:
        raise OwnCertificateRefused(own.thumbprint, UNREADABLE)
    try:
        context.use_certificate(certificate)
        context.use_privatekey(own.key)
        context.check_privatekey()
        for der in own.chain:
            context.add_extra_chain_cert(x509.load_der_x509_certificate(der))
    except REFUSED as e:
        raise OwnCertificateRefused(own.thumbprint, _refusal(own.certificate, e), hint=TAKEN) from None


def refusal(certificate: Certificate) -> str | None:
    """Why the TLS library takes no such certificate of ours, whatever its private key; ``None``: it does."""
    if certificate.x509 is None:
        return UNREADABLE
    try:
        SSL.Context(SSL.TLS_SERVER_METHOD).use_certificate(certificate.x509)
    except REFUSED as e:
        return _refusal(certificate, e)
    return None


def _refusal(certificate: Certificate, error: Exception) -> str:
    because = _reason(error) or "no reason given"
    return f"the TLS library refuses it ({certificate.key}, {certificate.signature_algorithm}): {because}"


# --- the pump ---------------------------------------------------------------------------------------------------------


class TlsPump:
    """One TLS session: feed what arrived to :meth:`received`, take :meth:`read`, and send :meth:`output`.

    No method raises anything but :class:`TlsFailed` on account of the peer.  After a failure the pump is dead;
    :meth:`read` still gives what was decrypted before, and :meth:`output` the alert.
    """

    __slots__ = (
        "_ahead",
        "_closed",
        "_connection",
        "_description",
        "_failure",
        "_got",
        "_out",
        "_peer",
        "_pending",
        "_plain",
        "_unread",
        "eof",
        "handshake_done",
        "side",
    )

    def __init__(self, context: SSL.Context) -> None:
        side = context.get_app_data()
        if not isinstance(side, Side):
            raise ValueError("the context is from server_context or client_context")
        self.side: Side = side
        self.handshake_done = False
        self.eof = False  #: the peer has said that no more data comes (close_notify)
        self._description: tuple[str, str, str] | None = None
        self._connection = SSL.Connection(context, None)
        self._failure: TlsFailed | None = None
        self._got = 0
        self._out: list[bytes] = []
        self._peer: Certificate | None = None
        self._plain: list[bytes] = []
        self._unread = 0
        self._closed = False
        self._pending = False  # the library may hold output: to ask costs as much as to take it
        self._ahead = 0  # octets to come of the record that has begun; -1: where records end is not known
        if side is Side.SERVER:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()

    def __repr__(self) -> str:
        return f"TlsPump({self.side.value}, handshake_done={self.handshake_done}, eof={self.eof})"

    @property
    def peer(self) -> Certificate | None:
        """The certificate that the peer showed in the handshake, with its bytes; ``None`` when it showed none.

        What the facts cannot read of its bytes is unknown, and never an error.
        """
        if self._peer is None and self.handshake_done:
            shown = self._connection.get_peer_certificate()
            if shown is not None:
                self._peer = _certificate(crypto.dump_certificate(crypto.FILETYPE_ASN1, shown))
        return self._peer

    @property
    def protocol(self) -> str:
        """``TLSv1.2`` or ``TLSv1.3``; empty before the handshake is done, as are the next two."""
        return self._described()[0]

    @property
    def cipher(self) -> str:
        """The cipher suite under OpenSSL's name."""
        return self._described()[1]

    @property
    def group(self) -> str:
        """The group of the key exchange, such as ``x25519``."""
        return self._described()[2]

    def _described(self) -> tuple[str, str, str]:
        """The library is asked once, and not for sessions of which nobody wants to know."""
        if self._description is None:
            if not self.handshake_done:
                return "", "", ""
            connection = self._connection
            name = connection.get_protocol_version_name()
            self._description = name, connection.get_cipher_name() or "", connection.get_group_name() or ""
        return self._description

    def start(self) -> None:
        """Begin: the client's first message is in :meth:`output`; a server waits."""
        if self.side is Side.CLIENT:
            self._handshake()

    def received(self, data: bytes | bytearray | memoryview) -> None:
        """Take what the peer sent, in any pieces.

        Raises:
            TlsFailed: it is not TLS, it breaks the protocol, or the peer gave up.
        """
        if self._failure is not None:
            raise self._failure
        if not self._got and len(data) and not 0x14 <= data[0] <= 0x18:  # the types of TLS records
            self._connection.bio_write(data[:RECORD])
            self._refuse_plain_text()
        view = data if len(data) <= RECORD else memoryview(data)
        for at in range(0, len(data), RECORD):
            if self.eof:
                return  # what follows close_notify is nothing
            part = view[at : at + RECORD]
            if not self.handshake_done:
                self._got += len(part)
                if self._got > MAX_HANDSHAKE:
                    self._fail(f"no complete handshake in {MAX_HANDSHAKE} bytes")
            self._connection.bio_write(part)
            is_record = self._is_record(part)
            if self.handshake_done:
                self._decrypt(once=is_record)
            elif self._handshake():
                self._decrypt()

    def read(self) -> bytes:
        """All decrypted bytes that have not been read yet."""
        plain, self._plain, self._unread = self._plain, [], 0
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt ``data``; the result is in :meth:`output`.

        Raises:
            TlsFailed: the session is broken.
        """
        if self._failure is not None:
            raise self._failure
        if not self.handshake_done:
            raise ValueError("nothing can be written before the handshake is complete")
        view = data if len(data) <= RECORD else memoryview(data)
        self._pending = True
        try:
            for at in range(0, len(data), RECORD):
                if at:
                    self._drain()  # so that the library's buffer never grows
                self._connection.sendall(view[at : at + RECORD])
        except SSL.Error as e:
            self._fail(_reason(e), e)

    def output(self) -> bytes:
        """All encrypted bytes that are to be sent now, as one object."""
        if self._pending:
            self._pending = False
            self._drain()
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def close(self) -> None:
        """Say that no more data comes; the message is in :meth:`output`.  Harmless at any time."""
        if self._failure is None and self.handshake_done and not self._closed:
            self._closed = self._pending = True
            try:
                self._connection.shutdown()
            except SSL.Error:
                return  # the session is over either way

    def _handshake(self) -> bool:
        self._pending = True
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.ZeroReturnError:
            self._fail("the peer closed the session before the handshake was complete")
        except SSL.Error as e:
            self._fail(_reason(e), e)
        self.handshake_done = True
        return True

    def _is_record(self, part: bytes | bytearray | memoryview) -> bool:
        """Whether it is one whole record, as most short messages arrive."""
        at, size = self._ahead, len(part)
        if not at and RECORD_HEADER + int.from_bytes(part[3:RECORD_HEADER], "big") == size:
            return True
        if at >= 0:
            while at + RECORD_HEADER <= size:
                at += RECORD_HEADER + int.from_bytes(part[at + 3 : at + RECORD_HEADER], "big")
            self._ahead = at - size if at >= size else -1  # a header in two pieces is not followed
        return False

    def _decrypt(self, *, once: bool = False) -> None:
        """Take what can be read; ``once``: nothing follows a piece, and to be told so costs as much as the piece."""
        try:
            while True:
                plain = self._connection.recv(RECORD)
                self._plain.append(plain)
                self._unread += len(plain)
                if self._unread > MAX_UNREAD:
                    self._fail(f"more than {MAX_UNREAD} bytes wait to be read")
                if once:
                    return
        except SSL.WantReadError:
            self._pending = True  # an answer to what was no data
        except SSL.ZeroReturnError:
            self.eof = self._pending = True
        except SSL.Error as e:
            self._fail(_reason(e), e)

    def _drain(self) -> None:
        try:
            while True:
                out = self._connection.bio_read(OUTPUT)
                self._out.append(out)
                if len(out) < OUTPUT:
                    return
        except SSL.Error:  # WantReadError: there is nothing more
            return

    def _refuse_plain_text(self) -> NoReturn:
        """Let the library refuse it, so that it writes its alert, and say what it really was."""
        try:
            self._handshake()
        except TlsFailed as e:
            self._failure = None
            self._fail(f"the peer sent plain text where TLS begins ({e.reason})")
        self._fail("the peer sent plain text where TLS begins")

    def _fail(self, reason: str, error: SSL.Error | None = None) -> NoReturn:
        self._pending = True
        alert = ALERT.search(_reason(error)) if error is not None else None
        self._failure = TlsFailed(
            f"the peer gave up: {alert[1]}" if alert else reason or "no reason given", alert=alert[1] if alert else None
        )
        raise self._failure from None


ALERT = re.compile(r"(?:sslv3|tlsv1|tlsv13|ssl/tls|tls) alert (.+)")


def _reason(error: Exception) -> str:
    """What the library says, in its words."""
    queue = error.args[0] if error.args else ""
    if isinstance(queue, list):
        return "; ".join(dict.fromkeys(str(entry[-1] or entry[0]) for entry in queue))
    return ": ".join(str(part) for part in error.args)


# --- what a session shows ---------------------------------------------------------------------------------------------


def _certificate(der: bytes) -> Certificate:
    return _known_certificate(der) if len(der) <= MAX_KEPT else Certificate(der=der)


@lru_cache(maxsize=MAX_CONTEXTS)
def _known_certificate(der: bytes) -> Certificate:
    """The servers of an organisation are few, and show the same certificate again in each session."""
    return Certificate(der=der)


def exporter(pump: TlsPump, label: bytes, length: int, context: bytes | None = b"") -> bytes:
    """Keying material of this session, equal at both ends.

    With ``EXPORTER-Channel-Binding`` and 32 it is the channel binding ``tls-exporter``, but on TLS 1.3 only: TLS 1.2
    would need the extended master secret [RFC9266 4.2], and the library does not show whether it was used.  There
    :func:`server_end_point` binds.
    """
    if not pump.handshake_done:
        raise ValueError("there is nothing to export before the handshake is complete")
    return pump._connection.export_keying_material(label, length, context)


def server_end_point(der: bytes) -> bytes:
    """``tls-server-end-point`` of the server's certificate [RFC5929 4.1].

    The hash is the one of the certificate's signature, SHA-256 in place of MD5 and SHA-1.

    Raises:
        BindingUndefined: the signature has no hash of its own (Ed25519) or more than one, or the bytes cannot be read.
            The specification leaves these open, and a guess could differ from the peer's; use :func:`exporter`.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        algorithm = certificate.signature_hash_algorithm
        parameters = certificate.signature_algorithm_parameters
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise BindingUndefined(f"tls-server-end-point: the certificate's signature cannot be read: {e}") from None
    if algorithm is None:
        raise BindingUndefined("tls-server-end-point: the certificate's signature algorithm has no hash of its own")
    if isinstance(parameters, padding.PSS) and parameters.mgf._algorithm.name != algorithm.name:
        raise BindingUndefined("tls-server-end-point: the certificate's signature algorithm has two hashes")
    digest = hashes.Hash(hashes.SHA256() if isinstance(algorithm, hashes.MD5 | hashes.SHA1) else algorithm)
    digest.update(der)
    return digest.finalize()


#: Strength of the key exchange that Schannel prints.  256 for P-256 is observed [FACT O 4.3], the rest is our reading.
_GROUP_STRENGTH = {
    "secp256r1": 256,
    "secp384r1": 384,
    "secp521r1": 521,
    "x25519": 255,
    "x448": 448,
    "x25519mlkem768": 255,
}


def schannel_line(pump: TlsPump) -> str:
    """The session as the protocol logs of Exchange put it [FACT O 4.3].

    Observed for TLS 1.2 with AES-GCM and a curve.  TLS 1.3, CBC and ChaCha20 (which has no ``CALG_`` name in Windows)
    are our reading by the same pattern, not observed.
    """
    return _schannel_line(pump.side, pump.protocol, pump.cipher, pump.group)


@lru_cache(maxsize=64)
def _schannel_line(side: Side, version: str, suite: str, key_exchange: str) -> str:
    bits = "256" if "256" in suite.partition("SHA")[0] or "CHACHA20" in suite else "128"
    bulk = "CALG_CHACHA20_POLY1305" if "CHACHA20" in suite else f"CALG_AES_{bits}"
    mac = "384" if suite.endswith("SHA384") else "256"
    authenticated = "GCM" in suite or "CHACHA20" in suite or "CCM" in suite
    return (
        f"TLS protocol SP_PROT_TLS{version.removeprefix('TLSv').replace('.', '_')}_{side.value} negotiation succeeded"
        f" using bulk encryption algorithm {bulk} with strength {bits} bits,"
        f" MAC hash algorithm CALG_SHA_{mac} with strength {0 if authenticated else mac} bits"
        f" and key exchange algorithm CALG_ECDH_EPHEM with strength {_GROUP_STRENGTH.get(key_exchange.lower(), 0)} bits"
    )
