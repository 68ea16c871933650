"""``anontls probe``: what a server advertises and presents."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import click

from anontls.cli import Exit, options
from anontls.config import host_and_port
from anontls.diagnose.probe import Behind, Probed, probe
from anontls.directory import open_organization
from anontls.errors import UsageError
from anontls.facts.trust import TrustResult
from anontls.report import json
from anontls.report.language import Language, show
from anontls.report.printable import printable
from anontls.smtp.exchange import X_ANONYMOUSTLS
from anontls.smtp.syntax import valid_hello

PORT = 25


@click.command("probe")
@click.argument("target", metavar="HOST[:PORT]")
@click.option(
    "--org",
    metavar="ORG",
    envvar="ANONTLS_ORG",
    help="Compare the certificates with what this organisation's directory holds.",
)
@click.option(
    "--server", metavar="NAME", help="The server that it should be; the name in its EHLO answer when not given."
)
@click.option("--hello", metavar="NAME", help="Name to greet with; this computer's when not given.")
@click.option("--timeout", type=options.Seconds(0.1, 600), default=10.0, show_default=True, metavar="SECONDS")
@click.option(
    "--expect-match",
    is_flag=True,
    help="Exit 1 when X-ANONYMOUSTLS is not offered, too, or when the directory does not know the server.",
)
@options.language
@options.as_json
def command(
    target: str,
    org: str | None,
    server: str | None,
    hello: str | None,
    timeout: float,
    expect_match: bool,
    language: Language,
    as_json: bool,
) -> int:
    """Banner, EHLO before and after TLS, and the certificate behind X-ANONYMOUSTLS and behind STARTTLS.

    No mail is sent.  Exit 1, with --org, when the certificate behind X-ANONYMOUSTLS is not the one that the directory
    holds, or when something on the way masks verbs; 3 when the server cannot be reached, when a verb that it offers does not work, or when the directory does not know it.
    """
    host, port = _target(target)
    if expect_match and org is None:
        raise UsageError("--expect-match needs --org")
    if server is not None and org is None:
        raise UsageError("--server needs --org: it names a server of the organisation")
    if hello is not None and not valid_hello(hello):
        raise UsageError(f"--hello {hello!r} is no name that EHLO can say")
    organization = open_organization(org) if org else None
    if organization is not None and server is not None and organization.server(server) is None:
        known = ", ".join(s.name for s in organization.servers)
        raise UsageError(f"no server {server} in the organisation", hint=f"known: {known}")
    seen = asyncio.run(
        probe(
            host,
            port,
            hello=hello or _own_name(),
            timeout=timeout,
            now=options.now(),
            organization=organization,
            server=server,
        )
    )
    click.echo(json.encode(_document(seen)) if as_json else _text(seen, language))
    return _status(seen, compared=org is not None, expect_match=expect_match)


def _own_name() -> str:
    name = socket.getfqdn()
    return name if valid_hello(name) else "localhost"


def _target(text: str) -> tuple[str, int]:
    for candidate in (text, f"{text}:{PORT}"):
        try:
            host, port = host_and_port(candidate)
        except ValueError:
            continue
        if port:
            return host, port
    raise UsageError(f"{text!r} is not HOST or HOST:PORT", hint="an IPv6 address stands in brackets: [::1]:25")


def _status(seen: Probed, *, compared: bool, expect_match: bool) -> Exit:
    """What could not be seen is never a finding: it outranks only what was found to be as it should be."""
    anonymous = seen.behind[0] if seen.behind else None
    trust = anonymous.trust if anonymous else None
    if trust is not None and trust.result in {TrustResult.MISMATCH, TrustResult.NO_CERTIFICATE}:
        return Exit.NOT_MET
    if compared and seen.masked:
        return Exit.NOT_MET
    if seen.failure is not None or any(behind.failure for behind in seen.behind):
        return Exit.UNKNOWN
    if expect_match and not (trust and trust.trusted):
        return Exit.NOT_MET
    return Exit.UNKNOWN if trust is not None and not trust.trusted else Exit.DONE


def _text(seen: Probed, language: Language) -> str:
    lines = [click.style(f"{seen.host}:{seen.port}", bold=True)]
    if seen.failure:
        lines.append(click.style(f"failed: {printable(seen.failure)}", fg="red"))
    if seen.banner:
        lines.append(f"banner   {printable(seen.banner)}")
    if seen.extensions:
        lines.append(f"EHLO     {printable(' | '.join(seen.extensions))}")
    elif seen.name:
        lines.append(f"HELO     {printable(seen.name)}, no extensions")
    lines += [click.style(f"masked   {printable(sign)}", fg="yellow") for sign in seen.masked]
    for behind in seen.behind:
        lines += ["", *_behind(behind, language)]
    return "\n".join(lines)


def _behind(behind: Behind, language: Language) -> list[str]:
    head = click.style(behind.verb, bold=True)
    if not behind.offered:
        return [f"{head}  not offered"]
    lines = []
    if behind.failure:
        lines.append(f"{head}  {click.style('failed: ' + printable(behind.failure), fg='red')}")
    if behind.protocol is None:
        return lines
    lines.append(f"{head}  {behind.protocol} {behind.cipher}")
    certificate = behind.certificate
    if certificate is None:
        lines.append("  no certificate")
    else:
        lines += [
            f"  certificate  {show(language, certificate.thumbprint)}  {printable(show(language, certificate.subject))}",
            f"  valid        {show(language, certificate.not_before)} to {show(language, certificate.not_after)}",
            f"  key          {show(language, certificate.key)}, {show(language, certificate.signature_algorithm)}",
        ]
    if behind.trust is not None:
        # Only X-ANONYMOUSTLS has to show the certificate that the directory holds; STARTTLS may well show another.
        colour = "green" if behind.trust.trusted else "red" if behind.verb == X_ANONYMOUSTLS else None
        expired = ", expired" if behind.trust.expired else ""
        lines.append("  directory    " + click.style(behind.trust.result.value + expired, fg=colour))
    if behind.extensions:
        lines.append(f"  EHLO         {printable(' | '.join(behind.extensions))}")
    return lines


def _document(seen: Probed) -> dict[str, Any]:
    return {
        "schema": "anontls/probe/1",
        "host": seen.host,
        "port": seen.port,
        "banner": seen.banner,
        "name": seen.name,
        "extensions": list(seen.extensions),
        "masked": list(seen.masked),
        "failure": seen.failure,
        "behind": [
            {
                "verb": behind.verb,
                "offered": behind.offered,
                "certificate": json.certificate(behind.certificate),
                "protocol": behind.protocol,
                "cipher": behind.cipher,
                "extensions": list(behind.extensions),
                "failure": behind.failure,
                "directory": behind.trust.result.value if behind.trust else None,
                "expired": behind.trust.expired if behind.trust else None,
            }
            for behind in seen.behind
        ],
    }
