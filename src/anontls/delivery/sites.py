"""Paths between Active Directory sites: cheapest first, then fewer hops, then the lower site name [FACT D 6.2]."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import msgspec


class SiteLink(msgspec.Struct, frozen=True):
    """Two sites and what the way between them costs."""

    one: str
    other: str
    cost: int


class Path(NamedTuple):
    """A way between two sites; the lesser, the better.  ``names`` begin at the far end."""

    cost: int
    hops: int
    names: tuple[str, ...]


def best_path(links: Iterable[SiteLink], start: str, end: str) -> Path | None:
    """The best way; ``None`` when no links lead there.  Names compare without case."""
    near: dict[str, list[tuple[str, int]]] = {}
    for link in links:
        one, other = link.one.lower(), link.other.lower()
        near.setdefault(one, []).append((other, link.cost))
        near.setdefault(other, []).append((one, link.cost))
    start, end = start.lower(), end.lower()
    heap = [(Path(0, 0, (start,)), start)]
    done: set[str] = set()
    while heap:
        path, site = heapq.heappop(heap)
        if site == end:
            return path
        if site in done:
            continue
        done.add(site)
        for other, cost in near.get(site, ()):
            heapq.heappush(heap, (Path(path.cost + cost, path.hops + 1, (other, *path.names)), other))
    return None
