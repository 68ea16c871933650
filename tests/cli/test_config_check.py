"""``anontls config check``: what would keep a node from starting, or its mail from getting on."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from anontls import config
from anontls.certstore import write
from anontls.cli import Exit, options
from anontls.directory import snapshot
from anontls.errors import MalformedInput
from anontls.facts import InternalTlsCert, Unknown
from anontls.transport.check import findings
from anontls.transport.metrics import Metrics, Observed
from anontls.transport.metrics_server import MetricsServer
from anontls.transport.queue_file import APPLICATION, STEPS, opened
from tests.certstore.make import make
from tests.cli.conftest import Anontls
from tests.cli.test_serve import change, serving

LISTEN = 'address = "127.0.0.1:0"'
Files = dict[str, tuple[int, int]]


def add(path: Path, table: str) -> Path:
    path.write_text(f"{path.read_text()}\n{table}\n")
    return path


def found(path: Path, severity: str, *, bind: bool = False) -> list[tuple[str, str]]:
    """Place and text of the findings of that severity, selections aside."""
    all_ = findings(config.load(path), path, options.now(), bind=bind)
    return [(one.place, one.text) for one in all_ if one.severity == severity and one.decision is None]


def errors(path: Path, *, bind: bool = False) -> list[tuple[str, str]]:
    return found(path, "error", bind=bind)


def warnings(path: Path, *, bind: bool = False) -> list[tuple[str, str]]:
    return [one for one in found(path, "warning", bind=bind) if not one[1].startswith("checked as root")]


def files(folder: Path) -> Files:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def change_server(lab: Path, name: str, **fields: Any) -> None:
    path = lab / "org.json"
    org = snapshot.load(path.read_bytes(), path.name)
    servers = tuple(msgspec.structs.replace(s, **fields) if s.name == name else s for s in org.servers)
    path.write_bytes(snapshot.dump(msgspec.structs.replace(org, servers=servers)))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mbx1", "edge1"])
def test_a_lab_is_clean_and_nothing_is_changed(anontls: Anontls, lab: Path, name: str) -> None:
    path = add(lab / f"{name}.toml", '[queue]\ndatabase = "new/queue.db"')
    before = files(lab)
    ran = anontls("config", "check", path)
    assert (ran.status, ran.err) == (Exit.DONE, "")
    assert files(lab) == before
    assert f"note     node.server: {name.upper()} starts with " in ran.out
    assert f"listen[0]: {name.upper()} advertises X-ANONYMOUSTLS on " in ran.out
    assert f"listen[0]: {name.upper()} advertises STARTTLS on " in ran.out
    assert "error" not in ran.out


def test_json(anontls: Anontls, lab: Path) -> None:
    change(lab / "mbx1.toml", "Default MBX1", "Nothing \\u001b[2J")
    ran = anontls("config", "check", "--json", lab / "mbx1.toml")
    documents = ran.documents()
    assert ran.status == Exit.NOT_MET
    assert {document["schema"] for document in documents} == {"anontls/config-finding/1"}
    (start,) = (document for document in documents if document["place"] == "node.server")
    assert (start["severity"], start["step"], start["cure"]) == ("note", "4", None)
    (fault,) = (document for document in documents if document["severity"] == "error")
    assert fault["place"] == "listen[0].connector" and fault["cure"] == "known: Default MBX1"
    assert "\x1b" not in ran.out
    assert "\x1b" not in anontls("config", "check", lab / "mbx1.toml").out


def test_a_malformed_file_is_told_with_all_its_faults(anontls: Anontls, lab: Path) -> None:
    path = change(lab / "mbx1.toml", "[delivery]", "[limits]\nsession = 5\n\n[delivery]\nspeed = 1")
    ran = anontls("config", "check", path)
    assert ran.status == Exit.USAGE and not ran.out
    assert "limits.session: unknown key" in ran.err and "delivery.speed: unknown key" in ran.err


def test_faults_do_not_hide_each_other(anontls: Anontls, lab: Path) -> None:
    path = lab / "edge1.toml"
    change(path, 'folder = "edge1-certificates"', 'folder = "nowhere"')
    change(path, 'server = "EDGE1"', 'server = "EDGE9"')
    change(path, LISTEN, 'address = "192.0.2.1:25"')
    change(path, 'events = "edge1-events.jsonl"', 'events = "org.json/below"')
    ran = anontls("config", "check", path)
    assert ran.status == Exit.NOT_MET
    places = [line.split()[1] for line in ran.out.splitlines() if line.startswith("error")]
    assert places == ["node.server:", "store.folder:", "listen[0].address:", "log.events:"]


# --- organisation, certificates, selections ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "place", "text"),
    [
        ('organization = "org.json"', 'organization = "none.json"', "node.organization", "none.json"),
        ('server = "EDGE1"', 'server = "EDGE9"', "node.server", "no server EDGE9"),
        ('folder = "edge1-certificates"', 'folder = "nowhere"', "store.folder", "nowhere cannot be read"),
        ("receive connector EDGE1", "receive connector X", "listen[0].connector", "has no Receive connector"),
        ("EdgeSync - Inbound", "EdgeSync - X", "delivery", "has no Send connector"),
        ('next-hop-server = "MBX1"', 'next-hop-server = "MBX9"', "delivery", "no server MBX9"),
        (
            "[[listen]]",
            "[[listen]]\nconnector = 'x'\naddress = 'h:1'\n[[listen]]",
            "listen[0].connector",
            "connector x",
        ),
    ],
)
def test_what_serve_would_refuse(lab: Path, old: str, new: str, place: str, text: str) -> None:
    (fault,) = errors(change(lab / "edge1.toml", old, new))
    assert fault[0] == place and text in fault[1]


def test_nothing_to_listen_on(lab: Path) -> None:
    path = change(lab / "mbx1.toml", f'[[listen]]\nconnector = "Default MBX1"\n{LISTEN}\n', "")
    assert errors(path) == [("listen", "nothing to listen on")]


def test_a_certificate_that_is_gone_stops_every_selection(anontls: Anontls, lab: Path) -> None:
    for path in (lab / "edge1-certificates").glob("*.pem"):
        path.unlink()
    ran = anontls("config", "check", lab / "edge1.toml")
    assert ran.status == Exit.NOT_MET
    said = [line for line in ran.out.splitlines() if line.startswith("error")]
    assert [line.split()[1] for line in said] == [
        "node.server:",
        "listen[0]:",
        "listen[0]:",
        "delivery.next-hop-server:",
    ]
    assert "EDGE1 starts without an internal transport certificate (step 3): " in said[0]
    assert "Enable-ExchangeCertificate -Server EDGE1" in ran.out, "with a remedy"
    assert "warning  store.folder: bindings.toml: " in ran.out


def test_a_certificate_that_the_library_refuses_is_one_finding_with_its_reason(anontls: Anontls, lab: Path) -> None:
    small = make("rsa-1024", name="edge1", start=options.now() - timedelta(days=1))
    write.add(lab / "edge1-certificates", small.certificate, small.key)
    change_server(lab, "EDGE1", internal_tls_cert=(own := InternalTlsCert(der=small.der)), internal_tls_cert_adlds=own)
    path = lab / "edge1.toml"
    start = [one for one in findings(config.load(path), path, options.now(), bind=False) if one.place == "node.server"]
    assert [(one.severity, one.decision and one.decision.last.step) for one in start] == [("error", "3")]
    ran = anontls("config", "check", path)
    assert ran.status == Exit.NOT_MET and "cannot be loaded: the TLS library refuses it (RSA 1024" in ran.out


def test_a_delivery_type_that_is_none(lab: Path) -> None:
    path = lab / "edge1.toml"
    path.write_text(path.read_text().replace("[delivery]", '[delivery]\ndelivery-type = "SmtpRelayToDga"'))
    (finding,) = [
        one for one in findings(config.load(path), path, options.now(), bind=False) if one.place == "delivery"
    ]
    assert (finding.severity, finding.cure) == ("error", "did you mean SmtpRelayToDag?")
    assert "no DeliveryType SmtpRelayToDga" in finding.text


def test_an_expired_certificate_is_a_warning(lab: Path) -> None:
    """Event 12015 is one: it is still used [FACT D 2]."""
    path = lab / "mbx1.toml"
    later = options.now() + timedelta(days=6 * 365)
    severities = {one.severity for one in findings(config.load(path), path, later, bind=False) if one.decision}
    assert "warning" in severities


def test_a_fact_that_is_not_known_is_an_error(lab: Path) -> None:
    not_known = Unknown("not exported")
    attribute = InternalTlsCert(unknown="not exported")
    change_server(lab, "MBX1", internal_tls_cert=attribute, internal_transport_certificate_thumbprint=not_known)
    path = lab / "mbx1.toml"
    found_ = [one for one in findings(config.load(path), path, options.now(), bind=False) if one.decision]
    assert (found_[0].place, found_[0].severity) == ("node.server", "error")


def test_a_next_hop_that_cannot_prove_itself(lab: Path) -> None:
    change_server(lab, "MBX1", internal_tls_cert=InternalTlsCert(value=None))
    (fault,) = errors(lab / "edge1.toml")
    assert fault[0] == "delivery.next-hop-server" and "holds no certificate of MBX1" in fault[1]


def test_a_mailbox_server_as_next_hop_needs_a_rule_of_the_configuration(anontls: Anontls, lab: Path) -> None:
    org = snapshot.load((lab / "org.json").read_bytes(), "org.json")
    other = msgspec.structs.replace(org.servers[0], name="MBX2", fqdn="mbx2.contoso.com")
    (lab / "org.json").write_bytes(snapshot.dump(msgspec.structs.replace(org, servers=(*org.servers, other))))
    hop = 'next-hop = "127.0.0.1:25"\nnext-hop-server = "MBX2"\ndelivery-type = "SmtpRelayToMailboxDeliveryGroup"'
    path = change(lab / "mbx1.toml", 'maildir = "mail"\ncreate-mailboxes = true', hop)
    (fault,) = (each for each in anontls("config", "check", "--json", path).documents() if each["severity"] == "error")
    assert (fault["place"], fault["step"]) == ("delivery.next-hop-server", "1.b")
    cure = 'mailbox-to-mailbox = "verb-without-certificate"'
    assert fault["cure"] == f"{cure} in the table [rules]"
    assert anontls("config", "check", add(path, f"[rules]\n{cure}")).status == Exit.DONE


def test_a_queue_of_another_kind_than_the_next_hop(anontls: Anontls, lab: Path) -> None:
    hop = 'next-hop = "127.0.0.1:25"\nnext-hop-server = "EDGE1"'
    path = change(lab / "mbx1.toml", 'maildir = "mail"\ncreate-mailboxes = true', hop)
    (fault,) = (each for each in anontls("config", "check", "--json", path).documents() if each["severity"] == "error")
    assert (fault["place"], fault["step"]) == ("delivery.next-hop-server", "1.b")
    assert str(fault["cure"]).startswith("delivery.delivery-type ")
    kind = '\ndelivery-type = "SmtpRelayWithinAdSiteToEdge"'
    assert anontls("config", "check", change(path, hop, hop + kind)).status == Exit.DONE


# --- addresses and names ----------------------------------------------------------------------------------------------


@contextmanager
def saying(banner: bytes) -> Iterator[int]:
    """Somebody who says ``banner`` to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.sendall(banner)

        thread = threading.Thread(target=talk)
        thread.start()
        yield int(listening.getsockname()[1])
        thread.join(10)


