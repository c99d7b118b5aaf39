"""Backups into a bucket of a gateway on this machine, beside restic and a plain upload.

The server is the same for all, with a new bucket for each of them in each round. What it can take
is what the plain uploads show, without a checksum and with the one that a pack has; it shares the
processors with whoever sends, so that what each process uses of them is told, too.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from typing_extensions import override

from repository.store.s3.store import S3Store
from tests.bench.data import GIB, make_random, make_small, size_of
from tests.bench.results import (
    BUCKET,
    GETS_PER_8_MIB,
    HIGHEST,
    LOWEST,
    MIB,
    OURS,
    PLAIN,
    RESTIC,
    SUMMED,
    Sample,
    Step,
)
from tests.bench.tools import BenchError, Outcome, Restic, Tidemark, cpu_seconds, run
from tests.e2e.wire import Wire, per_second, wires
from tests.servers import radosgw
from tests.servers.buckets import make_bucket, new_name, opened
from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.shared import Server

# What stores objects; the monitor has next to nothing to do.
_SERVERS: Final = ("radosgw", "ceph-osd")
_ROOT: Final = Path(__file__).parents[2]
_START_SECONDS: Final = 120.0
_SIGNED_SECONDS: Final = 3600
CAP: Final = 20_000_000
# What a change of rates takes to be felt everywhere, and what the last packs may be short of.
_SETTLING_SECONDS: Final = 0.7
# As long as there is something to see, and not longer than the rest of the case.
_LIMITED_BYTES: Final = (4 * CAP, 12 * CAP)
_GET: Final = b"GET /"
_FETCHED_BYTES: Final = 8 * MIB


class Gateway(NamedTuple):
    """The server, and where its configuration lies."""

    server: Server
    configuration: Path
    processes: Mapping[str, int]
    """Of those that store objects, by name."""

    def new_bucket(self) -> str:
        """Make one, and say what it is called."""

        async def made() -> str:
            async with opened(self.server, new_name()) as nowhere:
                return (await make_bucket(nowhere)).bucket.location.bucket

        return asyncio.run(made())

    def remove(self, bucket: str) -> None:
        """Take it away with all its bytes: the server keeps them in memory, and has not enough."""
        command = ["radosgw-admin", "-c", str(self.configuration), "bucket", "rm"]
        words = [f"--bucket={bucket}", "--purge-objects", "--bypass-gc"]
        subprocess.run([*command, *words], check=True, capture_output=True, timeout=600)


@contextmanager
def running_gateway(directory: Path) -> Iterator[Gateway]:
    """A gateway of one's own, until the block ends."""
    directory.mkdir()
    command = [sys.executable, "-m", "tests.servers", "radosgw", str(directory), str(os.getpid())]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
    try:
        assert process.stdout is not None
        with process.stdout as said:
            url = said.readline().decode().strip()
        if not url:
            raise BenchError(f"the gateway did not start: {(directory / 'log').read_text()[-500:]}")
        # The second attempt, if the first one's port was taken.
        [*_, configuration] = sorted(directory.glob("*/ceph.conf"))
        started = {each.name(): each.pid for each in psutil.Process(process.pid).children()}
        processes = {name: started[name] for name in _SERVERS}
        yield Gateway(Server("radosgw", url), configuration, processes)
    finally:
        process.terminate()
        process.wait(timeout=30)


class _InBucket(Tidemark):
    """`tidemark up` with its repository in a bucket."""

    def __init__(self, directory: Path, source: Path, endpoint: str, bucket: str) -> None:
        super().__init__(directory, source)
        self._credentials = directory / "key"
        self._credentials.write_text(
            f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        )
        self.options = (
            *("--repository", f"s3://{bucket}/tidemark", "--repository-endpoint", endpoint),
            *("--repository-credentials", str(self._credentials)),
        )

    def limit(self) -> None:
        """Let the fleet have no more than the cap."""
        self._command("bandwidth", "set", "--fleet", f"{CAP // 1_000_000}MB/s")


class _ResticToBucket(Restic):
    """The same, into a bucket."""

    def __init__(self, directory: Path, source: Path, endpoint: str, bucket: str) -> None:
        super().__init__(directory, source)
        self._where = f"s3:{endpoint}/{bucket}/restic"

    @property
    @override
    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment,
            "RESTIC_REPOSITORY": self._where,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }


def measure(scratch: Path, tools: Sequence[str], rounds: int, scale: float) -> list[Sample]:
    """All of it; nothing where there is no gateway, which is said."""
    if lacking := radosgw.missing():
        print(f"backups into a bucket are not measured: {lacking}", file=sys.stderr)
        return []
    place = scratch / BUCKET
    (place / "source").mkdir(parents=True)
    make_random(place / "source", scale)
    samples: list[Sample] = []
    with running_gateway(place / "gateway") as gateway:
        names = [each for each in (OURS, RESTIC) if each in tools] + [PLAIN, SUMMED]
        for number in range(1, rounds + 1):
            shift = number % len(names)
            for name in [*names[shift:], *names[:shift]]:
                samples.append(_timed(name, gateway, place, number))
                _show(samples[-1])
        if OURS in tools:
            for step, measured in ((Step.LIMITED, _limited), (Step.GETS, _gets)):
                samples.append(_described(step, measured, gateway, place, scale))
                _show(samples[-1])
    return samples


