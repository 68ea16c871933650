"""Inbound STARTTLS: the certificate that the receiving server offers to anybody, and whether it advertises the verb.

1. Does ``AuthMechanism`` of the Receive connector hold ``Tls``?                                [ARTICLE-STLS 2]
2. Which name to look for: ``TlsCertificateName``, else the connector's Fqdn, else the server's  [ARTICLE-STLS 3]
3. Does any certificate in the store match it?                                                  [ARTICLE-STLS 4]
4. Is any match eligible: X.509 v3, private key, name, SMTP among its services?                 [ARTICLE-STLS 5]
5. Choose: newest first, the first valid PKI certificate; if none, the first self-signed one    [ARTICLE-STLS 6]
6. Is Valid to of the chosen one not yet past?  An expired one is advertised all the same.      [ARTICLE-STLS 7]

What is not known of a certificate matters only if that certificate would be chosen.
"""

from __future__ import annotations

from collections.abc import Iterable

from anontls.facts import (
    ABSENT,
    Certificate,
    IssuerAndSubject,
    SessionFacts,
    Unknown,
    is_null,
    is_unknown,
    parse_tls_certificate_name,
)
from anontls.selection.decision import Decision, Step
from anontls.selection.inbound_anonymous import auth_mechanism_holds
from anontls.selection.procedure import STARTTLS, Question, Questions, Search, decide
from anontls.selection.rules import DEFAULT, Rules

# A chain that is good apart from date and revocation.  [FACT I 1.7]
VALID_PKI = frozenset({"valid", "dateinvalid", "revocationcheckfailure"})


def tls_authentication(search: Search) -> Step:
    """Step 1."""
    return auth_mechanism_holds(search, "Tls")


class Malformed(str):
    """A ``TlsCertificateName`` that is not of its form; nothing can match it."""

    __slots__ = ()


def name_to_look_for(search: Search) -> Step:
    """Step 2, an action."""
    connector, server = search.facts.receive_connector, search.facts.server
    wanted = ABSENT if connector is None else connector.tls_certificate_name
    if is_unknown(wanted):
        return search.not_known("TlsCertificateName", wanted)
    if isinstance(wanted, str) and wanted:
        try:
            search.name = parse_tls_certificate_name(wanted)
        except ValueError:
            search.name = Malformed(wanted)
            return search.passed("2.malformed", {"name": wanted})
        return search.passed("2.tls-certificate-name", {"name": wanted})
    fqdn = ABSENT if connector is None else connector.fqdn
    if is_unknown(fqdn):
        return search.not_known("Fqdn", fqdn)
    if isinstance(fqdn, str) and fqdn:
        search.name = fqdn
        return search.passed("2.connector-fqdn", {"name": fqdn})
    if is_unknown(server.fqdn):
        return search.not_known("Fqdn", server.fqdn)
    if is_null(server.fqdn):
        return search.not_known("Fqdn", Unknown("the server object holds none"))
    search.name = server.fqdn
    return search.passed("2.server-fqdn", {"name": server.fqdn})


def any_match(search: Search) -> Step:
    """Step 3."""
    store, name = search.facts.store, search.name
    if is_unknown(store):
        return search.not_known("certificates", store)
    answers = [(certificate, _matches(certificate, name)) for certificate in store]
    search.candidates = [certificate for certificate, match in answers if match is True]
    search.doubtful = [(certificate, match) for certificate, match in answers if is_unknown(match)]
    if not search.candidates and search.doubtful:
        return search.not_known("Subject, CertificateDomains", search.doubtful[0][1])
    values = _values(search, count=len(store), matches=len(search.candidates))
    if not search.candidates:
        because = "3.malformed" if isinstance(name, Malformed) else "3.none"
        return search.stopped(because, values, event=12014)
    values["thumbprints"] = tuple(c.thumbprint for c in search.candidates)
    if isinstance(name, str) and any(c.named_by_wildcard(name) for c in search.candidates):
        values["notes"] = ("wildcard",)
    return search.passed("3.matches", values)


