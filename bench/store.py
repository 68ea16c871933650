"""A certificate store in a folder, as large as is wanted."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bench.organization import AS_OF

KEYS = 4  # making one for each certificate would take an hour


def write_store(folder: Path, count: int) -> None:
    """``count`` self-signed certificates, each with its RSA-2048 key in the same file."""
    folder.mkdir(mode=0o700)
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(KEYS)]
    texts = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys]
    for number in range(count):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"MBX{number}")])
        names = [x509.DNSName(f"MBX{number}"), x509.DNSName(f"mbx{number}.contoso.com")]
        key = keys[number % KEYS]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(number + 1)
            .not_valid_before(AS_OF)
            .not_valid_after(AS_OF + timedelta(days=5 * 365))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        with os.fdopen(os.open(folder / f"mbx{number}.pem", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(certificate.public_bytes(Encoding.PEM) + texts[number % KEYS])
