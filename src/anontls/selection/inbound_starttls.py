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
            search.name = wanted
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
        return search.stopped("3.none" if _well_formed(name) else "3.malformed", values, event=12014)
    return search.passed("3.matches", {**values, "thumbprints": tuple(c.thumbprint for c in search.candidates)})


def _matches(certificate: Certificate, name: object) -> bool | Unknown:
    if isinstance(name, IssuerAndSubject):
        return certificate.issued_as(name)
    return certificate.named(str(name)) if _well_formed(name) else False


def _well_formed(name: object) -> bool:
    return isinstance(name, IssuerAndSubject) or "<" not in str(name)


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
    lacks_only_smtp = False
    doubt = {id(c): why for c, why in search.doubtful}
    for certificate in [*search.candidates, *(c for c, _ in search.doubtful)]:
        version, key, smtp = certificate.version, certificate.has_private_key, certificate.serves_smtp()
        wanted = {
            "X.509 v3": version if is_unknown(version) else (version or 0) >= 3,
            "HasPrivateKey": key,
            "SMTP": smtp,
        }
        lacking = [name for name, has in wanted.items() if not has]
        unknown = next((has for has in wanted.values() if is_unknown(has)), None) or doubt.get(id(certificate))
        if lacking == ["SMTP"]:
            lacks_only_smtp = True
            lacking = [] if anyway else lacking
        if lacking:
            lacks.append(f"{certificate.thumbprint}: {', '.join(lacking)}")
        elif unknown is not None:
            doubtful.append((certificate, unknown))
        else:
            eligible.append(certificate)
    if not eligible and doubtful:
        return search.not_known("Services, HasPrivateKey, Version", doubtful[0][1])
    rule = "smtp-service" if lacks_only_smtp else None
    values = _values(search, lacks=tuple(lacks), eligible=len(eligible), matches=len(search.candidates))
    if not eligible:
        return search.stopped("4.none-eligible", values, event=12014, rule=rule)
    search.candidates, search.doubtful = eligible, doubtful
    if lacks_only_smtp and anyway:
        return search.noted("4.smtp-missing", values, rule=rule)
    return search.passed("4.eligible", values, rule=rule)


def choose(search: Search) -> Step:
    """Step 5, an action."""
    contenders = [*search.candidates, *(c for c, _ in search.doubtful)]
    if len(contenders) > 1:  # an order needs the dates
        for name, times in (
            ("NotBefore", [c.not_before for c in contenders]),
            ("NotAfter", [c.not_after for c in contenders]),
        ):
            for time in times:
                if is_unknown(time):
                    return search.not_known(name, time)
    chosen = _first_choice(contenders)
    if is_unknown(chosen):
        return search.not_known("Status, IsSelfSigned", chosen)
    for certificate, why in search.doubtful:
        if certificate is chosen:
            return search.not_known("Subject, CertificateDomains, Services, HasPrivateKey, Version", why)
    values = _values(search, eligible=len(search.candidates))
    if chosen is None:
        return search.stopped("5.none", values, event=12014)
    search.certificate = chosen
    values |= {"thumbprint": chosen.thumbprint, "subject": chosen.subject, "not_before": chosen.not_before}
    return search.passed("5.self-signed" if chosen.is_self_signed else "5.pki", values)


def _first_choice(certificates: Iterable[Certificate]) -> Certificate | Unknown | None:
    """The first valid PKI certificate, newest first; if none, the first self-signed one; unknown if that cannot be told."""
    first_self_signed: Certificate | None = None
    for certificate in sorted(certificates, key=lambda c: c.sort_key):
        self_signed, status = certificate.is_self_signed, certificate.status_name
        if is_unknown(self_signed):
            return self_signed
        if self_signed:
            first_self_signed = first_self_signed or certificate
        elif is_unknown(status):
            return status
        elif status.lower() in VALID_PKI:
            return certificate
    return first_self_signed


def not_expired(search: Search) -> Step:
    """Step 6."""
    certificate, now = search.certificate, search.facts.as_of
    assert certificate is not None
    not_after = certificate.not_after
    if is_unknown(not_after):
        return search.not_known("NotAfter", not_after)
    if not_after is None:
        return search.not_known("NotAfter", Unknown("NotAfter is not set"))
    if now <= not_after:  # NotAfter itself is still valid [RFC5280 4.1.2.5]
        return search.passed("6.valid", {"not_after": not_after, "days": (not_after - now).days})
    values = {
        "thumbprint": certificate.thumbprint,
        "name": str(search.name),
        "not_after": not_after,
        "days": (now - not_after).days,
    }
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
    return decide(QUESTIONS, STARTTLS, facts, rules)
