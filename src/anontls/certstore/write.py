"""Put a certificate into a folder store: the file appears whole or not at all, and nobody else can read it."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from anontls.certstore import bindings, files
from anontls.certstore.bindings import Binding
from anontls.certstore.files import Passphrase, Unusable
from anontls.facts import Certificate
from anontls.facts.names import common_names
from anontls.facts.own_certificate import PrivateKey


def prepare(folder: Path) -> None:
    """Make the folder, mode 0700, or check that it is fit for private keys.

    Raises:
        Unusable: others may read it, it cannot be made, or its ``bindings.toml`` has faults.
    """
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
        state = folder.stat()
    except OSError as e:
        raise Unusable(f"the certificate store {folder}: {e.strerror}", files.cure_of(e)) from None
    if not folder.is_dir():
        raise Unusable(f"the certificate store {folder} is not a folder", "name a folder")
    unsafe = files.open_to_others(state.st_mode, state.st_uid, folder, folder=True)
    if unsafe is not None:
        raise Unusable(f"the certificate store {folder} is not safe for private keys: {unsafe.message}", unsafe.cure)
    _bindings(folder / bindings.FILE)  # before anything is written


def add(
    folder: Path,
    certificate: Certificate,
    key: PrivateKey | None,
    chain: tuple[bytes, ...] = (),
    passphrase: Passphrase | None = None,
) -> Path:
    """Write the certificate, its chain and its key into one new PEM file; with a ``passphrase`` the key is encrypted.

    Raises:
        Unusable: there is such a file, or it cannot be written.
    """
    assert certificate.der is not None
    pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in (certificate.der, *chain))
    if key is not None:
        sealed = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.read())
        pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed)
    path = folder / file_name(certificate)
    if os.path.lexists(path):
        raise Unusable(f"{path} is there already", "remove it first, or leave it")
    _write(path, pem)
    return path


def bind(folder: Path, thumbprint: str, binding: Binding) -> Binding:
    """Enable the certificate for services: they are added to those that it has.  Returns what is bound now.

    Raises:
        Unusable: the present ``bindings.toml`` cannot be read without losing something, or it cannot be written.
    """
    path = folder / bindings.FILE
    text, bound = _bindings(path)
    old = bound.get(thumbprint)
    new = binding if old is None else bindings.merged(old, binding)
    if old is None:  # what stands there stays as it is, with its comments
        _write(
            path,
            (text or bindings.HEADER.encode()).rstrip()
            + b"\n"
            + bindings.block(thumbprint, new).encode(errors="replace"),
        )
    elif new != old:
        _write(path, bindings.dump({**bound, thumbprint: new}))
    return new


def _bindings(path: Path) -> tuple[bytes, dict[str, Binding]]:
    if not os.path.lexists(path):
        return b"", {}
    text, _ = files.read(path, files.MAX_BUNDLE)
    try:
        bound, faults = bindings.parse(text)
    except ValueError as e:
        raise Unusable(f"{path}: {e}", "mend it first") from None
    if faults:
        raise Unusable(f"{path}: {faults[0].message}", faults[0].cure)
    return text, bound


def file_name(certificate: Certificate) -> str:
    """A name that says whose certificate it is, and that no other certificate has."""
    names = common_names(certificate.subject) if isinstance(certificate.subject, str) else ()
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", names[0] if names else "")[:40].strip("._-")
    return f"{readable or 'certificate'}-{str(certificate.thumbprint)[:12].lower()}.pem"


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name, too, outlives a power cut
            finally:
                os.close(folder)
    except OSError as e:
        raise Unusable(f"{path} cannot be written: {e.strerror}", files.cure_of(e)) from None
