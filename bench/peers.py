"""The servers that are measured: ours and aiosmtpd (``bench.postfix`` has Postfix), on loopback, stopped by their pids.

A peer that is not installed is a :class:`Missing` with the reason, never a figure.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from anontls.certstore import write
from anontls.certstore.bindings import Binding
from anontls.directory import snapshot
from anontls.facts import Certificate, Organization
from anontls.facts.own_certificate import OwnCertificate
from anontls.transport.lab import DOMAIN, EDGE, MAILBOX, lab_organization

HERE = Path(__file__).parent
PEERS = HERE.parent / "build" / "peers"
TICK = 1 / os.sysconf("SC_CLK_TCK")


class Missing(Exception):
    """A peer cannot be measured here; says why."""


class Running(NamedTuple):
    """A server that runs: its root process, its ports by name."""

    pid: int
    ports: dict[str, int]

    def cpu(self) -> float:
        """Seconds of user and system time of the process, its children and those that have ended."""
        return cpu_of_tree(self.pid)


def cpu_of_tree(root: int) -> float:
    """User and system time of ``root`` and all below it, with what has ended and been waited for."""
    times: dict[int, float] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            times[int(entry.name)] = sum(int(each) for each in fields[11:15]) * TICK
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sum(times.get(pid, 0.0) for pid in found)


def busy_of_machine() -> float:
    """Seconds that all processors together were busy since the start of the machine, without what waits for disks."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, softirq, _stolen = fields
    return (user + nice + system + irq + softirq) * TICK


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(port: int, patience: float = 20) -> None:
    """Until something listens there."""
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@contextmanager
def process(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A server that is one process; ``environment`` comes on top of ours."""
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=HERE.parent, env={**os.environ, **(environment or {})}
        )
    try:
        wait_for(port)
        yield Running(server.pid, {"smtp": port})
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


# --- ours -------------------------------------------------------------------------------------------------------------


class Lab(NamedTuple):
    """Two servers of one organisation with keys of one kind: EDGE1 is measured, the load and the sink play MBX1."""

    folder: Path
    certificates: dict[str, OwnCertificate]
    stores: dict[str, Path]


def write_lab(folder: Path, kind: str) -> Lab:
    """The organisation and both certificate stores; ``kind`` is ``ec`` or ``rsa``."""
    folder.mkdir(parents=True)
    certificates = {name: certificate(name, kind) for name in (MAILBOX, EDGE)}
    stores = {}
    for name, own in certificates.items():
        store = stores[name] = folder / f"{name.lower()}-certificates"
        write.prepare(store)
        write.add(store, own.certificate, own.key)
        write.bind(store, own.thumbprint, Binding(services=("SMTP",)))
    (folder / "org.json").write_bytes(snapshot.dump(_open(lab_organization(certificates))))
    return Lab(folder, certificates, stores)


def _open(organization: Organization) -> Organization:
    """With Receive connectors that let anybody in: MBX1 as a sink takes mail of Postfix, which is no Exchange server."""
    servers = []
    for server in organization.servers:
        assert isinstance(server.receive_connectors, tuple)
        connectors = tuple(
            msgspec.structs.replace(connector, permission_groups="AnonymousUsers, ExchangeServers")
            for connector in server.receive_connectors
        )
        servers.append(msgspec.structs.replace(server, receive_connectors=connectors))
    return msgspec.structs.replace(organization, servers=tuple(servers))


def certificate(name: str, kind: str) -> OwnCertificate:
    """Self-signed, P-256 or RSA-2048."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
        ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName(f"{name.lower()}.{DOMAIN}")])
    now = datetime.now(UTC).replace(microsecond=0)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1825))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    facts = Certificate(der=made.public_bytes(Encoding.DER), has_private_key=True, is_self_signed=True, status="Valid")
    return OwnCertificate(facts, key)


SERVE = (str(Path(sys.executable).with_name("anontls")), "serve")
FORGETFUL = (sys.executable, "-m", "bench.node")  # the same service with a delivery that drops everything
CONNECTORS = {MAILBOX: f"Default {MAILBOX}", EDGE: f"Default internal receive connector {EDGE}"}


@contextmanager
def anontls(
    lab: Lab,
    name: str,
    *,
    server: str = EDGE,
    delivery: str = "",
    tables: str = "",
    protocol_log: bool = False,
    program: Sequence[str] = SERVE,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A node that is ``server``, with the OpenSSL settings of ``contrib``.

    ``delivery`` are the lines of that table, a Maildir without them; ``tables`` are more tables of the configuration.
    """
    port = free_ports(1)[0]
    path = lab.folder / f"{name}.toml"
    maildir = f'maildir = "{name}-mail"\ncreate-mailboxes = true'
    path.write_text(
        f'[node]\norganization = "org.json"\nserver = "{server}"\n\n'
        f'[store]\nfolder = "{lab.stores[server].name}"\n\n'
        f'[[listen]]\nconnector = "{CONNECTORS[server]}"\naddress = "127.0.0.1:{port}"\n\n'
        f"[delivery]\n{delivery or maildir}\n\n"
        f'[log]\nevents = "{name}-events.jsonl"\n' + (f'protocol = "{name}-log"\n' if protocol_log else "") + tables
    )
    settings = {"OPENSSL_CONF": str(HERE.parent / "contrib" / "openssl.cnf"), **(environment or {})}
    with process([*program, str(path)], port, lab.folder / f"{name}.log", settings) as running:
        yield running


# --- aiosmtpd ---------------------------------------------------------------------------------------------------------


def aiosmtpd_python() -> str:
    """A Python with aiosmtpd and uvloop, in an environment of its own below ``build``; made when it is not there."""
    python = PEERS / "bin" / "python"
    ready = PEERS / ".installed"
    if not ready.exists():
        venv.create(PEERS, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", "--require-hashes", "-r", HERE / "peers.txt"],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Missing(f"aiosmtpd cannot be installed: {done.stderr.strip()[-300:]}")
        ready.touch()
    return str(python)


@contextmanager
def aiosmtpd(folder: Path) -> Iterator[Running]:
    """Its own controller on uvloop, with a handler that does nothing."""
    port = free_ports(1)[0]
    command = [aiosmtpd_python(), str(HERE / "aiosmtpd_peer.py"), str(port)]
    with process(command, port, folder / "aiosmtpd.log") as running:
        yield running