def test_an_address_of_somebody_else(lab: Path) -> None:
    with saying(b"220 other.contoso.com \x1b[2J ESMTP Postfix\r\n") as port:
        path = change(lab / "mbx1.toml", LISTEN, f'address = "127.0.0.1:{port}"')
        (fault,) = errors(path, bind=True)
    assert fault[0] == "listen[0].address" and "in use; whoever holds it says b'220 other.contoso.com" in fault[1]
    assert fault[1].isprintable()


def test_addresses_are_left_alone_when_asked(anontls: Anontls, lab: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = change(lab / "mbx1.toml", LISTEN, f'address = "127.0.0.1:{taken.getsockname()[1]}"')
        assert anontls("config", "check", "--no-bind", path).status == Exit.DONE
        taken.setblocking(False)
        with pytest.raises(BlockingIOError):
            taken.accept()


def test_an_address_that_is_not_here_or_twice(lab: Path) -> None:
    path = change(lab / "mbx1.toml", LISTEN, 'address = "192.0.2.1:25"')
    assert "cannot listen" in errors(path, bind=True)[0][1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    change(path, "192.0.2.1:25", f"127.0.0.1:{port}")
    add(path, f'[[listen]]\nconnector = "Default MBX1"\naddress = "127.0.0.1:{port}"')
    taken = f"127.0.0.1:{port}: listen[0] listens on 127.0.0.1:{port} already"
    assert errors(path, bind=True) == [("listen[1].address", taken)]


@pytest.mark.parametrize(
    ("listen", "metrics", "clash"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("localhost", "localhost", True),
        ("127.0.0.1", "127.0.0.2", False),
    ],
)
def test_figures_on_the_address_of_a_connector(lab: Path, listen: str, metrics: str, clash: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = change(lab / "mbx1.toml", LISTEN, f'address = "{listen}:{port}"')
    add(path, f'[metrics]\nlisten = "{metrics}:{port}"')
    taken = f"{metrics}:{port}: listen[0] listens on {listen}:{port} already"
    assert errors(path, bind=True) == [("metrics.listen", taken)] * clash


def test_a_port_for_which_the_unit_gives_the_right(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: socket.socket, _address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refused)
    path = change(lab / "mbx1.toml", LISTEN, 'address = "127.0.0.1:25"')
    assert errors(path, bind=True) == []
    assert warnings(path, bind=True) == [("listen[0].address", "127.0.0.1:25: Permission denied")]


def test_a_running_node_is_no_fault(anontls: Anontls, lab: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = change(lab / "mbx1.toml", LISTEN, f'address = "127.0.0.1:{port}"')
    with serving(path) as node:
        node.until("listens on")
        ran = anontls("config", "check", path)
    assert ran.status == Exit.DONE
    assert f"note     listen[0].address: 127.0.0.1:{port} is in use by a node that is this one" in ran.out


def test_figures_of_a_running_node_are_no_fault(lab: Path) -> None:
    def observe() -> Observed:
        nothing: dict[str, Any] = {"now": 0, "loaded": 0, "receiving": 0, "sending": 0, "startup": None, "store": ()}
        return Observed(**nothing, draining=False, listening=True)

    async def session() -> list[tuple[str, str]]:
        server = MetricsServer(Metrics(), observe, "127.0.0.1", 0)
        try:
            path = add(lab / "mbx1.toml", f'[metrics]\nlisten = "127.0.0.1:{server.address[1]}"')
            assert await asyncio.to_thread(errors, path, bind=True) == []
            return await asyncio.to_thread(found, path, "note", bind=True)
        finally:
            await server.close()

    assert [place for place, _ in asyncio.run(session())] == ["metrics.listen"]


@pytest.mark.parametrize(
    ("host", "told"), [("127.0.0.1", False), ("[::1]", False), ("localhost", False), ("0.0.0.0", True), ("[::]", True)]
)
def test_figures_are_for_this_machine(lab: Path, host: str, told: bool) -> None:
    path = add(lab / "mbx1.toml", f'[metrics]\nlisten = "{host}:0"')
    assert [place for place, _ in warnings(path, bind=True)] == ["metrics.listen"] * told


def test_names_that_have_no_address(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def without_dns(host: str, *more: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(-2, "Name or service not known")
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", without_dns)
    path = change(lab / "edge1.toml", 'next-hop = "127.0.0.1:0"', 'next-hop = "mbx1.invalid:25"')
    change(path, "\n[log]", '\n[delivery.hosts]\na = "here.invalid:25"\nb = "127.0.0.1:25"\n\n[log]')
    assert sorted(errors(path)) == [
        ("delivery.hosts.a", "here.invalid:25: Name or service not known"),
        ("delivery.next-hop", "mbx1.invalid:25: Name or service not known"),
    ]


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_behind(lab: Path) -> None:
    ahead = (options.now() + timedelta(hours=1)).timestamp()
    os.utime(lab / "org.json", (ahead, ahead))
    ((place, text),) = warnings(lab / "mbx1.toml")
    assert place == "node.organization" and "still to come" in text


def test_fewer_files_than_sessions(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = add(lab / "mbx1.toml", "[limits]\nsessions = 2000")
    for most, told in ((2000, True), (2256, False), (resource.RLIM_INFINITY, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _what, most=most: (100, most))
        assert [place for place, _ in warnings(path)] == ["limits.sessions"] * told


def test_root_is_told(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for user, told in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        texts = [text for _, text in found(lab / "mbx1.toml", "warning")]
        assert any("as root" in text for text in texts) is told


# --- folders and the queue --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "place", "text"),
    [
        ('events = "mbx1-events.jsonl"', 'events = "mbx1-certificates"', "log.events", "is a folder"),
        ('protocol = "mbx1-log"', 'protocol = "org.json"', "log.protocol", "is no folder"),
        ('maildir = "mail"', 'maildir = "org.json/a/b"', "delivery.maildir", "org.json is no folder"),
        ("[log]", "[queue]\ndatabase = 'org.json/q'\n[log]", "queue.database", "org.json is no folder"),
        ("[log]", "[queue]\ndatabase = 'org.json'\n[log]", "queue.database", "not a SQLite database"),
        ("[log]", f"[queue]\ndatabase = 'q'\nminimum-free = {2**62}\n[log]", "queue.minimum-free", "452"),
        ("[log]", f"[queue]\ndatabase = '{'x' * 256}'\n[log]", "queue.database", "File name too long"),
        ("[log]", f"[queue]\ndatabase = 'q'\ncontrol = '{'x' * 120}'\n[log]", "queue.control", "longer than"),
        ("[log]", "[queue]\ndatabase = 'q'\ncontrol = 'org.json'\n[log]", "queue.control", "is no socket"),
        ("[log]", "[queue]\ndatabase = 'n/q'\ncontrol = 'm/c'\n[log]", "queue.control", "m is no folder"),
    ],
)
def test_places_that_cannot_be_used(lab: Path, old: str, new: str, place: str, text: str) -> None:
    (fault,) = errors(change(lab / "mbx1.toml", old, new))
    assert fault[0] == place and text in fault[1]


def test_folders_of_somebody_else(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = add(lab / "mbx1.toml", '[queue]\ndatabase = "q/queue.db"')
    real = os.access
    monkeypatch.setattr(os, "access", lambda at, mode: Path(at) != lab and real(at, mode))
    assert errors(path) == [
        (place, f"{lab} cannot be written by this user")
        for place in ("delivery.maildir", "log.events", "log.protocol", "queue.database")
    ]


def test_folders_that_this_user_may_not_enter(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = change(lab / "mbx1.toml", "create-mailboxes = true", "create-mailboxes = false")
    for key, file in (("protocol", "mbx1-log"), ("events", "mbx1-events.jsonl"), ("maildir", "mail")):
        change(path, f'{key} = "{file}"', f'{key} = "closed/{file}"')
    change(path, "[log]", '[log]\nsyslog = "closed/log"')
    add(path, '[queue]\ndatabase = "closed/queue.db"\ncontrol = "closed/c"')
    closed = lab / "closed"
    closed.mkdir()
    (closed / "queue.db").touch()
    stat, access = os.stat, os.access

    def look(at: Path, **more: bool) -> os.stat_result:
        if closed in Path(at).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(at))
        return stat(at, **more)

    monkeypatch.setattr(os, "stat", look)
    monkeypatch.setattr(os, "lstat", lambda at: look(at, follow_symlinks=False))
    monkeypatch.setattr(os, "access", lambda at, mode: closed not in (at, *Path(at).parents) and access(at, mode))
    assert [(place, text) for place, text in errors(path) if "closed" in text] == [
        (place, f"{closed} cannot be written by this user")
        for place in ("delivery.maildir", "log.events", "log.protocol", "queue.database", "queue.control")
    ]


def test_places_that_only_surprise(lab: Path) -> None:
    path = change(lab / "mbx1.toml", "create-mailboxes = true", "create-mailboxes = false")
    change(path, "[log]", '[log]\nsyslog = "org.json"')
    assert [place for place, _ in warnings(path)] == ["delivery.maildir", "log.syslog"]


@pytest.mark.parametrize(
    ("application", "version", "text"),
    [
        (APPLICATION, len(STEPS), ""),
        (APPLICATION, len(STEPS) + 1, "made by a newer version"),
        (0, 0, "not of a queue"),
        (1, 1, "not of a queue"),
    ],
)
def test_a_database_is_looked_at_without_opening_it(lab: Path, application: int, version: int, text: str) -> None:
    path = add(lab / "mbx1.toml", '[queue]\ndatabase = "queue.db"')
    with closing(sqlite3.connect(lab / "queue.db")) as db:
        db.execute(f"PRAGMA application_id = {application}")
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("CREATE TABLE message (id INTEGER PRIMARY KEY)")
        db.execute("PRAGMA journal_mode = WAL").fetchall()
    before = files(lab)
    faults = errors(path)
    assert files(lab) == before
    assert len(faults) == bool(text) and all(text in fault for _, fault in faults)


@pytest.mark.parametrize("kill", [False, True])
def test_the_queue_of_a_node_that_runs_or_was_killed(anontls: Anontls, lab: Path, kill: bool) -> None:
    """Until its write-ahead log is copied the database itself does not say whose it is."""
    path = add(lab / "mbx1.toml", '[queue]\ndatabase = "queue.db"')
    database = lab / "queue.db"
    with serving(path) as node:
        node.until("listens on")
        if kill:
            node.process.kill()
            node.process.wait(20)
        assert database.read_bytes()[68:72] == bytes(4)
        before = files(lab)
        ran = anontls("config", "check", "--no-bind", path)
        assert files(lab) == before
    assert ran.status == Exit.DONE, ran.out
    assert "error" not in ran.out
    assert ("in use by a running node" in ran.out) is not kill
    with opened(database) as (writer, _):
        writer.execute("PRAGMA user_version = 99")
        faults = [text for _, text in errors(path)]
    assert any("format 99, made by a newer version" in text for text in faults)


def test_a_database_that_was_cut_off(lab: Path) -> None:
    path = add(lab / "mbx1.toml", '[queue]\ndatabase = "queue.db"')
    database = lab / "queue.db"
    with opened(database) as (writer, _):
        writer.execute("INSERT INTO message VALUES (1, 0, '', 9, NULL, '', 0, '', '', '', zeroblob(20000))")
    assert errors(path) == []
    whole = database.read_bytes()
    for octets, there in ((4096, 1), (len(whole) - 4096, len(whole) // 4096 - 1)):
        database.write_bytes(whole[:octets])
        assert errors(path) == [
            ("queue.database", f"{database}: cut off: it has {there} of its {len(whole) // 4096} pages")
        ]
        with pytest.raises(MalformedInput), opened(database):
            pass
    database.write_bytes(whole[:-1])  # SQLite counts a page that has begun
    assert errors(path) == []
    database.write_bytes(whole[:16] + bytes(2) + whole[18:])
    assert errors(path) == [("queue.database", f"{database}: not a SQLite database")], "no page has 0 octets"


def test_a_log_that_is_of_no_use(lab: Path) -> None:
    """Of an earlier round, torn, of something else: then what stands in the database itself counts."""
    path = add(lab / "mbx1.toml", '[queue]\ndatabase = "queue.db"')
    database, log = lab / "queue.db", lab / "queue.db-wal"
    with opened(database):
        ours, blank = log.read_bytes(), database.read_bytes()
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA application_id = 1").fetchall()
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        foreign = database.read_bytes()
    assert blank[18:20] == foreign[18:20] == b"\2\2", "both have a log"
    database.write_bytes(foreign)
    log.write_bytes(ours)
    assert errors(path) == []
    of_another_round = ours[:16] + bytes(8) + ours[24:]
    for octets in (b"", ours[:31], ours[:100], ours[:-4096], of_another_round, b"x" * 5000):
        log.write_bytes(octets)
        database.write_bytes(foreign)
        ((_, text),) = errors(path)
        assert text.endswith("not of a queue")
        database.write_bytes(blank)
        assert errors(path) == [], "as a node leaves it that is killed before its first transaction"


def test_a_queue_that_a_node_has(lab: Path) -> None:
    path = add(lab / "mbx1.toml", '[queue]\ndatabase = "queue.db"\ncontrol = "c"')
    database = lab / "queue.db"
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(str(lab / "c"))
        node.listen()
        with opened(database):
            assert errors(path) == []
            assert found(path, "note") == [("queue.database", f"{database} is in use by a running node")]
        assert errors(path) == [("queue.control", "another node answers there")]
    assert errors(path) == found(path, "note") == [], "the socket of a node that is gone"
    with opened(database):
        before = files(lab)
        assert errors(path) == [("queue.database", f"{database}: process {os.getpid()} has it")]
        assert files(lab) == before
