"""Samba as an Active Directory domain controller of its own, with the part of Exchange's schema that we read.

Its LDAP ports are fixed (389 and 636, hence root), so it listens on a loopback address of its own.  Provisioning takes
3 s, the schema 2 s, a start half a second.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import schema
from lab.certificates import certificate_for
from lab.daemon import Daemon, Run, command
from lab.entries import Entry, ldif
from lab.kdc import Realm

KRB5_PORT = 18088


class Samba(Realm):
    """A running domain controller; ``stop`` and ``start`` keep what it holds.

    ``environment`` (see :class:`~lab.kdc.Realm`) finds its KDC.
    """

    realm = "CONTOSO.COM"
    base = "DC=contoso,DC=com"
    configuration = f"CN=Configuration,{base}"
    fqdn = "dc1.contoso.com"
    administrator = "Administrator@CONTOSO.COM"
    password = "P@ssw0rd-of-the-tests"

    def __init__(self, folder: Path, *, samba: str, samba_tool: str, run: Run = command) -> None:
        # A process number is of one process only, so the address is too.
        pid = os.getpid()
        self.address = f"127.{64 + (pid >> 16) % 64}.{pid >> 8 & 255}.{pid & 255}"
        self.ldap_url = f"ldap://{self.address}"
        self.ldaps_url = f"ldaps://{self.address}"
        super().__init__(self.realm, folder, f"{self.address}:{KRB5_PORT}")
        self.environment["TDB_NO_FSYNC"] = "1"  # this directory need not outlive the machine
        self._samba_tool = samba_tool
        self._run = run
        self.ca = folder / "tls" / "cert.pem"
        for name in ("log", "run", "ncalrpc", "tls"):
            (folder / name).mkdir()
        certificate_for(self.fqdn, self.address, self.ca, folder / "tls" / "key.pem")
        self._provision()
        # Provisioning registers HOST/ only, and libldap asks for the name in the URL.
        self.add_spn(f"ldap/{self.address}", "DC1$")
        self.ldbmodify(schema.for_active_directory(self.base))
        ports = [(self.address, port) for port in (636, 389, KRB5_PORT)]
        options = ("--foreground", "--no-process-group", "--debug-stdout", "-M", "prefork")
        daemon = (samba, "-s", self.smb_conf, *options)
        self._daemon = Daemon(daemon, folder / "log" / "stdout", ports, environment=self.environment)
        self.command = self._daemon.command
        self.start = self._daemon.start
        self.stop = self._daemon.stop

    @property
    def smb_conf(self) -> Path:
        return self.folder / "etc" / "smb.conf"

    def _provision(self) -> None:
        folder = self.folder
        options = {
            "interfaces": f"{self.address}/8",
            "bind interfaces only": "yes",
            "server services": "ldap, cldap, kdc",
            "krb5 port": KRB5_PORT,
            "kpasswd port": 18464,
            "tls keyfile": folder / "tls" / "key.pem",
            "tls certfile": self.ca,
            "tls cafile": self.ca,
            "pid directory": folder / "run",
            "ncalrpc dir": folder / "ncalrpc",
            "log file": folder / "log" / "log.%m",
            "winbindd socket directory": folder / "wbd",
            "ntp signd socket directory": folder / "ntp",
            "dsdb:schema update allowed": "yes",
            "disable netbios": "yes",
            "prefork children": 1,
        }
        self._run(
            *(self._samba_tool, "domain", "provision", f"--realm={self.realm}", "--domain=CONTOSO", "--host-name=dc1"),
            *(f"--host-ip={self.address}", "--server-role=dc", "--dns-backend=NONE", f"--adminpass={self.password}"),
            *(f"--targetdir={folder}", *(f"--option={name}={value}" for name, value in options.items())),
            environment=self.environment,
        )

    def tool(self, *words: object) -> str:
        """Run ``samba-tool``; what it printed."""
        return self._run(self._samba_tool, *words, "-s", self.smb_conf, environment=self.environment)

    def ldbmodify(self, ldif: str) -> None:
        """Change the directory beneath its rules, whether it runs or not."""
        option = "--option=dsdb:schema update allowed=true"
        self._run(
            "ldbmodify", "-H", self.folder / "private" / "sam.ldb", option, environment=self.environment, stdin=ldif
        )

    def add(self, *entries: tuple[str, Entry]) -> None:
        """Objects, those above before those below."""
        self.ldbmodify(ldif(entries, changetype="add"))

    def set(self, dn: str, attribute: str, value: bytes | None) -> None:
        """Replace an attribute's value; ``None`` takes it away."""
        line = "" if value is None else f"{attribute}:: {base64.b64encode(value).decode()}\n"
        self.ldbmodify(f"dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{line}")

    def delete(self, dn: str) -> None:
        """An object and all below it."""
        self._run("ldbdel", "-H", self.folder / "private" / "sam.ldb", "-r", dn, environment=self.environment)

    def deny_reading(self, dn: str, attribute: str, account: str) -> str:
        """The account may not read the attribute of the object; with an empty name, none of it.

        Returns the access list as it was before, for :meth:`set_access`.
        """
        sid = re.search(r"^objectSid: (\S+)", self.tool("user", "show", account), re.MULTILINE)
        assert sid
        guid = next((each.guid for each in schema.ATTRIBUTES if each.name == attribute), "")
        before = self.tool("dsacl", "get", f"--objectdn={dn}")
        self.tool("dsacl", "set", f"--objectdn={dn}", f"--sddl=({'OD' if guid else 'D'};;RP;{guid};;{sid[1]})")
        return before.split("\n")[1]

    def set_access(self, dn: str, sddl: str) -> None:
        """Replace the access list of an object; samba-tool 4.17 can add to one only."""
        self.ldbmodify(f"dn: {dn}\nchangetype: modify\nreplace: nTSecurityDescriptor\nnTSecurityDescriptor: {sddl}\n")

    def add_user(self, name: str, *, aes: bool = True) -> Path:
        """A user with a random password; its keytab.

        Without ``aes`` its keys are RC4 only, as those of a new user with an SPN are.
        """
        self.tool("user", "create", name, "--random-password")
        if aes:
            self.use_aes(f"CN={name},CN=Users,{self.base}")
        return self.export_keytab(name)

    def add_computer(self, name: str) -> Path:
        """The account of a member computer, ``NAME$``, with a random password; its keytab."""
        password = f'"P@ss-{secrets.token_hex(16)}"'.encode("utf-16-le")  # in quotes (MS-ADTS, unicodePwd)
        self.ldbmodify(
            f"dn: CN={name},CN=Computers,{self.base}\nchangetype: add\nobjectClass: computer\n"
            f"sAMAccountName: {name}$\nuserAccountControl: 4096\n"
            f"unicodePwd:: {base64.b64encode(password).decode()}\n"
        )
        self.use_aes(f"CN={name},CN=Computers,{self.base}")
        return self.export_keytab(f"{name}$")

    def use_aes(self, dn: str) -> None:
        """The account's tickets are encrypted with AES from now on."""
        self.ldbmodify(
            f"dn: {dn}\nchangetype: modify\nreplace: msDS-SupportedEncryptionTypes\n"
            "msDS-SupportedEncryptionTypes: 24\n"  # AES128 and AES256 [MS-KILE 2.2.7]
        )

    def add_spn(self, spn: str, account: str) -> None:
        self.tool("spn", "add", spn, account)

    def export_keytab(self, principal: str, *, keytab: Path | None = None) -> Path:
        """The keys of an account, or of an SPN that it has; into a new keytab, or beside those of ``keytab``."""
        if keytab is None:
            keytab = self.folder / f"{principal.replace('/', '_')}.keytab"
            keytab.unlink(missing_ok=True)
        self.tool("domain", "exportkeytab", keytab, f"--principal={principal}")
        return keytab


@contextmanager
def running_samba(*, samba: str, samba_tool: str) -> Iterator[Samba]:
    # not pytest's folder: the names of its sockets must be short, and 33 MB need not stay
    with tempfile.TemporaryDirectory(prefix="anontls-dc-") as folder:
        running = Samba(Path(folder), samba=samba, samba_tool=samba_tool)
        running.start()
        try:
            yield running
        finally:
            running.stop()
