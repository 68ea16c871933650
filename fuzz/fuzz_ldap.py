"""Objects of a directory: any name and any bytes in any attribute make a snapshot; and the certificate in a value."""

import contextlib

from anontls.directory import snapshot
from anontls.directory.exchange_export.place import place_pieces
from anontls.directory.ldap.certificate import certificate_of
from anontls.directory.ldap.entry import Entry
from anontls.directory.ldap.objects import ATTRIBUTES, CLASSES, Reader
from fuzz.fuzz_certificate import SEEDS as CERTIFICATES

_DN = (
    b"CN=Default MBX1,CN=SMTP Receive Connectors,CN=Protocols,CN=MBX1,CN=Servers,CN=X,CN=Contoso,CN=Microsoft Exchange"
)
_VALUES = [
    b"CN=Berlin,CN=Sites",
    b"ncacn_ip_tcp:mbx1.contoso.com",
    b"Version 15.2 (Build 1.2)",
    b"54",
    b"SMTP:*;1",
    b"--",
]
_PKCS7 = b"\x30\x82\x00\x20\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x82\x00\x11"
SEEDS = [*CERTIFICATES, _PKCS7, *(b"\0".join([_DN, *[value] * len(ATTRIBUTES)]) for value in _VALUES)]
TOKENS = [b"\x30\x82", b"\xa0\x03\x02\x01\x02", b"\x03\x01\x00", b"\0", b"\\2C", b"\\", b",CN=Servers", b"=", b"\xff"]


def one_input(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        certificate_of(data)
    dn, *values = data.split(b"\0")
    attributes = {
        name: [value, data] if not value else [value] for name, value in zip(ATTRIBUTES, values, strict=False)
    }
    reader = Reader("fuzz", adlds=len(data) % 2 == 1, as_server=False, unset=lambda attribute: (), collected=None)
    entries = [Entry(dn.decode("utf-8", "replace"), {**attributes, "objectClass": [kind.encode()]}) for kind in CLASSES]
    organization, _ = place_pieces(piece for entry in entries for piece in reader.pieces(entry))
    if snapshot.load(snapshot.dump(organization), "fuzz") != organization:
        raise AssertionError("what is written is not what is read")
