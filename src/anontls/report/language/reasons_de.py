"""Gründe, aus denen etwas nicht bekannt ist, auf Deutsch.

Ein Grund steht als englischer Satz in den Fakten, auch im Schnappschuss.  Hier steht zu jedem Satz, den wir selbst
schreiben, der deutsche; was aus einer Quelle stammt, bleibt, wie es dort steht.
"""

from __future__ import annotations

import re

REASONS: dict[str, str] = {
    "the value is the number {a}, and which of its bits is {b} is not confirmed": "der Wert ist die Zahl {a}, und welches ihrer"
    " Bits {b} ist, ist nicht bestätigt",
    "the value is the number {a}, whose name is not confirmed": "der Wert ist die Zahl {a}, deren Name nicht bestätigt ist",
    "cut off at the depth limit of {a}; {b} writes more": "an der Tiefengrenze von {a} abgeschnitten; {b} schreibt mehr",
    "a certificate in the store is without it": "einem Zertifikat im Speicher fehlt er",
    "the server object holds none": "das Serverobjekt enthält keinen",
    "NotAfter is not set": "NotAfter ist nicht gesetzt",
    "day and month cannot be told apart in {a}": "Tag und Monat sind nicht zu unterscheiden in {a}",
    "{a} was printed without its zone": "{a} wurde ohne Zeitzone ausgegeben",
    "the export has no SerializationData, which holds Services and Status": "im Export fehlt SerializationData mit Services und"
    " Status",
    "SerializationData cannot be read: {a}": "SerializationData ist nicht lesbar: {a}",
    "SerializationData is that of another certificate": "SerializationData gehört zu einem anderen Zertifikat",
    "the certificate's bytes are not known": "die Bytes des Zertifikats sind nicht bekannt",
    "the bytes are not a certificate that can be read: {a}": "die Bytes sind kein lesbares Zertifikat: {a}",
    "the public key cannot be read: {a}": "der öffentliche Schlüssel ist nicht lesbar: {a}",
    "the extensions cannot be read: {a}": "die Erweiterungen sind nicht lesbar: {a}",
    "ServerRole {a} is out of scope: the articles are for Exchange 2016, 2019 and Subscription Edition": "ServerRole {a} liegt"
    " außerhalb: die Artikel gelten für Exchange 2016, 2019 und Subscription Edition",
}


def _pattern(english: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>.+)", re.escape(english)), re.DOTALL)


_PATTERNS = tuple((_pattern(english), german) for english, german in REASONS.items())


def reason(english: str) -> str:
    """The German sentence; the English one where it is not ours."""
    for pattern, german in _PATTERNS:
        if found := pattern.fullmatch(english):
            return german.format_map(found.groupdict())
    return english
