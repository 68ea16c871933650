"""The stops of the tour: what is broken, by the means that break it outside, what one then sees, and how it is mended."""

from __future__ import annotations

from typing import ClassVar

from anontls.transport.lab import EDGE
from lab.configuration import GRACE, MBX1, MBX2, fqdn
from lab.network import Network
from lab.node import Node, NotAsExpected, mailbox, until

ATTRIBUTE = "msExchServerInternalTLSCert"
ENCRYPTION_TYPES = "msDS-SupportedEncryptionTypes"
RC4, AES = 4, 24  # [MS-KILE 2.2.7]
AHEAD = 600  # seconds; Kerberos bears five minutes
ELSEWHERE = "elsewhere"  # a store of no server
NOT_OFFERED = "the peer does not offer X-ANONYMOUSTLS"


class Stop:
    """One thing that is broken.  A message waits at ``waits_at`` meanwhile."""

    title: ClassVar[str]
    text: ClassVar[str]
    waits_at: ClassVar[str] = MBX1
    why: ClassVar[str]  # what LastError of its queue says

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shell = network.shell
        # What was there before, so that only what comes of this is looked at.
        self._events = {name: (node.metrics(), len(node.events())) for name, node in network.nodes.items()}
        self._lines = {(name, k): len(node.log(k)) for name, node in network.nodes.items() for k in ("Receive", "Send")}

    def break_it(self) -> None:
        """Do it."""
        raise NotImplementedError

    def noticed(self) -> bool:
        """Whether the nodes know of it, where they have to."""
        return True

    def look(self) -> None:
        """Show what one sees, and check it.

        Raises:
            NotAsExpected: it is something else.
        """
        raise NotImplementedError

    def mend(self) -> None:
        """Undo it; nothing is restarted but what was stopped."""
        raise NotImplementedError

    def expect(self, met: object, text: str) -> None:
        if not met:
            raise NotAsExpected(text)
        self.shell.good(text)

    def health(self, node: Node, expected: str) -> None:
        """Show the node's health, which has to warn of that."""
        self.shell.show("curl", "-s", f"http://127.0.0.1:{node.metrics_port}/health")
        self.shell.quote(node.page("health"))
        self.expect(expected in node.warnings(), f"the health of {node.name} warns: {expected}")

    def event(self, node: Node, number: int, expected: str) -> None:
        """Wait for the event.  Where it is written, and not only counted, its text has to have that in it."""
        before, written = self._events[node.name]
        series = f'anontls_events_total{{id="{number}"}}'
        until(lambda: node.metric(series) > before[series], f"event {number} of {node.name}")
        new = [event for event in node.events()[written:] if event["id"] == number]
        if new:
            self.shell.say(f"  {node.file}-events.jsonl:")
            self.shell.quote("{} {id} {level}  {text}".format(f"{new[-1]['time'][:19]}Z", **new[-1]))
            self.expect(expected in new[-1]["text"], f"event {number} of {node.name}")
        else:
            self.shell.quote(f"{series} {node.metric(series):.0f}")
            self.shell.good(f"event {number} of {node.name} once more; for one reason it is written once an hour")

    def said(self, node: Node, kind: str, expected: str) -> None:
        """Wait for a line with that in the node's protocol log, and show it."""

        def found() -> str:
            new = node.log(kind)[self._lines[node.name, kind] :]
            return next((line for line in reversed(new) if expected in line), "")

        until(found, f"in the log of {node.name}: {expected}")
        self.shell.say(f"  {node.file}-log/Smtp{kind}:")
        self.shell.quote(found())


class NullAttribute(Stop):
    """The directory names no certificate for MBX2."""

    title = f"{ATTRIBUTE} of MBX2 is set to null"
    text = "MBX2 has a certificate, but the directory does not name it: MBX2 does not offer X-ANONYMOUSTLS any more."
    why = NOT_OFFERED

    def break_it(self) -> None:
        change = f"dn: {self.network.server_dn(MBX2)}\nchangetype: modify\nreplace: {ATTRIBUTE}\n"
        self.network.ldapmodify(change)

    def noticed(self) -> bool:
        return "step 2" in self.network.mbx2.warnings()

    def look(self) -> None:
        self.said(self.network.mbx1, "Send", NOT_OFFERED)
        self.health(self.network.mbx2, "the selection ended at step 2")
        told = self.shell.anontls("select", "--org", self.network.dc.ldaps_url, "--server", MBX2, "--phase", "startup")
        self.expect("event 12012" in told, "the decision from the directory alone: it ends at step 2")
        self.shell.say(
            "  In a session there is no event, as the procedure has it; there is one at each start and reload:"
        )
        self.network.mbx2.reload()
        self.event(self.network.mbx2, 12012, "null")

    def mend(self) -> None:
        self.network.publish(MBX2)


class OtherCertificate(Stop):
    """The directory names a certificate that MBX2 has not."""

    title = "Active Directory names another certificate for MBX2"
    text = "A certificate was renewed on a machine that is not MBX2: the one that is named is not in the store of MBX2."
    why = NOT_OFFERED

    def break_it(self) -> None:
        self.store()
        self.network.publish(MBX2, ELSEWHERE)

    def store(self, name: str = MBX2) -> None:
        """Let there be a certificate of that name in a store of nobody."""
        words = ("--store", ELSEWHERE, "--server", name, "--fqdn", fqdn(name))
        self.shell.anontls("cert", "new", *words, "--force", only="^[0-9A-F]{40}$")

    def noticed(self) -> bool:
        return "step 3" in self.network.mbx2.warnings()

    def look(self) -> None:
        self.said(self.network.mbx1, "Send", NOT_OFFERED)
        self.health(self.network.mbx2, "the selection ended at step 3")
        self.event(self.network.mbx2, 12013, self._named())
        words = (self.network.dc.ldaps_url, "org.json", "-o", "now.json")
        self.shell.anontls("org", "import", *words, only="^servers")
        told = self.shell.anontls("select", "--org", "now.json", "--server", MBX2, "--phase", "startup")
        self.expect("event 12013" in told, "the decision from directory and store: it ends at step 3")

    def _named(self) -> str:
        return self.network.thumbprint(ELSEWHERE)

    def mend(self) -> None:
        self.shell.run("rm", "-r", ELSEWHERE)
        self.network.publish(MBX2)


