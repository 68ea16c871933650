"""A generated organisation of many servers, as the files of an export: what the import and decision benchmark reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from anontls.directory import demo_export as powershell
from anontls.facts import thumbprint_of

AS_OF = datetime(2026, 11, 24, tzinfo=UTC)


def write_export(folder: Path, servers: int) -> None:
    """Write the export of ``servers`` Mailbox servers, with a certificate and two Receive connectors each."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [f"SRV{n:05}" for n in range(servers)]
    certificates = {name: _certificate(name, key) for name in names}
    files = {
        "Get-ExchangeServer.xml": (powershell.exchange_server(name) for name in names),
        "Get-ExchangeCertificate.xml": (
            powershell.exchange_certificate(name, der, services=16) for name, der in certificates.items()
        ),
        "Get-ReceiveConnector.xml": (
            powershell.receive_connector(name, f"{kind} {name}", port, role, 31, 14)
            for name in names
            for kind, port, role in (("Default", 2525, "HubTransport"), ("Default Frontend", 25, "FrontendTransport"))
        ),
        "ServerInternalTLSCert.xml": (powershell.server_attribute(name, der) for name, der in certificates.items()),
    }
    for file, objects in files.items():
        (folder / file).write_text(powershell.clixml(objects), encoding="utf-8")
    shown = [
        {"Name": name, "InternalTransportCertificateThumbprint": thumbprint_of(der)}
        for name, der in certificates.items()
    ]
    (folder / "Get-TransportService.json").write_text(json.dumps(shown), encoding="utf-8")


def _certificate(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName(f"{name.lower()}.contoso.com")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(AS_OF - timedelta(days=365))
        .not_valid_after(AS_OF + timedelta(days=1460))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.DER)