def _matches(certificate: Certificate, name: object) -> bool | Unknown:
    match name:
        case IssuerAndSubject():
            return certificate.issued_as(name)
        case Malformed():
            return False
    return certificate.named(str(name))


def _values(search: Search, **more: object) -> dict[str, object]:
    connector = search.facts.receive_connector
    fqdn = search.facts.server.fqdn if connector is None or is_null(connector.fqdn) else connector.fqdn
    return {"name": str(search.name), "fqdn": fqdn, **more}


def any_eligible(search: Search) -> Step:
    """Step 4."""
    anyway = search.rules.smtp_service == "chosen-anyway"
    eligible: list[Certificate] = []
    doubtful: list[tuple[Certificate, Unknown]] = []
    lacks: list[str] = []
    rule: str | None = None
    without_smtp = False
    match_doubt = {id(c): why for c, why in search.doubtful}
    for certificate in [*search.candidates, *(c for c, _ in search.doubtful)]:
        version, key, smtp = certificate.version, certificate.has_private_key, certificate.serves_smtp()
        wanted = {
            "X.509 v3": version if is_unknown(version) else (version or 0) >= 3,
            "HasPrivateKey": key,
            "SMTP": smtp,
        }
        lacking = [name for name, has in wanted.items() if not has]
        if smtp is not True and lacking in ([], ["SMTP"]):
            rule = "smtp-service"  # the answer to this one hangs on it
            if anyway:
                without_smtp = without_smtp or bool(lacking)
                lacking, wanted["SMTP"] = [], True
        unknown = next((has for has in wanted.values() if is_unknown(has)), None) or match_doubt.get(id(certificate))
        if lacking:
            lacks.append(f"{certificate.thumbprint}: {', '.join(lacking)}")
        elif unknown is not None:
            doubtful.append((certificate, unknown))
        else:
            eligible.append(certificate)
    search.candidates, search.doubtful = eligible, doubtful
    if not eligible and doubtful:
        return search.not_known("Services, HasPrivateKey, Version", doubtful[0][1], rule=rule)
    matches = len(eligible) + len(lacks)
    values = _values(search, lacks=tuple(lacks), eligible=len(eligible), matches=matches)
    if not eligible:
        return search.stopped("4.none-eligible", values, event=12014, rule=rule)
    if without_smtp:
        return search.noted("4.smtp-missing", values, rule=rule)
    return search.passed("4.eligible", values, rule=rule)


def choose(search: Search) -> Step:
    """Step 5, an action."""
    contenders = [_Contender(c, None) for c in search.candidates] + [_Contender(c, why) for c, why in search.doubtful]
    values = _values(search, eligible=len(search.candidates))
    if not any(contender.may_be_pki or contender.may_be_self_signed for contender in contenders):
        return search.stopped("5.none", values, event=12014)
    contenders.sort(key=lambda contender: contender.certificate.sort_key)
    pki = next((c for c in contenders if c.is_pki), None)
    any_kind = next((c for c in contenders if c.is_either), None)
    chosen = next((c for c in (pki, any_kind) if c and c.wins(contenders)), None)
    if chosen is None:
        fact, why = next(c.doubt for c in contenders if c.doubt)
        return search.not_known(fact, why)
    certificate = search.certificate = chosen.certificate
    values |= {
        "thumbprint": certificate.thumbprint,
        "subject": certificate.subject,
        "not_before": certificate.not_before,
    }
    store = search.facts.store
    refused = None if is_unknown(store) else store.refused.get(str(certificate.thumbprint))
    if refused is not None:
        return search.stopped("5.refused", {**values, "reason": refused}, event=12014)
    notes = []
    if chosen.is_pki and chosen.status != "valid":
        notes.append("valid-apart")
        values["status"] = certificate.status
    if any(c is not chosen and c.same_time(chosen) for c in contenders):
        notes.append("tie")
    if notes:
        values["notes"] = tuple(notes)
    return search.passed("5.self-signed" if certificate.is_self_signed else "5.pki", values)


