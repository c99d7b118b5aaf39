"""Backups, proofs and restores by the real daemons, whose store is a gateway that misbehaves.

The gateway is real, and so are its signatures; before it stands the proxy of
tests/faults/misbehaving.py, which the coordinator and the agent both take for the store. In a run
each volume changes and is backed up, is backed up again unchanged, proved, and restored. In the
end, with no fault on the way, all is proved, and whatever was said to be Completed and has not come
back the same in a run is restored and compared.

All faults of the proxy come. The bits that it flips are in what is read of packs and roots: all
of that carries a hash or a signature. Only the record of what the store can do carries neither,
and is read while nothing is flipped, before the first run.
"""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proto.tidemark.v1 import admin_pb2, common_pb2
from tests.e2e import trees
from tests.e2e.test_bucket import PREFIX, Bucket
from tests.fakes.misbehaving import Fault, Plan
from tests.faults.misbehaving import Proxy
from tests.faults.site import READY_SECONDS, Site, running, wait_until

# At this rate of faults, this share of all jobs has to succeed.
RATE, SUCCEED = 0.05, 0.99
# Four of twenty are at 1 %, four at 20 %.
RATES: Final = (0.01, RATE, 0.2, RATE, RATE)
# An answer that never comes is one that comes to an end after this, or the runs would be waiting.
HANG_SECONDS: Final = 0.3
# Of what is slow.
BYTES_PER_SECOND: Final = 4 * 1024 * 1024
KINDS: Final = frozenset(Fault)
_PERFECT: Final = Plan(seed=0, rate=0.0)
_JOB_SECONDS: Final = 120.0


@dataclass
class Sum:
    """What the runs at one rate came to."""

    runs: int = 0
    jobs: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def succeeded(self) -> float:
        """The share of the jobs."""
        return 1 - len(self.failed) / max(1, self.jobs)


@contextmanager
def proxy_before(url: str) -> Iterator[Proxy]:
    """The proxy, in a thread of its own."""
    proxy = Proxy(url, _PERFECT, hang_seconds=HANG_SECONDS, slow_bytes_per_second=BYTES_PER_SECOND)
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with proxy.serving():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="proxy")
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def bench(directory: Path, bucket: Bucket, *, volumes: int) -> Iterator["Bench"]:
    """Both daemons, and a store that does what it should until a run begins."""
    with proxy_before(bucket.server.url) as proxy:
        site = Site(directory, directory / "unused")
        site.where = (
            *("--repository", f"s3://{bucket.name}/{PREFIX}"),
            *("--repository-endpoint", proxy.address),
            *("--repository-credentials", str(bucket.credentials)),
        )
        site.agent_options = ("--store-endpoint", f"{proxy.address}/{bucket.name}/")
        made = Bench(site, proxy, volumes)
        with running(site):
            yield made
            site.end()


