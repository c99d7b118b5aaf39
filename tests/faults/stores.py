"""Store work as the coordinator does it, over a store that misbehaves, on virtual time.

Each run has a seed, which decides the rate of faults, which kinds there are, the work, the order
of everything, and whether the store is away for a while. Afterwards the store itself is looked at:
nothing acknowledged is missing or different, nothing is there that nobody wrote, and no listing
that came to its end lacked what was there all the time.

`--real N` has N runs beside, by the real daemons: tests/faults/real.py.

Packs and roots are read as their readers read them: by a hash that tells a flipped bit, and then
once more. Lies that no layer here can notice (stale, empty and partial listings in good order) are
in no run; tests/fakes/misbehaving.py says whose business they are.

`make campaign-store` runs many (CAMPAIGN_ARGS="--seed N --runs N"); `--seed N --runs 1 --real 0` is
run N again.
"""

import argparse
import asyncio
import random
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blake3 import blake3

from repository.errors import (
    DamagedError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreForbiddenError,
    StoreUnavailableError,
)
from repository.store.breaking import Breaker, BreakingStore
from repository.store.counting import CountingStore
from repository.store.interface import Store
from repository.store.retrying import RetryingStore
from tests.e2e.test_bucket import new_bucket
from tests.fakes import virtual_time
from tests.fakes.misbehaving import NOTICED, MisbehavingStore, Plan
from tests.fakes.store import MemoryStore
from tests.faults import real
from tests.servers import radosgw
from tests.servers.shared import Server

RATES: Final = (0.01, 0.05, 0.2)
# Of the runs; in the others the store is never away as a whole.
_OUTAGES: Final = 0.15
_SESSIONS: Final = 3
_COMMITS: Final = 2
# What any call here may take: patience, and twice the longest answer of a small object.
_CALL_SECONDS_MAX: Final = 120 + 2 * 30
_PARKED_SECONDS: Final = 600.0
# A reader that finds a wrong hash reads again, and then says so.
_READS_MAX: Final = 3
_TAKEN: Final = "packs/taken"
# All that daemons made is proved and restored in the end.
_RUNS_OF_DAEMONS: Final = 20
_VOLUMES: Final = 3


