"""A Postfix instance of its own: its folders lie in one temporary folder, it listens on loopback and starts as root."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from anontls.certstore.new import new_internal_certificate
from tests.peers.program import run

MAIN = """
compatibility_level = 3.6
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
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
biff = no
relayhost = [127.0.0.1]:{relay}
maximal_backoff_time = 1s
minimal_backoff_time = 1s
queue_run_delay = 1s
smtp_tls_loglevel = 1
smtp_tls_security_level = {level}
smtp_tls_fingerprint_digest = sha256
smtp_tls_fingerprint_cert_match = {fingerprint}
smtp_tls_session_cache_database =
smtpd_tls_loglevel = 1
smtpd_tls_security_level = may
smtpd_tls_chain_files = {folder}/own.pem
smtpd_tls_ask_ccert = yes
smtpd_tls_received_header = yes
"""
MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup  unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr    unix n - n 300 1 qmgr
tlsmgr  unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce  unix - - n - 0 bounce
defer   unix - - n - 0 bounce
trace   unix - - n - 0 bounce
verify  unix - - n - 1 verify
flush   unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp    unix - - n - - smtp
relay   unix - - n - - smtp
showq   unix n - n - - showq
error   unix - - n - - error
retry   unix - - n - - error
discard unix - - n - - discard
anvil   unix - - n - 1 anvil
scache  unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
QUEUE = [
    "active",
    "bounce",
    "corrupt",
    "defer",
    "deferred",
    "flush",
    "hold",
    "incoming",
    "maildrop",
    "pid",
    "private",
    "public",
    "saved",
    "trace",
]


class Postfix:
    """A running instance."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    @property
    def configuration(self) -> str:
        return str(self.folder / "conf")

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str, timeout: float = 30.0) -> str:
        """The line of the log that has it."""
        end = time.monotonic() + timeout
        while True:
            for line in self.log.splitlines():
                if text in line:
                    return line
            assert time.monotonic() < end, f"{text!r} is not in the log:\n{self.log}"
            time.sleep(0.05)


@contextmanager
def postfix(program: str, port: int, relay: int, *, fingerprint: str = "") -> Iterator[Postfix]:
    """Takes mail on ``port`` and relays it to ``relay``; with a fingerprint, over STARTTLS with that certificate only."""
    folder = Path(tempfile.mkdtemp(prefix="anontls-postfix-"))
    try:
        folder.chmod(0o755)  # other users' processes go in and out
        for name in ("conf", "data", "queue"):
            (folder / name).mkdir()
        for name in QUEUE:
            (folder / "queue" / name).mkdir()
            shutil.chown(folder / "queue" / name, "root" if name == "pid" else "postfix")
        for name, mode in (("maildrop", 0o1730), ("public", 0o2710)):
            shutil.chown(folder / "queue" / name, group="postdrop")
            (folder / "queue" / name).chmod(mode)
        shutil.chown(folder / "data", "postfix")
        (folder / "queue" / "quick-start").touch()  # no integrity check, which takes seconds
        own = new_internal_certificate("postfix", "postfix.test", now=datetime.now(UTC))
        key = own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        (folder / "own.pem").touch(0o600)
        (folder / "own.pem").write_text(key + ssl.DER_cert_to_PEM_cert(own.der))
        level = "fingerprint" if fingerprint else "none"
        (folder / "conf" / "main.cf").write_text(
            MAIN.format(folder=folder, relay=relay, level=level, fingerprint=fingerprint)
        )
        (folder / "conf" / "master.cf").write_text(MASTER.format(port=port))
        status, printed = run(program, "-c", folder / "conf", "start")
        assert status == 0, printed
        running = Postfix(folder, port)
        try:
            yield running
        finally:
            stop(int((folder / "queue" / "pid" / "master.pid").read_text()))
    finally:
        shutil.rmtree(folder)


def stop(master: int) -> None:
    """The master ends its processes when it is told to."""
    os.kill(master, signal.SIGTERM)
    end = time.monotonic() + 20
    while subprocess.run(["kill", "-0", str(master)], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < end, "Postfix does not end"
        time.sleep(0.02)
