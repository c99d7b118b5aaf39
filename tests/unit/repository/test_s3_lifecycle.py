"""Rules of a bucket, and what they would do to a repository below `backups/web/`."""

from typing import Any

import pytest

from repository.store.s3.lifecycle import judge

EXPIRES = {"Expiration": {"Days": 30}}


def rule(**fields: Any) -> dict[str, Any]:
    return {"ID": "one", "Status": "Enabled", **fields}


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"Filter": {}},
        {"Filter": {"Prefix": ""}},
        {"Filter": {"Prefix": "back"}},
        {"Filter": {"Prefix": "backups/web/"}},
        {"Filter": {"Prefix": "backups/web/packs/"}},
        {"Filter": {"And": {"Prefix": "backups/", "ObjectSizeGreaterThan": 5}}},
        {"Filter": {"ObjectSizeGreaterThan": 5}},
        {"Prefix": "backups/"},
    ],
)
@pytest.mark.parametrize("what", [EXPIRES, {"Expiration": {"Date": "2030-01-01"}}])
def test_a_rule_that_deletes_objects_is_harmful(
    scope: dict[str, Any], what: dict[str, Any]
) -> None:
    assert judge([rule(**scope, **what)], "backups/web/").harmful == ["rule one deletes objects"]


@pytest.mark.parametrize(
    "harmless",
    [
        rule(Filter={"Prefix": "logs/"}, **EXPIRES),
        rule(Filter={"Prefix": "backups/web2/"}, **EXPIRES),
        rule(Filter={"Tag": {"Key": "a", "Value": "b"}}, **EXPIRES),
        rule(Filter={"And": {"Prefix": "", "Tags": [{"Key": "a", "Value": "b"}]}}, **EXPIRES),
        rule(**EXPIRES) | {"Status": "Disabled"},
        rule(Expiration={"ExpiredObjectDeleteMarker": True}),
        rule(NoncurrentVersionExpiration={"NoncurrentDays": 1}),
        rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}),
    ],
)
def test_a_rule_for_others_or_for_what_is_gone_is_harmless(harmless: dict[str, Any]) -> None:
    assert judge([harmless], "backups/web/") == ([], [])


def test_an_archive_is_harmful_and_a_cheaper_class_only_costs() -> None:
    moves = [{"Days": 1, "StorageClass": kind} for kind in ("GLACIER", "STANDARD_IA")]

    verdicts = judge([rule(Transitions=moves)], "")

    assert verdicts.harmful == ["rule one moves objects to GLACIER"]
    assert verdicts.costly == ["rule one moves objects to STANDARD_IA"]