def _show(sample: Sample) -> None:
    took = f"{sample.seconds:.2f} s" if sample.seconds is not None else sample.error
    print(f"  round {sample.round}  {sample.step:<9}  {sample.tool:<8}  {took}", flush=True)


def _timed(name: str, gateway: Gateway, place: Path, number: int) -> Sample:
    """One full backup, or what stands for it."""
    source, bucket = place / "source", gateway.new_bucket()
    directory = place / f"{name}-{number}"
    os.sync()
    served = cpu_seconds(gateway.processes)
    try:
        if name in (PLAIN, SUMMED):
            outcome = _plain(gateway, bucket, source, directory, summed=name == SUMMED)
        else:
            kind = _InBucket if name == OURS else _ResticToBucket
            with kind(directory, source, gateway.server.url, bucket) as tool:
                outcome = tool.back_up()
        error = ""
    except BenchError as failed:
        outcome, error = Outcome(0, {}, {}), str(failed)
    serving = cpu_seconds(gateway.processes)
    gateway.remove(bucket)
    seconds = None if error else outcome.seconds
    memory, details = outcome.memory_bytes, outcome.details
    used = {**outcome.cpu_seconds, **{each: serving[each] - served[each] for each in serving}}
    gibs = size_of(source) / GIB
    cpu = {} if error else {process: each / gibs for process, each in used.items()}
    return Sample(BUCKET, name, Step.FULL, number, seconds, 0, memory, details, error, cpu)


def _plain(
    gateway: Gateway, bucket: str, source: Path, directory: Path, *, summed: bool
) -> Outcome:
    directory.mkdir()
    [file] = source.iterdir()
    objects = -(-file.stat().st_size // (32 * MIB))

    async def signed(store: S3Store) -> list[str]:
        return [
            await store.bucket.sign("put_object", "one", _SIGNED_SECONDS, Key=f"plain/{number}")
            for number in range(objects)
        ]

    async def opened_and_signed() -> list[str]:
        async with opened(gateway.server, bucket) as store:
            return await signed(store)

    urls = asyncio.run(opened_and_signed())
    checksum = "md5" if summed else "none"
    command = [sys.executable, "-m", "tests.bench.plain", checksum, str(file), *urls]
    done = run(command, {}, _ROOT)
    return Outcome(done.seconds, {"": done.memory_bytes}, {}, {"": done.cpu_seconds})


def _described(
    step: Step,
    measured: Callable[[Gateway, Path, str, float], tuple[float, dict[str, object]]],
    gateway: Gateway,
    place: Path,
    scale: float,
) -> Sample:
    """One of what is told by other figures than time."""
    bucket = gateway.new_bucket()
    try:
        seconds, details = measured(gateway, place, bucket, scale)
    except BenchError as failed:
        return Sample(BUCKET, OURS, step, 1, None, 0, {}, {}, str(failed))
    finally:
        gateway.remove(bucket)
    return Sample(BUCKET, OURS, step, 1, seconds, 0, {}, details, "")


def _limited(
    gateway: Gateway, place: Path, bucket: str, scale: float
) -> tuple[float, dict[str, object]]:
    """What went over the wire to the store in the fullest and in the emptiest second."""
    least, most = _LIMITED_BYTES
    source = place / "limited-source"
    source.mkdir()
    (source / "noise").write_bytes(os.urandom(int(min(most, max(least, most * scale)))))
    with wires(gateway.server.url.removeprefix("http://"), 1) as (wire,):
        endpoint = f"http://{wire.address}"
        with _InBucket(place / "limited", source, endpoint, bucket) as tool:
            tool.limit()
            began = time.monotonic()
            seconds = tool.back_up().seconds
    return seconds, _of_the_wire([each for each in wire.up if each[0] >= began])


def _of_the_wire(sent: list[tuple[float, int]]) -> dict[str, object]:
    """The highest second of all, and the lowest between the first pack and the last one's end."""
    packs = [at for at, size in sent if size > MIB // 64]
    begin, end = packs[0] + _SETTLING_SECONDS, packs[-1] - _SETTLING_SECONDS
    whole = per_second([sent], packs[0] - 1, packs[-1] + 1)
    within = per_second([sent], begin, end)
    return {HIGHEST: max(whole) / CAP, LOWEST: min(within) / CAP}


def _gets(
    gateway: Gateway, place: Path, bucket: str, scale: float
) -> tuple[float, dict[str, object]]:
    """How often a restore of many small files asked the store, for each 8 MiB that it fetched."""
    source, target = place / "small-source", place / "small-restored"
    source.mkdir()
    target.mkdir()
    make_small(source, scale)
    counted = _GetsCounted(gateway.server.url.removeprefix("http://"))
    counted.open()
    try:
        with _InBucket(place / "small", source, f"http://{counted.address}", bucket) as tool:
            tool.back_up()
            counted.gets = 0
            outcome = tool.restore(target)
    finally:
        counted.close()
    details = outcome.details
    told = details.get("store_requests")
    gets = int(told["get"]) if isinstance(told, dict) else counted.gets
    fetched = int(str(details["bytes_fetched"]))
    ratio = gets / max(1.0, fetched / _FETCHED_BYTES)
    return outcome.seconds, {"gets": gets, GETS_PER_8_MIB: ratio}


class _GetsCounted(Wire):
    """A wire that knows how many objects were asked for; each request comes in one piece."""

    gets = 0

    @override
    def look_at(self, data: bytes) -> None:
        self.gets += data.count(_GET)
