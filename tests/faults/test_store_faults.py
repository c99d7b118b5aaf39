"""A thousand runs of tests/faults/stores.py, and that it finds layers which are wrong."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest
from typing_extensions import override

from repository.errors import ObjectExistsError, StoreUnavailableError, TidemarkError
from repository.store.interface import ObjectInfo, Store
from tests.fakes.faulty import FaultyStore
from tests.fakes.misbehaving import NOTICED
from tests.faults.stores import RATES, build, run, summed

RUNS = 1000
# Within so many a wrong layer must be found; most are in the first few.
RUNS_OF_WRONG = 60


def test_a_store_that_misbehaves_loses_nothing_and_lies_to_nobody(seed: int) -> None:
    results = [run(number) for number in range(seed, seed + RUNS)]

    sums = summed(results)
    assert sums["5%"].runs > RUNS / 5
    assert sums["5%"].succeeded() >= 0.99, sums["5%"]
    assert sums["20%"].faults > sums["5%"].faults > sums["1%"].faults > 100
    # Those in which the store was away had to leave it alone.
    away = [total for name, total in sums.items() if "away" in name]
    assert len(away) == len(RATES)
    assert all(total.openings > 0 and total.failed > 0 for total in away)
    faults = sum((result.faults for result in results), Counter[str]())
    assert len(faults) == len(NOTICED)
    assert min(faults.values()) > 20


def test_a_run_is_the_same_each_time(seed: int) -> None:
    assert [run(number) for number in range(seed, seed + 5)] == [
        run(number) for number in range(seed, seed + 5)
    ]


class Believing(FaultyStore):
    """Takes an object that is there for its own."""

    @override
    async def put(self, name: str, data: bytes) -> None:
        with suppress(ObjectExistsError):
            await self.inner.put(name, data)


class Hoping(FaultyStore):
    """Says of what may have been written that it was."""

    @override
    async def put(self, name: str, data: bytes) -> None:
        with suppress(StoreUnavailableError):
            await self.inner.put(name, data)


class Satisfied(FaultyStore):
    """Takes a listing that broke off for a whole one."""

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        with suppress(StoreUnavailableError):
            async for info in self.inner.list_objects(prefix):
                yield info


class Optimistic(FaultyStore):
    """Says of a delete that failed that it is done."""

    @override
    async def delete(self, name: str) -> None:
        with suppress(StoreUnavailableError):
            await self.inner.delete(name)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda store: store, "an operation took"),
        (lambda store: Believing(build(store)), "a name that was taken was given once more"),
        (lambda store: build(Hoping(store)), "is lost|has no object"),
        (lambda store: build(Satisfied(store)), "a listing fell short"),
        (lambda store: build(Optimistic(store)), "was deleted, and is there|what was deleted"),
    ],
    ids=["none", "believing", "hoping", "satisfied", "optimistic"],
)
def test_a_layer_that_is_wrong_is_found(
    seed: int, wrong: Callable[[Store], Store], words: str
) -> None:
    found: list[str] = []
    for number in range(seed, seed + RUNS_OF_WRONG):
        try:
            run(number, wrong)
        except (AssertionError, TidemarkError, BaseExceptionGroup) as error:
            found += [*error.__notes__, *map(str, leaves(error))]

    assert any(re.search(words, each) for each in found), found
    assert any("tests.faults.stores --real 0 --runs 1 --seed" in each for each in found)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What is in groups of groups."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error
