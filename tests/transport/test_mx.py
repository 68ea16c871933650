"""MX lookups against a DNS server on loopback that says what a test wants."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest

from anontls.transport import mx
from anontls.transport.mx import DnsResolver, HostsFailed, best_first
from tests.transport.world import run

#: What the server does with a query: octets for an answer, or none.
Conduct = Callable[[dns.message.Message, bool], bytes | None]
Records = tuple[str, ...]  # the answer section
TTL = 300


def answer(query: dns.message.Message, *records: str) -> bytes:
    response = dns.message.make_response(query)
    for record in records:
        owner, kind, text = record.split(" ", 2)
        response.answer.append(dns.rrset.from_text(owner, TTL, "IN", kind, *text.split(" | ")))
    return response.to_wire()


def rcode(code: dns.rcode.Rcode) -> Conduct:
    def conduct(query: dns.message.Message, tcp: bool) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(code)
        return response.to_wire()

    return conduct


def silent(query: dns.message.Message, tcp: bool) -> None:
    return None


class DnsServer(asyncio.DatagramProtocol):
    """Answers from ``zone``: records for a name and type, or what it does instead.  A name without any does not exist."""

    def __init__(self, zone: Mapping[tuple[str, str], Records | Conduct]) -> None:
        self.zone = zone
        self.asked: list[tuple[str, str, str]] = []
        self.port = 0
        self.pause = 0.0
        self.waiting = self.most_waiting = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def said(self, wire: bytes, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        name, kind = str(query.question[0].name), dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append(("tcp" if tcp else "udp", name, kind))
        found = self.zone.get((name, kind))
        if callable(found):
            return found(query, tcp)
        if found is None and not any(known == name for known, _ in self.zone):
            return rcode(dns.rcode.NXDOMAIN)(query, tcp)
        return answer(query, *(found or ()))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[DnsServer]:
        server = await asyncio.start_server(self._stream, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", self.port))
        try:
            yield self
        finally:
            self._udp.close()
            server.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, data: bytes, addr: tuple[str, int]) -> None:
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        await asyncio.sleep(self.pause)
        self.waiting -= 1
        said = self.said(data, False)
        if said is not None and self._udp is not None:
            self._udp.sendto(said, addr)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2))
        said = self.said(await reader.readexactly(size), True) or b""
        writer.write(len(said).to_bytes(2) + said)
        await writer.drain()
        writer.close()

    def resolver(self, lifetime: float = 5.0) -> DnsResolver:
        return DnsResolver(["127.0.0.1"], port=self.port, lifetime=lifetime)


def asked(
    zone: Mapping[tuple[str, str], Records | Conduct], domain: str, lifetime: float = 5.0
) -> tuple[list[tuple[int, str]], DnsServer]:
    async def lookup() -> tuple[list[tuple[int, str]], DnsServer]:
        async with DnsServer(zone).listening() as server:
            return await server.resolver(lifetime).mx(domain), server

    return run(lookup())


def failure(zone: Mapping[tuple[str, str], Records | Conduct], domain: str, lifetime: float = 5.0) -> str:
    with pytest.raises(HostsFailed) as caught:
        asked(zone, domain, lifetime)
    return str(caught.value.reply)


MX = {("fabrikam.com.", "MX"): ("fabrikam.com. MX 20 b.fabrikam.com. | 10 A.fabrikam.com. | 10 c.fabrikam.com.",)}


# --- what there is ----------------------------------------------------------------------------------------------------


def test_hosts_by_preference() -> None:
    hosts, server = asked(MX, "Fabrikam.com")
    assert hosts == [(10, "a.fabrikam.com"), (10, "c.fabrikam.com"), (20, "b.fabrikam.com")]
    assert server.asked == [("udp", "fabrikam.com.", "MX")]


def test_an_alias_is_followed() -> None:
    records = ("fabrikam.com. CNAME wingtip.example.", "wingtip.example. MX 10 mail.wingtip.example.")
    assert asked({("fabrikam.com.", "MX"): records}, "fabrikam.com")[0] == [(10, "mail.wingtip.example")]


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_without_mx_records_the_domain_is_the_host(kind: str) -> None:
    address = "192.0.2.1" if kind == "A" else "2001:db8::1"
    zone = {("fabrikam.com.", kind): (f"fabrikam.com. {kind} {address}",)}
    assert asked(zone, "fabrikam.com")[0] == [(0, "fabrikam.com")]


def test_a_domain_of_another_script_is_asked_for_in_ascii() -> None:
    name = "xn--bcher-kva.example."
    hosts, server = asked({(name, "MX"): (f"{name} MX 1 mail.{name}",)}, "Bücher.example")
    assert hosts == [(1, "mail.xn--bcher-kva.example")]
    assert server.asked == [("udp", name, "MX")]


def test_only_so_many_hosts_are_kept_and_these_are_the_best() -> None:
    records = " | ".join(f"{60_000 - n} m{n}.fabrikam.com." for n in range(60))
    hosts, _ = asked({("fabrikam.com.", "MX"): (f"fabrikam.com. MX {records}",)}, "fabrikam.com")
    assert hosts == [(60_000 - n, f"m{n}.fabrikam.com") for n in range(59, 59 - mx.MOST_HOSTS, -1)]


def test_records_that_name_no_host_are_passed_over() -> None:
    records = r"fabrikam.com. MX 1 a\032b.fabrikam.com. | 2 \000.fabrikam.com. | 3 . | 4 mail.fabrikam.com."
    assert asked({("fabrikam.com.", "MX"): (records,)}, "fabrikam.com")[0] == [(4, "mail.fabrikam.com")]


# --- what there is not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "reply"),
    [
        ({}, "550 5.4.310 DNS domain fabrikam.com does not exist"),
        (
            {("fabrikam.com.", "TXT"): ()},
            "550 5.4.4 fabrikam.com has neither MX records nor an address",
        ),
        (
            {("fabrikam.com.", "MX"): ("fabrikam.com. MX 0 .",)},
            "556 5.1.10 fabrikam.com does not accept mail (null MX)",
        ),
        (
            {("fabrikam.com.", "MX"): (r"fabrikam.com. MX 1 a\032b.fabrikam.com.",)},
            "550 5.4.4 no MX record of fabrikam.com names a host",
        ),
    ],
)
def test_what_will_never_be_reached(zone: Mapping[tuple[str, str], Records], reply: str) -> None:
    assert failure(zone, "fabrikam.com") == reply


@pytest.mark.parametrize("domain", ["", "a b.example", "a..example", "x" * 64 + ".example", "a." * 130 + "b", "[::1]"])
def test_what_is_no_domain_is_not_asked_for(domain: str) -> None:
    async def lookup() -> None:
        async with DnsServer({}).listening() as server:
            with pytest.raises(HostsFailed, match=r"^550 5\.1\.2 not a domain name: "):
                await server.resolver().mx(domain)
            assert server.asked == []

    run(lookup())


# --- what is not known now --------------------------------------------------------------------------------------------

TEMPORARY = "451 4.4.0 DNS query for fabrikam.com failed: "


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR, dns.rcode.YXDOMAIN])
def test_a_server_that_cannot_say_is_asked_again_later(code: dns.rcode.Rcode) -> None:
    assert failure({("fabrikam.com.", "MX"): rcode(code)}, "fabrikam.com").startswith(TEMPORARY)


def test_the_address_of_a_domain_without_mx_records_may_not_be_known_either() -> None:
    zone: Mapping[tuple[str, str], Records | Conduct] = {
        ("fabrikam.com.", "MX"): (),
        ("fabrikam.com.", "A"): rcode(dns.rcode.SERVFAIL),
    }
    assert failure(zone, "fabrikam.com").startswith(TEMPORARY)


def test_no_answer_has_an_end() -> None:
    assert failure({("fabrikam.com.", "MX"): silent}, "fabrikam.com", 0.2).startswith(TEMPORARY)


def test_all_questions_together_have_an_end() -> None:
    async def lookup() -> None:
        async with DnsServer({("fabrikam.com.", "A"): ("fabrikam.com. A 192.0.2.1",)}).listening() as server:
            server.pause = 0.2
            with pytest.raises(HostsFailed, match=f"^{TEMPORARY}no answer in 0.3 s$"):
                await server.resolver(0.3).mx("fabrikam.com")

    run(lookup())


def test_a_server_that_is_not_there() -> None:
    async def lookup() -> None:
        async with DnsServer({}).listening() as server:
            port = server.port
        with pytest.raises(HostsFailed, match=TEMPORARY):
            await DnsResolver(["127.0.0.1"], port=port, lifetime=0.3).mx("fabrikam.com")

    run(lookup())


def test_without_settings_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: object, file: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", read)
    with pytest.raises(HostsFailed, match=f"{TEMPORARY}Resolver configuration"):
        run(DnsResolver().mx("fabrikam.com"))


GARBAGE = {
    "empty": b"",
    "noise": bytes(range(256)),
    "a header that promises more": b"\0\0\x81\x80" + b"\xff" * 8,
    "a pointer to itself": b"\0\0\x81\x80\0\1\0\0\0\0\0\0\xc0\x0c\0\x0f\0\1",
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_answer(said: bytes) -> None:
    def conduct(query: dns.message.Message, tcp: bool) -> bytes:
        return query.id.to_bytes(2) + said[2:]

    assert failure({("fabrikam.com.", "MX"): conduct}, "fabrikam.com", 0.2).startswith(TEMPORARY)


def test_a_circle_of_aliases_is_no_answer() -> None:
    records = ("fabrikam.com. CNAME wingtip.example.", "wingtip.example. CNAME fabrikam.com.")
    assert failure({("fabrikam.com.", "MX"): records}, "fabrikam.com").startswith(TEMPORARY)


def test_an_answer_to_another_question_is_no_answer() -> None:
    def conduct(query: dns.message.Message, tcp: bool) -> bytes:
        other = dns.message.make_query("contoso.com.", "MX", id=query.id)
        return answer(other, "contoso.com. MX 1 mail.contoso.com.")

    assert failure({("fabrikam.com.", "MX"): conduct}, "fabrikam.com", 0.2).startswith(TEMPORARY)


def truncated(query: dns.message.Message) -> bytes:
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return response.to_wire()


def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    def conduct(query: dns.message.Message, tcp: bool) -> bytes:
        return answer(query, "fabrikam.com. MX 10 a.fabrikam.com.") if tcp else truncated(query)

    hosts, server = asked({("fabrikam.com.", "MX"): conduct}, "fabrikam.com")
    assert hosts == [(10, "a.fabrikam.com")]
    assert [way for way, _, _ in server.asked] == ["udp", "tcp"]


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE)
def test_garbage_over_tcp_is_no_answer(said: bytes) -> None:
    def conduct(query: dns.message.Message, tcp: bool) -> bytes:
        return said if tcp else truncated(query)

    assert failure({("fabrikam.com.", "MX"): conduct}, "fabrikam.com", 0.3).startswith(TEMPORARY)


# --- what is remembered -----------------------------------------------------------------------------------------------


def times_asked(conduct: Records | Conduct, between: Callable[[DnsResolver], None] = lambda _: None) -> int:
    """How often the server is asked for two lookups."""

    async def lookup() -> int:
        async with DnsServer({("fabrikam.com.", "MX"): conduct}).listening() as server:
            resolver = server.resolver()
            first = await resolver.mx("fabrikam.com")
            between(resolver)
            assert await resolver.mx("FABRIKAM.com") == first
            return len(server.asked)

    return run(lookup())


def test_an_answer_is_kept() -> None:
    assert times_asked(MX["fabrikam.com.", "MX"]) == 1


def test_until_what_is_known_is_forgotten() -> None:
    assert times_asked(MX["fabrikam.com.", "MX"], DnsResolver.forget) == 2


def test_an_answer_is_kept_no_longer_than_this_program_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "LONGEST_LIFE", 0.0)
    assert times_asked(MX["fabrikam.com.", "MX"]) == 2


def test_a_large_answer_is_not_kept() -> None:
    records = " | ".join(f"{n} m{n}.fabrikam.com." for n in range(mx.MOST_RECORDS + 1))

    def conduct(query: dns.message.Message, tcp: bool) -> bytes:
        return answer(query, f"fabrikam.com. MX {records}")

    assert times_asked(conduct) == 2


def test_lookups_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "MOST_LOOKUPS", 3)

    async def most() -> int:
        async with DnsServer({}).listening() as server:
            server.pause = 0.02
            resolver = server.resolver()
            failed = await asyncio.gather(*(resolver.mx(f"d{n}.example") for n in range(9)), return_exceptions=True)
            assert {str(cast("HostsFailed", error).reply)[:11] for error in failed} == {"550 5.4.310"}
            return server.most_waiting

    assert run(most()) == 3


# --- in which order ---------------------------------------------------------------------------------------------------

HOSTS = [(10, "a"), (10, "b"), (20, "edge1.contoso.com"), (20, "c"), (30, "d")]


def test_chance_decides_between_equals_only() -> None:
    assert best_first("fabrikam.com", HOSTS, "other", lambda hosts: None) == ["a", "b", "edge1.contoso.com", "c", "d"]
    assert best_first("fabrikam.com", HOSTS, "other", list.reverse) == ["b", "a", "c", "edge1.contoso.com", "d"]


def test_this_server_and_what_is_not_better_is_left_out() -> None:
    assert best_first("fabrikam.com", HOSTS, "EDGE1.contoso.com", lambda hosts: None) == ["a", "b"]


def test_mail_does_not_go_in_circles() -> None:
    with pytest.raises(HostsFailed, match=r"^554 5\.4\.6 mail for fabrikam\.com loops back to this server$"):
        best_first("fabrikam.com", [(1, "edge1.contoso.com"), (1, "b")], "edge1.contoso.com", lambda hosts: None)


def test_dnspython_is_loaded_only_when_it_is_needed() -> None:
    code = "import sys, anontls.transport.destinations; sys.exit('dns' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
