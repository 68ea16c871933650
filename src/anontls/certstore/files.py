"""Files of certificates and keys: read within limits, checked for permissions, taken apart.  Nothing is trusted."""

from __future__ import annotations

import binascii
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs12,
)

from anontls.errors import AnontlsError
from anontls.facts.own_certificate import PRIVATE_KEYS, PrivateKey

PEM_SUFFIXES = frozenset({".pem", ".crt", ".cer"})
PKCS12_SUFFIXES = frozenset({".pfx", ".p12"})
KEY_SUFFIX = ".key"
SUFFIXES = PEM_SUFFIXES | PKCS12_SUFFIXES | {KEY_SUFFIX}
MAX_FILE = 1024 * 1024  #: bytes of a certificate, key or PKCS#12 file
MAX_BUNDLE = 16 * 1024 * 1024  #: bytes of a file of CA certificates
MAX_BLOCKS = 64  #: PEM blocks in a certificate file
MAX_PASSPHRASE = 4096  #: bytes of a passphrase file
BEGIN = b"-----BEGIN "
DASHES = b"-----"
#: A pipe with nobody at its other end would block for ever without O_NONBLOCK.
OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
#: A PKCS#8 key of RSA in DER up to its modulus, of 256 octets or more; the integer begins at group 1 [RFC5208 5] [RFC8017 A.1.2]
RSA_MODULUS = re.compile(
    rb"\x30\x82..\x02\x01\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x04\x82..\x30\x82..\x02\x01\x00"
    rb"(\x02\x82([\x01-\x08].))",
    re.DOTALL,
)
CERTIFICATE_LABELS = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE"})


