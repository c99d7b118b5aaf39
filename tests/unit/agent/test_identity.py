import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import StateError
from agent.identity import (
    Membership,
    load_identity,
    prepare_keys,
    save_membership,
    save_renewed,
)
from tests.unit.agent.certificates import make_certificate

NOW = datetime(2026, 11, 21, tzinfo=UTC)
CERTIFICATE = make_certificate(NOW, NOW + timedelta(days=1))
MEMBERSHIP = Membership(b"n" * 16, "node", CERTIFICATE, CERTIFICATE, b"authority", b"statement")


def test_a_node_is_nobody_before_it_has_joined(tmp_path: Path) -> None:
    prepare_keys(tmp_path)

    assert load_identity(tmp_path) is None
    assert not (tmp_path / "identity").exists()


def test_the_keys_to_join_with_are_the_same_at_every_try(tmp_path: Path) -> None:
    first = prepare_keys(tmp_path)
    second = prepare_keys(tmp_path)

    assert first.tls == second.tls
    assert first.signing.public == second.signing.public


def test_a_node_that_joined_is_the_same_after_a_start(tmp_path: Path) -> None:
    keys = prepare_keys(tmp_path)
    save_membership(tmp_path, MEMBERSHIP)

    identity = load_identity(tmp_path)

    assert identity is not None
    assert identity.membership == MEMBERSHIP
    assert identity.keys.tls == keys.tls


def test_what_was_renewed_is_there_after_a_start_beside_the_same_keys(tmp_path: Path) -> None:
    keys = prepare_keys(tmp_path)
    save_membership(tmp_path, MEMBERSHIP)
    newer = make_certificate(NOW, NOW + timedelta(days=2))
    renewed = msgspec.structs.replace(MEMBERSHIP, certificate=newer)

    save_renewed(tmp_path, renewed)
    identity = load_identity(tmp_path)

    assert identity is not None
    assert (identity.membership, identity.keys.tls) == (renewed, keys.tls)
    assert {path.name for path in (tmp_path / "identity").iterdir()} == {
        "node.json",
        "signing.key",
        "tls.key",
    }


@pytest.mark.parametrize("field", ["certificate", "renewal_certificate"])
def test_an_identity_without_both_certificates_says_to_join_anew(
    tmp_path: Path, field: str
) -> None:
    prepare_keys(tmp_path)
    save_membership(tmp_path, MEMBERSHIP)
    path = tmp_path / "identity" / "node.json"
    kept = msgspec.json.decode(path.read_bytes())
    del kept[field]
    path.write_bytes(msgspec.json.encode(kept))

    with pytest.raises(StateError, match="older version") as caught:
        load_identity(tmp_path)
    assert "join anew" in caught.value.hint


def test_only_the_owner_may_read_the_keys(tmp_path: Path) -> None:
    prepare_keys(tmp_path)
    save_membership(tmp_path, MEMBERSHIP)

    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "identity").iterdir()}

    assert modes == {0o600}
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700


def test_keys_are_not_shown(tmp_path: Path) -> None:
    assert repr(prepare_keys(tmp_path)) == "Keys(hidden)"


def test_the_certificate_request_is_for_a_p256_key_and_names_the_node(tmp_path: Path) -> None:
    request = x509.load_pem_x509_csr(prepare_keys(tmp_path).certificate_request("n" * 100))

    assert request.is_signature_valid
    assert isinstance(request.public_key(), ec.EllipticCurvePublicKey)
    assert request.subject.rfc4514_string() == "CN=" + "n" * 64


@pytest.mark.parametrize("name", ["node.json", "tls.key", "signing.key"])
def test_a_damaged_identity_says_what_to_do(tmp_path: Path, name: str) -> None:
    prepare_keys(tmp_path)
    save_membership(tmp_path, MEMBERSHIP)
    (tmp_path / "identity" / name).unlink()

    with pytest.raises(StateError) as caught:
        load_identity(tmp_path)
    assert caught.value.hint


def test_a_state_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StateError, match="cannot use"):
        prepare_keys(tmp_path / "file")
