"""Tokens of EXCHANGEAUTH: any octets are fields, which make the same token again, or ``ValueError``."""

import contextlib

from anontls.smtp.exchange_auth import ACCEPTOR, INITIATOR, MAGIC, pack, unpack

SEEDS = [pack(INITIATOR, b"x" * 700), pack(ACCEPTOR, b"y" * 150, b"z" * 28), pack(INITIATOR, b""), b""]
TOKENS = [MAGIC, b"\0\0", b"\xff\xff", b"\1", b"\2", pack(ACCEPTOR, b"", b"")]


def one_input(data: bytes) -> None:
    for kind in (INITIATOR, ACCEPTOR):
        with contextlib.suppress(ValueError):
            if pack(kind, *unpack(data, kind)) != data:
                raise AssertionError("another token has the same fields")
