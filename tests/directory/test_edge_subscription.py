"""The file of an Edge node: what is refused of it, and how it is made."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from anontls.certstore import write
from anontls.certstore.bindings import Binding
from anontls.certstore.new import new_internal_certificate
from anontls.cli import Exit, run
from anontls.directory import edge_subscription
from anontls.errors import MalformedInput
from anontls.facts import Certificate
from tests.support.make import common_name, make_der


def subscription() -> edge_subscription.Subscription:
    return edge_subscription.make("EDGE1", "edge1.contoso.com", Certificate(der=make_der(common_name("EDGE1"))))


def document(**changed: object) -> bytes:
    return json.dumps({**json.loads(edge_subscription.dump(subscription())), **changed}).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "edge1.subscription: not JSON"),
        (b"\xff\xfe", "edge1.subscription: not JSON"),
        (b"[" * 10_000, "edge1.subscription: "),
        (b"[]", r"edge1.subscription: \$: Expected `object`"),
        (b" " * 70_000, "more than the 65,536 bytes"),
        (b"{}", "missing required field `schema`"),
        (document(schema="anontls/edge-subscription/2"), r"\$.schema: 'anontls/edge-subscription/2' instead of"),
        (document(server="EDGE1,CN=x"), r"\$.server: "),
        (document(server="EDGE1\n"), r"\$.server: "),
        (document(fqdn="edge1"), r"\$.fqdn: "),
        (document(certificate="!"), r"\$.certificate: "),
        (document(certificate="MAA="), r"\$: the certificate cannot be read"),
        (document(fingerprint="00"), r"\$: the fingerprint is not that of the certificate"),
        (document(password="planted"), r"unknown field `password`"),
    ],
)
def test_a_file_that_is_no_subscription_is_refused_with_its_place(data: bytes, says: str) -> None:
    with pytest.raises(MalformedInput, match=says):
        edge_subscription.loads(data, "edge1.subscription")


def test_a_subscription_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(edge_subscription.dump(subscription()))
    assert edge_subscription.load(tmp_path / "s") == subscription()
    with pytest.raises(MalformedInput, match="No such file"):
        edge_subscription.load(tmp_path / "absent")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Of the Edge: its own certificate for SMTP."""
    own = new_internal_certificate("EDGE1", "edge1.contoso.com", now=datetime.now(UTC))
    folder = tmp_path / "store"
    write.prepare(folder)
    write.add(folder, own.certificate, own.key)
    write.bind(folder, own.thumbprint, Binding(("SMTP",), "Microsoft Exchange"))
    return folder


def test_subscribe_writes_no_secret(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edge1.subscription"
    assert run(["edge", "subscribe", "--store", str(store), "--server", "EDGE1", "-o", str(path)]) == Exit.DONE
    out, err = capsys.readouterr()
    made = edge_subscription.load(path)
    assert (made.server, made.fqdn, made.fingerprint) == ("EDGE1", "edge1.contoso.com", out.strip())
    assert made.fingerprint in err
    assert set(json.loads(path.read_bytes())) == {"schema", "server", "fqdn", "certificate", "fingerprint"}
    assert run(["edge", "subscribe", "--store", str(store), "--server", "EDGE2", "-o", str(path)]) == Exit.USAGE
    assert "no certificate for SMTP in the store names EDGE2" in capsys.readouterr().err


def test_subscribe_refuses_what_no_service_could_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = new_internal_certificate("EDGE1", "edge1.contoso.com", now=datetime.now(UTC) - timedelta(days=6 * 365))
    folder, path = tmp_path / "store", tmp_path / "edge1.subscription"
    write.prepare(folder)
    write.add(folder, old.certificate, old.key)
    arguments = ["edge", "subscribe", "--store", str(folder), "--server", "EDGE1", "-o", str(path)]
    arguments += ["--certificate", old.thumbprint]
    assert run(arguments) == Exit.USAGE
    assert "it expired on" in capsys.readouterr().err
    assert not path.exists()
    assert run([*arguments, "--force"]) == Exit.DONE
    assert edge_subscription.load(path).certificate == old.certificate.der
