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
from anontls.report import json
from anontls.report.language import Language, show


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
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, metavar="SECONDS")
@click.option(
    "--expect-match", is_flag=True, help="Exit 1 unless the certificate behind X-ANONYMOUSTLS is the directory's."
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

    No mail is sent.  Exit 3 when the server cannot be reached or a verb that it offers does not work; 1 when a
    certificate is not the one that the directory names.
    """
    host, port = _target(target)
    organization = open_organization(org) if org else None
    if expect_match and organization is None:
        raise UsageError("--expect-match needs --org")
    seen = asyncio.run(
        probe(
            host,
            port,
            hello=hello or socket.getfqdn(),
            timeout=timeout,
            now=options.now(),
            organization=organization,
            server=server,
        )
    )
    click.echo(json.encode(_document(seen)) if as_json else _text(seen, language))
    return _status(seen, expect_match=expect_match)


def _target(text: str) -> tuple[str, int]:
    try:
        return host_and_port(text)
    except ValueError:
        host = text.removeprefix("[").removesuffix("]")
        if not host or "/" in host or (":" in host and not text.startswith("[")):
            raise UsageError(f"{text!r} is not HOST or HOST:PORT") from None
        return host, 25


def _status(seen: Probed, *, expect_match: bool) -> Exit:
    anonymous = seen.behind[0] if seen.behind else None
    if expect_match and not (anonymous and anonymous.trust and anonymous.trust.trusted):
        return Exit.NOT_MET
    if anonymous is not None and anonymous.trust is not None and anonymous.certificate and not anonymous.trust.trusted:
        return Exit.NOT_MET
    if seen.failure is not None or any(behind.failure for behind in seen.behind):
        return Exit.UNKNOWN
    return Exit.DONE


def _text(seen: Probed, language: Language) -> str:
    lines = [click.style(f"{seen.host}:{seen.port}", bold=True)]
    if seen.failure:
        lines.append(click.style(f"failed: {seen.failure}", fg="red"))
    if seen.banner:
        lines.append(f"banner   {seen.banner}")
    if seen.extensions:
        lines.append(f"EHLO     {' | '.join(seen.extensions)}")
    lines += [click.style(f"masked   {sign}", fg="yellow") for sign in seen.masked]
    for behind in seen.behind:
        lines += ["", *_behind(behind, language)]
    return "\n".join(lines)


def _behind(behind: Behind, language: Language) -> list[str]:
    head = click.style(behind.verb, bold=True)
    if not behind.offered:
        return [f"{head}  not offered"]
    if behind.failure:
        return [f"{head}  {click.style('failed: ' + behind.failure, fg='red')}"]
    lines = [f"{head}  {behind.protocol} {behind.cipher}"]
    certificate = behind.certificate
    if certificate is None:
        lines.append("  no certificate")
    else:
        lines += [
            f"  certificate  {show(language, certificate.thumbprint)}  {show(language, certificate.subject)}",
            f"  valid        {show(language, certificate.not_before)} to {show(language, certificate.not_after)}",
            f"  key          {show(language, certificate.key)}, {show(language, certificate.signature_algorithm)}",
        ]
    if behind.trust is not None:
        colour = "green" if behind.trust.trusted else "red"
        expired = ", expired" if behind.trust.expired else ""
        lines.append("  directory    " + click.style(behind.trust.result.value + expired, fg=colour))
    lines.append(f"  EHLO         {' | '.join(behind.extensions)}")
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
            }
            for behind in seen.behind
        ],
    }