class Unusable(AnontlsError):
    """A file, or something in it, cannot be used; ``hint`` is the cure."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message, hint=cure)
        self.message = message
        self.cure = cure


class Version(NamedTuple):
    """What changes when a file does.  The change time is part of it: a cured permission changes nothing else."""

    modified: int
    changed: int
    size: int
    inode: int
    device: int
    mode: int
    owner: int

    @classmethod
    def of(cls, s: os.stat_result) -> Version:
        """From a ``stat``."""
        return cls(s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino, s.st_dev, s.st_mode, s.st_uid)


def read(path: Path | str, limit: int = MAX_FILE) -> tuple[bytes, Version]:
    """The bytes of a regular file.

    Raises:
        Unusable: it is none, is too large, or cannot be read.
    """
    try:
        descriptor = os.open(path, OPEN)
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise Unusable("it is not a file", "move it away")
            if state.st_size > limit:
                raise Unusable(f"it has more than {limit} bytes", "move it away; no certificate is that large")
            data = os.read(descriptor, state.st_size + 1)
            while len(data) <= limit and len(data) != state.st_size and (more := os.read(descriptor, limit)):
                data += more  # it grows, or the file system gives it in pieces
        finally:
            os.close(descriptor)
    except OSError as e:
        raise Unusable(f"it cannot be read: {e.strerror}", cure_of(e)) from None
    if len(data) > limit:
        raise Unusable(f"it has more than {limit} bytes", "move it away; no certificate is that large")
    return data, Version.of(state)


def cure_of(error: OSError) -> str:
    """What helps against it."""
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "let the service's user read it"
        case errno.ELOOP:
            return "remove the symbolic link, it leads to itself"
        case errno.ENOENT if error.filename and Path(os.fsdecode(error.filename)).is_symlink():
            return "remove the symbolic link or put back what it leads to"
        case errno.ENOENT:
            return "put it there, or see to its name"
        case _:
            return "see to the file system"


def open_to_others(mode: int, owner: int, path: object, *, folder: bool = False) -> Unusable | None:
    """Why a private key at ``path`` is not safe: others may read it, or somebody else owns it; ``None`` if it is."""
    if os.name != "posix":
        return None  # modes say nothing elsewhere
    wanted = "700" if folder else "600"
    if mode & 0o077:
        what = "the folder" if folder else "a private key is in it, and it"
        return Unusable(f"{what} is open to others (mode {stat.S_IMODE(mode):04o})", f"chmod {wanted} {path}")
    if owner not in (0, os.geteuid()):
        return Unusable(f"it belongs to another user (uid {owner})", f"chown {os.geteuid()} {path}")
    return None


# --- passphrases ------------------------------------------------------------------------------------------------------


class Passphrase:
    """Where a passphrase is to be found, never the passphrase itself."""

    def __init__(self, *, file: Path | None = None, variable: str | None = None) -> None:
        if (file is None) == (variable is None):
            raise ValueError("a passphrase is in a file or in an environment variable")
        self.file = file
        self.variable = variable

    def __repr__(self) -> str:
        return f"Passphrase({self.file or '$' + str(self.variable)})"

    def read(self) -> bytes:
        """The passphrase; one line end after it is no part of it.

        Raises:
            Unusable: it is not there, is empty, or others may read it.
        """
        if self.variable is not None:
            value = os.environ.get(self.variable)
            if not value:
                raise Unusable(f"the passphrase variable {self.variable} is not set", f"export {self.variable}")
            return os.fsencode(value)
        assert self.file is not None
        try:
            data, version = read(self.file, MAX_PASSPHRASE)
        except Unusable as e:
            raise Unusable(f"the passphrase file {self.file}: {e.message}", e.cure) from None
        unsafe = open_to_others(version.mode, version.owner, self.file)
        if unsafe is not None:
            raise Unusable(f"the passphrase file {self.file} is not safe: {unsafe.message}", unsafe.cure)
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        if not data:
            raise Unusable(f"the passphrase file {self.file} is empty", "write the passphrase into it")
        return data


# --- keys -------------------------------------------------------------------------------------------------------------


class SealedKey:
    """A private key that has not been parsed: opening an RSA key with all its checks takes as long as 60 handshakes."""

    __slots__ = ("_data", "_key", "_load", "encrypted")

    def __init__(self, data: bytes, *, pem: bool, encrypted: bool, key: PrivateKey | None = None) -> None:
        self._data = data
        self._load: Callable[..., object] = load_pem_private_key if pem else load_der_private_key
        self._key = key
        self.encrypted = encrypted

    def __repr__(self) -> str:
        return f"SealedKey(encrypted={self.encrypted})"

    def open(self, passphrase: Passphrase | None = None, *, checked: bool = True) -> PrivateKey:
        """The key; with ``checked`` its numbers are verified.

        Raises:
            Unusable: it cannot be parsed, or not with this passphrase.
        """
        if self._key is not None:
            return self._key
        secret = None
        if self.encrypted:
            if passphrase is None:
                raise Unusable("the private key is encrypted", "name the file or variable that holds its passphrase")
            secret = passphrase.read()
        try:
            key = self._load(self._data, secret, unsafe_skip_rsa_key_validation=not checked)
        except Exception as e:  # noqa: BLE001 hostile bytes; the library's words may not be kept: they could quote the key
            if secret is not None:
                raise Unusable("the private key does not open with the passphrase", "check the passphrase") from None
            raise Unusable(f"the private key cannot be read ({type(e).__name__})", "export the key again") from None
        return usable(key)

    def fits(self, certificate: bytes) -> bool:
        """Whether it is the key of that certificate (DER); cheap, so that a whole store can be checked.

        An encrypted key is believed until it is opened.  The public key standing somewhere in the certificate is
        enough here; :meth:`OwnCertificate.fits` compares strictly before the key is used.
        """
        if self.encrypted and self._key is None:
            return True
        modulus = RSA_MODULUS.match(self._data)
        if (
            modulus is not None
            and self._data[modulus.start(1) : modulus.end() + int.from_bytes(modulus[2])] in certificate
        ):
            return True  # ten times as fast as parsing the key
        public = self.open(checked=False).public_key()
        if public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) in certificate:
            return True
        try:
            return x509.load_der_x509_certificate(certificate).public_key() == public
        except Exception:  # noqa: BLE001 hostile bytes raise anything
            return False


def usable(key: object) -> PrivateKey:
    """``key``, if it is of a kind that can sign.

    Raises:
        Unusable: it is not.
    """
    if not isinstance(key, PRIVATE_KEYS):
        raise Unusable(f"a private key of the kind {type(key).__name__} cannot sign in TLS", "use RSA or EC")
    return key


# --- files ------------------------------------------------------------------------------------------------------------


class Contents(NamedTuple):
    """What a file holds: certificates (DER) and keys."""

    certificates: tuple[bytes, ...] = ()
    keys: tuple[SealedKey, ...] = ()


def contents(data: bytes, suffix: str, passphrase: Passphrase | None = None) -> Contents:
    """Take a file apart.

    Raises:
        Unusable: it is neither PEM nor DER nor PKCS#12, or holds nothing.
    """
    suffix = suffix.lower()
    if suffix in PKCS12_SUFFIXES:
        return _pkcs12(data, passphrase)
    if BEGIN in data:
        return _pem(data)
    if data[:1] == b"\x30":
        return Contents((), (_der_key(data),)) if suffix == KEY_SUFFIX else Contents((_certificate(data),))
    raise Unusable("it is neither PEM nor DER", "replace it; a half-written file is one reason")


def _certificate(der: bytes) -> bytes:
    try:
        x509.load_der_x509_certificate(der)
    except Exception as e:  # noqa: BLE001 hostile bytes raise anything
        raise Unusable(f"it holds no readable certificate: {str(e)[:120] or type(e).__name__}", "replace it") from None
    return der


def pem_blocks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Label, body and whole of each PEM block; a block without its end is none.  One pass, however hostile."""
    at = 0
    while (start := data.find(BEGIN, at)) >= 0:
        at = start + len(BEGIN)
        label_end = data.find(DASHES, at, at + 64)
        if label_end < 0:
            continue
        label = data[at:label_end]
        body = label_end + len(DASHES)
        end = data.find(DASHES, body)
        if end < 0:
            return
        last = b"-----END " + label + DASHES
        if data.startswith(last, end):
            yield label, data[body:end], data[start : end + len(last)]
            at = end + len(last)


