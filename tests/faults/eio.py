"""Input/output errors: strace lets calls of one daemon, on certain files, fail while a job runs.

The job says the truth: it is partial and names the paths, or failed with a reason and a hint, or is
completed because it waited until the calls worked again. Afterwards everything proves sound, and a
backup restores equal.
"""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from typing_extensions import override

from proto.tidemark.v1 import common_pb2
from tests.e2e import trees
from tests.faults.injection import failed_calls, failing
from tests.faults.site import MARKER, DiedError, Site, pause, wait_until

_COMPLETED: Final = common_pb2.PHASE_COMPLETED
_PARTLY: Final = common_pb2.PHASE_PARTIALLY_FAILED
_FAILED: Final = common_pb2.PHASE_FAILED
_READS: Final = "read,pread64,preadv,preadv2"


class Fault(NamedTuple):
    """Calls that fail, and what the job must come to."""

    name: str
    job: str
    module: str
    calls: str
    where: Callable[["Bench"], list[Path]]
    phase: "common_pb2.Phase.ValueType"
    """COMPLETED for what is waited for: the calls work again once some have failed."""
    told: str
    """What the message, or the path of an error, has in it."""

    @override
    def __str__(self) -> str:
        return f"{self.job}, {self.name}"


def _state(bench: "Bench") -> list[Path]:
    return [bench.site.state / f"state.db{ending}" for ending in ("", "-wal")]


def _catalog(bench: "Bench") -> list[Path]:
    return [bench.site.data / f"catalog.db{ending}" for ending in ("", "-wal")]


def _packs(bench: "Bench") -> list[Path]:
    return [path for path in (bench.site.repository / "packs").rglob("*") if path.is_file()]


def _newest_pack(bench: "Bench") -> list[Path]:
    """That of the contents of the last backup, which has a large one and the nodes' small one."""
    last = sorted(_packs(bench), key=lambda path: path.stat().st_mtime_ns)[-2:]
    return [max(last, key=lambda path: path.stat().st_size)]


FAULTS: Final = (
    Fault("small file", "backup", "agent", _READS, lambda bench: [bench.small], _PARTLY, "small"),
    Fault("large file", "backup", "agent", _READS, lambda bench: [bench.large], _PARTLY, "grown"),
    Fault(
        "directory", "backup", "agent", "getdents64", lambda bench: [bench.tree / "a"], _PARTLY, "a"
    ),
    Fault("volume", "backup", "agent", "getdents64", lambda bench: [bench.tree], _FAILED, "error"),
    Fault("state write", "backup", "agent", "pwrite64", _state, _FAILED, "state"),
    # What SQLite could not flush it keeps in its log, and flushes later.
    Fault("state flush", "backup", "agent", "fdatasync,fsync", _state, _COMPLETED, ""),
    Fault("store flush", "backup", "coordinator", "fsync", lambda _: [], _COMPLETED, ""),
    Fault("store name", "backup", "coordinator", "link,linkat", lambda _: [], _COMPLETED, ""),
    Fault("catalog write", "backup", "coordinator", "pwrite64", _catalog, _COMPLETED, ""),
    Fault("catalog flush", "backup", "coordinator", "fdatasync,fsync", _catalog, _COMPLETED, ""),
    Fault("pack", "restore", "coordinator", _READS, _newest_pack, _PARTLY, ""),
    Fault("pack", "verify", "coordinator", _READS, _newest_pack, _FAILED, "damage"),
    Fault("all packs", "restore", "coordinator", _READS, _packs, _FAILED, "cannot be read"),
    Fault("all packs", "verify", "coordinator", _READS, _packs, _FAILED, "damage"),
    Fault(
        "target write",
        "restore",
        "agent",
        "write,pwrite64",
        lambda bench: [bench.target / "grown"],
        _PARTLY,
        "grown",
    ),
    Fault("target flush", "restore", "agent", "syncfs", lambda _: [], _FAILED, "restored-"),
    Fault("target mark", "restore", "agent", "fsync", lambda _: [], _FAILED, "restored-"),
)
# Meanwhile the daemons notice, and try again.
_WHILE_SECONDS: Final = 1.0


