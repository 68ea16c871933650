"""An MIT Kerberos realm of its own on loopback; up in a twentieth of a second, and needs no root."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.daemon import Daemon, command, free_port

KRB5_CONF = """\
[libdefaults]
 default_realm = {realm}
 dns_lookup_realm = false
 dns_lookup_kdc = false
 dns_canonicalize_hostname = false
 rdns = false
 udp_preference_limit = 1
 {more}
[realms]
 {realm} = {{
  kdc = {kdc}
 }}
"""
KDC_CONF = """\
[kdcdefaults]
 kdc_listen = {address}
 kdc_tcp_listen = {address}
[realms]
 {realm} = {{
  database_name = {folder}/principal
  key_stash_file = {folder}/stash
  acl_file = {folder}/kadm5.acl
  max_life = 10h
  supported_enctypes = aes256-cts:normal aes128-cts:normal
 }}
"""


class Realm:
    """Where a Kerberos client finds a KDC: the environment that it takes, and its tickets.

    ``environment`` names a configuration, a credential cache and a replay cache, all in the folder of this realm: what
    runs with it touches nothing of the machine's.
    """

    def __init__(self, realm: str, folder: Path, kdc: str, *, more: str = "") -> None:
        self.realm = realm
        self.folder = folder
        self.environment = {
            "KRB5_CONFIG": str(folder / "krb5.conf"),
            "KRB5CCNAME": f"FILE:{folder / 'ccache'}",
            "KRB5RCACHENAME": f"dfl:{folder / 'replay'}",
            "KRB5RCACHEDIR": str(folder),
        }
        (folder / "krb5.conf").write_text(KRB5_CONF.format(realm=realm, kdc=kdc, more=more))

    def kinit(self, principal: str, *, keytab: Path | None = None, password: str = "", ccache: str = "ccache") -> str:
        """Get a ticket with a keytab or a password; the credential cache as ``KRB5CCNAME`` takes it.

        A cache of another name in ``folder`` keeps the tickets of several principals apart.
        """
        cache = f"FILE:{self.folder / ccache}"
        how = ("-k", "-t", keytab) if keytab else ()
        environment = {**self.environment, "KRB5CCNAME": cache}
        command("kinit", *how, principal, environment=environment, stdin="" if keytab else f"{password}\n")
        return cache

    def kdestroy(self, *, ccache: str = "ccache") -> None:
        """Forget the tickets."""
        (self.folder / ccache).unlink(missing_ok=True)


class Kdc(Realm):
    """A running MIT KDC; ``stop`` and ``start`` keep its principals."""

    def __init__(self, realm: str, folder: Path, *, kdb5_util: str, kadmin_local: str, krb5kdc: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        super().__init__(realm, folder, self.address)
        self._kadmin_local = kadmin_local
        self._environment = {**self.environment, "KRB5_KDC_PROFILE": str(folder / "kdc.conf")}
        (folder / "kdc.conf").write_text(KDC_CONF.format(address=self.address, realm=realm, folder=folder))
        command(kdb5_util, "create", "-s", "-r", realm, "-P", "master password", environment=self._environment)
        host, port = self.address.split(":")
        daemon = (krb5kdc, "-n", "-P", folder / "pid")
        self._daemon = Daemon(daemon, folder / "log", [(host, int(port))], environment=self._environment)
        self.start = self._daemon.start
        self.stop = self._daemon.stop

    def kadmin(self, *queries: str) -> str:
        """Run ``kadmin.local`` with these commands."""
        return command(
            self._kadmin_local, "-r", self.realm, environment=self._environment, stdin="\n".join(queries) + "\n"
        )

    def add_principal(self, name: str, *options: str, enctypes: str = "") -> Path:
        """A principal with random keys, such as ``SMTPSVC/mbx1.contoso.com``; its new keytab.

        ``options`` are those of ``addprinc`` (``-maxlife "2 sec"``); ``enctypes`` such as
        ``aes128-cts:normal`` replaces the realm's.
        """
        keytab = self.folder / f"{name.replace('/', '_')}.keytab"
        keytab.unlink(missing_ok=True)
        keys = f"-e {enctypes}" if enctypes else ""
        printed = self.kadmin(
            f"addprinc -randkey {keys} {' '.join(options)} {name}", f"ktadd -k {keytab} {keys} {name}"
        )
        assert keytab.exists(), printed
        return keytab


@contextmanager
def running_kdc(realm: str, *, kdb5_util: str, kadmin_local: str, krb5kdc: str) -> Iterator[Kdc]:
    with tempfile.TemporaryDirectory(prefix="anontls-kdc-") as folder:
        running = Kdc(realm, Path(folder), kdb5_util=kdb5_util, kadmin_local=kadmin_local, krb5kdc=krb5kdc)
        running.start()
        try:
            yield running
        finally:
            running.stop()
