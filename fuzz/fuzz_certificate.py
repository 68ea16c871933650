"""Certificates: any bytes make a :class:`Certificate`, whatever can be told of it; and files of them."""

import base64
import contextlib

from anontls.directory.exchange_export.formats import read_objects
from anontls.directory.exchange_export.sources import SourceFile
from anontls.errors import MalformedInput
from anontls.facts import Certificate, certificate_bytes

_DER = base64.b64decode(
    "MIIBZTCCAQugAwIBAgIBATAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDDARNQlgxMB4XDTI0MDEwMTAwMDAwMFoXDTI5MDEwMTAwMDAwMFowDzENMA"
    "sGA1UEAwwETUJYMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHRvxmDA9JI/W3ShWsN2P00WW55WNbCgxAC7ANv3UySbxuq/71evZFIKB2oA"
    "J/L+RoWfA+HUosylX8EHys4DHj+jWDBWMCEGA1UdEQQaMBiCBE1CWDGCEG1ieDEuZXhhbXBsZS5vcmcwDgYDVR0PAQH/BAQDAgWgMBMGA1UdJQ"
    "QMMAoGCCsGAQUFBwMBMAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDSAAwRQIhALSHIdluEJIKjJ8sIeT6pmI8Bp9HkQzlXAdsrvUs4YsoAiAf"
    "LnJqEqZ5A4p1T8q8B0aEFIchi+8XQXdE2pLULT5EBw=="
)
SEEDS = [_DER, b"\x03\0\0\0\1\0\0\0\4\0\0\0hash\x20\0\0\0\1\0\0\0" + len(_DER).to_bytes(4, "little") + _DER]
TOKENS = [b"\x30\x82", b"\x02\x01\x00", b"\xff\xff\xff\xff", b"\x20\0\0\0", b"\x80", b"\x13", b"\x1e", b"\x05\x00"]


def one_input(data: bytes) -> None:
    certificate = Certificate(der=data)
    for name in ("key", "signature_algorithm", "sort_key", "thumbprint", "subject", "certificate_domains"):
        repr(getattr(certificate, name))
    certificate.named("mbx1.example.org")
    with contextlib.suppress(ValueError):
        certificate_bytes(data)
    with contextlib.suppress(MalformedInput):
        list(read_objects(SourceFile("fuzz", data)))
