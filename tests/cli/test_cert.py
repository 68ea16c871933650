import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from anontls.certstore.files import Passphrase
from anontls.certstore.folder import FolderStore
from anontls.cli import Commands, Exit, run
from tests.certstore.make import NOW, key_of, key_pem, make, pem, pfx

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setitem(Commands.modules, "cert", "anontls.cli.cert:command")

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run(["cert", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, click.unstyle(out), click.unstyle(err)

    return call


def new(cert: Run, store: Path, *more: object) -> str:
    status, out, err = cert("new", "--store", store, "--server", "MBX1", "--fqdn", "mbx1.contoso.com", *more)
    assert status == Exit.DONE, err
    return out.strip()


def listed(cert: Run, store: Path, *more: object) -> list[dict[str, object]]:
    _, out, _ = cert("list", "--store", store, "--json", *more)
    return [json.loads(line) for line in out.splitlines()]


def test_new_makes_a_store_that_can_be_listed(cert: Run, tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store"
    thumbprint = new(cert, store)
    if os.name == "posix":
        assert stat.S_IMODE(store.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in store.iterdir()} == {0o600}
    status, out, err = cert("list", "--store", store)
    assert (status, err) == (Exit.DONE, "")
    assert out.startswith(f"{thumbprint}  CN=MBX1  ")
    assert "IMAP, POP, SMTP  RSA 2048  Valid" in out
    (document,) = listed(cert, store)
    assert document["schema"] == "anontls/cert/1"
    assert document["thumbprint"] == thumbprint
    assert document["services"] == ["IMAP", "POP", "SMTP"]
    assert document["friendly_name"] == "Microsoft Exchange"
    assert (document["key"], document["has_private_key"], document["encrypted"]) == ("RSA 2048", True, False)
    assert FolderStore(store, now=NOW).find(thumbprint) is not None


def test_new_does_not_take_the_place_of_another_unless_forced(cert: Run, tmp_path: Path) -> None:
    first = new(cert, tmp_path / "store")
    status, out, err = cert("new", "--store", tmp_path / "store", "--server", "mbx1", "--fqdn", "mbx1.contoso.com")
    assert (status, out) == (Exit.USAGE, "")
    assert first in err
    assert "--force" in err
    third = new(cert, tmp_path / "store", "--services", "IIS")  # not for SMTP, so nothing is in question
    second = new(cert, tmp_path / "store", "--force", "--services", "smtp")
    by_thumbprint = {d["thumbprint"]: d["services"] for d in listed(cert, tmp_path / "store")}
    assert by_thumbprint == {first: ["IMAP", "POP", "SMTP"], second: ["SMTP"], third: ["IIS"]}


def test_new_encrypts_the_key_with_the_passphrase_of_the_store(
    cert: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_KEY", "secret")
    store = tmp_path / "store"
    thumbprint = new(cert, store, "--store-password-env", "STORE_KEY")
    (path,) = store.glob("*.pem")
    assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    status, _, err = cert("list", "--store", store)
    assert status == Exit.NOT_MET
    assert "encrypted" in err
    (document,) = listed(cert, store, "--store-password-env", "STORE_KEY")
    assert document["encrypted"] is True
    assert FolderStore(store, now=NOW, passphrase=Passphrase(variable="STORE_KEY")).find(thumbprint) is not None


@pytest.mark.skipif(os.name != "posix", reason="modes say nothing here")
def test_a_store_that_others_can_enter_is_refused(cert: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o755)
    status, out, err = cert("new", "--store", store, "--server", "MBX1", "--fqdn", "mbx1.contoso.com")
    assert (status, out) == (Exit.USAGE, "")
    assert f"chmod 700 {store}" in err
    assert list(store.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["new", "--server", "MBX 1", "--fqdn", "x"],
        ["new", "--server", "MBX1", "--fqdn", "x", "--services", "SMTPS"],
        ["new", "--server", "MBX1", "--fqdn", "x", "--friendly-name", "x" * 64],
        ["new", "--server", "MBX1", "--fqdn", "x", "--store-password-env", "A", "--store-password-file", "b"],
        ["import", "nothing.pem"],
        ["list"],
    ],
    ids=lambda a: " ".join(a)[:60],
)
def test_wrong_usage(cert: Run, tmp_path: Path, arguments: list[str]) -> None:
    status, out, err = cert(arguments[0], "--store", tmp_path / "store", *arguments[1:])
    assert (status, out) == (Exit.USAGE, "")
    assert err
    assert not list(tmp_path.rglob("*.pem"))


def test_problems_are_findings(cert: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    thumbprint = new(cert, store)
    (store / "bad.pem").write_bytes(b"rubbish")
    status, out, err = cert("list", "--store", store)
    assert status == Exit.NOT_MET
    assert thumbprint in out
    assert "bad.pem: it is neither PEM nor DER" in err
    *_, problem = listed(cert, store)
    assert problem["schema"] == "anontls/cert-problem/1"
    assert (problem["file"], bool(problem["cure"])) == ("bad.pem", True)


def test_list_tells_the_status_of_a_day(cert: Run, tmp_path: Path) -> None:
    new(cert, tmp_path / "store")
    (document,) = listed(cert, tmp_path / "store", "--as-of", "2100-01-01")
    assert document["status"] == "DateInvalid"
    own = make(issuer=make(name="root", ca=True, number=1))
    (tmp_path / "store" / "issued.pem").write_bytes(pem(own.der))
    _, out, _ = cert("list", "--store", tmp_path / "store")
    assert "no private key  Unknown  issued.pem" in out


@pytest.mark.parametrize(
    "form", ["pem", "pem and key", "der and key", "pfx", "encrypted pfx", "encrypted pem", "encrypted der key"]
)
def test_import(cert: Run, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(name="root", ca=True, number=1)
    own = make("rsa", issuer=root)
    monkeypatch.setenv("PFX_PASSWORD", "secret")
    source, options = tmp_path / "in.pem", ["--services", "SMTP,iis", "--friendly-name", 'Grün "1" 😀']
    match form:
        case "pem":
            source.write_bytes(pem(own.der, root.der) + key_pem(own.key))
        case "pem and key":
            source.write_bytes(pem(own.der))
            (tmp_path / "in.key").write_bytes(key_pem(own.key))
        case "der and key":
            source = tmp_path / "in.cer"
            source.write_bytes(own.der)
            (tmp_path / "in.key").write_bytes(own.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
        case "pfx":
            source = tmp_path / "in.pfx"
            source.write_bytes(pfx(own))
        case "encrypted pfx":
            source = tmp_path / "in.PFX"
            source.write_bytes(pfx(own, b"secret"))
            options += ["--password-env", "PFX_PASSWORD"]
        case "encrypted pem":
            source.write_bytes(pem(own.der) + key_pem(own.key, b"secret"))
            options += ["--password-env", "PFX_PASSWORD"]
        case _:
            source.write_bytes(pem(own.der))
            (tmp_path / "in.key").write_bytes(key_pem(own.key, b"secret"))
            passphrase = tmp_path / "passphrase"
            passphrase.write_bytes(b"secret\n")
            passphrase.chmod(0o600)
            options += ["--password-file", str(passphrase)]
    store = tmp_path / "store"
    status, out, err = cert("import", "--store", store, source, *options)
    assert (status, out.strip()) == (Exit.DONE, own.thumbprint), err
    (document,) = listed(cert, store)
    assert document["services"] == ["IIS", "SMTP"]
    assert document["friendly_name"] == 'Grün "1" 😀'
    found = FolderStore(store, now=NOW).find(own.thumbprint)
    assert found is not None
    assert found.fits()
    if form == "pem" or "pfx" in form:
        assert found.chain == (root.der,)
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.iterdir()} == {0o600} or os.name != "posix"

    status, out, err = cert("import", "--store", store, source, *options)
    assert (status, out) == (Exit.USAGE, "")
    assert "in the store already" in err


def test_import_of_a_certificate_alone_says_that_it_has_no_key(cert: Run, tmp_path: Path) -> None:
    own = make()
    (tmp_path / "in.cer").write_bytes(own.der)
    status, out, err = cert("import", "--store", tmp_path / "store", tmp_path / "in.cer")
    assert (status, out.strip()) == (Exit.DONE, own.thumbprint)
    assert "without a private key" in err
    (document,) = listed(cert, tmp_path / "store")
    assert (document["has_private_key"], document["services"]) == (False, [])


@pytest.mark.parametrize(
    "fault", ["mismatch", "encrypted mismatch", "no passphrase", "wrong passphrase", "key only", "garbage"]
)
def test_import_refuses(cert: Run, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make()
    monkeypatch.setenv("PFX_PASSWORD", "wrong-horse" if fault == "wrong passphrase" else "secret")
    source, options = tmp_path / "in.pem", ["--password-env", "PFX_PASSWORD"]
    match fault:
        case "mismatch":
            source.write_bytes(pem(own.der) + key_pem(key_of("ec", 7)))
        case "encrypted mismatch":
            source.write_bytes(pem(own.der) + key_pem(key_of("ec", 7), b"secret"))
        case "no passphrase":
            source, options = tmp_path / "in.pfx", []
            source.write_bytes(pfx(own, b"secret"))
        case "wrong passphrase":
            source = tmp_path / "in.pfx"
            source.write_bytes(pfx(own, b"secret"))
        case "key only":
            source.write_bytes(key_pem(own.key))
        case _:
            source.write_bytes(b"rubbish")
    store = tmp_path / "store"
    status, out, err = cert("import", "--store", store, source, *options)
    assert (status, out) == (Exit.USAGE, "")
    assert str(source) in err
    assert "hint:" in err
    assert "wrong-horse" not in err
    assert not store.exists()


def test_services_are_added_and_comments_stay(cert: Run, tmp_path: Path) -> None:
    own, store = make(), tmp_path / "store"
    store.mkdir(mode=0o700)
    bindings = store / "bindings.toml"
    bindings.write_text(f'# by hand\n[{"AB" * 20}]\nservices = ["POP"] # old\n')
    (tmp_path / "in.pem").write_bytes(pem(own.der) + key_pem(own.key))
    assert cert("import", "--store", store, tmp_path / "in.pem", "--services", "SMTP")[0] == Exit.DONE
    assert bindings.read_text().startswith(f'# by hand\n[{"AB" * 20}]\nservices = ["POP"] # old\n')
    next(store.glob("*.pem")).unlink()  # the binding outlives the certificate
    assert cert("import", "--store", store, tmp_path / "in.pem", "--services", "IIS")[0] == Exit.DONE
    assert f'[{own.thumbprint}]\nservices = ["IIS", "SMTP"]\n' in bindings.read_text()
    assert FolderStore(store, now=NOW).entries[0].binding.services == ("IIS", "SMTP")


def test_bindings_that_cannot_be_read_are_not_overwritten(cert: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    (store / "bindings.toml").write_text("[half")
    status, out, err = cert("new", "--store", store, "--server", "MBX1", "--fqdn", "mbx1.contoso.com")
    assert (status, out) == (Exit.USAGE, "")
    assert "not TOML" in err
    assert [path.name for path in store.iterdir()] == ["bindings.toml"]


def test_the_passphrase_is_never_an_argument(cert: Run) -> None:
    for name in ("new", "list", "import"):
        _, out, _ = cert(name, "--help")
        assert "--password " not in out
        assert "--store " in out


def test_a_key_that_is_too_small_for_tls_is_told(cert: Run, tmp_path: Path) -> None:
    small, store = make("rsa-1024", start=NOW, days=4000), tmp_path / "store"
    source = tmp_path / "small.pem"
    source.write_bytes(pem(small.der) + key_pem(small.key))
    status, out, err = cert("import", "--store", store, source)
    assert (status, out.strip()) == (Exit.DONE, small.thumbprint)
    assert "warning: the TLS library refuses it (RSA 1024" in err and "2048" in err
    status, out, err = cert("list", "--store", store)
    assert status == Exit.NOT_MET and small.thumbprint in out and "the TLS library refuses it (RSA 1024" in err
    (_, problem) = listed(cert, store)
    assert problem["schema"] == "anontls/cert-problem/1" and "key too small" in str(problem["message"])


def test_a_small_key_without_its_private_key_is_nobodys_to_show(cert: Run, tmp_path: Path) -> None:
    small, store = make("rsa-1024", start=NOW, days=4000), tmp_path / "store"
    source = tmp_path / "small.pem"
    source.write_bytes(pem(small.der))
    _, _, err = cert("import", "--store", store, source)
    assert "warning" not in err
    status, _, err = cert("list", "--store", store)
    assert (status, err) == (Exit.DONE, "")
