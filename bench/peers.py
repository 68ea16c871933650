"""The servers that are measured: ours, Postfix and aiosmtpd, each started here on loopback and stopped here by its pid.

A peer that is not installed is a :class:`Missing` with the reason, never a figure.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from anontls.certstore import write
from anontls.certstore.bindings import Binding
from anontls.directory import snapshot
from anontls.facts import Certificate
from anontls.facts.own_certificate import OwnCertificate
from anontls.transport.lab import DOMAIN, EDGE, MAILBOX, lab_organization

HERE = Path(__file__).parent
PEERS = HERE.parent / "build" / "peers"
TICK = 1 / os.sysconf("SC_CLK_TCK")
# postfix is in sbin, which the PATH of a user need not name
SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


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
def process(command: Sequence[str], port: int, log: Path) -> Iterator[Running]:
    """A server that is one process."""
    with log.open("ab") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=HERE.parent)
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
    """Two servers of one organisation with keys of one kind: EDGE1 is measured, the load plays MBX1."""

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
    (folder / "org.json").write_bytes(snapshot.dump(lab_organization(certificates)))
    return Lab(folder, certificates, stores)


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


@contextmanager
def anontls(lab: Lab, *, name: str = "node", stores_mail: bool = True, protocol_log: bool = False) -> Iterator[Running]:
    """``anontls serve``; without ``stores_mail`` the same service with a delivery that drops everything."""
    port = free_ports(1)[0]
    path = lab.folder / f"{name}.toml"
    path.write_text(
        f'[node]\norganization = "org.json"\nserver = "{EDGE}"\n\n'
        f'[store]\nfolder = "{lab.stores[EDGE].name}"\n\n'
        f'[[listen]]\nconnector = "Default internal receive connector {EDGE}"\naddress = "127.0.0.1:{port}"\n\n'
        f'[delivery]\nmaildir = "{name}-mail"\ncreate-mailboxes = true\n\n'
        f'[log]\nevents = "{name}-events.jsonl"\n' + (f'protocol = "{name}-log"\n' if protocol_log else "")
    )
    program = [str(Path(sys.executable).with_name("anontls")), "serve"]
    if not stores_mail:
        program = [sys.executable, "-m", "bench.node"]
    with process([*program, str(path)], port, lab.folder / f"{name}.log") as running:
        yield running


# --- Postfix ----------------------------------------------------------------------------------------------------------

MAIN = """\
compatibility_level = 3.6
command_directory = {command}
daemon_directory = {daemon}
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.test
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_client_event_limit_exceptions = 127.0.0.0/8
biff = no
in_flow_delay = 0
default_process_limit = 150
default_destination_concurrency_limit = 50
initial_destination_concurrency = 20
qmgr_message_active_limit = 50000
message_size_limit = 52428800
default_transport = discard
smtpd_tls_security_level = may
smtpd_tls_ask_ccert = yes
smtpd_tls_fingerprint_digest = sha256
smtpd_tls_session_cache_database =
tls_ssl_options = NO_TICKET
smtpd_tls_cert_file = none
"""
MASTER = """\
127.0.0.1:{ec} inet n - n - - smtpd -o smtpd_tls_chain_files={folder}/ec.pem
127.0.0.1:{rsa} inet n - n - - smtpd -o smtpd_tls_chain_files={folder}/rsa.pem
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsproxy  unix  - - n - 0 tlsproxy
postlog   unix-dgram n - n - 1 postlogd
"""


def tool(name: str) -> str:
    """The path of a program of Postfix."""
    found = shutil.which(name, path=SBIN)
    if found is None:
        raise Missing(f"Postfix is not installed ({name} is not there)")
    return found


@contextmanager
def postfix(folder: Path, certificates: dict[str, OwnCertificate]) -> Iterator[Running]:
    """An instance of its own: smtpd with a P-256 and with an RSA certificate, its queue, everything discarded."""
    program = tool("postfix")
    if os.geteuid() != 0:
        raise Missing("Postfix is installed, but its master runs as root only")
    folder.mkdir(parents=True)
    configuration = folder / "conf"
    for part in ("conf", "queue", "data"):
        (folder / part).mkdir(mode=0o755)
    for above in (folder, folder.parent):
        above.chmod(0o755)  # its processes run as another user
    shutil.chown(folder / "data", "postfix")
    for kind, own in certificates.items():
        assert own.certificate.x509 is not None
        file = folder / f"{kind}.pem"
        file.touch(mode=0o600)
        file.write_bytes(
            own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + own.certificate.x509.public_bytes(Encoding.PEM)
        )
    ports = dict(zip(("ec", "rsa"), free_ports(2), strict=True))
    daemon = next((d for d in ("/usr/lib/postfix/sbin", "/usr/libexec/postfix") if Path(d).is_dir()), "")
    (configuration / "main.cf").write_text(
        MAIN.format(folder=folder, command=Path(program).parent, daemon=daemon), encoding="ascii"
    )
    (configuration / "master.cf").write_text(MASTER.format(folder=folder, **ports), encoding="ascii")
    started = subprocess.run([program, "-c", str(configuration), "start"], capture_output=True, text=True)
    if started.returncode:
        raise Missing(f"Postfix does not start: {started.stderr.strip()[-300:]}")
    try:
        wait_for(ports["ec"])
        yield Running(int((folder / "queue/pid/master.pid").read_text()), ports)
    finally:
        subprocess.run([program, "-c", str(configuration), "stop"], capture_output=True)


def postfix_version() -> str:
    """Version of Postfix; says "not installed" when it is not."""
    try:
        said = subprocess.run([tool("postconf"), "-d", "-h", "mail_version"], capture_output=True, text=True)
    except Missing:
        return "not installed"
    return said.stdout.strip()


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
