"""What stands in clear in an initiator's first token.

Nothing of it is proved, but the library does not tell it afterwards.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from anontls.kerberos.failure import KerberosFailed, Reason

#: aes128-cts-hmac-sha1-96 and aes256 [RFC3962 7], their successors with SHA-2 [RFC8009 7].
AES: Final = frozenset({17, 18, 19, 20})
# Object identifier of the Kerberos mechanism, and the token's kind: AP-REQ [RFC4121 4.1].
_AP_REQ: Final = bytes.fromhex("06092a864886f712010202") + b"\x01\x00"


class Request(NamedTuple):
    """What stands in clear in an initiator's first token; nothing of it is proved."""

    service: str  #: without its realm
    ticket: int  #: encryption type
    session_key: int  #: encryption type, which is the authenticator's


def request_of(token: bytes) -> Request:
    """Read an AP-REQ [RFC4120 5.5.1].

    Raises:
        ValueError: it is none.
    """
    frame, rest = _element(token, 0x60)
    if rest or not frame.startswith(_AP_REQ):
        raise ValueError("not a token of the Kerberos mechanism")
    fields = _fields(frame[len(_AP_REQ) :], 0x6E, 0xA0, 0xA1, 0xA2, 0xA3, 0xA4)
    ticket = _fields(fields[3], 0x61, 0xA0, 0xA1, 0xA2, 0xA3)
    return Request(_name(ticket[2]), _encryption_type(ticket[3]), _encryption_type(fields[4]))


def checked_request(token: bytes) -> Request:
    """The same, of what is to be taken.

    Raises:
        KerberosFailed: it is none, or not AES.
    """
    try:
        request = request_of(token)
    except ValueError as e:
        raise KerberosFailed(Reason.MALFORMED, str(e)) from None
    if not AES.issuperset(request[1:]):
        raise KerberosFailed(
            Reason.NO_AES,
            f"ticket and session key are of the encryption types {request.ticket} and {request.session_key}; the account"
            f" of {request.service} wants 24 in msDS-SupportedEncryptionTypes and then a new password",
        )
    return request


def _name(principal: bytes) -> str:
    names = _element(_fields(principal, 0x30, 0xA0, 0xA1)[1], 0x30)[0]
    parts = []
    while names:
        part, names = _element(names, 0x1B)
        parts.append(part.decode("ascii", "replace"))
    return "/".join(parts)


def _encryption_type(encrypted: bytes) -> int:
    (kind,) = _fields(encrypted, 0x30, 0xA0)
    return int.from_bytes(_element(kind, 0x02)[0], signed=True)


def _fields(data: bytes, head: int, *tags: int) -> list[bytes]:
    """The first fields of a sequence, which may stand in an application's tag."""
    rest, _ = _element(data, head)
    if head != 0x30:
        rest, _ = _element(rest, 0x30)
    values = []
    for tag in tags:
        value, rest = _element(rest, tag)
        values.append(value)
    return values


def _element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The value of the DER element at the front, and what stands behind it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError(f"no element {tag:#x} where one belongs")
    at, size = 2, data[1]
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(data[2:at]) if 2 < at <= 5 else len(data)
    if at + size > len(data):
        raise ValueError(f"element {tag:#x} is cut off, or longer than any token")
    return data[at : at + size], data[at + size :]
