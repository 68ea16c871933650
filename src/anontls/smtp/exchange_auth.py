"""The token of ``X-EXPS EXCHANGEAUTH SHA256`` between nodes of this program.

It is **not** Microsoft's token, whose layout is not published.  Two Kerberos tokens, and a signature by which the
receiver proves that it sees the sender's TLS session: that of X-ANONYMOUSTLS, by its exporter [RFC9266 2].

=======  ================================================================================
octets   of either token
=======  ================================================================================
4        ``AXA1``: what this is, and the version of its layout
1        1 from the initiator, 2 from the acceptor
2, n     length of the Kerberos token (most significant octet first), and the token
2, n     from the acceptor: length of the signature, and the signature over :func:`signed`
=======  ================================================================================
"""

from __future__ import annotations

import hashlib
from typing import Final

MAGIC: Final = b"AXA1"
INITIATOR, ACCEPTOR = 1, 2
MAX_FIELD: Final = 0xFFFF  #: octets
_FIELDS: Final = {INITIATOR: 1, ACCEPTOR: 2}


def pack(kind: int, *fields: bytes) -> bytes:
    """A token."""
    return MAGIC + bytes([kind]) + b"".join(len(field).to_bytes(2) + field for field in fields)


def unpack(token: bytes, kind: int) -> list[bytes]:
    """The fields of a token of that kind.

    Raises:
        ValueError: it is none.
    """
    head = MAGIC + bytes([kind])
    if not token.startswith(head):
        raise ValueError(f"does not begin with {head.hex()}")
    fields, at = [], len(head)
    for _ in range(_FIELDS[kind]):
        start = at + 2
        at = start + int.from_bytes(token[at:start])
        if start > len(token) or at > len(token):
            raise ValueError("is cut off")
        fields.append(token[start:at])
    if at != len(token):
        raise ValueError(f"{len(token) - at} octets too many")
    return fields


def signed(exporter: bytes, initiator: bytes, answer: bytes) -> bytes:
    """What the acceptor signs: SHA-256 of the channel, the initiator's token, and its own Kerberos token."""
    return hashlib.sha256(pack(ACCEPTOR, exporter, initiator, answer)).digest()
