"""A decision in words: the headline, and for each step the question, the reason, the cmdlet and the remedy."""

from __future__ import annotations

from collections.abc import Mapping

from anontls.events import Event
from anontls.facts import (
    Certificate,
    Phase,
    Queue,
    Scenario,
    in_ldap_filter,
    in_single_quotes,
    is_unknown,
    powershell_argument,
)
from anontls.report.language import Language, event_text, say, show, texts
from anontls.report.printable import printable
from anontls.selection import Decision, Outcome, Question, Result, Step, questions
from anontls.selection.internal_certificate import freshness

# The configuration naming context, where server objects lie; an Edge server's is in its AD LDS [FACT D 5.5].
SEARCH = "Get-ADObject -SearchBase (Get-ADRootDSE).configurationNamingContext"
EDGE_SEARCH = "Get-ADObject -Server localhost:50389 -SearchBase (Get-ADRootDSE -Server localhost:50389).configurationNamingContext"


class Explanation:
    """The wording of one decision in one language."""

    def __init__(self, decision: Decision, language: Language = "en") -> None:
        self.decision = decision
        self.language = language
        facts = decision.facts
        self.connector = connector_name(decision)
        # What any sentence or cmdlet may name: server and connector as the cmdlets take them.
        self._names: dict[str, object] = {
            "server": powershell_argument(facts.server.name),
            "connector": powershell_argument(self.connector) if self.connector else "<connector>",
            "thumbprint": "<thumbprint>",
            "cn": in_single_quotes(in_ldap_filter(facts.server.name)),
            "search": EDGE_SEARCH if facts.server.role == "Edge" else SEARCH,
        }
        self._questions = {question.step: question for question in questions(facts)}

    def _say(self, key: str, values: Mapping[str, object]) -> str:
        return say(self.language, key, {**self._names, **values})

    @property
    def as_of(self) -> str:
        """For which time it was decided, and how fresh the directory's word was."""
        facts = self.decision.facts
        told = say(self.language, "word.as-of", {"as_of": facts.as_of})
        if facts.directory is None:
            return told
        return f"{told}; {say(self.language, 'note.directory', freshness(facts.directory))}"

    def question(self, step: Step | Question) -> str:
        """What was asked."""
        return texts(self.language)["question." + self._questions[step.step].key]

    def because(self, step: Step) -> str:
        """Why it ended as it did, with the observed value."""
        sentence = self._say("because." + step.because, self._values(step))
        notes = step.values.get("notes", ())
        assert isinstance(notes, tuple)
        return "; ".join([sentence, *(self._say(f"note.{note}", step.values) for note in notes)])

    def _values(self, step: Step) -> dict[str, object]:
        """The values, a fact that is no property under the name that readers know."""
        fact = step.values.get("fact")
        name = texts(self.language).get(f"fact.{fact}")
        return dict(step.values) if name is None else {**step.values, "fact": name}

    def check(self, step: Step) -> str:
        """The cmdlet that shows the value."""
        names = dict(self._names)
        for earlier in self.decision.steps:  # a step may check what an earlier one has found
            names |= earlier.values
            if earlier is step:
                break
        return self._questions[step.step].check.format_map({k: show(self.language, v) for k, v in names.items()})

    def remedy(self, step: Step) -> str | None:
        """What to do when the step did not pass."""
        if step.outcome is Outcome.PASSED:
            return None
        values = {**step.values, "check": self.check(step)}
        if isinstance(name := values.get("name"), str):
            values["name"] = powershell_argument(name)
        return self._say("remedy." + step.because, values)

    def event(self, event: Event) -> str:
        """The event's text."""
        connector = self.connector or ""
        values = {"server": self.decision.facts.server.name, "connector": connector, **event.values}
        return event_text(self.language, event.id, "text").format_map(
            {k: show(self.language, v) for k, v in values.items()}
        )

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        decision = self.decision
        facts = decision.facts
        startup = facts.phase is Phase.STARTUP
        outbound = facts.scenario is Scenario.OUTBOUND_ANONYMOUS
        kind = "startup" if startup else "outbound" if outbound else "inbound"
        values: dict[str, object] = {
            "server": facts.server.name,
            "verb": "STARTTLS" if facts.scenario is Scenario.INBOUND_STARTTLS else "X-ANONYMOUSTLS",
            "for_whom": self._for_whom(),
            "certificate": self._certificate(),
            "step": decision.last.step,
            **self._values(decision.last),
        }
        if decision.result is Result.UNKNOWN:
            return self._headline("unknown", values)
        if decision.last.because == "1.b.mailbox":
            return self._headline("outbound.mailbox", values)
        return self._headline(f"{kind}.{decision.result.value}", values)

    def _headline(self, key: str, values: Mapping[str, object]) -> str:
        # not say(): an empty "for whom" stays empty
        shown = {k: printable(v) if isinstance(v, str) else show(self.language, v) for k, v in values.items()}
        return texts(self.language)["headline." + key].format_map(shown)

    def _for_whom(self) -> str:
        facts = self.decision.facts
        if facts.phase is Phase.STARTUP:
            return ""
        queue = decision_queue(self.decision)
        if queue is not None:
            return self._headline("for-queue", {"queue": self.queue(queue)})
        return self._headline("for-connector", {"connector": self.connector}) if self.connector else ""

    def queue(self, queue: Queue) -> str:
        """How a queue is called."""
        if queue.hypothetical:
            return self._headline("hypothetical", {"delivery_type": queue.delivery_type})
        return queue_name(queue)

    def _certificate(self) -> str:
        if self.decision.ephemeral:
            return texts(self.language)["headline.ephemeral"]
        return "" if self.decision.certificate is None else self.certificate(self.decision.certificate)

    def certificate(self, certificate: Certificate) -> str:
        """A certificate in a sentence."""
        expired = (
            not is_unknown(certificate.not_after)
            and (certificate.not_after or self.decision.as_of) < self.decision.as_of
        )
        until = certificate.not_after
        return self._headline(
            "certificate-expired" if expired else "certificate",
            {
                "thumbprint": certificate.thumbprint,
                "subject": certificate.subject,
                "not_after": until if is_unknown(until) or until is None else f"{until:%Y-%m-%d}",
            },
        )


def connector_name(decision: Decision) -> str | None:
    """The connector that the decision is about."""
    facts = decision.facts
    if facts.phase is Phase.STARTUP:
        return None
    if facts.scenario is not Scenario.OUTBOUND_ANONYMOUS:
        return facts.receive_connector.identity if facts.receive_connector else None
    if facts.server.role == "Mailbox":
        return None
    return facts.send_connector.identity if facts.send_connector else None


def queue_name(queue: Queue) -> str:
    """The name of a queue: its identity, else where it leads, else what kind it is."""
    for name in (queue.identity, queue.next_hop_domain, queue.delivery_type):
        if isinstance(name, str) and name:
            return name
    return "?"


def decision_queue(decision: Decision) -> Queue | None:
    """The queue that the decision is about: only a Mailbox server that sends asks about one."""
    facts = decision.facts
    outbound = facts.scenario is Scenario.OUTBOUND_ANONYMOUS and facts.phase is Phase.SESSION
    return facts.queue if outbound and facts.server.role == "Mailbox" else None
