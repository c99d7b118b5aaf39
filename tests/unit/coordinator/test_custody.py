"""Custody of the recovery secret."""

from pathlib import Path
from secrets import token_bytes

import msgspec
import pytest

from coordinator.config import Config
from coordinator.custody import (
    DRAWN,
    THOUGHT_OF,
    Cost,
    LockedCustody,
    OpenCustody,
    create_custody,
    open_custody,
)
from coordinator.errors import FormatError, LockedError, WrongKeyError
from coordinator.server import _open_custody
from repository.ids import PackNonce, RepositoryId
from repository.keys import pack_key, seal
from repository.layout import DATA_KEY_INFO, parse_kit

NONCE = PackNonce(bytes(16))
REPOSITORY = RepositoryId(bytes(range(16)))
OTHER_REPOSITORY = RepositoryId(b"o" * 16)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("custody") / "custody"
    create_custody(path, b"passphrase", token_bytes)
    return path


@pytest.fixture(scope="module")
def custody(file: Path) -> OpenCustody:
    return open_custody(file, b"passphrase")


def test_the_file_is_for_its_owner_only_and_holds_no_secret_in_the_clear(
    file: Path, custody: OpenCustody
) -> None:
    kit = parse_kit(custody.recovery_kit(REPOSITORY, bytes(32)))
    assert file.stat().st_mode & 0o777 == 0o600
    assert kit.secret.reveal() not in file.read_bytes()


def test_another_passphrase_does_not_open_it(file: Path) -> None:
    with pytest.raises(WrongKeyError) as caught:
        open_custody(file, b"passphrasf")
    assert caught.value.exit_code == 12
    assert caught.value.hint


def test_another_drawn_passphrase_does_not_open_it(tmp_path: Path) -> None:
    file = tmp_path / "custody"
    create_custody(file, b"ab" * 32, token_bytes, DRAWN)
    with pytest.raises(WrongKeyError):
        open_custody(file, b"ac" * 32)


def test_a_passphrase_thought_of_is_stretched_and_a_drawn_one_is_not(tmp_path: Path) -> None:
    thought_of = tmp_path / "passphrase"
    thought_of.write_text("correct horse\n")
    assert cost_at_a_first_start(tmp_path / "one", None) == DRAWN
    assert cost_at_a_first_start(tmp_path / "other", thought_of) == THOUGHT_OF


def cost_at_a_first_start(data: Path, passphrase_file: Path | None) -> Cost:
    """What stands in the file of a coordinator that begins there, and opens it again."""
    data.mkdir()
    config = Config(data=data, repository=data, passphrase_file=passphrase_file)
    made = _open_custody(config, token_bytes)
    assert _open_custody(config, token_bytes).recovery_public() == made.recovery_public()
    return Cost(*msgspec.msgpack.decode((data / "custody").read_bytes())[1:4])


def test_a_file_of_before_is_opened_at_the_cost_that_stands_in_it(tmp_path: Path) -> None:
    config = Config(data=tmp_path, repository=tmp_path)
    (tmp_path / "custody.passphrase").write_text("ab" * 32 + "\n")
    made = create_custody(tmp_path / "custody", b"ab" * 32, token_bytes, THOUGHT_OF)
    assert _open_custody(config, token_bytes).recovery_public() == made.recovery_public()


def test_a_damaged_file_says_so(file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "custody"
    damaged.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(FormatError):
        open_custody(damaged, b"passphrase")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(LockedError):
        open_custody(tmp_path / "custody", b"passphrase")


def test_a_sealed_session_key_gives_its_pack_keys(custody: OpenCustody) -> None:
    data_key = token_bytes(32)
    sealed = seal(custody.recovery_public(), data_key, DATA_KEY_INFO + REPOSITORY)
    for _ in range(2):
        with pytest.raises(WrongKeyError):
            custody.pack_key(OTHER_REPOSITORY, sealed, NONCE)
        assert custody.pack_key(REPOSITORY, sealed, NONCE) == pack_key(data_key, NONCE)


def test_a_key_that_was_sealed_for_another_repository_does_not_open(custody: OpenCustody) -> None:
    sealed = seal(custody.recovery_public(), token_bytes(32), DATA_KEY_INFO + bytes(16))
    with pytest.raises(WrongKeyError):
        custody.pack_key(REPOSITORY, sealed, NONCE)


def test_a_session_key_of_the_wrong_length_is_refused(custody: OpenCustody) -> None:
    sealed = seal(custody.recovery_public(), b"short", DATA_KEY_INFO + REPOSITORY)
    with pytest.raises(WrongKeyError):
        custody.pack_key(REPOSITORY, sealed, NONCE)


def test_it_never_prints_what_it_holds(custody: OpenCustody) -> None:
    assert repr(custody) == "OpenCustody(hidden)"


def test_locked_custody_refuses_everything_with_a_hint() -> None:
    locked = LockedCustody("the passphrase is wrong")
    assert not locked.unlocked
    for ask in (
        locked.signing_key,
        locked.recovery_public,
        lambda: locked.pack_key(REPOSITORY, b"", NONCE),
        lambda: locked.recovery_kit(REPOSITORY, b""),
    ):
        with pytest.raises(LockedError) as caught:
            ask()
        assert caught.value.hint
