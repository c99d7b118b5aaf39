import json
import os
from pathlib import Path

import pytest

from coordinator.cli.failure import CommandError, UsageError
from coordinator.cli.up.protection import (
    NAME,
    Protected,
    Wish,
    additions,
    check_new,
    default_name,
    load,
    parse_wish,
    save,
    unique_name,
)


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("/srv/www", Wish(None, b"/srv/www")),
        ("web=/srv/www", Wish("web", b"/srv/www")),
        ("web=/srv/a=b", Wish("web", b"/srv/a=b")),
        ("/srv/a=b", Wish(None, b"/srv/a=b")),
        ("Web=/srv", Wish(None, os.fsencode(Path("Web=/srv").absolute()))),
        ("0.a_b-c=/srv/", Wish("0.a_b-c", b"/srv")),
        ("/srv/x/../y", Wish(None, b"/srv/y")),
    ],
)
def test_a_name_is_split_off_only_where_the_left_side_can_be_one(text: str, wish: Wish) -> None:
    assert parse_wish(text) == wish


@pytest.mark.parametrize("text", ["", "web="])
def test_protecting_no_path_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_wish(text)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/srv/www", "www"),
        (b"/srv/My Photos!", "my-photos"),
        (b"/srv/.hidden", "hidden"),
        (b"/", "root"),
        (b"/srv/\xff\xfe", "xff-xfe"),
        ("/srv/фото".encode(), "volume"),
        (b"/srv/" + b"a" * 300, "a" * 100),
    ],
)
def test_a_default_name_is_the_base_name_made_to_fit(path: bytes, name: str) -> None:
    assert default_name(path) == name
    assert NAME.fullmatch(name)


def test_names_that_are_taken_get_a_number() -> None:
    assert unique_name("www", {"www", "www-2"}) == "www-3"
    assert unique_name("www", {"other"}) == "www"


def test_paths_with_the_same_base_name_get_names_of_their_own() -> None:
    made = additions([Protected("data", b"/a/data")], [Wish(None, b"/b/data")])

    assert made == [Protected("data-2", b"/b/data")]


def test_a_path_that_is_protected_already_is_not_added_again() -> None:
    current = [Protected("web", b"/srv/www")]

    assert additions(current, [Wish(None, b"/srv/www"), Wish("web", b"/srv/www")]) == []


def test_a_name_for_two_paths_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="taken"):
        additions([Protected("web", b"/srv/www")], [Wish("web", b"/srv/other")])


def test_a_given_name_wins_over_a_made_up_one() -> None:
    made = additions([], [Wish(None, b"/a/web"), Wish("web", b"/b")])

    assert {(one.name, one.path) for one in made} == {("web", b"/b"), ("web-2", b"/a/web")}


def test_the_set_is_kept_exactly_also_where_it_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "protect.json"
    volumes = [Protected("a", b"/srv/a"), Protected("b", b"/srv/\xff")]

    save(file, volumes)

    assert load(file) == volumes
    assert "path_base64" not in json.loads(file.read_bytes())["volumes"][0]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_set_that_was_never_saved_is_empty(tmp_path: Path) -> None:
    assert load(tmp_path / "protect.json") == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"volumes":[{"name":"a","path":"rel"}]}'])
def test_a_damaged_set_is_an_error_and_never_an_empty_set(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "protect.json"
    file.write_bytes(content)

    with pytest.raises(CommandError, match="damaged"):
        load(file)


def test_a_missing_path_and_one_that_holds_no_data_are_usage_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    for name in ("missing", "fifo"):
        with pytest.raises(UsageError):
            check_new(Protected("a", os.fsencode(tmp_path / name)), tmp_path / "data")


def test_the_data_directory_and_what_lies_in_it_cannot_be_protected(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data / "inner")

    for path in (data, data / "inner", tmp_path / "link"):
        with pytest.raises(UsageError, match="lies in"):
            check_new(Protected("a", os.fsencode(path)), data)
    check_new(Protected("a", os.fsencode(tmp_path)), data)
