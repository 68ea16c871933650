"""A Postfix of its own: its folders lie in one folder, it listens on loopback, starts as root and is stopped by its pid.

The settings are those with which it relays most (measured; see the rows for what each instance adds).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from anontls.facts.own_certificate import OwnCertificate
from bench.peers import Missing, Running, free_ports, wait_for

# postfix is in sbin, which the PATH of a user need not name
SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
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
smtp_connection_cache_destinations = static:all
message_size_limit = 52428800
smtpd_tls_security_level = may
smtpd_tls_ask_ccert = yes
smtpd_tls_fingerprint_digest = sha256
smtpd_tls_session_cache_database =
tls_ssl_options = NO_TICKET
smtpd_tls_cert_file = none
"""
SMTPD = "127.0.0.1:{port} inet n - n - - smtpd -o smtpd_tls_chain_files={folder}/{name}.pem\n"
MASTER = """\
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
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsproxy  unix  - - n - 0 tlsproxy
postlog   unix-dgram n - n - 1 postlogd
"""
QUEUE = (
    "active bounce corrupt defer deferred flush hold incoming maildrop pid private public saved trace".split()  # noqa: SIM905 as Postfix lists them
)


def tool(name: str) -> str:
    """The path of a program of Postfix."""
    found = shutil.which(name, path=SBIN)
    if found is None:
        raise Missing(f"Postfix is not installed ({name} is not there)")
    return found


def version() -> str:
    """Version of Postfix; says "not installed" when it is not."""
    try:
        said = subprocess.run([tool("postconf"), "-d", "-h", "mail_version"], capture_output=True, text=True)
    except Missing:
        return "not installed"
    return said.stdout.strip()


@contextmanager
def postfix(
    folder: Path,
    certificates: Mapping[str, OwnCertificate],
    settings: Mapping[str, object],
    ports: Mapping[str, int] | None = None,
) -> Iterator[Running]:
    """An instance with an smtpd for each certificate, on the port of the same name; ``settings`` complete its main.cf.

    Its certificates lie in ``folder`` as ``NAME.pem``, keys included.  All folders above must be open to other users.
    """
    program = tool("postfix")
    if os.geteuid() != 0:
        raise Missing("Postfix is installed, but its master runs as root only")
    ports = ports or dict(zip(certificates, free_ports(len(certificates)), strict=True))
    _prepare(folder)
    for name, own in certificates.items():
        assert own.certificate.x509 is not None
        file = folder / f"{name}.pem"
        file.touch(mode=0o600)
        file.write_bytes(
            own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + own.certificate.x509.public_bytes(Encoding.PEM)
        )
    daemon = next((d for d in ("/usr/lib/postfix/sbin", "/usr/libexec/postfix") if Path(d).is_dir()), "")
    main = MAIN.format(folder=folder, command=Path(program).parent, daemon=daemon)
    (folder / "conf/main.cf").write_text(main + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    listens = "".join(SMTPD.format(folder=folder, name=name, port=ports[name]) for name in certificates)
    (folder / "conf/master.cf").write_text(listens + MASTER)
    with (folder / "start.log").open("w+") as said:  # not a pipe, which the master would keep open
        started = subprocess.run([program, "-c", folder / "conf", "start"], stdout=said, stderr=said)
        said.seek(0)
        if started.returncode:
            raise Missing(f"Postfix does not start: {said.read().strip()[-300:]}")
    master = int((folder / "queue/pid/master.pid").read_text())
    try:
        for port in ports.values():
            wait_for(port)
        yield Running(master, dict(ports))
    finally:
        _stop(master)


def _prepare(folder: Path) -> None:
    """The folders that ``postfix check`` would make; it takes seconds, and is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name in ("conf", "data", "queue"):
        (folder / name).mkdir(mode=0o755)
    for name in QUEUE:
        (folder / "queue" / name).mkdir()
        shutil.chown(folder / "queue" / name, "root" if name == "pid" else "postfix")
    for name, mode in (("maildrop", 0o1730), ("public", 0o2710)):
        shutil.chown(folder / "queue" / name, group="postdrop")
        (folder / "queue" / name).chmod(mode)
    shutil.chown(folder / "data", "postfix")
    (folder / "queue/quick-start").touch()


def _stop(master: int, patience: float = 20.0) -> None:
    """The master ends its processes when it is told to."""
    os.kill(master, signal.SIGTERM)
    end = time.monotonic() + patience
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(master, 0)
            time.sleep(0.02)
        raise RuntimeError(f"Postfix does not end: {master}")
