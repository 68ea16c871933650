"""The guided tour: a message that arrives, then what can be broken, and what one then sees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from anontls.transport.lab import EDGE
from lab.configuration import MBX1, MBX2, NAMES
from lab.network import ANNA, Network
from lab.node import NotAsExpected, mailbox, until
from lab.shell import CommandFailed
from lab.stops import STOPS, Stop

DEFERRED = "451 5.7.3 Cannot achieve Exchange Server authentication"


class Seen(NamedTuple):
    """What came of a stop."""

    title: str
    waited_at: str
    last_error: str
    seconds: float  # from mending to the mailbox


class Tour:
    """Through a network that runs."""

    def __init__(self, network: Network, stops: Sequence[type[Stop]] = STOPS) -> None:
        self.network = network
        self.shell = network.shell
        self.stops = stops
        self.seen: list[Seen] = []

    # --- it works -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A message goes all the way.

        Raises:
            NotAsExpected: it does not.
        """
        network, shell = self.network, self.shell
        with shell.step(f"A message for {ANNA}: somebody -> {EDGE} -> {MBX1} -> {MBX2} -> Maildir"):
            network.hand_over("all is well")
            until(lambda: mailbox(network.folder), "the message arrives")
            edge, mbx1, mbx2 = (
                self._log(
                    EDGE, "Send", "X-ANONYMOUSTLS,|Direct trust|Queued", shown="to MBX1, direct trust of both sides"
                ),
                self._log(
                    MBX1, "Send", "X-ANONYMOUSTLS,|Direct trust|X-EXPS GSSAPI,|235|Queued", shown="to MBX2, Kerberos"
                ),
                self._log(MBX2, "Receive", "Direct trust|authenticated|Set Session"),
            )
            words = ("--to", f"127.0.0.1:{network.mbx2.port}", "--server", MBX2, "--delivery-type", "SmtpRelayToDag")
            shell.say("  The decision of MBX1 (`anontls send` without a message opens a session and closes it):")
            shell.anontls(
                "send", "--config", network.mbx1.config, *words, only="^ {0,6}(MBX1 uses|1\\.|Deliv|under)|DeliveryType"
            )
            (message,) = mailbox(network.folder)
            shell.say(f"  mail/{ANNA}/new:")
            shell.quote(message, only="^(Received|Subject|\t| with)")
            self._expect(
                "*,MBX1,Direct trust: match" in edge, f"{EDGE} trusts the certificate of {MBX1}: the directory names it"
            )
            self._expect(
                "<,235 2.7.0 Authentication successful," in mbx1, f"{MBX1} has proved itself by Kerberos, inside TLS"
            )
            self._expect("*,MBX1$@CONTOSO.COM,authenticated" in mbx2, f"{MBX2} knows it as the computer account MBX1$")
            hops = re.findall(r"^Received: from (\S+) .* by (\S+)\n with (\S+)", message, re.MULTILINE)
            expected = [
                ("mbx1.contoso.com", "mbx2.contoso.com", "ESMTPS"),
                ("edge1.contoso.com", "mbx1.contoso.com", "ESMTPS"),
            ]
            self._expect(hops[:2] == expected, "it arrived, inside TLS from server to server")

    def _log(self, name: str, kind: str, only: str, *, shown: str = "") -> list[str]:
        node = self.network.nodes[name]
        until(lambda: any(re.search("Queued|Session Perm", line) for line in node.log(kind)), f"the log of {name}")
        lines = node.log(kind)
        self.shell.say(f"  {node.file}-log/Smtp{kind}{f' ({shown})' if shown else ''}:")
        self.shell.quote("\n".join(lines), only=only)
        return lines

    def _expect(self, met: object, text: str) -> None:
        if not met:
            raise NotAsExpected(text)
        self.shell.good(text)

    # --- a stop -------------------------------------------------------------------------------------------------------

    def visit(self, number: int) -> None:
        """Break it, send a message, look, mend it, and see the message arrive.

        Raises:
            NotAsExpected: what is seen is not what should be; it is mended all the same.
        """
        network, shell = self.network, self.shell
        stop = self.stops[number](network)
        pids = [node.pid for node in network.nodes.values()]
        with shell.step(f"{number + 1}  {stop.title}"):
            shell.say(f"  {stop.text}")
            try:
                stop.break_it()
                until(stop.noticed, "the nodes notice it")
                until(network.quiet, "sessions from before end")
                before = len(mailbox(network.folder))
                last_error = self._waits(stop, before)
                stop.look()
            except (NotAsExpected, CommandFailed):
                stop.mend()
                raise
            shell.say("  Mended:")
            stop.mend()
            seconds = until(lambda: len(mailbox(network.folder)) > before, "the message arrives")
            same = [node.pid for node in network.nodes.values()] == pids
            self._expect(same, f"it arrived {seconds:.1f} s later, and no node was restarted")
        self.seen.append(Seen(stop.title, stop.waits_at, last_error, seconds))

    def _waits(self, stop: Stop, before: int) -> str:
        """A message is handed over and does not get through; the LastError of its queue."""
        node = self.network.nodes[stop.waits_at]
        mark = len(node.log("Send"))
        self.network.hand_over(stop.title)
        until(lambda: node.waiting() or len(mailbox(self.network.folder)) > before, f"the message waits at {node.name}")
        if len(mailbox(self.network.folder)) > before:
            raise NotAsExpected("the message arrived all the same")
        told = self.shell.anontls("queue", "list", "--config", node.config)
        match = re.search(r"\{LED=([^}]*)\};\{MSG=([^}]*)\}", " ".join(told.split()))
        last_error, why = match.groups() if match is not None else ("", "")
        self._expect(last_error == DEFERRED, f"the message waits at {node.name}: {DEFERRED}")
        self._expect(why.startswith(stop.why), f"and LastError says why: {stop.why}")
        sent = [line for line in node.log("Send")[mark:] if "MAIL FROM" in line]
        self._expect(not sent, "nothing of it has left, in clear or otherwise")
        return DEFERRED

    # --- the whole tour -----------------------------------------------------------------------------------------------

    def all(self) -> None:
        """All stops, and what was seen."""
        for number in range(len(self.stops)):
            self.visit(number)
        self.shell.say()
        width = max(len(each.title) for each in self.seen)
        self.shell.say(f"{'what was broken':<{width}}  waited at  arrived after mending")
        for each in self.seen:
            self.shell.say(f"{each.title:<{width}}  {each.waited_at:<9}  {each.seconds:.1f} s")

    def ask(self) -> None:
        """Whoever sits at the terminal chooses."""
        while True:
            self._menu()
            try:
                chosen = input("> ").strip().lower()
            except EOFError:
                return
            except UnicodeDecodeError:  # bytes of another encoding than the terminal's
                chosen = "?"
            if chosen in {"q", "quit", "exit"}:
                return
            try:
                if chosen == "a":
                    self.all()
                elif chosen == "l":
                    self.leave()
                elif chosen.isdecimal() and 1 <= int(chosen) <= len(self.stops):
                    self.visit(int(chosen) - 1)
                elif chosen:
                    self.shell.say(f"{chosen!r} is none of these.")
            except (NotAsExpected, CommandFailed) as e:
                self.shell.bad(str(e))

    def _menu(self) -> None:
        say = self.shell.say
        say("\nWhat to break?  It is mended at the end of each.")
        for number, stop in enumerate(self.stops, 1):
            say(f"  {number}  {stop.title}")
        say("  a  all of them, one after the other")
        say("  l  leave it running: addresses, files, commands to try")
        say("  q  stop everything")

    def leave(self) -> None:
        """What somebody needs who goes on alone."""
        network, say = self.network, self.shell.say
        say(f"\nIt runs until q or Ctrl-C.  In another terminal:\n\n  cd {network.folder} && . ./environment\n")
        for name in NAMES:
            node = network.nodes[name]
            say(
                f"  {name:<6} SMTP 127.0.0.1:{node.port}   http://127.0.0.1:{node.metrics_port}/health and /metrics   {node.config}"
            )
        say(f"  DC     {network.dc.ldaps_url}   {network.dc.administrator}, {network.dc.password}")
        say(f"  AD LDS {network.adlds.ldaps_url}   {network.adlds.bind_dn}, {network.adlds.password}\n")
        say("  mbx1-log edge1-log mbx2-log   protocol logs        mbx1-events.jsonl ...   events")
        say("  mail                          the mailboxes        mbx1-console ...        what each node says\n")
        target = f"smtp://127.0.0.1:{network.edge.port}"
        for line in (
            f"printf 'Subject: hello\\r\\n\\r\\nhello\\r\\n' | curl -sS {target} --mail-from ben@fabrikam.com --mail-rcpt {ANNA} -T -",
            'anontls select --org "$DC" --server MBX2 --phase startup',
            f"anontls send --config edge1.toml --to 127.0.0.1:{network.mbx1.port} --server MBX1",
            "anontls queue list --config mbx1.toml",
            f"anontls probe 127.0.0.1:{network.mbx1.port}",
            "echo 600 >mbx2-clock        # its clock is ten minutes ahead; 0 is right",
            "samba-tool user list -s dc/etc/smb.conf",
        ):
            say(f"  {line}")
