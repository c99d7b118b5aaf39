"""What a bucket's own rules would do to a repository. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

# An object in one of these is read only after hours, and only once somebody asked for it.
_ARCHIVES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})


class Verdicts(NamedTuple):
    """In words: what would make a repository unreadable, and what only costs."""

    harmful: list[str]
    costly: list[str]


def judge(rules: Iterable[Mapping[str, Any]], key_prefix: str) -> Verdicts:
    """What the rules do to current objects below the prefix.

    Removing old versions, or the remains of uploads, harms nobody: what is replaced or deleted here
    was meant to be.
    """
    verdicts = Verdicts([], [])
    for rule in rules:
        if rule.get("Status") != "Enabled" or not _concerns(rule, key_prefix):
            continue
        name = str(rule.get("ID") or "(without a name)")
        if {"Days", "Date"} & set(rule.get("Expiration", {})):
            verdicts.harmful.append(f"rule {name} deletes objects")
        for transition in rule.get("Transitions", []):
            kind = str(transition.get("StorageClass"))
            into = verdicts.harmful if kind in _ARCHIVES else verdicts.costly
            into.append(f"rule {name} moves objects to {kind}")
    return verdicts


def _concerns(rule: Mapping[str, Any], key_prefix: str) -> bool:
    """Whether a rule is for any key below the prefix; our objects have no tags."""
    scope = rule.get("Filter", {})
    both = scope.get("And", {})
    if "Tag" in scope or both.get("Tags"):
        return False
    prefix = str(rule.get("Prefix") or scope.get("Prefix") or both.get("Prefix") or "")
    return prefix.startswith(key_prefix) or key_prefix.startswith(prefix)
