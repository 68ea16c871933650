"""The file of an Edge node: anything is read as it would be written again, or refused with its place."""

from anontls.directory import edge_subscription
from anontls.errors import MalformedInput
from anontls.facts import Certificate
from fuzz.fuzz_certificate import SEEDS as CERTIFICATES

_READABLE = [each for each in (Certificate(der=der) for der in CERTIFICATES) if each.x509 is not None]
SEEDS = [
    b"{}",
    *(edge_subscription.dump(edge_subscription.make("EDGE1", "edge1.contoso.com", each)) for each in _READABLE),
]
TOKENS = [
    b'"schema"',
    b"anontls/edge-subscription/1",
    b'"EDGE1"',
    b"\\u0000",
    b"[",
    b"{",
    b'"',
    b",CN=",
    b"MII",
    b"\xff",
]


def one_input(data: bytes) -> None:
    try:
        read = edge_subscription.loads(data, "fuzz")
    except MalformedInput as e:
        if not str(e).startswith("fuzz: "):
            raise
        return
    if edge_subscription.loads(edge_subscription.dump(read), "fuzz") != read:
        raise AssertionError("what is written is not what is read")
