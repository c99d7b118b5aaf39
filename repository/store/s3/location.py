"""Which bucket, where, and as whom: what a person says of an S3 store. Pure."""

import re
from configparser import ConfigParser
from configparser import Error as IniError
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from repository.errors import UsageError
from repository.keys import Secret
from repository.store.interface import check_name

Addressing = Literal["auto", "path", "virtual"]
_SCHEME: Final = "s3://"
# What every S3 service lets a bucket be called; old ones on AWS may have capitals and underscores.
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
# What can be the first part of a host's name and be covered by a wildcard certificate.
_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
# What a request can be sent to; a name with other letters has another form in the DNS.
_HOST: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")
# Leaves room for the longest name of an object within the 1,024 bytes of a key.
PREFIX_LENGTH_MAX: Final = 400
DEFAULT_PROFILE: Final = "default"


class S3Location(NamedTuple):
    """A bucket, and what in it is ours.

    `prefix` is empty or ends with no slash. Without an endpoint it is AWS, without a region the one
    that the machine's AWS configuration names. `ca_file` holds the authorities to trust instead of
    the system's.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    addressing: Addressing = "auto"
    ca_file: Path | None = None

    @property
    def url(self) -> str:
        """As a person writes it."""
        return f"{_SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def key_prefix(self) -> str:
        """What every key of ours begins with."""
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def style(self) -> Literal["path", "virtual"]:
        """How the bucket is named in a URL: in the path, or as part of the host.

        AWS wants the host. Other services' names seldom resolve so, and nor does a name with dots
        fit their certificates; all of them know the path.
        """
        if self.addressing != "auto":
            return self.addressing
        return "virtual" if self.endpoint is None and _LABEL.fullmatch(self.bucket) else "path"


class Credentials(NamedTuple):
    """A key of the store, as it was read from a file."""

    access_key: str
    secret_key: Secret
    token: Secret | None


def parse_location(
    text: str,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    addressing: Addressing = "auto",
    ca_file: Path | None = None,
) -> S3Location:
    """`s3://bucket/prefix` as a location; UsageError says what is wrong with it."""
    if not text.startswith(_SCHEME):
        raise UsageError(
            f"{text!r} is not the address of a bucket", hint="write it as s3://bucket/prefix"
        )
    bucket, _, prefix = text.removeprefix(_SCHEME).partition("/")
    _check_bucket(bucket, text)
    return S3Location(
        bucket=bucket,
        prefix=_checked_prefix(prefix.rstrip("/")),
        endpoint=None if endpoint is None else _checked_endpoint(endpoint),
        region=region,
        addressing=addressing,
        ca_file=ca_file,
    )


def parse_credentials(content: bytes, profile: str = DEFAULT_PROFILE) -> Credentials:
    """The key that an AWS credentials file has for a profile; UsageError where it has none."""
    # Without interpolation, since a secret may hold a percent sign.
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(content.decode())
    except (IniError, UnicodeDecodeError) as error:
        # Their own words quote the line or the byte, which may be a secret.
        raise UsageError(
            "the credentials file is not of the form that AWS tools use",
            hint="write [default], then aws_access_key_id = ..., aws_secret_access_key = ...",
        ) from error
    if not parser.has_section(profile):
        raise UsageError(
            f"the credentials file has no profile [{profile}]",
            hint=f"it has: {', '.join(parser.sections()) or 'none at all'}",
        )
    section = parser[profile]
    for field in ("aws_access_key_id", "aws_secret_access_key"):
        if not section.get(field):
            raise UsageError(
                f"profile [{profile}] of the credentials file has no {field}",
                hint="add it, or name another profile",
            )
    token = section.get("aws_session_token")
    return Credentials(
        access_key=section["aws_access_key_id"],
        secret_key=Secret(section["aws_secret_access_key"].encode()),
        token=Secret(token.encode()) if token else None,
    )


def _check_bucket(bucket: str, text: str) -> None:
    if not bucket:
        raise UsageError(f"{text!r} names no bucket", hint="write it as s3://bucket/prefix")
    if "@" in bucket or ":" in bucket:
        raise UsageError(
            f"{text!r} has more than a bucket's name before the first slash",
            hint="give the server's address as the endpoint, and keys in a credentials file",
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{bucket!r} cannot be the name of a bucket",
            hint="3 to 255 letters, digits, dots and hyphens; most services want small letters",
        )


def _checked_prefix(prefix: str) -> str:
    if not prefix:
        return prefix
    try:
        check_name(prefix)
    except UsageError as error:
        raise UsageError(
            f"{prefix!r} cannot be a prefix in a bucket",
            hint="small letters, digits, dots, hyphens and single slashes between them",
        ) from error
    if len(prefix) > PREFIX_LENGTH_MAX:
        raise UsageError(
            f"the prefix {prefix[:40]!r}... is too long",
            hint=f"at most {PREFIX_LENGTH_MAX} letters",
        )
    return prefix


def _is_host(name: str) -> bool:
    """Whether it is a name that the DNS may have, or an address."""
    if ":" in name:
        return bool(IPv6Address(name))  # ValueError
    labels = name.rstrip(".").split(".")
    plain = not any(label.startswith("-") or label.endswith("-") for label in labels)
    return plain and _HOST.fullmatch(name) is not None


def _checked_endpoint(endpoint: str) -> str:
    """The endpoint without a slash at its end."""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        usable = usable and parts.port != 0 and parts.username is None
        usable = usable and _is_host(parts.hostname or "")
    except ValueError:
        usable = False
        parts = urlsplit("")
    if not usable:
        raise UsageError(
            f"{endpoint!r} is not an endpoint",
            hint="write it as https://host or https://host:port, without keys in it",
        )
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(
            f"the endpoint {endpoint!r} has more than a host",
            hint="give the bucket and the prefix as s3://bucket/prefix",
        )
    return endpoint.rstrip("/")
