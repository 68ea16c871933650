"""Steps 2, 3 and 4 of both anonymous procedures: the certificate that the directory names.

2. Can ``msExchServerInternalTLSCert`` be read, and is it not null?     [ARTICLE-OUT 2] [ARTICLE-IN 3]
3. Is a certificate with that thumbprint in the local store?            [ARTICLE-OUT 3] [ARTICLE-IN 4]
4. Is its Valid to not yet past?  An expired one is loaded all the same. [ARTICLE-OUT 4] [ARTICLE-IN 5]

A service start has no session and no connector: these three are then the whole procedure.
"""

from __future__ import annotations

import msgspec

from anontls.facts import ABSENT, DirectoryWord, Phase, Unknown, is_null, is_unknown
from anontls.selection.decision import Result, Step
from anontls.selection.procedure import Question, Questions, Search

ATTRIBUTE = "msExchServerInternalTLSCert"
THUMBPRINT = "InternalTransportCertificateThumbprint"


def attribute_named(search: Search) -> Step:
    """Step 2."""
    word = search.facts.directory
    return _named(search) if word is None else _dated(_named(search), word)


def _dated(step: Step, word: DirectoryWord) -> Step:
    """An answer of a directory that changes while sessions are decided on: how fresh it was belongs to it."""
    notes = step.values.get("notes", ())
    assert isinstance(notes, tuple)
    values = {**step.values, **freshness(word), "notes": (*notes, "directory")}
    return msgspec.structs.replace(step, values=values)


def freshness(word: DirectoryWord) -> dict[str, object]:
    """What a sentence can say of it."""
    return {"url": word.url, "answered": word.as_of, "age": round(word.age)}


def _named(search: Search) -> Step:
    facts = search.facts
    attribute = facts.internal_tls_cert
    if attribute.names is not None:
        search.thumbprint = attribute.names
        return search.passed("2.named", {"thumbprint": search.thumbprint})
    # 12012 is logged when this is found at the start of the service, never during a session.  [ARTICLE-OUT 2]
    event = 12012 if facts.phase is Phase.STARTUP else None
    if isinstance(attribute.error, str):
        return search.stopped("2.error", {"reason": attribute.error}, event=event)
    if not isinstance(attribute.unknown, str):
        return search.stopped("2.null", {"reason": "null"}, event=event)
    # The attribute and the thumbprint are one directory value seen twice.  [FACT O 5.3]
    shown = facts.server.internal_transport_certificate_thumbprint
    if is_unknown(shown):
        return search.not_known(
            ATTRIBUTE, ABSENT if attribute.unknown == ABSENT.because else Unknown(attribute.unknown)
        )
    if is_null(shown) or shown is None:
        return search.stopped("2.null-as-shown", {"reason": "null", "notes": ("one-value",)}, event=event)
    search.thumbprint = shown
    return search.passed("2.as-shown", {"thumbprint": shown, "notes": ("one-value",)})


def in_store(search: Search) -> Step:
    """Step 3."""
    store, thumbprint = search.facts.store, search.thumbprint
    if is_unknown(store):
        return search.not_known("certificates", store)
    certificate = store.find(thumbprint)
    if certificate is None:
        if store.without_thumbprint:
            return search.not_known("Thumbprint", Unknown("a certificate in the store is without it"))
        return _miss(search, "3.absent", {"thumbprint": thumbprint, "count": len(store)})
    # One known to have no private key cannot be loaded.  [FACT I 1.7]
    if is_unknown(certificate.has_private_key):
        return search.not_known("HasPrivateKey", certificate.has_private_key)
    if not certificate.has_private_key:
        return _miss(search, "3.no-private-key", {"thumbprint": thumbprint, "count": len(store)})
    refused = store.refused.get(thumbprint)
    if refused is not None:
        return _miss(search, "3.refused", {"thumbprint": thumbprint, "reason": refused})
    search.certificate = certificate
    return search.passed("3.found", {"thumbprint": thumbprint, "subject": certificate.subject})


def _miss(search: Search, because: str, values: dict[str, object]) -> Step:
    if search.rules.store_miss == "ephemeral":
        search.ephemeral = True
        because += "-ephemeral"
        return search.noted(because, values, event=12024, rule="store-miss", ends=Result.CERTIFICATE)
    return search.stopped(because, values, event=12013, rule="store-miss")


def not_expired(search: Search) -> Step:
    """Step 4."""
    return search.unless_expired("4.valid") or search.noted("4.expired", search.expired(), event=12015)


LAST_STEPS: Questions = (
    Question(
        "2",
        "anonymous.2",
        attribute_named,
        "{search} -LDAPFilter '(&(objectClass=msExchExchangeServer)(cn={cn}))' -Properties msExchServerInternalTLSCert",
        event=12012,
    ),
    Question(
        "3",
        "anonymous.3",
        in_store,
        "Get-ExchangeCertificate -Server {server} | Format-List Thumbprint,Subject,Services,HasPrivateKey,Status",
        event=12013,
    ),
    Question(
        "4",
        "anonymous.4",
        not_expired,
        "Get-ExchangeCertificate -Server {server} -Thumbprint {thumbprint} | Format-List Subject,NotBefore,NotAfter",
        otherwise="note",
        event=12015,
    ),
)