class Bench:
    """One site, whose tree changes with every run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree: Path = directory / "volume"
        trees.build(self.tree, files=20)
        self.site = Site(directory / "site", self.tree)
        self.small: Path = self.tree / "a" / "small"
        self.large: Path = self.tree / "grown"
        self._source = random.Random(4)
        self._runs = 0
        self._snapshot = ""

    @property
    def target(self) -> Path:
        """Of this run's restore."""
        return self.directory / f"restored-{self._runs}"

    def _begin(self) -> None:
        """Start both daemons, and back up."""
        self.site.bring_up()
        self._change()
        self._snapshot = self.site.backup().snapshot_id

    def run(self, fault: Fault) -> None:
        """One run; AssertionError for whatever does not hold."""
        if not self._runs:
            self._begin()
        self._runs += 1
        site = self.site
        content = trees.snapshot_of(self.tree)
        before = [each.snapshot_id for each in site.snapshots()]
        if fault.calls == "getdents64":
            # Only a sweep lists what has not changed, and only an agent that starts sweeps.
            assert self.site.agent is not None
            self.site.agent.end()
            self.site.start_agent()
            self.site.connected()
        if fault.job == "backup":
            self._change()
        daemon = site.agent if fault.module == "agent" else site.coordinator
        assert daemon is not None
        trace = self.directory / f"trace-{self._runs}"
        job_id = ""
        with failing(daemon.pid, fault.calls, trace, fault.where(self)):
            with suppress(DiedError):
                job_id = self._order(fault.job)
            if fault.phase == _COMPLETED:
                wait_until(lambda: failed_calls(trace) > 0, 30.0, site.logs)
                pause(_WHILE_SECONDS)
                if fault.name.startswith("store"):
                    assert [each.snapshot_id for each in site.snapshots()] == before
            else:
                site.ended(job_id)
        assert failed_calls(trace), "nothing failed"
        wait_until(lambda: not site.unfinished_jobs(), 60.0, site.logs)
        if job_id:
            self._check_told(fault, site.job(job_id))
        if fault.job == "restore":
            self._check_target(content)
        self._check(before)

    def _order(self, kind: str) -> str:
        if kind == "backup":
            return self.site.order_backup()
        if kind == "restore":
            return self.site.order_restore(self._snapshot, self.target)
        return self.site.order_verify()

    def _change(self) -> None:
        for path, size in ((self.small, 50_000), (self.large, 1_500_000)):
            path.write_bytes(self._source.randbytes(size))

    def _check_told(self, fault: Fault, job: Any) -> None:
        assert job.phase == fault.phase, (job, self.site.logs())
        if job.phase == _FAILED:
            assert fault.told in job.message.lower(), job
            assert job.hint, job
        elif job.phase == _PARTLY:
            result = job.restore if fault.job == "restore" else job.snapshots[0]
            assert result.errors_total == len(result.errors) > 0, job
            for error in result.errors:
                assert fault.told in os.fsdecode(error.path), job
                assert error.message, job

    def _check_target(self, content: dict[bytes, Any]) -> None:
        """What is not whole says so, and can be finished."""
        if self.target.exists():
            assert (self.target / MARKER).exists() or not any(self.target.iterdir())
        self.site.restore(self._snapshot, self.target, overwrite=True)
        trees.assert_same(content, trees.snapshot_of(self.target))
        shutil.rmtree(self.target)

    def _check(self, before: list[str]) -> None:
        """Nothing is lost, and everything works again."""
        site = self.site
        listed = site.snapshots()
        assert [each.snapshot_id for each in listed][: len(before)] == before
        assert {each.phase for each in listed} <= {_COMPLETED, _PARTLY}
        made = site.backup()
        self._snapshot = made.snapshot_id
        site.restore(made.snapshot_id, self.target)
        trees.assert_same(trees.snapshot_of(self.tree), trees.snapshot_of(self.target))
        shutil.rmtree(self.target)
        site.verify()
        assert not list((site.repository / ".tmp").iterdir()), "temporary files stay"
