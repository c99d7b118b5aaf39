"""The certificate authority and its certificates."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_bytes

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from coordinator.enrolment import (
    Authority,
    Identity,
    Role,
    expires_ns,
    new_token,
    open_authority,
    parse_identity,
    secret_hash,
)
from coordinator.errors import FormatError, RejectedError
from proto.bootstrap import parse_token

NOW = int(datetime(2026, 11, 21, tzinfo=UTC).timestamp()) * 10**9


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return open_authority(tmp_path_factory.mktemp("authority"), NOW)


def uris(certificate: bytes) -> list[str]:
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    admin = x509.UniformResourceIdentifier("tidemark://admin/me")
    builder = builder.add_extension(x509.SubjectAlternativeName([admin]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_an_authority_is_kept(tmp_path: Path) -> None:
    first = open_authority(tmp_path, NOW)
    assert open_authority(tmp_path, NOW).certificate == first.certificate
    assert (tmp_path / "authority.pem").stat().st_mode & 0o777 == 0o600


def test_a_damaged_authority_says_so(tmp_path: Path) -> None:
    (tmp_path / "authority.pem").write_bytes(b"nonsense")
    with pytest.raises(FormatError):
        open_authority(tmp_path, NOW)


def test_a_node_is_who_the_coordinator_says_and_not_who_it_asks_to_be(
    authority: Authority,
) -> None:
    made = authority.node(b"\x01" * 16, request(ec.generate_private_key(ec.SECP256R1())), NOW)
    assert uris(made.certificate) == ["tidemark://node/" + "01" * 16]
    assert uris(made.renewal_certificate) == ["tidemark://renewal/" + "01" * 16]


@pytest.mark.parametrize("seconds", [1, 60, 86400])
def test_a_nodes_certificate_lives_as_long_as_is_set_and_its_renewal_a_year(
    tmp_path: Path, seconds: int
) -> None:
    authority = open_authority(tmp_path, NOW, seconds)
    made = authority.node(bytes(16), request(ec.generate_private_key(ec.SECP256R1())), NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert made.expires_at == expires_ns(made.certificate) == NOW + seconds * 10**9
    assert timedelta(seconds=seconds) <= life <= timedelta(seconds=seconds * 1.1 + 1)
    assert expires_ns(made.renewal_certificate) > NOW + 365 * 86400 * 10**9


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
    ids=["p384", "rsa"],
)
def test_a_node_needs_a_p256_key(
    authority: Authority, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    with pytest.raises(RejectedError):
        authority.node(bytes(16), request(key), NOW)


def test_a_request_that_does_not_decode_is_refused(authority: Authority) -> None:
    with pytest.raises(RejectedError):
        authority.node(bytes(16), b"nonsense", NOW)


def test_a_request_that_another_key_signed_is_refused(authority: Authority) -> None:
    good = x509.load_pem_x509_csr(request(ec.generate_private_key(ec.SECP256R1())))
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[-5] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(RejectedError):
        authority.node(bytes(16), forged, NOW)


def test_the_server_goes_by_every_name_that_it_is_reached_by(authority: Authority) -> None:
    pair = authority.server("backup.example", NOW)
    names = x509.load_pem_x509_certificate(pair.certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    hosts = names.value.get_values_for_type(x509.DNSName)
    assert {"localhost", "tidemark-coordinator", "backup.example"} <= set(hosts)


def test_a_token_carries_an_identity_that_may_only_enrol(authority: Authority) -> None:
    text, record = new_token(authority, valid_seconds=60, random=token_bytes, now=NOW)
    token = parse_token(text)
    assert uris(token.certificate) == [f"tidemark://bootstrap/{record.token_id.hex()}"]
    assert record.secret_hash == secret_hash(token.secret)
    assert record.expires_at == NOW + 60 * 10**9


def test_keys_are_never_printed(authority: Authority) -> None:
    assert "PRIVATE" not in repr(authority.admin("me", NOW))


@pytest.mark.parametrize("role", list(Role))
def test_an_identity_reads_back(role: Role) -> None:
    identity = Identity(role, "name")
    assert parse_identity(identity.uri) == identity


@pytest.mark.parametrize(
    "uri", ["", "https://admin/x", "tidemark://root/x", "tidemark://admin/", "tidemark://admin"]
)
def test_any_other_uri_names_nobody(uri: str) -> None:
    assert parse_identity(uri) is None
