"""The coordinator's figures for Prometheus, in a registry of their own.

Counters grow where things happen; gauges are set from the catalog when somebody asks. Nothing here
is per file or per snapshot: labels are bounded by the number of volumes.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from coordinator.model import JobKind, Phase, Totals
from repository.store.breaking import Breaker
from repository.store.circuit import Phase as CircuitPhase
from repository.store.counting import Tally
from repository.store.interface import Operation

# Velero's: one minute to four hours.
_DURATIONS: Final = (60, 300, 600, 900, 1800, 3600, 7200, 14400)


class Metrics:
    """What this process has done, and what the catalog holds."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._jobs = Counter(
            "tidemark_jobs_ended", "Jobs that have ended.", ["kind", "phase"], registry=registry
        )
        for kind in JobKind:
            for phase in Phase:
                if phase.ended:
                    self._jobs.labels(kind, phase)
        self._duration = Histogram(
            "tidemark_job_duration_seconds",
            "From the start of a job to its end.",
            ["kind"],
            buckets=_DURATIONS,
            registry=registry,
        )
        self._bytes_read = Counter(
            "tidemark_backup_read_bytes", "Source content that agents read.", registry=registry
        )
        self._bytes_stored = Counter(
            "tidemark_stored_bytes_written", "Bytes of packs written.", registry=registry
        )
        self._packs_refused = Counter(
            "tidemark_packs_refused", "Packs that did not check out.", registry=registry
        )
        self._running = Gauge(
            "tidemark_jobs_running", "Jobs that have not ended.", ["kind"], registry=registry
        )
        self._last_success = Gauge(
            "tidemark_volume_last_success_timestamp_seconds",
            "When the newest Completed snapshot of a volume was committed.",
            ["node", "volume"],
            registry=registry,
        )
        self._tasks_queued = Gauge(
            "tidemark_tasks_queued", "Tasks that wait for a worker.", registry=registry
        )
        self._agents = Gauge(
            "tidemark_agents_connected", "Agents that are connected.", registry=registry
        )
        self._sessions = Gauge(
            "tidemark_sessions_open", "Sessions that may write.", registry=registry
        )
        self._snapshots = Gauge("tidemark_snapshots", "Snapshots.", registry=registry)
        self._packs = Gauge("tidemark_packs", "Packs in the repository.", registry=registry)
        self._repository_bytes = Gauge(
            "tidemark_repository_bytes", "Size of all packs.", registry=registry
        )
        self._unlocked = Gauge(
            "tidemark_custody_unlocked", "1 while the recovery secret is open.", registry=registry
        )
        self._bandwidth_limit = Gauge(
            "tidemark_bandwidth_limit_bytes_per_second",
            "Limits of the network that are in force.",
            ["limit"],
            registry=registry,
        )
        self._bandwidth_used = Gauge(
            "tidemark_bandwidth_used_bytes_per_second",
            "What nodes under a limit use of the network.",
            ["node", "way"],
            registry=registry,
        )
        Info("tidemark_build", "Version.", registry=registry).info({"version": version})
        self._process = psutil.Process()
        self._cpu = Gauge("process_cpu_seconds", "CPU time of this process.", registry=registry)
        self._memory = Gauge("process_resident_memory_bytes", "Resident memory.", registry=registry)
        self._files = Gauge("process_open_fds", "Open file descriptors.", registry=registry)
        self._threads = Gauge("process_threads", "Threads.", registry=registry)
        self._started = Gauge(
            "process_start_time_seconds", "When this process began.", registry=registry
        )
        self._started.set(self._process.create_time())
        self._opened = Gauge(
            "tidemark_repository_open",
            "1 while a repository can be read and written.",
            ["repository"],
            registry=registry,
        )
        self._stores = _Stores()
        registry.register(self._stores)

    def watch_store(self, repository: str, tally: Tally, breaker: Breaker | None) -> None:
        """Let every scrape show what a repository's store was asked, and if it is left alone."""
        self._stores.watch(repository, tally, breaker)

    def repository_opened(self, repository: str, *, opened: bool) -> None:
        """Whether a repository is there."""
        self._opened.labels(repository).set(opened)

    def job_ended(self, kind: JobKind, phase: Phase, seconds: float) -> None:
        """A job has ended."""
        self._jobs.labels(kind, phase).inc()
        self._duration.labels(kind).observe(seconds)

    def source_read(self, size_bytes: int) -> None:
        """A backup has read so much."""
        self._bytes_read.inc(size_bytes)

    def pack_stored(self, size_bytes: int) -> None:
        """A pack is durable."""
        self._bytes_stored.inc(size_bytes)

    def pack_refused(self) -> None:
        """A pack was refused."""
        self._packs_refused.inc()

    def set_live(self, *, running: Mapping[JobKind, int], queued: int, agents: int) -> None:
        """What the dispatcher holds now."""
        for kind in JobKind:
            self._running.labels(kind).set(running.get(kind, 0))
        self._tasks_queued.set(queued)
        self._agents.set(agents)

    def set_bandwidth(
        self, limits: Mapping[str, float], used: Mapping[tuple[str, str], float]
    ) -> None:
        """Limits in force, and what each (node, way) uses; what is limited no more vanishes."""
        self._bandwidth_limit.clear()
        self._bandwidth_used.clear()
        for limit, rate in limits.items():
            self._bandwidth_limit.labels(limit).set(rate)
        for (node, way), rate in used.items():
            self._bandwidth_used.labels(node, way).set(rate)

    def set_totals(self, totals: Totals, *, unlocked: bool) -> None:
        """What the catalog holds now."""
        self._sessions.set(totals.sessions_open)
        self._snapshots.set(totals.snapshots)
        self._packs.set(totals.packs)
        self._repository_bytes.set(totals.stored_bytes)
        self._unlocked.set(1 if unlocked else 0)

    def set_last_success(self, success: Mapping[tuple[str, str], float]) -> None:
        """When each (node, volume) was last backed up wholly; volumes that are gone vanish."""
        self._last_success.clear()
        for (node, volume), timestamp in success.items():
            self._last_success.labels(node, volume).set(timestamp)

    def render(self) -> bytes:
        """The exposition text."""
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            self._cpu.set(cpu.user + cpu.system)
            self._memory.set(self._process.memory_info().rss)
            self._files.set(self._process.num_fds())
            self._threads.set(self._process.num_threads())
        return generate_latest(self.registry)


