"""The network of ``make lab``: a domain controller, two Mailbox servers, an Edge server with its AD LDS; all on loopback."""

from __future__ import annotations

import re
import secrets
import signal
import smtplib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from anontls.certstore.folder import FolderStore
from anontls.facts.own_certificate import OwnCertificate
from anontls.transport.lab import EDGE
from anontls.transport.service import system_now
from lab.configuration import MAILBOX_SERVERS, MBX1, MBX2, NAMES, Account, configuration, fqdn, organization
from lab.daemon import free_port
from lab.exchange import Exchange
from lab.node import Node
from lab.samba import Samba
from lab.shell import Shell
from lab.slapd import Slapd

IN_ADLDS = "CN=Configuration,CN={5B2C0C0E-3E2C-4F5B-9D51-6C2B1A7C9A11}"
ANNA = "anna@contoso.com"
ADMINISTRATOR, ADLDS, READER = "administrator.password", "adlds.password", "reader.password"
CA = "ca.pem"
SUBSCRIPTION = "edge1.subscription"
CLOCK = "mbx2-clock"
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOST_OF_A_SOCKET = 107  # octets of the name of a Unix socket
LONGEST_SOCKET = "/dc/private/ldap_priv/ldapi"


class Network:
    """All of it; set up on entering, stopped on leaving."""

    dc: Samba
    adlds: Slapd

    def __init__(self, folder: Path, programs: Mapping[str, str]) -> None:
        self.folder = folder
        self.programs = programs
        self.shell = Shell(folder)
        self.nodes: dict[str, Node] = {}
        self.ports = {name: free_port() for name in NAMES}
        self.on_edge = Exchange(IN_ADLDS, "First Organization")
        self._stack = ExitStack()

    def __enter__(self) -> Network:
        try:
            self.set_up()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        """Whoever is impatient now would leave some of it running."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDS}
        try:
            self._stack.close()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def edge(self) -> Node:
        return self.nodes[EDGE]

    @property
    def mbx1(self) -> Node:
        return self.nodes[MBX1]

    @property
    def mbx2(self) -> Node:
        return self.nodes[MBX2]

    # --- to set it up -------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """A step after the other."""
        shell = self.shell
        with shell.step(
            "Active Directory: Samba is the domain controller, with the part of Exchange's schema that is read"
        ):
            self._domain_controller()
        exchange = Exchange(self.dc.configuration)
        with shell.step(
            "The organisation in it: containers, and a server object for each server, without a certificate"
        ):
            objects = [exchange.server(name) for name in MAILBOX_SERVERS]
            self.dc.add(*exchange.containers(services=False), *objects, exchange.server(EDGE, roles=64))
        with shell.step(
            "Accounts: a computer for each Mailbox server, with SMTPSVC, AES and a keytab; and one to read with"
        ):
            self._accounts()
        with shell.step("AD LDS of EDGE1, played by slapd: it knows EDGE1 only"):
            self._adlds()
        with shell.step("Certificates, each in the store of its server"):
            for name in NAMES:
                words = ("--store", f"{name.lower()}-certificates", "--server", name, "--fqdn", fqdn(name))
                shell.anontls("cert", "new", *words, only="^[0-9A-F]{40}$")
        with shell.step("The directories name them"):
            for name in MAILBOX_SERVERS:
                self.publish(name)
            self.publish_in_adlds(EDGE, "edge1-certificates")
            shell.anontls("edge", "subscribe", "--store", "edge1-certificates", "--server", EDGE, "-o", SUBSCRIPTION)
            self.sync()
        with shell.step("Three nodes, each following its directory"):
            self._nodes()

    def _domain_controller(self) -> None:
        folder = self.folder / "dc"
        folder.mkdir()
        shell, programs = self.shell, self.programs
        self.dc = Samba(folder, samba=programs["samba"], samba_tool=programs["samba-tool"], run=shell)
        self._stack.callback(self.dc.stop)
        self.start_domain_controller()
        self._password(ADMINISTRATOR, self.dc.password)
        shell.names |= {"DC": self.dc.ldaps_url}
        shell.environment |= {
            **self.dc.environment,
            "LDAPTLS_CACERT": str(self.folder / CA),
            "ANONTLS_LDAP_CA": str(self.folder / CA),
            "ANONTLS_LDAP_BIND": self.dc.administrator,
            "ANONTLS_LDAP_PASSWORD_FILE": str(self.folder / ADMINISTRATOR),
            "ANONTLS_ADLDS_CA": str(self.folder / CA),
            "ANONTLS_ADLDS_PASSWORD_FILE": str(self.folder / ADLDS),
        }

    def start_domain_controller(self) -> None:
        self.shell.show(*self.dc.command, background=True)
        self.dc.start()

    def stop_domain_controller(self) -> None:
        self.shell.show("kill", (self.folder / "dc" / "run" / "samba.pid").read_text().strip())
        self.dc.stop()

    def _accounts(self) -> None:
        for name in MAILBOX_SERVERS:
            keytab = self.dc.add_computer(name)
            service = f"SMTPSVC/{fqdn(name)}"
            self.dc.add_spn(service, f"{name}$")
            self.dc.export_keytab(service, keytab=keytab)
            target = self.folder / f"{name.lower()}.keytab"
            self.shell("mv", keytab, target)
            target.chmod(0o600)
        password = f"P@ss-{secrets.token_hex(8)}"
        self.dc.tool("user", "create", "reader", password)
        self._password(READER, password)

    def _password(self, file: str, password: str) -> None:
        path = self.folder / file
        path.touch(0o600)
        path.write_text(password)  # without a line end, which ldapmodify would take for a part of it

    def _adlds(self) -> None:
        folder = self.folder / "adlds"
        folder.mkdir()
        slapd, slapadd = self.programs["slapd"], self.programs["slapadd"]
        objects = [*self.on_edge.containers(), self.on_edge.server(EDGE, roles=64)]
        self.adlds = Slapd(
            folder,
            slapd=slapd,
            slapadd=slapadd,
            suffix=IN_ADLDS,
            configuration=IN_ADLDS,
            entries=objects,
            run=self.shell,
        )
        self._stack.callback(self.adlds.stop)
        self.shell.show(*self.adlds.command, background=True)
        self.adlds.start()
        self._password(ADLDS, self.adlds.password)
        (self.folder / CA).write_bytes(self.dc.ca.read_bytes() + self.adlds.ca.read_bytes())
        self.shell.names |= {"ADLDS": self.adlds.ldaps_url, "ADLDS_BIND": self.adlds.bind_dn}
        self.shell.environment["ANONTLS_ADLDS_BIND"] = self.adlds.bind_dn

    def _nodes(self) -> None:
        shell = self.shell
        shell(self.programs["cc"], "-shared", "-fPIC", "-o", "clock.so", Path(__file__).with_name("clock.c"))
        (self.folder / CLOCK).write_text("0\n")
        (self.folder / "org.json").write_bytes(organization({name: self._own(name) for name in NAMES}))
        reader = Account(self.dc.ldaps_url, f"reader@{self.dc.realm}", READER)
        of_edge = Account(self.adlds.ldaps_url, self.adlds.bind_dn, ADLDS)
        clock = {"LD_PRELOAD": str(self.folder / "clock.so"), "CLOCK": str(self.folder / CLOCK)}
        for name in NAMES:
            metrics_port = free_port()
            account = of_edge if name == EDGE else reader
            text = configuration(name, self.folder, account, self.ports, metrics_port)
            (self.folder / f"{name.lower()}.toml").write_text(text)
            node = Node(name, shell, self.ports[name], metrics_port, clock if name == MBX2 else {})
            self.nodes[name] = node
            self._stack.callback(node.stop)
            node.show_start()
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda node: node.start(), self.nodes.values()))
        shell.write_environment()

    def _own(self, name: str) -> OwnCertificate:
        folder = f"{name.lower()}-certificates"
        own = FolderStore(self.folder / folder, now=system_now()).find(self.thumbprint(folder))
        assert own is not None
        return own

    def quiet(self) -> bool:
        """Whether no session is open between the servers, so that the next message gets a new one."""
        return not any(node.metric('anontls_open_sessions{direction="send"}') for node in self.nodes.values())

    # --- what an administrator does to it -----------------------------------------------------------------------------

    def publish(self, name: str, store: str = "") -> None:
        """Name the server's certificate in Active Directory."""
        words = ("--server", name, "--store", store or f"{name.lower()}-certificates", f"CN={name}")
        self.shell.anontls("cert", "publish", "--ldap", self.dc.ldaps_url, *words, only="before|after")

    def publish_in_adlds(self, name: str, store: str) -> None:
        """The same in AD LDS of EDGE1."""
        account = ("--ldap-bind", self.adlds.bind_dn, "--ldap-password-file", ADLDS)
        words = ("--ldap", self.adlds.ldaps_url, *account, "--server", name, "--store", store, f"CN={name}")
        self.shell.anontls("cert", "publish", *words, only="before|after")

    def sync(self) -> str:
        """A round of certificates between both directories."""
        words = ("--ldap", self.dc.ldaps_url, "--adlds", self.adlds.ldaps_url, "--subscription", SUBSCRIPTION)
        return self.shell.anontls("edge", "sync", *words, "--once", only="^(written|created|skipped|unreach)")

    def ldapmodify(self, changes: str) -> None:
        """Change Active Directory by LDIF, as its administrator."""
        bind = ("-x", "-H", self.dc.ldaps_url, "-D", self.dc.administrator, "-y", ADMINISTRATOR)
        self.shell("ldapmodify", *bind, stdin=changes)

    def set_clock(self, ahead: int) -> None:
        """Let the clock of MBX2 be that many seconds ahead."""
        self.shell.show("echo", ahead, into=CLOCK)
        (self.folder / CLOCK).write_text(f"{ahead}\n")

    def thumbprint(self, store: str) -> str:
        """Of the one certificate in a store."""
        (certificate,) = FolderStore(self.folder / store, now=system_now()).store()
        return str(certificate.thumbprint)

    def server_dn(self, name: str) -> str:
        return Exchange(self.dc.configuration).server_dn(name)

    def hand_over(self, subject: str) -> None:
        """A mail server somewhere gives EDGE1 a message for Anna."""
        with smtplib.SMTP("127.0.0.1", self.edge.port, local_hostname="mail.fabrikam.com", timeout=20) as client:
            client.sendmail("ben@fabrikam.com", [ANNA], f"Subject: {subject}\r\n\r\nIt went all the way.\r\n")


def can_be_configured(folder: Path) -> bool:
    """Whether its name may stand in everybody's configuration and in a shell without quotes."""
    return re.fullmatch(r"[A-Za-z0-9/._+-]+", str(folder)) is not None


def socket_fits(folder: Path) -> bool:
    """Whether the domain controller can have its sockets in this folder."""
    return len(str(folder).encode()) + len(LONGEST_SOCKET) <= MOST_OF_A_SOCKET
