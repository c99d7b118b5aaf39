"""Settings: flags over environment over file, and every problem at once."""

from pathlib import Path

import pytest

from coordinator.config import Address, load, parse_address, parse_every, read_passphrase
from coordinator.errors import ConfigError

NEEDED = ["--data", "/d", "--repository", "/r"]


def test_what_is_not_set_has_the_documented_default() -> None:
    config = load(NEEDED, {}).config
    assert (str(config.listen), str(config.http)) == ("0.0.0.0:9440", "0.0.0.0:9441")
    assert (config.every_seconds, config.passphrase_file) == (3600, None)


def test_flags_win_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: /file\nrepository: /file\nevery: 2h\nlisten: 1.2.3.4:1\n")
    environment = {
        "TIDEMARK_COORDINATOR_DATA": "/environment",
        "TIDEMARK_COORDINATOR_EVERY": "30m",
    }
    config = load(["--config", str(file), "--data", "/flag"], environment).config
    assert (config.data, config.repository) == (Path("/flag"), Path("/file"))
    assert (config.every_seconds, config.listen) == (1800, Address("1.2.3.4", 1))


def test_a_bare_off_in_yaml_is_off(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("every: off\n")
    assert load([*NEEDED, "--config", str(file)], {}).config.every_seconds is None


def test_the_passphrase_file_has_a_name_without_prefix_in_the_environment() -> None:
    config = load(NEEDED, {"TIDEMARK_PASSPHRASE_FILE": "/p"}).config
    assert config.passphrase_file == Path("/p")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("colour: blue\nevery: sometimes\n")
    with pytest.raises(ConfigError) as caught:
        load(["--config", str(file)], {"TIDEMARK_COORDINATOR_SIZE": "1"})
    for problem in ("colour", "sometimes", "SIZE", "data is not set", "repository is not set"):
        assert problem in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError):
        load([*NEEDED, "--config", str(file)], {})


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("# nothing\n")
    assert load([*NEEDED, "--config", str(file)], {}).config.data == Path("/d")


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(ConfigError):
        load([*NEEDED, "--colour", "blue"], {})


def test_relative_directories_are_made_absolute_and_empty_ones_refused() -> None:
    assert load(["--data", "d", "--repository", "r"], {}).config.data == Path("d").absolute()
    with pytest.raises(ConfigError):
        load(["--data", "", "--repository", "r"], {})


def test_the_check_reads_everything_and_is_told() -> None:
    assert load([*NEEDED, "--check-config"], {}).check_only


@pytest.mark.parametrize("text", ["nowhere", ":1", "host:port", "host:70000", "host:"])
def test_an_address_needs_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


def test_an_address_of_version_six_is_read_and_shown_in_brackets() -> None:
    assert str(parse_address("[::1]:9440")) == "[::1]:9440"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("2 d", 172800), ("OFF", None)],
)
def test_durations_have_units(text: str, seconds: int | None) -> None:
    assert parse_every(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1h", "1w", "1.5h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_every(text)


@pytest.mark.parametrize(("text", "seconds"), [("3s", 3), ("24h", 86400), ("7d", 604800)])
def test_nodes_certificates_live_as_long_as_is_set(text: str, seconds: int) -> None:
    config = load([*NEEDED, "--certificate-life", text], {}).config
    assert config.certificate_seconds == seconds
    assert load(NEEDED, {}).config.certificate_seconds == 86400


@pytest.mark.parametrize("text", ["0", "off", "8d", "always"])
def test_certificates_for_ever_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="7d at most"):
        load([*NEEDED, "--certificate-life", text], {})


def test_a_passphrase_is_read_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_bytes(b" secret \r\n")
    assert read_passphrase(file) == b" secret "


def test_an_empty_or_missing_passphrase_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n")
    for name in ("empty", "missing"):
        with pytest.raises(ConfigError):
            read_passphrase(tmp_path / name)


def test_the_floor_is_a_rate() -> None:
    assert load(NEEDED, {}).config.floor_bytes == 1024 * 1024
    assert load([*NEEDED, "--bandwidth-floor", "2MB/s"], {}).config.floor_bytes == 2_000_000
    with pytest.raises(ConfigError, match="needs a number and a unit"):
        load([*NEEDED, "--bandwidth-floor", "2"], {})


