"""An agent sends nothing but below the endpoints of its own settings, however a URL is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.endpoints import check_endpoint, is_beneath

HERE = "https://s3.example.com/bucket/"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://s3.example.com/bucket/packs/aa/1?X-Amz-Signature=2", HERE),
        ("https://s3.example.com:443/bucket/x", HERE),
        ("https://S3.Example.COM/bucket/x", HERE),
        ("https://s3.example.com/bucket/x", "https://s3.example.com"),
        ("https://s3.example.com/bucket/", "https://s3.example.com/bucket"),
        ("https://s3.example.com/bucket", HERE),
        ("http://127.0.0.1:9000/b/x", "http://127.0.0.1:9000/"),
        ("http://[::1]:9000/b/x", "http://[::1]:9000/b"),
    ],
)
def test_what_lies_beneath_an_endpoint_is_reached(url: str, endpoint: str) -> None:
    assert is_beneath(url, ["https://elsewhere.example.com", endpoint])


@pytest.mark.parametrize(
    "url",
    [
        "http://s3.example.com/bucket/x",
        "https://s3.example.com:8443/bucket/x",
        "https://s3.example.com/bucket2/x",
        "https://s3.example.com/",
        "https://s3.example.com.evil.org/bucket/x",
        "https://evil.org/bucket/x",
        "https://evil.org/https://s3.example.com/bucket/x",
        "https://s3.example.com@evil.org/bucket/x",
        "https://user:word@s3.example.com/bucket/x",
        "https://s3.example.com/bucket/../other/x",
        "https://s3.example.com/bucket/./x",
        "https://s3.example.com/bucket/%2e%2e/other",
        "https://s3.example.com/bucket/.%2E/other",
        "https://s3.example.com/bucket%2fx/..%2fother",
        "https://s3.example.com/bucket/..\\other",
        "https://s3.example.com\\@evil.org/bucket/x",
        "https://s3.example.com/bucket/x#fragment",
        "https://s3.example.com/bucket/a b",
        "https://s3.example.com/bucket/\nHost: evil.org",
        "https://s3.example.com:99999/bucket/x",
        "https://s3.\u0435xample.com/bucket/x",
        "https:///bucket/x",
        "file:///bucket/x",
        "unix:///bucket/x",
        "//s3.example.com/bucket/x",
        "",
    ],
)
def test_what_does_not_is_not(url: str) -> None:
    assert not is_beneath(url, [HERE])


def test_without_endpoints_nothing_is_sent_anywhere() -> None:
    assert not is_beneath(HERE, [])


@given(st.text())
def test_no_text_is_too_strange_to_be_judged(text: str) -> None:
    assert not is_beneath("https://s3.example.com/" + text + "/../..", [HERE])
    is_beneath(text, [HERE, text])


@pytest.mark.parametrize(
    "text", ["", "s3://bucket", "example.com", "https://h/?q=1", "https://a@h/"]
)
def test_what_is_no_endpoint_is_refused_in_the_settings(text: str) -> None:
    with pytest.raises(ValueError, match="needs the URL of a store"):
        check_endpoint(text)
