"""What a coordinator keeps of each further repository: where it lies, and the key of its bucket.

Each has a directory of its own, which holds what founding it has drawn, too. It is written before
anything is founded, so that founding goes on after a crash; what never began is removed again.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from typing_extensions import override

from coordinator.config import Bucket, Where
from coordinator.errors import FormatError, UsageError
from coordinator.siting import directory_of, plain
from coordinator.vault import read_secret, sync_directory, write_secret
from repository.store.s3.location import (
    Addressing,
    S3Location,
    parse_credentials,
    parse_location,
)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: a URL, and what else a bucket needs, as the settings name it."""

    url: str
    endpoint: str | None = None
    region: str | None = None
    addressing: Addressing = "auto"
    lock_seconds: int | None = None

    @property
    def location(self) -> str:
        """Where it lies, as a person writes it."""
        directory = directory_of(self.url)
        return self.url if directory is None else os.fspath(directory)

    def plain(self) -> "Wish":
        """The same, so that it equals what asks for the same in other words; UsageError."""
        endpoint = None if self.endpoint is None else self.endpoint.rstrip("/")
        return msgspec.structs.replace(self, url=plain(self.url), endpoint=endpoint)

    def bucket(self, ca_file: Path | None = None) -> S3Location:
        """The bucket that it names; UsageError for what cannot be."""
        return parse_location(
            self.url,
            endpoint=self.endpoint,
            region=self.region,
            addressing=self.addressing,
            ca_file=ca_file,
        )


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a bucket needs besides, as files hold it; None for what the machine has for all."""

    credentials: bytes | None = None
    ca: bytes | None = None

    @override
    def __repr__(self) -> str:
        return "Secrets(hidden)"


@dataclass(frozen=True, slots=True)
class Site:
    """The directory that holds it, which is called as the repository is."""

    path: Path

    @property
    def name(self) -> str:
        """What the repository is called."""
        return self.path.name

    @property
    def keys(self) -> Path:
        """What founding it has drawn; there once it began."""
        return self.path / "keys"

    @property
    def ca(self) -> Path:
        """Who vouches for the store, if that was said."""
        return self.path / "ca.pem"

    @property
    def _wish(self) -> Path:
        return self.path / "place"

    @property
    def _credentials(self) -> Path:
        return self.path / "credentials"

    def read(self) -> Wish | None:
        """What was asked for; None where nothing was. FormatError, UsageError."""
        kept = read_secret(self._wish)
        if kept is None:
            return None
        try:
            wish = msgspec.json.decode(kept, type=Wish)
        except (msgspec.DecodeError, ValueError) as error:
            raise FormatError(f"{self._wish} is damaged", hint="put it back from a copy") from error
        # Or it is none that this version can have.
        return wish.plain()

    def prepare(self, wish: Wish, secrets: Secrets) -> None:
        """Keep what is asked for, and nothing of what never began under this name."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        if self.path.exists() and not self.keys.exists():
            self.remove()
        self.path.mkdir(mode=0o700, exist_ok=True)
        self.keep(secrets)
        write_secret(self._wish, msgspec.json.encode(wish))
        sync_directory(self.path.parent)

    def keep(self, secrets: Secrets) -> None:
        """Replace those of before with what is given."""
        for path, content in ((self._credentials, secrets.credentials), (self.ca, secrets.ca)):
            if content is not None:
                write_secret(path, content)

    def remove(self) -> None:
        """Forget it."""
        shutil.rmtree(self.path)

    def where(self, wish: Wish) -> Where:
        """As the settings would say it; UsageError for what cannot be."""
        directory = directory_of(wish.url)
        if directory is not None:
            return directory
        location = wish.bucket(ca_file=self.ca if self.ca.exists() else None)
        credentials = self._credentials if self._credentials.exists() else None
        return Bucket(location, credentials, wish.lock_seconds)


def sites_in(directory: Path) -> Iterator[Site]:
    """All that there are, by name."""
    if directory.exists():
        for path in sorted(directory.iterdir()):
            if path.is_dir():
                yield Site(path)


def check_fit(wish: Wish, secrets: Secrets) -> None:
    """UsageError for what nothing can be done with, before it replaces what works."""
    if directory_of(wish.url) is not None and (wish != Wish(url=wish.url) or secrets != Secrets()):
        raise UsageError(
            "a directory has no endpoint, region, addressing, key, certificates or object lock",
            hint="leave these options out, or give s3://BUCKET/PREFIX",
        )
    if secrets.credentials is not None:
        parse_credentials(secrets.credentials)