class OtherCopy(OtherCertificate):
    """The Edge server's copy names another certificate for MBX1."""

    title = "AD LDS of EDGE1 names another certificate for MBX1"
    text = "MBX1 shows its certificate as before, but that is not the one that EDGE1 is told of: nobody to trust."
    waits_at = EDGE
    why = "the certificate of MBX1 does not prove it: mismatch"

    def break_it(self) -> None:
        self._loaded = self._load()
        self.store(MBX1)
        self.network.publish_in_adlds(MBX1, ELSEWHERE)

    def _load(self) -> float:
        return self.network.edge.metric("anontls_last_load_timestamp_seconds")

    def noticed(self) -> bool:
        return self._load() > self._loaded

    def look(self) -> None:
        self.said(self.network.edge, "Send", "Direct trust: mismatch")
        words = ("--to", f"127.0.0.1:{self.network.mbx1.port}", "--server", MBX1)
        told = self.shell.anontls(
            "send", "--config", self.network.edge.config, *words, only="the peer showed|not sent", statuses=(3,)
        )
        self.expect("the directory says of MBX1: mismatch" in told, "the session ends before any mail")

    def mend(self) -> None:
        self.shell.run("rm", "-r", ELSEWHERE)
        self.network.sync()


class ClockSkew(Stop):
    """The clock of MBX2 is wrong."""

    title = "The clock of MBX2 is ten minutes ahead"
    text = "A clock that is off by more than five minutes ends Kerberos, which MBX1 has to prove itself with."
    why = "Kerberos: refused: 454 4.7.0"

    def break_it(self) -> None:
        self.network.set_clock(AHEAD)

    def look(self) -> None:
        self.said(self.network.mbx2, "Receive", "failed because of clock skew")
        self.event(self.network.mbx2, 1035, "clock skew")
        self.event(self.network.mbx1, 2017, "refused: 454 4.7.0")

    def mend(self) -> None:
        self.network.set_clock(0)


class OldEncryption(Stop):
    """Tickets for MBX2 are encrypted with RC4."""

    title = "Active Directory gives RC4 tickets for MBX2"
    text = "So it does for each account whose encryption types nobody has set.  They are refused by the sender itself."
    why = "Kerberos: not AES"

    def break_it(self) -> None:
        self._use(RC4)

    def _use(self, types: int) -> None:
        account = f"CN={MBX2},CN=Computers,{self.network.dc.base}"
        change = f"changetype: modify\nreplace: {ENCRYPTION_TYPES}\n{ENCRYPTION_TYPES}: {types}\n"
        self.network.ldapmodify(f"dn: {account}\n{change}")
        self.shell.run("kdestroy", "-c", f"FILE:{self.network.folder}/mbx1.ccache")  # a ticket lasts ten hours

    def look(self) -> None:
        self.said(self.network.mbx1, "Send", "Outbound Authentication failed with not AES")
        self.event(self.network.mbx1, 2017, "not AES")

    def mend(self) -> None:
        self._use(AES)


class DomainControllerDown(Stop):
    """There is no domain controller."""

    title = "The domain controller is stopped"
    text = (
        f"What was last known serves for the grace, {GRACE} s here.  After that the attribute of no server can be read."
    )
    waits_at = EDGE
    why = NOT_OFFERED

    def break_it(self) -> None:
        before = len(mailbox(self.network.folder))
        self.network.stop_domain_controller()
        self.network.hand_over("within the grace")
        until(lambda: len(mailbox(self.network.folder)) > before, "a message arrives within the grace")
        readable = all(node.metric("anontls_directory_readable") for node in self._following())
        self.expect(readable, "within the grace a message arrives, with a ticket that is there already")

    def _following(self) -> tuple[Node, Node]:
        return self.network.mbx1, self.network.mbx2

    def noticed(self) -> bool:
        return not any(node.metric("anontls_directory_readable") for node in self._following())

    def look(self) -> None:
        node = self.network.mbx1
        self.said(self.network.edge, "Send", NOT_OFFERED)
        self.health(node, "the directory does not answer")
        age = node.metric("anontls_directory_age_seconds")
        self.shell.show("curl", "-s", f"http://127.0.0.1:{node.metrics_port}/metrics")
        self.shell.quote(f"anontls_directory_readable {node.metric('anontls_directory_readable'):.1f}")
        self.shell.quote(f"anontls_directory_age_seconds {age:.1f}")
        self.expect(age > GRACE, "the metrics have the age of the directory's word")
        words = ("--org", self.network.dc.ldaps_url, "--server", MBX1, "--phase", "startup")
        self.shell.anontls("select", *words, statuses=(3,))
        self.shell.good("without a directory nothing is decided: exit status 3")
        node.reload()
        self.event(node, 12012, "has not answered for more than")

    def mend(self) -> None:
        self.network.start_domain_controller()


STOPS = (NullAttribute, OtherCertificate, OtherCopy, ClockSkew, OldEncryption, DomainControllerDown)