def pem_certificates(data: bytes, limit: int = MAX_BLOCKS) -> tuple[bytes, ...]:
    """The certificates (DER) of a PEM file, not looked into.

    Raises:
        Unusable: too many, or not base64.
    """
    bodies = [body for label, body, _ in pem_blocks(data) if label in CERTIFICATE_LABELS]
    if len(bodies) > limit:
        raise Unusable(f"it holds more than {limit} certificates", "split it")
    return tuple(_base64(body) for body in bodies)


def _base64(body: bytes) -> bytes:
    try:
        return binascii.a2b_base64(body)
    except binascii.Error:
        raise Unusable("a certificate in it is not base64", "replace it") from None


def _pem(data: bytes) -> Contents:
    certificates: list[bytes] = []
    keys: list[SealedKey] = []
    for label, body, whole in pem_blocks(data):
        if label in CERTIFICATE_LABELS:
            certificates.append(_certificate(_base64(body)))
        elif label.endswith(b"PRIVATE KEY"):
            # PKCS#8 says so in its label, the older formats in a header.
            encrypted = label.startswith(b"ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in body
            keys.append(_pkcs8(body) or SealedKey(whole + b"\n", pem=True, encrypted=encrypted))
        if len(certificates) + len(keys) > MAX_BLOCKS:
            raise Unusable(f"it holds more than {MAX_BLOCKS} certificates and keys", "split it")
    if not certificates and not keys:
        raise Unusable("it holds neither a certificate nor a private key", "move it away")
    return Contents(tuple(certificates), tuple(keys))


def _pkcs8(body: bytes) -> SealedKey | None:
    """The key of a PEM block, if it is one of RSA that :meth:`SealedKey.fits` knows without parsing it."""
    try:
        der = binascii.a2b_base64(body)
    except binascii.Error:
        return None
    return SealedKey(der, pem=False, encrypted=False) if RSA_MODULUS.match(der) else None


def _der_key(data: bytes) -> SealedKey:
    try:
        load_der_private_key(data, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:  # "password was not given"
        return SealedKey(data, pem=False, encrypted=True)
    except (ValueError, UnsupportedAlgorithm) as e:
        raise Unusable(f"the private key cannot be read ({type(e).__name__})", "export the key again") from None
    return SealedKey(data, pem=False, encrypted=False)


def _pkcs12(data: bytes, passphrase: Passphrase | None) -> Contents:
    secret = None if passphrase is None else passphrase.read()
    try:
        try:
            bundle = pkcs12.load_pkcs12(data, secret)
        except ValueError:
            if secret is None:
                raise
            bundle, secret = pkcs12.load_pkcs12(data, None), None  # this one may need none
    except UnsupportedAlgorithm:
        raise Unusable(
            "the PKCS#12 file uses an algorithm that is not available here", "export it with AES-256"
        ) from None
    except Exception:  # noqa: BLE001 hostile bytes; the library's words may not be kept
        cure = "check the passphrase" if secret else "name the file or variable that holds its passphrase"
        raise Unusable("the PKCS#12 file does not open, or it is none", cure) from None
    if bundle.cert is None:
        raise Unusable("the PKCS#12 file holds no certificate", "export the certificate with its key")
    leaf = bundle.cert.certificate.public_bytes(Encoding.DER)
    others = (one.certificate.public_bytes(Encoding.DER) for one in bundle.additional_certs)
    keys = (
        () if bundle.key is None else (SealedKey(b"", pem=False, encrypted=secret is not None, key=usable(bundle.key)),)
    )
    return Contents((leaf, *others), keys)
