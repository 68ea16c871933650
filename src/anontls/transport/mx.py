"""Which hosts take mail for a domain, asked of DNS [RFC5321 5.1]."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from anontls.delivery.address_space import normal_domain
from anontls.errors import AnontlsError
from anontls.smtp import Reply

# dnspython is imported when somebody asks: it takes longer to load than all the rest of a node.
if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as StubResolver
    from dns.rdtypes.ANY.MX import MX

LIFETIME = 10.0  # seconds that a lookup may take, with all its repetitions
MOST_LOOKUPS = 100  # at a time: each has a socket
MOST_HOSTS = 25  # of a domain; the best are kept
# Of dnspython's cache.  An answer over TCP may hold thousands of records, and its owner may call it valid for decades.
MOST_ANSWERS = 2000
MOST_RECORDS = 100
LONGEST_LIFE = 3600.0  # seconds


class HostsFailed(AnontlsError):
    """There is no host to try.  ``reply`` stands for the answer of one: 4yz, try again later; 5yz, there will be none."""

    def __init__(self, code: int, text: str) -> None:
        self.reply = Reply(code, (text,))
        super().__init__(str(self.reply))


class Resolver(Protocol):
    """What we ask of DNS."""

    async def mx(self, domain: str) -> list[tuple[int, str]]:
        """The hosts that take mail for ``domain`` with their preference, the lowest number first; never empty.

        Raises:
            HostsFailed: there are none, or it could not be found out now.
        """
        ...

    def forget(self) -> None:
        """What was learnt may have changed."""
        ...


class DnsResolver:
    """Asks ``nameservers`` (addresses), or those of the system; answers are kept as long as they are valid."""

    def __init__(self, nameservers: Sequence[str] = (), *, port: int = 53, lifetime: float = LIFETIME) -> None:
        self.nameservers = nameservers
        self.port = port
        self.lifetime = lifetime
        self._stub: StubResolver | None = None
        self._turns = asyncio.Semaphore(MOST_LOOKUPS)

    def forget(self) -> None:
        """Read the settings of the system again, with an empty cache."""
        self._stub = None

    async def mx(self, domain: str) -> list[tuple[int, str]]:
        try:
            name = normal_domain(domain)
        except ValueError as e:
            raise HostsFailed(550, f"5.1.2 {e}") from None
        from dns.exception import DNSException
        from dns.resolver import NXDOMAIN

        try:
            async with self._turns, asyncio.timeout(self.lifetime):
                return await self._ask(name)
        except NXDOMAIN:
            raise HostsFailed(550, f"5.4.310 DNS domain {name} does not exist") from None
        except TimeoutError:
            raise HostsFailed(451, f"4.4.0 DNS query for {name} failed: no answer in {self.lifetime:g} s") from None
        except (DNSException, OSError, ValueError) as e:  # ValueError: settings of the system that are none
            raise HostsFailed(451, f"4.4.0 DNS query for {name} failed: {e}") from None

    async def _ask(self, name: str) -> list[tuple[int, str]]:
        stub = self._stub = self._stub or self._new_stub()
        answer = await stub.resolve(f"{name}.", "MX", raise_on_no_answer=False)
        if answer.rrset is not None:
            return _hosts(name, cast("list[MX]", list(answer.rrset)))
        for kind in ("A", "AAAA"):  # without MX records the domain itself is the host [RFC5321 5.1]
            if (await stub.resolve(f"{name}.", kind, raise_on_no_answer=False)).rrset is not None:
                return [(0, name)]
        raise HostsFailed(550, f"5.4.4 {name} has neither MX records nor an address")

    def _new_stub(self) -> StubResolver:
        from dns.asyncresolver import Resolver
        from dns.resolver import Answer, LRUCache

        class Cache(LRUCache):
            def put(self, key: Any, value: Answer) -> None:
                records = sum(len(rrset) for section in value.response.sections for rrset in section)
                if records <= MOST_RECORDS:
                    value.expiration = min(value.expiration, time.time() + LONGEST_LIFE)
                    super().put(key, value)

        stub = Resolver(configure=not self.nameservers)
        if self.nameservers:
            stub.nameservers, stub.port = list(self.nameservers), self.port
        stub.lifetime = self.lifetime
        stub.cache = Cache(MOST_ANSWERS)
        return stub


def _hosts(domain: str, records: Sequence[MX]) -> list[tuple[int, str]]:
    """The records that name a host; anything may stand in them."""
    names = [(record.preference, record.exchange.to_text(omit_final_dot=True)) for record in records]
    if all(name == "." for _, name in names):  # [RFC7505 3]
        raise HostsFailed(556, f"5.1.10 {domain} does not accept mail (null MX)")
    hosts = []
    for preference, name in sorted(names):
        try:
            hosts.append((preference, normal_domain(name)))
        except ValueError:
            continue
    if not hosts:
        raise HostsFailed(550, f"5.4.4 no MX record of {domain} names a host")
    return hosts[:MOST_HOSTS]


def best_first(
    domain: str, hosts: Sequence[tuple[int, str]], own: str, shuffle: Callable[[list[Any]], object]
) -> list[str]:
    """The hosts in the order to try, those of the same preference by chance; ``own`` is the name of this server.

    Where this server is one of them, it and all that are not better are left out, else mail would go in circles
    [RFC5321 5.1].

    Raises:
        HostsFailed: none is better than this server.
    """
    limit = min((preference for preference, name in hosts if name == own.lower()), default=None)
    better = [host for host in hosts if limit is None or host[0] < limit]
    if not better:
        raise HostsFailed(554, f"5.4.6 mail for {domain} loops back to this server")
    shuffle(better)
    return [name for _, name in sorted(better, key=lambda host: host[0])]
