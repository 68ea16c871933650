"""The file that an Edge node hands to ``anontls edge sync``: its name and its public certificate, ``anontls/edge-subscription/1``.

It is not the file of New-EdgeSubscription, which has a credential in it [FACT D 5.5].  There is no secret in ours.  It
is not signed either: the only key that could sign is the one that the file itself brings.  So whoever uses it compares
the certificate's SHA-256 fingerprint with the one that the Edge showed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec

from anontls.errors import MalformedInput
from anontls.facts import Certificate

SCHEMA: Final = "anontls/edge-subscription/1"
MAX_BYTES: Final = 64 << 10  # a certificate of 1 to 4 KiB, and names
#: Nothing that needs an escape in a distinguished name or a filter.
NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})", re.ASCII)

Name = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}\Z")]
Fqdn = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})+\Z", max_length=255)]


class _Version(msgspec.Struct):
    schema: str


class Subscription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An Edge server as it presents itself."""

    schema: str = SCHEMA
    server: Name
    fqdn: Fqdn
    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_BYTES)]  #: DER
    fingerprint: str  #: SHA-256 of the certificate, 64 upper-case hexadecimal digits

    def __post_init__(self) -> None:
        certificate = Certificate(der=self.certificate)
        if certificate.x509 is None:
            raise ValueError("the certificate cannot be read")
        if certificate.fingerprint != self.fingerprint:
            raise ValueError(f"the fingerprint is not that of the certificate, which is {certificate.fingerprint}")


_DECODER: Final = msgspec.json.Decoder(Subscription)


def make(server: str, fqdn: str, certificate: Certificate) -> Subscription:
    """A subscription for a certificate whose bytes are there.

    Raises:
        MalformedInput: a name is none.
    """
    assert certificate.der is not None
    assert certificate.fingerprint is not None
    made = Subscription(server=server, fqdn=fqdn, certificate=certificate.der, fingerprint=certificate.fingerprint)
    return loads(dump(made), "the subscription")


def dump(subscription: Subscription) -> bytes:
    """The file."""
    return msgspec.json.format(msgspec.json.encode(subscription), indent=2) + b"\n"


def load(path: Path) -> Subscription:
    """Read a file.

    Raises:
        MalformedInput: it cannot be read, or is no subscription; says at which place.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise MalformedInput(str(path), e.strerror or str(e)) from None
    return loads(data, str(path))


def loads(data: bytes, name: str) -> Subscription:
    """Read the bytes of a file that messages call ``name``.

    Raises:
        MalformedInput: as :func:`load`.
    """
    if len(data) > MAX_BYTES:
        raise MalformedInput(name, f"more than the {MAX_BYTES:,} bytes that a subscription may have")
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema != SCHEMA:
            hint = "`anontls edge subscribe` makes one; the file of New-EdgeSubscription is not one"
            raise MalformedInput(f"{name}: $.schema", f"{schema[:100]!r} instead of {SCHEMA!r}", hint=hint)
        return _DECODER.decode(data)
    except msgspec.ValidationError as e:
        what, _, place = str(e).partition(" - at `")
        raise MalformedInput(f"{name}: {place.rstrip('`') or '$'}", what) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
        raise MalformedInput(name, f"not JSON: {e}") from None