@dataclass
class Ledger:
    """What was asked for, and what was acknowledged."""

    sent: dict[str, bytes] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    """Acknowledged."""
    condemned: set[str] = field(default_factory=set)
    """Somebody asked for them to be deleted."""
    deleted: set[str] = field(default_factory=set)
    """Acknowledged."""
    operations: int = 0
    failed: int = 0

    @asynccontextmanager
    async def operation(self, limit_seconds: float) -> AsyncIterator[None]:
        """One operation, which may fail only so, and only in time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.operations += 1
        try:
            yield
        except (StoreError, DamagedError) as error:
            # No class of its own: a listing out of order.
            passing = {StoreUnavailableError, StoreForbiddenError, DamagedError}
            if type(error) not in {StoreError, *passing}:
                raise
            self.failed += 1
        took = loop.time() - began
        assert took <= limit_seconds, f"an operation took {took:.0f} s"

    def kept(self) -> set[str]:
        """What must be there."""
        return self.stored - self.condemned


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    rate: float
    was_away: bool
    operations: int
    failed: int
    requests: int
    openings: int
    faults: Counter[str]


Build = Callable[[Store], Store]


def build(store: Store) -> Store:
    """The layers as the coordinator has them."""
    clock = asyncio.get_running_loop().time
    draw = random.Random(7).random
    return RetryingStore(CountingStore(store), clock=clock, draw=draw)


def run(seed: int, layers: Build = build) -> Result:
    """One run; AssertionError, with the seed, for whatever does not hold."""
    try:
        return virtual_time.run(_run(seed, layers), seed)
    except BaseException as error:
        error.add_note(f"python -m tests.faults.stores --real 0 --runs 1 --seed {seed}")
        raise


async def _run(seed: int, layers: Build) -> Result:
    drawn = random.Random(seed)
    rate = RATES[seed % len(RATES)]
    kinds = frozenset(drawn.sample(sorted(NOTICED), drawn.randint(4, len(NOTICED))))
    memory = MemoryStore()
    memory.objects[_TAKEN] = b"somebody else's"
    misbehaving = MisbehavingStore(memory, Plan(seed, rate, kinds))
    was_away = drawn.random() < _OUTAGES
    if was_away:
        _plan_outage(misbehaving, drawn)
    loop = asyncio.get_running_loop()
    breaker = Breaker(clock=loop.time)
    store = BreakingStore(layers(misbehaving), breaker)
    ledger = Ledger()
    async with asyncio.TaskGroup() as group:
        for number in range(_SESSIONS):
            waits = _PARKED_SECONDS if drawn.random() < 0.5 else 0.0
            work = Work(store.patient(waits), ledger, random.Random(drawn.random()), waits)
            group.create_task(work.session(f"{number:032x}"), name=f"session {number}")
    check(memory, ledger)
    return Result(
        rate=rate,
        was_away=was_away,
        operations=ledger.operations,
        failed=ledger.failed,
        requests=misbehaving.plan.requests.total(),
        openings=breaker.state().openings,
        faults=Counter({fault.value: n for fault, n in misbehaving.plan.counted().items()}),
    )


def _plan_outage(store: MisbehavingStore, drawn: random.Random) -> None:
    begins, lasts = drawn.uniform(0, 2), drawn.uniform(10, 1000)
    loop = asyncio.get_running_loop()
    loop.call_later(begins, setattr, store, "is_down", True)
    loop.call_later(begins + lasts, setattr, store, "is_down", False)


class Work:
    """What the coordinator does for one volume."""

    def __init__(
        self, store: Store, ledger: Ledger, drawn: random.Random, waits_seconds: float
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._drawn = drawn
        # A writer is let through twice: when it is opened, and when it commits.
        self._limit = _CALL_SECONDS_MAX + waits_seconds
        self._writer_limit = 2 * self._limit

    async def session(self, volume: str) -> None:
        """Some commits, each with packs, refs and root, and what is read and removed between."""
        for sequence in range(_COMMITS):
            packs = [self._drawn.randbytes(self._drawn.randint(0, 3000)) for _ in range(2)]
            names = [f"packs/{blake3(pack).hexdigest()}" for pack in packs]
            for name, pack in zip(names, packs, strict=True):
                await self._put_pack(name, pack)
            for kind in ("refs", "roots"):
                name = f"{kind}/{volume}/{sequence:08d}"
                await self._put(name, f"{kind} of {names}".encode())
                await self._read(name)
            await self._put_taken()
            await self._read(names[0])
            await self._look(names[0])
            await self._delete(names[1])
            await self._list(self._drawn.choice(["", "packs/", "roots/", f"roots/{volume}/"]))

    async def _put_pack(self, name: str, pack: bytes) -> None:
        self._ledger.sent[name] = pack
        async with self._ledger.operation(self._writer_limit):
            async with self._store.writer(name) as writer:
                for begin in range(0, len(pack), 1000):
                    await writer.write(pack[begin : begin + 1000])
                await self._commit(writer.commit)
            self._ledger.stored.add(name)

    async def _put(self, name: str, content: bytes) -> None:
        self._ledger.sent[name] = content
        async with self._ledger.operation(self._limit):
            await self._commit(lambda: self._store.put(name, content))
            self._ledger.stored.add(name)

    async def _commit(self, commit: Callable[[], Awaitable[None]]) -> None:
        try:
            await commit()
        except ObjectExistsError as error:
            # Nobody else writes this name: it is our own, compared by a read with a flipped bit.
            raise DamagedError("what was written reads as something else") from error

    async def _put_taken(self) -> None:
        async with self._ledger.operation(self._limit):
            try:
                await self._store.put(_TAKEN, b"not somebody else's")
            except ObjectExistsError:
                return
            raise AssertionError("a name that was taken was given once more")

    async def _read(self, name: str) -> None:
        if name not in self._ledger.kept():
            return
        sent = self._ledger.sent[name]
        async with self._ledger.operation(_READS_MAX * self._limit):
            for _ in range(_READS_MAX):
                if self._drawn.random() < 0.5:
                    content = await self._store.get(name)
                else:
                    content = await self._store.get_range(name, 0, len(sent))
                if blake3(content).digest() == blake3(sent).digest():
                    return
            raise DamagedError(f"{name} reads wrong each time")

    async def _look(self, name: str) -> None:
        if name in self._ledger.kept():
            async with self._ledger.operation(self._limit):
                info = await self._store.head(name)
                assert info == (name, len(self._ledger.sent[name]))

    async def _delete(self, name: str) -> None:
        was_stored = name in self._ledger.stored
        self._ledger.condemned.add(name)
        async with self._ledger.operation(self._limit):
            try:
                await self._store.delete(name)
            except ObjectMissingError:
                assert not was_stored, f"{name} was stored, and was missing"
            self._ledger.deleted.add(name)

    async def _list(self, prefix: str) -> None:
        ledger = self._ledger
        before = {name for name in ledger.kept() if name.startswith(prefix)}
        gone = set(ledger.deleted)
        # A listing's time begins anew with each name that it gives.
        async with ledger.operation(_CALL_SECONDS_MAX * 100):
            listed = [info.name async for info in self._store.list_objects(prefix)]
            assert listed == sorted(set(listed)), "a name twice, or out of order"
            assert before & ledger.kept() <= set(listed), "a listing fell short"
            assert not gone & set(listed), "what was deleted is listed"
            assert set(listed) <= {*ledger.sent, _TAKEN}, "what nobody wrote is listed"


def check(memory: MemoryStore, ledger: Ledger) -> None:
    """What the store really holds is what was promised."""
    objects = dict(memory.objects)
    assert objects.pop(_TAKEN) == b"somebody else's", "what was taken was replaced"
    for name in ledger.kept():
        assert objects.get(name) == ledger.sent[name], f"{name} was acknowledged, and is lost"
    for name, content in objects.items():
        assert content == ledger.sent.get(name), f"{name} is not what was written"
        assert name not in ledger.deleted, f"{name} was deleted, and is there"


@dataclass
class Sum:
    """What runs of one kind came to."""

    runs: int = 0
    operations: int = 0
    failed: int = 0
    requests: int = 0
    faults: int = 0
    openings: int = 0

    def add(self, result: Result) -> None:
        self.runs += 1
        self.operations += result.operations
        self.failed += result.failed
        self.requests += result.requests
        self.faults += result.faults.total()
        self.openings += result.openings

    def succeeded(self) -> float:
        """The share of the operations."""
        return 1 - self.failed / max(1, self.operations)


def summed(results: Iterable[Result]) -> dict[str, Sum]:
    """By rate, and whether the store was away."""
    sums: dict[str, Sum] = {}
    for result in results:
        away = ", away for a while" if result.was_away else ""
        sums.setdefault(f"{result.rate:.0%}{away}", Sum()).add(result)
    return dict(sorted(sums.items()))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="tests.faults.stores")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--real", type=int, default=100, help="runs by the real daemons")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    return max(in_process(options.seed, options.runs), by_daemons(options.seed, options.real))


def by_daemons(first: int, count: int) -> int:
    """Runs by the real daemons, before a gateway of their own; the exit code."""
    if not count:
        return 0
    began = time.monotonic()
    sums: dict[float, real.Sum] = {}
    broken = 0
    with tempfile.TemporaryDirectory(prefix="tidemark-campaign-", dir="/var/tmp") as directory:
        gateway = Path(directory) / "gateway"
        gateway.mkdir()
        server = Server("radosgw", radosgw.serve(gateway))
        for seed in range(first, first + count, _RUNS_OF_DAEMONS):
            seeds = range(seed, min(first + count, seed + _RUNS_OF_DAEMONS))
            try:
                _some_by_daemons(Path(directory) / str(seed), server, seeds, sums)
            except Exception:  # noqa: BLE001 - what did not hold is told, and the next ones run
                broken += 1
                print(f"real runs from {seed}: FAILED\n{traceback.format_exc()}", flush=True)
    failed = [f"{rate:.0%}: {each}" for rate, summed in sums.items() for each in summed.failed]
    print("\n".join([*real.table(sums), *failed]))
    print(f"{broken} times something did not hold, in {time.monotonic() - began:.0f} s")
    enough = sums.get(real.RATE, real.Sum()).succeeded() >= real.SUCCEED
    return 0 if enough and not broken else 1


def _some_by_daemons(
    directory: Path, server: Server, seeds: Iterable[int], sums: dict[float, real.Sum]
) -> None:
    directory.mkdir()
    bucket = new_bucket(server, directory)
    with real.bench(directory / "site", bucket, volumes=_VOLUMES) as made:
        made.sums = sums
        made.begin()
        for seed in seeds:
            made.run(seed, real.RATES[seed % len(real.RATES)])
        made.check()
    shutil.rmtree(directory)


def in_process(first: int, count: int) -> int:
    """Runs on virtual time; the exit code."""
    if not count:
        return 0
    began = time.monotonic()
    results: list[Result] = []
    failed: list[int] = []
    for seed in range(first, first + count):
        try:
            results.append(run(seed))
        except Exception:  # noqa: BLE001 - each run is told of, whatever it met
            failed.append(seed)
            print(f"run {seed}: FAILED\n{traceback.format_exc()}", flush=True)
    columns = ("runs", "operations", "failed", "requests", "faults", "openings")
    print("".join([f"{'':24}", *(f"{column:>12}" for column in columns), f"{'succeeded':>12}"]))
    for name, total in summed(results).items():
        numbers = [f"{getattr(total, column):>12}" for column in columns]
        print("".join([f"{name:24}", *numbers, f"{total.succeeded():>12.3%}"]))
    print(f"{len(results)} held, {len(failed)} failed, in {time.monotonic() - began:.0f} s")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