class _Contender:
    """A certificate that may be chosen, and what it may be: a valid PKI certificate, a self-signed one, or neither."""

    def __init__(self, certificate: Certificate, why_doubtful: Unknown | None) -> None:
        self.certificate = certificate
        own, status = certificate.is_self_signed, certificate.status_name
        self.status = status if is_unknown(status) else status.lower()
        may_be_foreign = is_unknown(own) or not own
        self.may_be_self_signed = bool(own)  # an unknown may be
        self.may_be_pki = may_be_foreign and (is_unknown(status) or self.status in VALID_PKI)
        good_chain = not is_unknown(status) and self.status in VALID_PKI
        self.is_pki = why_doubtful is None and good_chain and not is_unknown(own) and not own
        self.is_either = why_doubtful is None and (good_chain if may_be_foreign else True)
        self.doubt = next(
            (
                (fact, why)
                for fact, why in (
                    ("Services, HasPrivateKey, Version", why_doubtful),
                    ("IsSelfSigned", own),
                    ("Status", status),
                    ("NotBefore", certificate.not_before),
                    ("NotAfter", certificate.not_after),
                )
                if is_unknown(why)
            ),
            None,
        )

    def wins(self, contenders: Iterable[_Contender]) -> bool:
        """Whether this one is chosen whatever is not known."""
        for other in contenders:
            if other is self:
                continue
            if other.may_be_pki and not (self.is_pki and self._precedes(other)):
                return False
            if other.may_be_self_signed and not (self.is_pki or self._precedes(other)):
                return False
        return True

    def _precedes(self, other: _Contender) -> bool:
        """Newest NotBefore first; then the later NotAfter, then the smaller thumbprint [FACT I 1.7]."""
        mine, theirs = self.certificate, other.certificate
        for one, two in ((mine.not_before, theirs.not_before), (mine.not_after, theirs.not_after)):
            if is_unknown(one) or is_unknown(two):
                return False
            if one != two:
                return two is None or (one is not None and one > two)
        return str(mine.thumbprint) <= str(theirs.thumbprint)

    def same_time(self, other: _Contender) -> bool:
        """Whether the order between the two is a tie."""
        time = self.certificate.not_before
        return not is_unknown(time) and time == other.certificate.not_before


def not_expired(search: Search) -> Step:
    """Step 6."""
    valid = search.unless_expired("6.valid")
    if valid is not None:
        return valid
    values = search.expired(name=str(search.name))
    if search.rules.expired_starttls == "withdrawn":
        return search.stopped("6.expired-withdrawn", values, event=12016, rule="expired-starttls")
    return search.noted("6.expired", values, event=12016, rule="expired-starttls")


STORE = "Get-ExchangeCertificate -Server {server} | Format-List Thumbprint,Subject,CertificateDomains,Services,HasPrivateKey,Status,NotBefore,NotAfter"
QUESTIONS: Questions = (
    Question(
        "1", "starttls.1", tls_authentication, "Get-ReceiveConnector {connector} | Format-List Name,AuthMechanism"
    ),
    Question(
        "2",
        "starttls.2",
        name_to_look_for,
        "Get-ReceiveConnector {connector} | Format-List Name,TlsCertificateName,Fqdn",
        otherwise="action",
    ),
    Question("3", "starttls.3", any_match, STORE, event=12014),
    Question("4", "starttls.4", any_eligible, STORE, event=12014),
    Question("5", "starttls.5", choose, STORE, otherwise="action", event=12014),
    Question(
        "6",
        "starttls.6",
        not_expired,
        "Get-ExchangeCertificate -Server {server} -Thumbprint {thumbprint} | Format-List Subject,NotBefore,NotAfter",
        otherwise="note",
        event=12016,
    ),
)


def questions(facts: SessionFacts) -> Questions:
    """The table."""
    return QUESTIONS


def inbound_starttls(facts: SessionFacts, rules: Rules = DEFAULT) -> Decision:
    """Decide one inbound session; pure."""
    return decide(QUESTIONS, STARTTLS, facts, rules, inbound_starttls)