class _Stores(Collector):
    """Reads what others count, when somebody asks."""

    def __init__(self) -> None:
        self._watched: dict[str, tuple[Tally, Breaker | None]] = {}

    def watch(self, repository: str, tally: Tally, breaker: Breaker | None) -> None:
        """Read these from now on."""
        self._watched[repository] = (tally, breaker)

    @override
    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tidemark_store_requests",
            "What this process asked of the store, failed tries included.",
            labels=["repository", "operation"],
        )
        size = CounterMetricFamily(
            "tidemark_store_bytes",
            "Bytes of objects that this process sent to the store and read from it.",
            labels=["repository", "direction"],
        )
        is_open = GaugeMetricFamily(
            "tidemark_store_circuit_open",
            "1 while the store is left alone, because it failed.",
            labels=["repository"],
        )
        openings = CounterMetricFamily(
            "tidemark_store_circuit_openings",
            "How often it began to be left alone.",
            labels=["repository"],
        )
        for repository, (tally, breaker) in self._watched.items():
            asked = tally.snapshot()
            for operation in Operation:
                requests.add_metric([repository, operation], getattr(asked, operation))
            size.add_metric([repository, "in"], asked.bytes_in)
            size.add_metric([repository, "out"], asked.bytes_out)
            state = None if breaker is None else breaker.state()
            is_open.add_metric(
                [repository], state is not None and state.phase is not CircuitPhase.CLOSED
            )
            openings.add_metric([repository], 0 if state is None else state.openings)
        yield from (requests, size, is_open, openings)
