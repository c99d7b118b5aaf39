"""Keys: what was sealed opens with the right key and purpose, and with nothing else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.errors import DamagedError, FormatError, WrongKeyError
from repository.ids import PackNonce
from repository.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    Certificate,
    RecoverySecret,
    Secret,
    SigningKey,
    UnsealingKey,
    certify,
    check_certificate,
    frame_key,
    pack_key,
    seal,
    unwrap,
    verify,
    wrap,
)
from tests.unit.repository.damage import altered

UNSEALING = UnsealingKey(b"u" * 32)
SIGNING = SigningKey(b"s" * 32)
BYTES = st.binary(max_size=80)


@given(BYTES, BYTES)
def test_what_was_sealed_opens_with_the_same_info(plaintext: bytes, info: bytes) -> None:
    assert UNSEALING.unseal(seal(UNSEALING.public, plaintext, info), info) == plaintext


@given(BYTES, st.data())
def test_what_was_sealed_opens_with_nothing_altered(plaintext: bytes, data: st.DataObject) -> None:
    sealed = seal(UNSEALING.public, plaintext, b"info")

    with pytest.raises(WrongKeyError):
        UNSEALING.unseal(data.draw(altered(sealed)), b"info")


@given(BYTES)
def test_any_other_bytes_do_not_unseal(raw: bytes) -> None:
    with pytest.raises(WrongKeyError):
        UNSEALING.unseal(raw, b"info")


def test_what_was_sealed_opens_with_no_other_key_or_info() -> None:
    sealed = seal(UNSEALING.public, b"plaintext", b"info")

    with pytest.raises(WrongKeyError):
        UNSEALING.unseal(sealed, b"other info")
    with pytest.raises(WrongKeyError):
        UnsealingKey(b"v" * 32).unseal(sealed, b"info")


def test_sealing_twice_gives_two_ciphertexts() -> None:
    assert seal(UNSEALING.public, b"x", b"i") != seal(UNSEALING.public, b"x", b"i")


@given(BYTES, BYTES, st.data())
def test_what_was_wrapped_opens_with_nothing_altered(
    plaintext: bytes, context: bytes, data: st.DataObject
) -> None:
    wrapped = wrap(b"k" * 32, plaintext, context)

    assert unwrap(b"k" * 32, wrapped, context) == plaintext
    with pytest.raises(WrongKeyError):
        unwrap(b"k" * 32, data.draw(altered(wrapped)), context)
    with pytest.raises(WrongKeyError):
        unwrap(b"k" * 32, wrapped, context + b"x")
    with pytest.raises(WrongKeyError):
        unwrap(b"l" * 32, wrapped, context)


@given(BYTES, st.data())
def test_a_signature_holds_for_its_message_and_domain_only(
    message: bytes, data: st.DataObject
) -> None:
    signature = SIGNING.sign(b"domain", message)

    verify(SIGNING.public, b"domain", message, signature)
    for public, domain, said, signed in [
        (SIGNING.public, b"domain", message + b"x", signature),
        (SIGNING.public, b"other", message, signature),
        (SIGNING.public, b"domain", message, data.draw(altered(signature))),
        (SigningKey(b"t" * 32).public, b"domain", message, signature),
        (b"no key", b"domain", message, signature),
    ]:
        with pytest.raises(DamagedError):
            verify(public, domain, said, signed)


def test_domain_and_message_do_not_run_into_each_other() -> None:
    signature = SIGNING.sign(b"ab", b"c")

    with pytest.raises(DamagedError):
        verify(SIGNING.public, b"a", b"bc", signature)


def test_keys_of_packs_and_frames_all_differ() -> None:
    packs = [
        pack_key(data_key, PackNonce(nonce))
        for data_key in (b"a" * 32, b"b" * 32)
        for nonce in (b"1" * 16, b"2" * 16)
    ]
    frames = [frame_key(key, number) for key in packs for number in (0, 1, 2**32 - 1)]

    assert len({*packs, *frames}) == len(packs) + len(frames) == 16


def test_the_two_halves_of_a_recovery_secret_differ_and_come_again() -> None:
    secret = RecoverySecret(Secret(b"r" * 32))
    again = RecoverySecret(Secret(b"r" * 32))

    assert secret.unsealing_key().public == again.unsealing_key().public
    assert secret.signing_key().public == again.signing_key().public
    assert secret.unsealing_key().reveal() != secret.signing_key().reveal()
    assert UnsealingKey(secret.unsealing_key().reveal()).public == secret.unsealing_key().public


@pytest.mark.parametrize("length", [0, KEY_BYTES - 1, KEY_BYTES + 1])
def test_a_recovery_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(WrongKeyError, match="32 bytes"):
        RecoverySecret(Secret(bytes(length)))


def test_no_secret_shows_in_its_text() -> None:
    raw = b"0123456789abcdef0123456789abcdef"
    secret = Secret(raw)

    for each in (secret, RecoverySecret(secret), UnsealingKey(raw), SigningKey(raw)):
        assert "hidden" in f"{each} {each!r}"
        assert "0123" not in f"{each} {each!r}"
    assert secret.reveal() == SigningKey(raw).reveal() == raw


CERTIFICATE = Certificate("node", b"i" * 16, b"p" * 32)


def test_a_certificate_is_what_its_issuer_signed() -> None:
    encoded = certify(SIGNING, CERTIFICATE)

    assert check_certificate(SIGNING.public, encoded, "node") == CERTIFICATE


@given(st.data())
def test_a_certificate_holds_with_nothing_altered(data: st.DataObject) -> None:
    encoded = certify(SIGNING, CERTIFICATE)

    with pytest.raises(DamagedError):
        check_certificate(SIGNING.public, data.draw(altered(encoded)), "node")


def test_a_certificate_of_another_kind_or_issuer_is_refused() -> None:
    encoded = certify(SIGNING, CERTIFICATE)

    with pytest.raises(DamagedError, match="node's certificate where a coordinator's"):
        check_certificate(SIGNING.public, encoded, "coordinator")
    with pytest.raises(DamagedError):
        check_certificate(SigningKey(b"t" * 32).public, encoded, "node")


@given(BYTES)
def test_signed_bytes_that_are_no_certificate_are_refused(body: bytes) -> None:
    signature = SIGNING.sign(b"tidemark certificate", body)

    with pytest.raises(FormatError):
        check_certificate(SIGNING.public, signature + body, "node")


def test_a_certificate_for_an_unknown_kind_of_subject_is_refused() -> None:
    body = msgspec.msgpack.encode(("janitor", b"i" * 16, b"p" * 32))

    with pytest.raises(FormatError):
        check_certificate(
            SIGNING.public, SIGNING.sign(b"tidemark certificate", body) + body, "node"
        )
    assert len(SIGNING.sign(b"", b"")) == SIGNATURE_BYTES
