"""What makes a repository: its names, its signed config, its sealed keys, its printed kit."""

import base64
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from repository.errors import (
    DamagedError,
    FormatError,
    NoRepositoryError,
    UnsupportedFormatError,
    WrongKeyError,
)
from repository.ids import IdKeys, RepositoryId, VolumeId
from repository.keys import RecoverySecret, Secret, SigningKey, UnsealingKey
from repository.layout import (
    FORMAT,
    ReaderKeys,
    RecoveryKit,
    RepositoryConfig,
    RepositoryKeys,
    WriterKeys,
    certificate_name,
    decode_config,
    pack_name,
    parse_kit,
    parse_pack_name,
    refs_name,
    render_kit,
    root_name,
)
from repository.store.interface import check_name
from tests.unit.repository.damage import altered

REPOSITORY = RepositoryId(b"R" * 16)
SIGNING = SigningKey(b"s" * 32)
RECOVERY = UnsealingKey(b"u" * 32)
CONFIG = RepositoryConfig(
    FORMAT, REPOSITORY, 1, [], RECOVERY.public, SIGNING.public, UnsealingKey(b"m" * 32).public
)
IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
KEYS = RepositoryKeys(IDS, b"c" * 32, b"b" * 32, b"m" * 32)
HALVES = st.binary(min_size=16, max_size=16)


@given(HALVES, HALVES)
def test_the_name_of_a_pack_gives_its_random_bits_and_hash(random: bytes, digest: bytes) -> None:
    name = pack_name(random, digest)

    assert parse_pack_name(name) == (random, digest)
    assert check_name(name) == name


@given(st.text("0123456789abcdefABCDEF-/packs ", max_size=90))
@example("packs//-")
@example("packs/61/61-62")
@example(f"packs/61/{'61' * 16}-{'62' * 15}")
@example(f"packs/62/{'61' * 16}-{'62' * 16}")
@example(f"packs/61/{'61' * 16}-{'62' * 16}-")
@example(f"packs/AA/{'AA' * 16}-{'62' * 16}")
@example(f"packs/61/61 {'61' * 15}-{'62' * 16}")
def test_any_other_name_is_no_pack_s(name: str) -> None:
    with pytest.raises(FormatError):
        parse_pack_name(name)


def test_names_of_roots_and_refs_sort_by_sequence() -> None:
    volume = VolumeId(b"v" * 16)
    for name in (root_name, refs_name):
        names = [name(volume, sequence) for sequence in (0, 1, 9, 10, 10**19)]
        assert names == sorted(names)
        assert [check_name(each) for each in names] == names
    assert check_name(certificate_name(b"i" * 16)) == "certificates/" + "69" * 16


def test_a_config_is_what_the_repository_signed() -> None:
    assert decode_config(CONFIG.encode(SIGNING)) == CONFIG


@given(st.data())
def test_a_config_holds_with_nothing_altered(data: st.DataObject) -> None:
    encoded = CONFIG.encode(SIGNING)

    with pytest.raises((DamagedError, NoRepositoryError)):
        decode_config(data.draw(altered(encoded)))


def test_a_config_signed_by_another_key_is_refused() -> None:
    with pytest.raises(DamagedError):
        decode_config(CONFIG.encode(SigningKey(b"t" * 32)))


@given(st.binary(max_size=200))
def test_any_other_bytes_are_no_repository(raw: bytes) -> None:
    with pytest.raises(NoRepositoryError):
        decode_config(raw)


def test_another_format_is_refused() -> None:
    newer = msgspec.structs.replace(CONFIG, format="1")

    with pytest.raises(UnsupportedFormatError, match="format '1'"):
        decode_config(newer.encode(SIGNING))


@given(st.lists(st.text(max_size=20), max_size=4))
def test_a_config_with_unknown_features_is_read_and_says_that_nothing_is_written(
    features: list[str],
) -> None:
    config = msgspec.structs.replace(CONFIG, features=features)

    read = decode_config(config.encode(SIGNING))

    assert read == config
    if not features:
        read.check_writable()
        return
    with pytest.raises(UnsupportedFormatError) as caught:
        read.check_writable()
    assert caught.value.hint == "upgrade Tidemark"
    assert all(repr(feature) in caught.value.message for feature in features)


def test_the_repository_s_keys_open_with_its_recovery_key_only() -> None:
    sealed = KEYS.sealed_to(RECOVERY.public, REPOSITORY)

    assert RepositoryKeys.unseal(sealed, RECOVERY, REPOSITORY) == KEYS
    with pytest.raises(WrongKeyError):
        RepositoryKeys.unseal(sealed, UnsealingKey(b"v" * 32), REPOSITORY)
    with pytest.raises(WrongKeyError):
        RepositoryKeys.unseal(sealed, RECOVERY, RepositoryId(b"S" * 16))


