from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from anontls.certstore.new import new_internal_certificate, years_later
from anontls.errors import UsageError
from anontls.tls import client_context, server_context
from tests.certstore.make import NOW
from tests.test_tls import connect


def test_it_is_as_exchange_makes_it() -> None:
    own = new_internal_certificate("MBX1", "mbx1.contoso.com", now=NOW.replace(microsecond=7))
    made = own.certificate.x509
    assert made is not None
    assert own.certificate.subject == own.certificate.issuer == "CN=MBX1"
    assert own.certificate.certificate_domains == ("MBX1", "mbx1.contoso.com")
    assert (own.certificate.not_before, own.certificate.not_after) == (NOW, NOW.replace(year=NOW.year + 5))
    assert made.version is x509.Version.v3
    assert made.signature_algorithm_oid == SignatureAlgorithmOID.RSA_WITH_SHA256
    assert isinstance(own.key, rsa.RSAPrivateKey)
    assert own.key.key_size == 2048
    assert own.fits()
    made.verify_directly_issued_by(made)
    assert 0 < made.serial_number < 2**128
    found = {e.oid._name: (e.critical, e.value) for e in made.extensions}
    assert set(found) == {"keyUsage", "subjectAltName", "extendedKeyUsage", "basicConstraints"}
    critical, usage = found["keyUsage"]
    assert critical
    assert isinstance(usage, x509.KeyUsage)
    assert usage.digital_signature
    assert usage.key_encipherment
    assert not (usage.key_cert_sign or usage.data_encipherment or usage.key_agreement or usage.content_commitment)
    assert found["basicConstraints"] == (True, x509.BasicConstraints(False, None))
    assert found["extendedKeyUsage"] == (False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))
    assert own.certificate.services == "None"
    assert own.certificate.has_private_key is True
    assert own.certificate.status == "Valid"


def test_both_sides_show_it() -> None:
    one = new_internal_certificate("MBX1", "mbx1.contoso.com", now=NOW)
    connect(server_context(one), client_context(one))  # serverAuth alone is no obstacle


def test_serials_and_thumbprints_differ() -> None:
    made = [new_internal_certificate("MBX1", "mbx1.contoso.com", now=NOW) for _ in range(2)]
    assert made[0].thumbprint != made[1].thumbprint


def test_a_name_that_is_both_is_there_once() -> None:
    own = new_internal_certificate("EDGE1", "edge1", now=NOW, years=1)
    assert own.certificate.x509 is not None
    names = own.certificate.x509.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["EDGE1"]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(2024, 2, 29, 12, 30, 5, tzinfo=UTC), datetime(2029, 2, 28, 12, 30, 5, tzinfo=UTC)),
        (datetime(2024, 2, 28, tzinfo=UTC), datetime(2029, 2, 28, tzinfo=UTC)),
        (datetime(2023, 3, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),
        (datetime(2019, 12, 3, 9, 1, 2, tzinfo=UTC), datetime(2024, 12, 3, 9, 1, 2, tzinfo=UTC)),
    ],
)
def test_five_years_to_the_second(start: datetime, end: datetime) -> None:
    assert years_later(start, 5) == end


def test_another_time_zone_is_the_same_moment() -> None:
    moment = NOW.astimezone(timezone(timedelta(hours=14)))
    assert new_internal_certificate("MBX1", "mbx1", now=moment).certificate.not_before == NOW


@pytest.mark.parametrize("name", ["", "a b", "-x", "x-", "é", "a" * 64, "a..b", "x\n", "*.contoso.com"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        new_internal_certificate(name, "mbx1.contoso.com", now=NOW)
    with pytest.raises(UsageError):
        new_internal_certificate("MBX1", name, now=NOW)


def test_other_refusals() -> None:
    with pytest.raises(UsageError, match="short name"):
        new_internal_certificate("mbx1.contoso.com", "mbx1.contoso.com", now=NOW)
    with pytest.raises(UsageError, match="1024"):
        new_internal_certificate("MBX1", "mbx1.contoso.com", now=NOW, key_size=1024)
