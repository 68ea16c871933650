"""A Postfix instance of its own (``bench.postfix``) whose log can be waited for; it starts as root."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from anontls.certstore.new import new_internal_certificate
from bench import postfix as instance


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
    own = new_internal_certificate("postfix", "postfix.test", now=datetime.now(UTC))
    with tempfile.TemporaryDirectory(prefix="anontls-postfix-") as temporary:
        folder = Path(temporary)
        settings = {
            "maillog_file": folder / "log",
            "maillog_file_prefixes": folder,
            "relayhost": f"[127.0.0.1]:{relay}",
            "maximal_backoff_time": "1s",
            "minimal_backoff_time": "1s",
            "queue_run_delay": "1s",
            "smtp_tls_loglevel": 1,
            "smtp_tls_security_level": "fingerprint" if fingerprint else "none",
            "smtp_tls_fingerprint_digest": "sha256",
            "smtp_tls_fingerprint_cert_match": fingerprint,
            "smtp_tls_session_cache_database": "",
            "smtpd_tls_loglevel": 1,
            "smtpd_tls_received_header": "yes",
        }
        with instance.postfix(folder, {"own": own}, settings, {"own": port}):
            yield Postfix(folder, port)