WRITER = WriterKeys(REPOSITORY, IDS, b"c" * 32, b"b" * 32, b"r" * 32, b"m" * 32)
READER = ReaderKeys(REPOSITORY, IDS)


def test_keys_come_back_from_their_encoding_and_do_not_show() -> None:
    assert RepositoryKeys.decode(KEYS.encode()) == KEYS
    assert WriterKeys.decode(WRITER.encode()) == WRITER
    assert ReaderKeys.decode(READER.encode()) == READER
    for keys in (KEYS, WRITER, READER):
        assert repr(keys).endswith("Keys(hidden)")


@pytest.mark.parametrize("decode", [RepositoryKeys.decode, WriterKeys.decode, ReaderKeys.decode])
@given(raw=st.binary(max_size=100))
def test_any_bytes_decode_to_keys_or_to_the_declared_error(
    decode: Callable[[bytes], object], raw: bytes
) -> None:
    with pytest.raises(FormatError):
        decode(raw)


def kit_of(secret: bytes) -> RecoveryKit:
    return RecoveryKit(RecoverySecret(Secret(secret)), REPOSITORY, SIGNING.public)


def fields(kit: RecoveryKit) -> tuple[bytes, bytes, bytes]:
    return kit.secret.reveal(), kit.repository, kit.signing_public


TEXT = render_kit(kit_of(bytes(range(32))))


@given(st.binary(min_size=32, max_size=32))
def test_a_kit_comes_back_from_its_text(secret: bytes) -> None:
    assert fields(parse_kit(render_kit(kit_of(secret)))) == fields(kit_of(secret))


@pytest.mark.parametrize(
    "text",
    [
        TEXT.lower()
        .replace("-----begin tidemark recovery kit-----", TEXT.splitlines()[0])
        .replace("-----end tidemark recovery kit-----", TEXT.splitlines()[-1]),
        TEXT.replace("\n", "\r\n"),
        "\n".join(line if "-" in line else line.replace(" ", " \t") for line in TEXT.splitlines()),
        "\n".join("    " + line for line in TEXT.splitlines()),
        "Dear Admin,\n\n" + TEXT + "\nkeep it safe\n",
    ],
    ids=["lower case", "other line ends", "wider", "indented", "inside a letter"],
)
def test_a_kit_may_be_typed_with_other_spacing(text: str) -> None:
    assert fields(parse_kit(text)) == fields(kit_of(bytes(range(32))))


def test_a_kit_fits_on_a_page_and_names_its_repository() -> None:
    assert max(map(len, TEXT.splitlines())) <= 60
    assert len(TEXT.splitlines()) <= 12
    assert f"repository {REPOSITORY.hex()}" in TEXT


# The characters that carry the kit, without the last one, of which three bits mean nothing.
_LETTERS = [
    index
    for index, letter in enumerate(TEXT)
    if letter.isalnum() and TEXT.index("\n\n") < index < TEXT.rindex("-----END") - 2
]


@given(st.sampled_from(_LETTERS), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789?é"))
def test_a_mistyped_letter_is_found(position: int, letter: str) -> None:
    assume(TEXT[position] != letter)

    with pytest.raises(WrongKeyError, match="mistyped"):
        parse_kit(TEXT[:position] + letter + TEXT[position + 1 :])


@given(st.sampled_from(_LETTERS[:-1]))
def test_letters_that_changed_places_or_were_left_out_are_found(position: int) -> None:
    following = _LETTERS[_LETTERS.index(position) + 1]
    one, other = TEXT[position], TEXT[following]
    swapped = list(TEXT)
    swapped[position], swapped[following] = other, one

    with pytest.raises(WrongKeyError, match="mistyped"):
        parse_kit(TEXT[:position] + TEXT[position + 1 :])
    if one != other:
        with pytest.raises(WrongKeyError, match="mistyped"):
            parse_kit("".join(swapped))


@given(st.text(max_size=100))
@example("")
@example(TEXT.splitlines()[0])
@example("\n".join(TEXT.splitlines()[:-1]))
@example("\n".join(TEXT.splitlines()[1:]))
@example(TEXT.splitlines()[0] + base64.b32encode(b"short").decode() + TEXT.splitlines()[-1])
def test_any_other_text_is_no_kit(text: str) -> None:
    with pytest.raises(WrongKeyError):
        parse_kit(text)
