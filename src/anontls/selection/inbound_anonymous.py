"""Inbound anonymous TLS: what the receiving server presents after X-ANONYMOUSTLS, and whether it advertises the verb.

1.   Does ``AuthMechanism`` of the Receive connector hold ``ExchangeServer``?    [ARTICLE-IN 2]
1.s  Is ``SuppressXAnonymousTls`` false?  Documented on the cmdlet, not in the article.  [FACT D 1.3]
2, 3, 4 as in :mod:`~anontls.selection.internal_certificate`
"""

from __future__ import annotations

from anontls.facts import ABSENT, AUTH_MECHANISM_BITS, Phase, SessionFacts, is_unknown
from anontls.selection.decision import Decision, Step
from anontls.selection.internal_certificate import LAST_STEPS
from anontls.selection.procedure import X_ANONYMOUSTLS, Question, Questions, Search, decide
from anontls.selection.rules import DEFAULT, Rules


def exchange_server_authentication(search: Search) -> Step:
    """Step 1."""
    return auth_mechanism_holds(search, "ExchangeServer")


def auth_mechanism_holds(search: Search, mechanism: str) -> Step:
    """Whether the Receive connector's ``AuthMechanism`` holds ``mechanism``."""
    connector = search.facts.receive_connector
    flags = ABSENT if connector is None else connector.auth_flags
    if is_unknown(flags):
        return search.not_known("AuthMechanism", flags)
    holds = flags.holds(mechanism, AUTH_MECHANISM_BITS)
    if is_unknown(holds):
        return search.not_known("AuthMechanism", holds)
    values = {"mechanism": mechanism, "value": flags.text}
    return search.passed("1.holds", values) if holds else search.stopped("1.lacks", values)


def not_suppressed(search: Search) -> Step:
    """Step 1.s."""
    connector = search.facts.receive_connector
    suppress = ABSENT if connector is None else connector.suppress_x_anonymous_tls
    if is_unknown(suppress):
        return search.not_known("SuppressXAnonymousTls", suppress)
    return search.stopped("1.s.true") if suppress else search.passed("1.s.false")


QUESTIONS: Questions = (
    Question(
        "1",
        "inbound.1",
        exchange_server_authentication,
        "Get-ReceiveConnector {connector} | Format-List Name,AuthMechanism",
    ),
    Question(
        "1.s",
        "inbound.1.s",
        not_suppressed,
        "Get-ReceiveConnector {connector} | Format-List Name,SuppressXAnonymousTls",
    ),
    *LAST_STEPS,
)


def questions(facts: SessionFacts) -> Questions:
    """The table for this phase."""
    return LAST_STEPS if facts.phase is Phase.STARTUP else QUESTIONS


def inbound_anonymous(facts: SessionFacts, rules: Rules = DEFAULT) -> Decision:
    """Decide one inbound session; pure."""
    return decide(questions(facts), X_ANONYMOUSTLS, facts, rules, inbound_anonymous)
