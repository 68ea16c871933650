"""slapd with the part of Exchange's schema that we read: up in a tenth of a second, and needs no root.

It plays Active Directory (naming context ``DC=contoso,DC=com``) and AD LDS (``CN=Configuration,CN={...}``, whose own
root DSE an instance of the second kind has), as far as a reader of objects sees it.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP

from lab import schema
from lab.certificates import certificate_for
from lab.daemon import Daemon, Run, command, free_port
from lab.entries import Entry, ldif

CONF = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include {folder}/exchange.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload syncprov
TLSCertificateFile {folder}/cert.pem
TLSCertificateKeyFile {folder}/key.pem
rootDSE {folder}/rootdse.ldif
sizelimit unlimited
sockbuf_max_incoming_auth 33554432
{before}
database mdb
suffix "{suffix}"
rootdn "{bind_dn}"
rootpw {password}
directory {folder}/db
maxsize 268435456
overlay syncprov
{after}
"""


class Slapd:
    """A running slapd; ``stop`` and ``start`` keep what it holds."""

    def __init__(
        self,
        folder: Path,
        *,
        slapd: str,
        slapadd: str,
        suffix: str = "DC=contoso,DC=com",
        configuration: str = "",
        entries: Iterable[tuple[str, Entry]] = (),
        before: str = "",
        after: str = "",
        environment: Mapping[str, str] | None = None,
        run: Run = command,
    ) -> None:
        self.folder = folder
        self.base = suffix
        self.configuration = configuration or f"CN=Configuration,{suffix}"
        self.bind_dn = f"cn=admin,{suffix}"
        self.password = "secret-of-the-tests"
        self.port, self.ldaps_port = free_port(), free_port()
        self.url, self.ldaps_url = f"ldap://127.0.0.1:{self.port}", f"ldaps://127.0.0.1:{self.ldaps_port}"
        self.ca = folder / "cert.pem"
        certificate_for("dc1.contoso.com", "127.0.0.1", self.ca, folder / "key.pem")
        (folder / "db").mkdir()
        (folder / "exchange.schema").write_text(schema.for_slapd())
        (folder / "rootdse.ldif").write_text(ldif([("", {"configurationNamingContext": [self.configuration]})]))
        conf = folder / "slapd.conf"
        conf.write_text(
            CONF.format(
                folder=folder,
                suffix=suffix,
                bind_dn=self.bind_dn,
                password=self.password,
                before=before,
                after=after,
            )
        )
        there = [] if suffix == self.configuration else [(suffix, _container(suffix))]
        data = folder / "data.ldif"
        data.write_text(ldif([*there, (self.configuration, _container(self.configuration)), *entries]))
        self._run = run
        run(slapadd, "-q", "-f", conf, "-l", data)
        listening = [("127.0.0.1", self.port), ("127.0.0.1", self.ldaps_port)]
        # a fixed "-d 0" keeps it in the foreground
        daemon = (slapd, "-f", conf, "-h", f"{self.url} {self.ldaps_url}", "-d", "0")
        self._daemon = Daemon(daemon, folder / "log", listening, environment=environment)
        self.command = self._daemon.command
        self.start = self._daemon.start
        self.stop = self._daemon.stop

    def add(self, *entries: tuple[str, Entry]) -> None:
        """Objects, those above before those below."""
        self.modify(ldif(entries))

    def modify(self, changes: str) -> None:
        """LDIF with or without ``changetype``."""
        bind = ("-x", "-H", self.url, "-D", self.bind_dn, "-w", self.password)
        self._run("ldapmodify", "-a", *bind, stdin=changes)

    def set(self, dn: str, attribute: str, value: bytes | None) -> None:
        """Replace an attribute's value; ``None`` takes it away."""
        line = "" if value is None else f"{attribute}:: {base64.b64encode(value).decode()}\n"
        self.modify(f"dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{line}")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It keeps its connections and says nothing."""
        self._daemon.signal(SIGSTOP)
        try:
            yield
        finally:
            self._daemon.signal(SIGCONT)

    def delete(self, dn: str) -> None:
        """An object and all below it."""
        bind = ("-x", "-H", self.url, "-D", self.bind_dn, "-w", self.password)
        self._run("ldapdelete", "-r", *bind, dn)


def _container(dn: str) -> Entry:
    kind, _, value = dn.partition(",")[0].partition("=")
    if kind.upper() == "DC":
        return {"objectClass": ["domain"], "dc": [value]}
    return {"objectClass": ["configuration"], "cn": [value]}


@contextmanager
def running_slapd(*, slapd: str, slapadd: str, **settings: object) -> Iterator[Slapd]:
    with tempfile.TemporaryDirectory(prefix="anontls-slapd-") as folder:
        running = Slapd(Path(folder), slapd=slapd, slapadd=slapadd, **settings)  # type: ignore[arg-type]
        running.start()
        try:
            yield running
        finally:
            running.stop()
