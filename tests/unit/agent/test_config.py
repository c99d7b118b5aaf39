import json
from pathlib import Path

import pytest

from agent.config import Address, Config, Protected, load, parse_address, read_protected
from agent.errors import ConfigError

MINIMAL = ["--config", "/dev/null", "--coordinator", "host:9440"]


def config(*arguments: str, **environment: str) -> Config:
    return load([*MINIMAL, *arguments], environment).config


def test_what_is_not_said_has_its_default() -> None:
    found = config()

    assert found.coordinator == Address("host", 9440)
    assert str(found.http) == "0.0.0.0:9442"
    assert found.restore_roots == (found.state / "restores",)
    assert not found.exit_with_parent


def test_flags_go_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("coordinator: file:1\nnode_name: file\nhttp: 127.0.0.1:1\n")
    environment = {"TIDEMARK_AGENT_NODE_NAME": "environment", "TIDEMARK_AGENT_HTTP": "127.0.0.1:2"}

    found = load(["--config", str(file), "--http", "127.0.0.1:3"], environment).config

    assert found.coordinator == Address("file", 1)
    assert found.node_name == "environment"
    assert found.http == Address("127.0.0.1", 3)


def test_lists_come_from_repeated_flags_files_and_separated_variables(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("coordinator: file:1\nrestore_root: [/a, /b]\n")

    found = load(
        ["--config", str(file), "--exclude", "/x", "--exclude", "/y"],
        {"TIDEMARK_AGENT_RESTORE_ROOT": "/c:/d"},
    ).config

    assert found.exclude == (Path("/x"), Path("/y"))
    assert found.restore_roots == (Path("/c"), Path("/d"))


def test_clones_lie_in_the_state_directory_and_where_else_is_said() -> None:
    found = config("--state", "/state", "--clone-dir", "/a", "--clone-dir", "/b")

    assert found.clone_dirs == (Path("/state"), Path("/a"), Path("/b"))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("colour: blue\nstate: [1, 2]\n")

    with pytest.raises(ConfigError) as caught:
        load(
            ["--config", str(file), "--http", "nowhere", "--exclude", "relative"],
            {"TIDEMARK_AGENT_SHAPE": "round"},
        )

    for part in ("colour", "state takes one", "nowhere", "relative", "SHAPE", "--coordinator"):
        assert part in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["- a list", "a: b: c", "\xff"])
def test_a_file_that_holds_no_settings_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_bytes(content.encode("latin-1"))

    with pytest.raises(ConfigError, match=r"agent\.yaml"):
        load(["--config", str(file), "--coordinator", "h:1"], {})


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unrecognized"):
        config("--colour", "blue")


def test_checking_the_settings_checks_the_protect_file_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protect file"):
        config("--check-config", "--protect-file", str(tmp_path / "absent"))

    assert load([*MINIMAL, "--check-config"], {}).check_only


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a:1", Address("a", 1)),
        ("[::1]:9440", Address("::1", 9440)),
        ("1.2.3.4:0", Address("1.2.3.4", 0)),
    ],
)
def test_addresses_are_read_and_shown(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["a", ":1", "a:", "a:x", "a:65536", "a:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


def protect(tmp_path: Path, document: object) -> tuple[Protected, ...]:
    file = tmp_path / "protect.json"
    file.write_text(json.dumps(document))
    return read_protected(file)


def test_volumes_are_read_with_any_bytes_in_their_paths(tmp_path: Path) -> None:
    found = protect(
        tmp_path,
        {
            "volumes": [
                {"name": "web", "path": "/srv/web"},
                {"name": "odd", "path": "/srv/\\xff", "path_base64": "L3Nydi//"},
                {"name": "disk", "path": "/mnt/disk", "uid": "0b6c-77"},
            ]
        },
    )

    assert found == (
        Protected("web", b"/srv/web"),
        Protected("odd", b"/srv/\xff"),
        Protected("disk", b"/mnt/disk", "0b6c-77"),
    )


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "Expected"),
        ({"volumes": [{"name": "a", "path": "/a", "colour": "blue"}]}, "unknown field"),
        ({"volumes": [{"name": "a", "path": "relative"}]}, "not absolute"),
        ({"volumes": [{"name": "a/b", "path": "/a"}]}, "cannot be the name"),
        ({"volumes": [{"name": "a", "path": "/a", "path_base64": "?"}]}, "not base64"),
        ({"volumes": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]}, "more than once"),
        ({"volumes": [{"name": "a", "path": "/a", "uid": ""}]}, "uid of a needs"),
        ({"volumes": [{"name": "a", "path": "/a", "uid": "\n"}]}, "uid of a needs"),
        (
            {"volumes": [{"name": each, "path": f"/{each}", "uid": "u"} for each in "ab"]},
            "states uid u more than once",
        ),
    ],
)
def test_a_wrong_protect_file_says_what_is_wrong(
    tmp_path: Path, document: object, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        protect(tmp_path, document)


@pytest.mark.parametrize(
    ("flags", "address"),
    [
        ([], None),
        (["--docker"], "unix:///var/run/docker.sock"),
        (["--docker", "unix:///run/user/1000/docker.sock"], "unix:///run/user/1000/docker.sock"),
    ],
)
def test_an_engine_is_asked_only_if_it_is_named(flags: list[str], address: str | None) -> None:
    assert config(*flags).docker == address


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:2375", "/var/run/docker.sock", "unix://x"])
def test_an_engine_is_on_this_machine(address: str) -> None:
    with pytest.raises(ConfigError, match="on this machine"):
        config("--docker", address)


@pytest.mark.parametrize(
    ("flags", "polite", "disk_rate"),
    [
        ([], True, None),
        (["--polite", "off", "--disk-rate", "100MB/s"], False, 100_000_000),
        (["--polite", "on", "--disk-rate", "off"], True, None),
    ],
)
def test_backups_give_way_and_read_as_fast_as_they_are_told(
    flags: list[str], polite: bool, disk_rate: int | None
) -> None:
    found = config(*flags)

    assert (found.polite, found.disk_rate) == (polite, disk_rate)


def test_a_file_may_use_the_words_of_yaml(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("coordinator: c:1\npolite: off\ndisk_rate: off\n")

    found = load(["--config", str(file)], {}).config

    assert (found.polite, found.disk_rate) == (False, None)


@pytest.mark.parametrize("flag", ["--polite=maybe", "--disk-rate=10", "--disk-rate=100kB/s"])
def test_what_is_no_switch_and_no_rate_is_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=r"needs|less than"):
        config(flag)