class Bench:
    """The daemons, their volumes, and what each snapshot has to hold."""

    def __init__(self, site: Site, proxy: Proxy, volumes: int) -> None:
        self.site = site
        self.proxy = proxy
        self.sums: dict[float, Sum] = {}
        self._trees = {f"tree-{n}": site.directory / "volumes" / str(n) for n in range(volumes)}
        self._said: dict[str, dict[bytes, Any]] = {}
        self._restored: set[str] = set()
        self._targets = 0
        for number, tree in enumerate(self._trees.values()):
            trees.build(tree, seed=number, files=20)
        protect = [{"name": name, "path": str(tree)} for name, tree in self._trees.items()]
        (site.directory / "protect.json").write_text(json.dumps({"volumes": protect}))

    def begin(self) -> None:
        """Found the repository, and have every volume in it."""
        self.site.start_coordinator()
        assert self.site.serving(), self.site.logs()
        self.site.make_token()
        self.site.start_agent()
        names = set(self._trees)
        wait_until(lambda: names <= self.site.volumes(), READY_SECONDS, self.site.logs)

    def run(self, seed: int, rate: float) -> None:
        """One run; AssertionError for whatever does not hold."""
        summed = self.sums.setdefault(rate, Sum())
        plan = self.proxy.plan = Plan(seed, rate, KINDS)
        before = Counter(self.proxy.done)
        summed.runs += 1
        drawn = random.Random(seed)
        expected = {name: self._change(name, drawn) for name in self._trees}
        made: list[str] = []
        failed = len(summed.failed)
        for _ in ("changed", "unchanged"):
            job = self._ended(summed, self.site.order_backup(*self._trees))
            made += self._completed(job, expected)
        if made:
            proof = self._ended(summed, self.site.order_verify(*made))
            assert not proof.verify.damaged_total, f"nothing was damaged: {proof}"
        for snapshot in made[: len(self._trees)]:
            self._restore(summed, snapshot)
        self.proxy.plan = _PERFECT
        summed.requests += plan.requests.total()
        summed.faults += Counter(self.proxy.done) - before
        if len(summed.failed) > failed:
            self._completed(self._succeed(self.site.order_backup(*self._trees)), expected)

    def check(self) -> None:
        """Everything that was said to be Completed is there, and whole."""
        self.proxy.plan = _PERFECT
        listed = {each.snapshot_id: each for each in self.site.snapshots()}
        assert set(self._said) <= set(listed), "a snapshot that was Completed is gone"
        proof = self._succeed(self.site.order_verify())
        assert not proof.verify.damaged_total, proof
        left = [snapshot for snapshot in self._said if snapshot not in self._restored]
        jobs = {snapshot: self._order_restore(snapshot) for snapshot in left}
        for snapshot, (job_id, target) in jobs.items():
            self._succeed(job_id)
            trees.assert_same(self._said[snapshot], trees.snapshot_of(target))

    # ---- jobs -----------------------------------------------------------------------------------

    def _ended(self, summed: Sum, job_id: str) -> Any:
        """The job's end, which counts."""
        job = self.site.ended(job_id, seconds=_JOB_SECONDS)
        summed.jobs += 1
        if job.phase != common_pb2.PHASE_COMPLETED:
            said = job.message or [each.message for each in job.snapshots if each.message]
            assert said, f"it failed, and does not say why: {job}"
            summed.failed.append(f"{admin_pb2.JobKind.Name(job.kind)}: {said}")
        return job

    def _succeed(self, job_id: str) -> Any:
        """What nothing disturbs succeeds."""
        job = self.site.ended(job_id, seconds=_JOB_SECONDS)
        assert job.phase == common_pb2.PHASE_COMPLETED, f"{job}\n{self.site.logs()}"
        return job

    def _completed(self, job: Any, expected: dict[str, dict[bytes, Any]]) -> list[str]:
        """The snapshots that it says it made, with what they have to hold."""
        made = [each for each in job.snapshots if each.phase == common_pb2.PHASE_COMPLETED]
        self._said.update({each.snapshot_id: expected[each.volume] for each in made})
        return [each.snapshot_id for each in made]

    def _restore(self, summed: Sum, snapshot: str) -> None:
        job_id, target = self._order_restore(snapshot)
        job = self._ended(summed, job_id)
        if job.phase == common_pb2.PHASE_COMPLETED:
            trees.assert_same(self._said[snapshot], trees.snapshot_of(target))
            self._restored.add(snapshot)

    def _order_restore(self, snapshot: str) -> tuple[str, Path]:
        self._targets += 1
        target = self.site.directory / "restored" / str(self._targets)
        return self.site.order_restore(snapshot, target), target

    def _change(self, name: str, drawn: random.Random) -> dict[bytes, Any]:
        """New contents for some files; what the volume holds now."""
        tree = self._trees[name]
        for number in range(3):
            (tree / f"changes-{number}").write_bytes(drawn.randbytes(drawn.randint(1, 500_000)))
        return trees.snapshot_of(tree)


def table(sums: dict[float, Sum]) -> Iterable[str]:
    """For people."""
    columns = ("runs", "jobs", "failed", "requests", "faults")
    yield "".join([f"{'real':24}", *(f"{column:>12}" for column in columns), f"{'succeeded':>12}"])
    for rate, each in sorted(sums.items()):
        numbers = (each.runs, each.jobs, len(each.failed), each.requests, each.faults.total())
        row = [f"{rate:24.0%}", *(f"{number:>12}" for number in numbers)]
        yield "".join([*row, f"{each.succeeded():>12.3%}"])
