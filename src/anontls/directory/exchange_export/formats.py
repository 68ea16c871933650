"""Which form a file has, told by its content, and its objects in that form."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from cryptography import x509

from anontls.directory.exchange_export.clixml import read_clixml
from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.format_list import read_format_list
from anontls.directory.exchange_export.json_output import read_json
from anontls.directory.exchange_export.sources import SourceFile, decode, encoding_of
from anontls.errors import MalformedInput
from anontls.facts import certificate_bytes

Format: TypeAlias = Literal["clixml", "json", "snapshot", "certificate", "format-list"]

MAX_CERTIFICATE: Final = 1 << 20

_HEAD = 8192  # bytes that show the form

_CERTIFICATE = "Give the certificate alone, as DER or PEM: `Export-Certificate -Type CERT` writes it."
_EXPORT = "Write it with `Export-Clixml`."

_CLIXML = re.compile(
    r"(?:#< CLIXML\s+)?(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!--(?:(?!-->).){0,2000}-->\s*)*<(?:Objs[\s>/]|!DOCTYPE)",
    re.DOTALL,
)
_JSON = re.compile(r'\{\s*["}]|\[\s*[\[{\]]')  # `[PS] C:\>` is a prompt
_SNAPSHOT = re.compile(rb'"schema"\s*:\s*"anontls/org/')
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{100,}")
_CONTROLS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")


def recognise(data: bytes, name: str = "") -> Format:
    """The form that ``data`` has; whether it is sound, only reading it tells.

    Raises:
        MalformedInput: it cannot be any of them; the hint says what to do about the ones that are met.
    """
    if _is_der(data) or _is_serialized(data):
        return "certificate"
    encoding, start = encoding_of(data)
    head = data[start : start + _HEAD].decode(encoding, "ignore").lstrip()  # "ignore": half a character at the end
    if "-----BEGIN " in head or (head.startswith("MII") and _BASE64.fullmatch(head)):
        return "certificate"
    if _CLIXML.match(head):
        return "clixml"
    if head.startswith("<"):
        raise MalformedInput(name, f"XML or HTML, but not CLIXML: it begins with {head[:40]!r}", hint=_EXPORT)
    if _JSON.match(head):
        narrow = data.replace(b"\0", b"") if b"\0" in data[:_HEAD] else data
        return "snapshot" if head.startswith("{") and _SNAPSHOT.search(narrow) else "json"
    if _CONTROLS.search(head):
        raise MalformedInput(name, "neither text nor a certificate", hint=_EXPORT)
    return "format-list"


def read_objects(source: SourceFile) -> Iterator[CmdletObject]:
    """The objects of one file, in any of the forms but a snapshot.

    Raises:
        MalformedInput: see the reader of each form; objects before the fault have been given.
    """
    form = recognise(source.data, source.name)
    if form == "certificate":
        yield from _certificates(source)
        return
    text = decode(source.data, source.name)
    match form:
        case "clixml":
            yield from read_clixml(text, source.name)
        case "json":
            yield from read_json(text, source.name)
        case "format-list":
            yield from read_format_list(text, source.name)
        case "snapshot":
            raise MalformedInput(source.name, "a snapshot of an organisation, not an export")


# --- certificates -----------------------------------------------------------------------------------------------------


def _is_der(data: bytes) -> bool:
    return data[:1] == b"\x30" and 0x81 <= int.from_bytes(data[1:2], "big") <= 0x84  # a length of several bytes


def _is_serialized(data: bytes) -> bool:
    if data[4:8] != b"\1\0\0\0":  # X509_ASN_ENCODING of the first property
        return False
    try:
        return bool(certificate_bytes(data))
    except ValueError:
        return False


def _certificates(source: SourceFile) -> Iterator[CmdletObject]:
    """The certificates of a ``.cer``, ``.crt`` or ``.pem`` file, each as an object with ``RawData`` alone."""
    if _is_der(source.data) or _is_serialized(source.data):
        found = iter([certificate_bytes(source.data)])
    else:
        found = _armoured(decode(source.data, source.name), source.name)
    for number, der in enumerate(found, 1):
        where = f"certificate {number}"
        _refuse_others(der, f"{source.name}: {where}")
        yield CmdletObject(file=source.name, where=where, format="certificate", properties={"RawData": der})


def _armoured(text: str, name: str) -> Iterator[bytes]:
    """What the PEM blocks hold, keys left out; or the one certificate that is base64 without them."""
    count, at = 0, text.find("-----BEGIN ")
    if at < 0:
        yield _base64(text, name)
        return
    while at >= 0:
        label, _, _ = text[at + 11 : at + 75].partition("-----")
        end = text.find(f"-----END {label}-----", at)
        if end < 0:
            raise MalformedInput(name, f"the PEM block {label!r} does not end")
        if label in {"CERTIFICATE", "X509 CERTIFICATE"}:
            yield _base64(text[at + 16 + len(label) : end], name)
            count += 1
        elif not label.endswith(("PRIVATE KEY", "PARAMETERS")):
            raise MalformedInput(name, f"PEM holds {label!r}, not a certificate", hint=_CERTIFICATE)
        at = text.find("-----BEGIN ", end)
    if not count:
        raise MalformedInput(name, "a private key without a certificate", hint=_CERTIFICATE)


def _base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as e:
        raise MalformedInput(name, f"not base64: {e}") from None


def _refuse_others(der: bytes, where: str) -> None:
    """Raise for what is no certificate, by what it is where that can be told."""
    if len(der) > MAX_CERTIFICATE:
        raise MalformedInput(where, f"larger than {MAX_CERTIFICATE >> 20} MiB")
    try:
        x509.load_der_x509_certificate(der)
    except Exception as e:  # noqa: BLE001 - hostile bytes: the library raises more than ValueError
        inside = der[2 + (der[1] & 0x7F if der[1] & 0x80 else 0) :][:12] if len(der) > 1 else b""
        if inside[:1] == b"\x06":
            what = "PKCS#7, not a certificate"
        elif inside[:3] == b"\2\1\3":
            what = "PKCS#12, not a certificate"
        else:
            what = f"not a certificate that can be read: {str(e)[:200] or type(e).__name__}"
        raise MalformedInput(where, what, hint=_CERTIFICATE) from None
