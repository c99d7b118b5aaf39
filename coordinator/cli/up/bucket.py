"""The bucket that `up` keeps the repository in, if any: said once, and remembered in DIR/bucket."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from coordinator.cli.failure import CommandError, UsageError
from coordinator.cli.up.protection import write_private

_S3 = "s3://"
# What the coordinator calls each; those that are files are made absolute.
_FLAGS = (
    "repository",
    "repository-endpoint",
    "repository-region",
    "repository-addressing",
    "repository-ca",
    "repository-credentials",
    "repository-lock",
)
_FILES = frozenset({"repository-ca", "repository-credentials"})


def choose_bucket(file: Path, said: Mapping[str, str | None]) -> dict[str, str]:
    """The coordinator's flags and their values, none for a local repository.

    What is said now is remembered; of a bucket that is named again, all of it.
    """
    given = {flag: value for flag, value in said.items() if value is not None}
    if not given:
        return _remembered(file)
    where = given.get("repository")
    if where is None:
        raise UsageError(
            f"--{next(iter(given))} is of a bucket, and none is named",
            hint="--repository s3://BUCKET/PREFIX",
        )
    if not where.startswith(_S3):
        raise UsageError(
            f"{where!r} is not a bucket",
            hint="--repository s3://BUCKET/PREFIX, or leave it out: then it lies below --data",
        )
    chosen = {
        flag: os.path.abspath(value) if flag in _FILES else value for flag, value in given.items()
    }
    write_private(file, json.dumps(chosen, indent=1).encode() + b"\n")
    return chosen


def _remembered(file: Path) -> dict[str, str]:
    hint = "say --repository s3://BUCKET/PREFIX, and what else belongs to it"
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CommandError(f"{file} cannot be read: {error}", hint=hint) from error
    if not isinstance(found, dict) or not set(found) <= set(_FLAGS) or "repository" not in found:
        raise CommandError(f"{file} is damaged", hint=hint)
    return {str(flag): str(value) for flag, value in found.items()}
