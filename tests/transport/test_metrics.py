"""Figures and health: what is counted, what a scrape shows, and HTTP that a stranger on this machine may try."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from anontls.certstore.new import new_internal_certificate
from anontls.directory.ldap.follow import Status as DirectoryStatus
from anontls.facts import Certificate, Phase, Scenario
from anontls.kerberos.failure import Reason
from anontls.selection import Decision, select
from anontls.transport import metrics_server
from anontls.transport.lab import EDGE
from anontls.transport.metrics import BUCKETS, MOST_CERTIFICATES, Direction, Metrics, Observed, Outcome, Proof, families
from anontls.transport.metrics_server import MetricsServer
from anontls.transport.node import Node
from anontls.transport.queue import Refusal
from anontls.transport.status import QueueStatus, Status
from tests.support.make import AS_OF, DIRECTORY, make_facts, make_receive_connector
from tests.transport.world import World, run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
OWN = new_internal_certificate("EDGE1", "edge1.contoso.com", now=NOW).certificate


def queue(
    delivery_type: str, status: Status, messages: int, deferred: int = 0, domain: str = "fabrikam.com"
) -> QueueStatus:
    return QueueStatus(
        identity="EDGE1\\3",
        delivery_type=delivery_type,
        next_hop_domain=domain,
        next_hop_connector=None,
        next_hop_category="External",
        tls_domain=None,
        status=status.value,
        message_count=messages,
        deferred_message_count=deferred,
        locked_message_count=0,
        last_error="",
        first_retry_time=None,
        last_retry_time=None,
        next_retry_time=None,
        retry_count=0,
        incoming_rate=0.0,
        outgoing_rate=0.0,
        velocity=0.0,
    )


@pytest.fixture
def startup(world: World) -> Decision:
    return decided(world, NOW)


def decided(world: World, now: datetime) -> Decision:
    """The selection of a start."""
    from anontls.certstore.folder import FolderStore
    from anontls.eventlog import MemoryEventLog

    store = FolderStore(world.store(EDGE), now=now)
    node = Node(world.organization, world.server(EDGE), store, MemoryEventLog(), lambda: now)
    return node.select(Scenario.INBOUND_ANONYMOUS, phase=Phase.STARTUP)


def observed(**fields: Any) -> Observed:
    values: dict[str, Any] = {
        "now": NOW.timestamp(),
        "loaded": NOW.timestamp() - 60,
        "receiving": 3,
        "sending": 1,
        "draining": False,
        "listening": True,
        "startup": None,
        "store": (),
    }
    return Observed(**{**values, **fields})


def samples(counted: Metrics, seen: Observed) -> dict[tuple[str, ...], float]:
    """Name and label values of each sample."""
    return {
        (sample.name, *(value for _, value in sample.labels.items())): sample.value
        for family in families(counted, seen)
        for sample in family.samples
    }


# --- what is counted --------------------------------------------------------------------------------------------------


def test_what_is_counted_is_shown(startup: Decision) -> None:
    counted = Metrics()
    counted.session_ended("receive", "X-ANONYMOUSTLS", "delivered")
    counted.session_ended("send", None, "unreachable")
    counted.session_ended("send", None, "unreachable")
    counted.decided(startup)
    counted.accepted(1000)
    counted.accepted(24)
    counted.deferred(2)
    counted.failed()
    counted.expired(3)
    counted.notified("delayed")
    counted.event(12015)
    counted.authenticated("receive", "GSSAPI")
    counted.authenticated("receive", "GSSAPI", "not-allowed")
    counted.authenticated("send", "EXCHANGEAUTH", Reason.KDC_UNREACHABLE)
    found = samples(counted, observed())
    assert found["anontls_sessions_total", "receive", "X-ANONYMOUSTLS", "delivered"] == 1
    assert found["anontls_sessions_total", "send", "none", "unreachable"] == 2
    assert found["anontls_decisions_total", "inbound-anonymous", "4", "certificate"] == 1
    assert found[("anontls_accepted_messages_total",)] == 2
    assert found[("anontls_accepted_bytes_total",)] == 1024
    assert [found["anontls_recipients_total", what] for what in ("deferred", "failed", "expired")] == [2, 1, 3]
    assert found["anontls_notifications_total", "delayed"] == 1
    assert found["anontls_events_total", "12015"] == 1
    authentications = {key[1:] for key, value in found.items() if key[0] == "anontls_authentications_total" and value}
    assert authentications == {
        ("receive", "GSSAPI", "authenticated"),
        ("receive", "GSSAPI", "not-allowed"),
        ("send", "EXCHANGEAUTH", "kdc-unreachable"),
    }


def test_series_are_there_before_anything_happens() -> None:
    found = samples(Metrics(), observed())
    for direction in get_args(Direction):
        for outcome in get_args(Outcome):
            assert found["anontls_sessions_total", direction, "none", outcome] == 0
    assert found["anontls_events_total", "12014"] == 0
    assert found["anontls_notifications_total", "failed"] == 0
    assert found["anontls_authentications_total", "send", "GSSAPI", "clock-skew"] == 0


def test_delays_fall_into_their_buckets() -> None:
    counted = Metrics()
    counted.delivered(0.001)
    counted.delivered(BUCKETS[0])  # a bucket holds its edge
    counted.delivered(0.3, 2)
    counted.delivered(1_000_000)
    counted.delivered(-5)  # the clock was set back
    found = samples(counted, observed())
    bucket = "anontls_delivery_seconds_bucket"
    assert found[bucket, "0.005"] == 3
    assert found[bucket, "0.25"] == 3
    assert found[bucket, "0.5"] == 5
    assert found[bucket, "172800.0"] == 5
    assert found[bucket, "+Inf"] == found[("anontls_delivery_seconds_count",)] == 6
    assert found[("anontls_delivery_seconds_sum",)] == pytest.approx(1_000_000.606)
    assert found["anontls_recipients_total", "delivered"] == 6
    assert list(BUCKETS) == sorted(BUCKETS)


# --- what is observed -------------------------------------------------------------------------------------------------


def test_queues_are_summed_up_without_a_name_that_a_sender_chose() -> None:
    hostile = 'x"} 1\nevil{a="'
    seen = observed(
        queues=(
            queue("SmtpRelayWithinAdSiteToEdge", Status.RETRY, 5, 4),
            *(queue("DnsConnectorDelivery", Status.READY, 1, domain=f"{hostile}{n}") for n in range(1000)),
            queue(hostile, Status.READY, 2),
        ),
        messages=1007,
        oldest=NOW.timestamp() - 90,
        free=5_000,
    )
    found = samples(Metrics(), seen)
    assert found["anontls_queues", "DnsConnectorDelivery", "Ready"] == 1000
    assert found["anontls_queue_messages", "SmtpRelayWithinAdSiteToEdge", "Retry"] == 5
    assert found["anontls_queue_deferred_messages", "SmtpRelayWithinAdSiteToEdge", "Retry"] == 4
    assert found["anontls_queue_messages", "Undefined", "Ready"] == 2
    assert found[("anontls_queue_oldest_message_age_seconds",)] == 90
    assert found[("anontls_queue_stored_messages",)] == 1007
    assert found[("anontls_queue_disk_free_bytes",)] == 5_000
    assert not [key for key in found if any("evil" in part or "fabrikam" in part for part in key)]
    assert len(found) < 200


def test_an_empty_queue_has_age_0_and_a_node_without_one_has_none() -> None:
    key = ("anontls_queue_oldest_message_age_seconds",)
    assert samples(Metrics(), observed(messages=0))[key] == 0
    assert samples(Metrics(), observed(messages=1, oldest=NOW.timestamp() + 100))[key] == 0, "a clock that was set back"
    assert key not in samples(Metrics(), observed())


def test_certificates_show_their_end(startup: Decision) -> None:
    assert startup.certificate is not None
    until = startup.certificate.not_after
    assert isinstance(until, datetime)
    pop = Certificate(der=OWN.der, services="POP", has_private_key=True)
    public = Certificate(der=OWN.der, services="SMTP", has_private_key=False)
    name = "anontls_certificate_not_after_timestamp_seconds"
    found = samples(Metrics(), observed(startup=startup, store=(startup.certificate, pop, public)))
    thumbprint = str(startup.certificate.thumbprint)
    assert found[name, thumbprint, "internal-transport"] == found[name, thumbprint, "starttls"] == until.timestamp()
    assert len([key for key in found if key[0] == name]) == 2, "those without SMTP or a key are for nobody"


def test_the_internal_transport_certificate_is_shown_however_many_others_there_are(startup: Decision) -> None:
    def other(number: int) -> Certificate:
        return Certificate(
            thumbprint=f"{number:040X}",
            services="SMTP",
            has_private_key=True,
            not_after=NOW + timedelta(days=number),
        )

    name = "anontls_certificate_not_after_timestamp_seconds"
    found = [
        key
        for key in samples(Metrics(), observed(startup=startup, store=[*map(other, range(500, 0, -1))]))
        if key[0] == name
    ]
    assert len(found) == MOST_CERTIFICATES
    assert found[0][2] == "internal-transport"
    assert found[1][1] == f"{1:040X}", "then the first to expire"


FOLLOWED = DirectoryStatus(
    url="ldaps://dc1.contoso.com",
    means="notification",
    age=12.5,
    readable=True,
    reads=7,
    failures=2,
    problem=None,
)


def test_the_directory_that_is_followed() -> None:
    found = samples(Metrics(), observed(directory=FOLLOWED))
    assert found["anontls_directory_looks_total", "answered"] == 7
    assert found["anontls_directory_looks_total", "failed"] == 2
    assert found["anontls_directory_info", "ldaps://dc1.contoso.com", "notification"] == 1
    assert found[("anontls_directory_age_seconds",)] == 12.5
    away = msgspec.structs.replace(FOLLOWED, url=None, means=None, readable=False, problem="nobody answers")
    found = samples(Metrics(), observed(directory=away))
    assert not [key for key in found if key[0] == "anontls_directory_info"]
    assert found[("anontls_directory_readable",)] == 0
    assert not [key for key in samples(Metrics(), observed()) if "directory" in key[0]]


def test_an_unknown_end_is_not_shown() -> None:
    unknown = Certificate(thumbprint="A" * 40, services="SMTP", has_private_key=True)
    assert not [key for key in samples(Metrics(), observed(store=(unknown,))) if "certificate" in key[0]]


# --- health -----------------------------------------------------------------------------------------------------------


def test_reasons_and_warnings(world: World, startup: Decision) -> None:
    assert observed(startup=startup).reasons == observed(startup=startup).warnings == []
    full = Refusal(452, ("4.3.1 Insufficient system resources",), "the disk is nearly full")
    seen = observed(draining=True, listening=False, refusal=full)
    assert seen.reasons == [
        "the node is draining",
        "nothing listens",
        "new mail is refused: the disk is nearly full",
    ]
    for path in world.store(EDGE).glob("*.pem"):
        path.unlink()
    without = observed(startup=decided(world, NOW))
    assert without.reasons == []
    assert without.warnings == ["no internal transport certificate: the selection ended at step 3"]
    assert samples(Metrics(), seen)[("anontls_healthy",)] == 0
    assert samples(Metrics(), without)[("anontls_healthy",)] == 1


# --- the table in docs/operations.md ----------------------------------------------------------------------------------

TYPE = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)
HELP = re.compile(r"^# HELP (\S+) (.*)$", re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \|$", re.MULTILINE)


def shown(page: str) -> dict[str, tuple[str, str, str]]:
    """Type, labels and meaning of each metric of a page."""
    meanings = dict(HELP.findall(page))
    labels = {
        sample.name.removesuffix("_bucket"): ", ".join(f"`{name}`" for name in sample.labels if name != "le")
        for family in text_string_to_metric_families(page)
        for sample in family.samples[:1]
    }
    return {name: (kind, labels.get(name, ""), meanings[name]) for name, kind in TYPE.findall(page)}


def documented(document: str) -> dict[str, tuple[str, str, str]]:
    return {name: (kind, labels, meaning) for name, kind, labels, meaning in ROW.findall(document)}


def test_every_metric_is_documented_and_every_documented_one_is_there(startup: Decision) -> None:
    counted = Metrics()
    counted.decided(startup)
    seen = observed(
        startup=startup,
        store=(startup.certificate,),
        queues=(queue("DnsConnectorDelivery", Status.READY, 1),),
        messages=1,
        free=1,
        directory=FOLLOWED,
    )

    async def page() -> str:
        async with serving(lambda: seen, counted) as server:
            status, _, body = await fetched(server, "/metrics")
            assert status == 200
            return body.decode()

    expected = shown(run(page()))
    found = documented(DOCUMENT.read_text(encoding="utf-8"))
    table = "\n".join(f"| `{name}` | {' | '.join(cells)} |" for name, cells in expected.items())
    assert found == expected, f"the table should be:\n{table}"
    prefixes = ("anontls_", "process_")
    assert all(name.startswith(prefixes) for name in found)


def test_outcomes_are_documented() -> None:
    cells = re.findall(r"^\| `([a-z-]+)` \| ", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert [cell for cell in cells if cell in get_args(Outcome)] == list(get_args(Outcome))


def test_outcomes_of_authentications_are_documented() -> None:
    table = DOCUMENT.read_text(encoding="utf-8").partition("| `outcome` | the authentication |")[2].partition("\n\n")[0]
    reasons = [reason.name.lower().replace("_", "-") for reason in Reason]
    assert re.findall(r"^\| `([a-z-]+)` \| ", table, re.MULTILINE) == [*get_args(Proof), *reasons]


def test_rules_for_alerts_ask_for_metrics_that_there_are() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rules = text.partition("```yaml")[2].partition("```")[0]
    asked = set(re.findall(r"\b(?:anontls|process)_\w+", rules))
    known = documented(text)
    assert len(asked) > 5
    assert {name for name in asked if name.removesuffix("_bucket") not in known} == set()


def test_a_missing_row_is_found() -> None:
    text = "| `anontls_x` | gauge |  | A. |\n"
    assert documented(text) == {"anontls_x": ("gauge", "", "A.")}
    page = "# HELP anontls_x A.\n# TYPE anontls_x gauge\nanontls_x 1.0\n"
    assert shown(page) == documented(text)
    assert shown(page.replace("gauge", "counter")) != documented(text)


# --- HTTP -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    observe: Callable[[], Observed] = observed, counted: Metrics | None = None
) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(counted or Metrics(), observe, "127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def get(port: int, path: str, method: str = "GET") -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


async def fetched(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, Mapping[str, str], bytes]:
    return await asyncio.to_thread(get, server.address[1], path, method)


def test_the_page_is_what_prometheus_reads() -> None:
    async def session() -> None:
        counted = Metrics()
        async with serving(counted=counted) as server:
            counted.accepted(7)
            status, headers, body = await fetched(server, "/metrics?a=b")
        assert status == 200
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert headers["Server"].strip() == "anontls", "no version of Python"
        found = {family.name: family for family in text_string_to_metric_families(body.decode())}
        assert found["anontls_accepted_bytes"].samples[0].value == 7
        assert found["anontls_event_loop_answer_seconds"].samples[0].value < 2
        assert found["process_resident_memory_bytes"].samples[0].value > 1e6

    run(session())


def test_health_over_http() -> None:
    async def session() -> None:
        seen = observed()
        async with serving(lambda: seen) as server:
            status, headers, body = await fetched(server, "/health")
            assert (status, headers["Content-Type"]) == (200, "application/json")
            assert msgspec.json.decode(body) == {"status": "ok", "reasons": [], "warnings": []}
            seen = observed(draining=True)
            status, _, body = await fetched(server, "/health")
        assert status == 503
        assert msgspec.json.decode(body)["reasons"] == ["the node is draining"]

    run(session())


def test_the_last_decision_of_each_kind_over_http() -> None:
    """Whatever names there are, a line stays one of JSON."""
    hostile = 'x"}\n{"a": "\x1b[31m'
    counted = Metrics()
    early, late, other = AS_OF, AS_OF + timedelta(seconds=1), AS_OF + timedelta(seconds=2)
    connector = make_receive_connector(Identity=hostile)
    for facts in (
        make_facts("inbound-anonymous", as_of=early, receive_connector=connector, directory=DIRECTORY),
        make_facts("inbound-anonymous", as_of=late, receive_connector=connector, directory=DIRECTORY),
        make_facts("inbound-starttls", as_of=other),
    ):
        counted.decided(select(facts))

    async def session() -> None:
        async with serving(counted=counted) as server:
            status, headers, body = await fetched(server, "/decisions")
            assert (status, headers["Content-Type"]) == (200, "application/x-ndjson")
            assert b"\x1b" not in body
            first, second = map(msgspec.json.decode, body.splitlines())
            assert (first["scenario"], first["as_of"]) == ("inbound-starttls", "2026-11-24T12:00:02Z")
            assert (second["scenario"], second["as_of"]) == ("inbound-anonymous", "2026-11-24T12:00:01Z")
            assert second["connector"] == hostile
            assert second["directory"]["url"] == DIRECTORY.url
            assert second["steps"][2]["because"].endswith("12 s before this decision, at 2026-11-24 11:59:48Z")

    run(session())


def test_without_a_decision_there_is_no_line() -> None:
    async def session() -> None:
        async with serving() as server:
            status, _, body = await fetched(server, "/decisions")
            assert (status, body) == (200, b"")

    run(session())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics/x", 404), ("GET", "/healthy", 404), ("POST", "/metrics", 501)],
)
def test_there_is_nothing_else(method: str, path: str, status: int) -> None:
    async def session() -> None:
        async with serving() as server:
            assert (await fetched(server, path, method))[0] == status

    run(session())


@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/health", 200), ("/decisions", 200), ("/", 404)])
def test_head_is_get_without_its_body(path: str, status: int) -> None:
    async def session() -> None:
        async with serving() as server:
            got, headers, body = await fetched(server, path, "HEAD")
            assert (got, body) == (status, b"")
            assert headers["Content-Type"] == (await fetched(server, path))[1]["Content-Type"]

    run(session())


def test_it_looks_in_the_loop_where_nothing_changes_meanwhile() -> None:
    async def session() -> None:
        threads: set[threading.Thread] = set()

        def look() -> Observed:
            threads.add(threading.current_thread())
            return observed()

        async with serving(look) as server:
            await fetched(server, "/health")
            await fetched(server, "/metrics")
        assert threads == {threading.current_thread()}

    run(session())


@pytest.mark.parametrize("path", ["/health", "/metrics", "/decisions"])
def test_a_loop_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(metrics_server, "PATIENCE", 0.1)

    async def session() -> None:
        async with serving() as server:
            waiting = asyncio.get_running_loop().run_in_executor(None, get, server.address[1], path)
            time.sleep(0.5)  # noqa: ASYNC251 the loop stands still: that is the test
            status, _, body = await waiting
            assert (status, msgspec.json.decode(body)["reasons"]) == (503, ["the event loop does not answer"])
            assert (await fetched(server, path))[0] == 200, "once it does"

    run(session())


def test_a_fault_of_ours_is_an_answer() -> None:
    def look() -> Observed:
        raise KeyError("x")

    async def session() -> None:
        async with serving(look) as server:
            status, _, body = await fetched(server, "/metrics")
            assert (status, msgspec.json.decode(body)["reasons"]) == (503, ["KeyError: 'x'"])

    run(session())


def test_strangers_do_not_keep_it_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections than are answered, that say nothing, too much, garbage, or an octet at a time."""
    monkeypatch.setattr(metrics_server, "DEADLINE", 0.6)
    monkeypatch.setattr(metrics_server, "TICK", 0.05)
    monkeypatch.setattr(metrics_server._Request, "timeout", 0.6)

    def besieged(port: int) -> int:
        peers = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(20)]
        try:
            peers[0].sendall(b"\x16\x03\x01 \xff\xfe\r\n\r\n")
            peers[1].sendall(b"GET /" + b"x" * 70_000)
            peers[2].sendall(b"GET /health HTTP/9999999999.5\r\n\r\n")
            end = time.monotonic() + 10
            while time.monotonic() < end:
                try:
                    peers[3].sendall(b"G")
                except OSError:
                    break
                time.sleep(0.05)
            else:
                raise AssertionError("an octet at a time keeps a request alive")
            return get(port, "/health")[0]
        finally:
            for peer in peers:
                peer.close()

    async def session() -> None:
        async with serving() as server:
            assert await asyncio.to_thread(besieged, server.address[1]) == 200

    run(session())


def test_closing_waits_for_nobody() -> None:
    async def session() -> None:
        async with serving() as server:
            with socket.create_connection(server.address, 10) as peer:
                peer.sendall(b"GET /hea")
                await asyncio.sleep(0.1)
                began = time.monotonic()
                await server.close()
                assert time.monotonic() - began < 2 < metrics_server.DEADLINE
                assert peer.recv(100) == b""

    run(session())


def test_an_address_that_cannot_be_had() -> None:
    async def session() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
            MetricsServer(Metrics(), observed, "127.0.0.1", taken.getsockname()[1])

    run(session())


def test_over_ipv6() -> None:
    async def session() -> None:
        server = MetricsServer(Metrics(), observed, "::1", 0)
        try:
            assert server.address[0] == "::1"
        finally:
            await server.close()

    run(session())


def test_names_follow_the_conventions_of_prometheus() -> None:
    class Collected:
        def collect(self) -> list[Metric]:
            return list(families(Metrics(), observed()))

    CollectorRegistry().register(Collected())  # raises for a name that is twice
    for family in Collected().collect():
        assert re.fullmatch(r"anontls(_[a-z0-9]+)+", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")
