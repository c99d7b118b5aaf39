"""Reading again what does not check out."""

import pytest

from repository.errors import DamagedError, StoreUnavailableError, TidemarkError, WrongKeyError
from repository.rereading import read_soundly

pytestmark = pytest.mark.asyncio


class Reads:
    """Comes to these one after the other."""

    def __init__(self, *outcomes: str | TidemarkError) -> None:
        self.left = list(outcomes)

    async def __call__(self) -> str:
        outcome = self.left.pop(0)
        if isinstance(outcome, TidemarkError):
            raise outcome
        return outcome


async def test_what_is_sound_is_read_once() -> None:
    reads = Reads("first", "second")

    assert await read_soundly(reads) == "first"
    assert reads.left == ["second"]


@pytest.mark.parametrize("error", [DamagedError("a flipped bit"), WrongKeyError("of a sealed key")])
async def test_what_is_broken_is_read_twice_and_no_more(error: TidemarkError) -> None:
    assert await read_soundly(Reads(error, "second")) == "second"

    reads = Reads(error, error, "third")
    with pytest.raises(type(error)):
        await read_soundly(reads)
    assert reads.left == ["third"]


async def test_a_store_that_does_not_answer_is_not_asked_again_here() -> None:
    reads = Reads(StoreUnavailableError("nobody there"), "second")

    with pytest.raises(StoreUnavailableError):
        await read_soundly(reads)
    assert reads.left == ["second"]