# Where the repository lies.

BUCKET = ["--data", "/d", "--repository", "s3://bucket/some/prefix"]


def test_a_bucket_is_made_of_all_that_is_said_of_it() -> None:
    said = [
        *("--repository-endpoint", "https://s3.example.com/", "--repository-region", "eu-1"),
        *("--repository-addressing", "path", "--repository-ca", "/ca.pem"),
        *("--repository-credentials", "/key"),
    ]
    config = load([*BUCKET, *said], {}).config

    assert config.bucket is not None
    location = config.bucket.location
    assert (location.bucket, location.prefix) == ("bucket", "some/prefix")
    assert (location.endpoint, location.region) == ("https://s3.example.com", "eu-1")
    assert (location.addressing, location.ca_file) == ("path", Path("/ca.pem"))
    assert config.bucket.credentials_file == Path("/key")


@pytest.mark.parametrize("text", ["/srv/my repo", "file:///srv/my%20repo"])
def test_a_directory_may_be_written_as_a_url(text: str) -> None:
    config = load(["--data", "/d", "--repository", text], {}).config

    assert (config.repository, config.bucket) == (Path("/srv/my repo"), None)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (["--repository", "http://h/b"], "neither a directory nor"),
        (["--repository", "s3://"], "names no bucket"),
        (["--repository", "s3://key:secret@bucket"], "before the first slash"),
        (["--repository", "s3://b-b/x", "--repository-endpoint", "example.com"], "endpoint"),
        (["--repository", "s3://b-b/x", "--repository-addressing", "host"], "auto, path or"),
        (["--repository", "/r", "--repository-region", "eu-1"], "the repository is none"),
    ],
)
def test_what_cannot_be_a_place_is_refused(said: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(["--data", "/d", *said], {})


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * 86400), ("24h", 86400), ("3650d", 3650 * 86400)]
)
def test_a_lock_is_of_a_bucket(text: str, seconds: int) -> None:
    flags = ["--data", "/d", "--repository", "s3://bucket/prefix", "--repository-lock", text]
    bucket = load(flags, {}).config.bucket
    assert bucket is not None
    assert bucket.lock_seconds == seconds


def test_a_lock_is_off_unless_asked_for() -> None:
    flags = ["--data", "/d", "--repository", "s3://bucket/prefix"]
    for more in ([], ["--repository-lock", "off"]):
        bucket = load([*flags, *more], {}).config.bucket
        assert bucket is not None
        assert bucket.lock_seconds is None
    assert load([*NEEDED, "--repository-lock", "off"], {}).config.bucket is None


@pytest.mark.parametrize("text", ["23h", "3651d", "0d", "long"])
def test_a_lock_that_is_too_short_or_too_long_is_refused(text: str) -> None:
    flags = ["--data", "/d", "--repository", "s3://bucket/prefix", "--repository-lock", text]
    with pytest.raises(ConfigError, match="from 1d to 3650d, or off"):
        load(flags, {})


def test_a_directory_has_no_lock() -> None:
    with pytest.raises(ConfigError, match="repository_lock is of a bucket"):
        load([*NEEDED, "--repository-lock", "30d"], {})


def test_places_of_more_repositories_are_a_list_in_the_file_and_words_elsewhere(
    tmp_path: Path,
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("repository_places: ['file:///srv/a%20b', 's3://bucket']\n")
    places = ("file:///srv/a%20b", "s3://bucket")
    text = " ".join(places)

    assert load(NEEDED, {}).config.repository_places == ()
    for arguments, environment in (
        (["--config", str(file)], {}),
        (["--repository-places", text], {}),
        ([], {"TIDEMARK_COORDINATOR_REPOSITORY_PLACES": text}),
    ):
        config = load([*NEEDED, *arguments], environment).config
        assert config.repository_places == places
    with pytest.raises(ConfigError, match="file:///DIR"):
        load([*NEEDED, "--repository-places", "/srv"], {})
