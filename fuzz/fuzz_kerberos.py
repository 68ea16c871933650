"""An initiator's first Kerberos token: any octets are a request, or ``ValueError``."""

import contextlib

from anontls.kerberos.request import request_of


def der(tag: int, *parts: bytes) -> bytes:
    value = b"".join(parts)
    size = len(value).to_bytes(2)
    return bytes([tag]) + (size[1:] if len(value) < 128 else b"\x82" + size) + value


def number(tag: int, value: int) -> bytes:
    return der(tag, der(0x02, value.to_bytes(2, signed=True)))


def token(ticket: int, session: int, size: int) -> bytes:
    """As an initiator's first one; what is encrypted is not."""

    def encrypted(kind: int) -> bytes:
        return der(0x30, number(0xA0, kind), number(0xA1, 2), der(0xA2, der(0x04, b"x" * size)))

    parts = der(0x1B, b"SMTPSVC"), der(0x1B, b"mbx2.contoso.com")
    names = der(0xA1, der(0x1B, b"CONTOSO.COM")), der(0xA2, der(0x30, number(0xA0, 2), der(0xA1, der(0x30, *parts))))
    issued = der(0x61, der(0x30, number(0xA0, 5), *names, der(0xA3, encrypted(ticket))))
    options = der(0xA2, der(0x03, b"\0\x20\0\0\0"))
    request = number(0xA0, 5), number(0xA1, 14), options, der(0xA3, issued), der(0xA4, encrypted(session))
    return der(0x60, bytes.fromhex("06092a864886f712010202"), b"\1\0", der(0x6E, der(0x30, *request)))


SEEDS = [token(18, 18, 300), token(23, 17, 20), token(-1, 20, 0)]
if [request_of(seed)[1:] for seed in SEEDS] != [(18, 18), (23, 17), (-1, 20)]:
    raise AssertionError("a seed is not read")
TOKENS = [b"\x60", b"\x80", b"\x82\xff\xff", b"\x84\xff\xff\xff\xff", b"\xa3", b"\x30\0", b"\2\1\x17", b"\x6e", b"\x61"]


def one_input(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        service, *kinds = request_of(data)
        if not all(isinstance(kind, int) for kind in kinds) or len(service) > len(data):
            raise AssertionError("not a request")
