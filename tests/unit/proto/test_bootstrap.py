"""Node tokens."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.bootstrap import (
    BootstrapToken,
    InvalidTokenError,
    certificate_sha256,
    make_token,
    parse_token,
)


def pem(content: bytes) -> bytes:
    body = base64.encodebytes(content)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


AUTHORITY = pem(b"the authority")


def token(**changes: bytes) -> str:
    parts = {
        "ca_certificate": AUTHORITY,
        "ca_sha256": certificate_sha256(AUTHORITY),
        "certificate": b"certificate",
        "private_key": b"key",
        "secret": b"secret",
    }
    return make_token(**(parts | changes))


def test_a_token_brings_back_what_was_put_in() -> None:
    parsed = parse_token(f"\n {token()} \n")
    assert (parsed.certificate, parsed.private_key, parsed.secret) == (
        b"certificate",
        b"key",
        b"secret",
    )
    assert parsed.ca_certificate == AUTHORITY


def test_a_token_never_prints_its_secret() -> None:
    assert "secret" not in repr(parse_token(token()))


def test_a_token_whose_authority_was_exchanged_is_refused() -> None:
    with pytest.raises(InvalidTokenError, match="does not match"):
        parse_token(token(ca_certificate=pem(b"another authority")))


def test_a_token_of_another_version_is_refused() -> None:
    other = BootstrapToken(2, b"", AUTHORITY, b"", b"", b"")
    text = base64.urlsafe_b64encode(msgspec.msgpack.encode(other)).rstrip(b"=").decode()
    with pytest.raises(InvalidTokenError, match="another version"):
        parse_token("tidemark-" + text)


def test_a_token_whose_authority_is_no_certificate_is_refused() -> None:
    with pytest.raises(InvalidTokenError, match="not a certificate"):
        parse_token(token(ca_certificate=b"no base64!", ca_sha256=b""))


@given(st.integers(min_value=1, max_value=200))
def test_a_token_that_was_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(InvalidTokenError):
        parse_token(token()[:-cut])


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    for candidate in (text, "tidemark-" + text):
        with pytest.raises(InvalidTokenError):
            parse_token(candidate)
