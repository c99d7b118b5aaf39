"""The agent's figures for Prometheus, in a registry of their own.

Counters grow where things happen; the rest is asked for when somebody scrapes. No label names a
file.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override


class Metrics:
    """The agent's own counters. Names follow Prometheus' habits, base units and all."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.tasks_total = Counter(
            "tidemark_agent_tasks",
            "Tasks that have ended.",
            ["kind", "phase"],
            registry=self.registry,
        )
        self.source_read_bytes = Counter(
            "tidemark_agent_source_read_bytes",
            "Content read from volumes, retries included.",
            registry=self.registry,
        )
        self.stored_bytes = Counter(
            "tidemark_agent_stored_bytes",
            "Bytes of packs added to the repository, as stored.",
            registry=self.registry,
        )
        self.restored_bytes = Counter(
            "tidemark_agent_restored_bytes",
            "Bytes written by restores.",
            registry=self.registry,
        )
        self.last_success = Gauge(
            "tidemark_agent_last_success_timestamp_seconds",
            "When the last Completed backup of a volume ended.",
            ["volume"],
            registry=self.registry,
        )
        build = Gauge(
            "tidemark_agent_build_info",
            "Constant 1; what runs stands in the labels.",
            ["version"],
            registry=self.registry,
        )
        build.labels(version).set(1)

    def watch(self, sample: Callable[[], "Sample"]) -> None:
        """Let every scrape show what the daemon is at that moment."""
        self.registry.register(_Live(sample))


class TrackingSample(NamedTuple):
    """What the daemon knows of changes at one moment; volumes are told by their names."""

    volumes: Mapping[str, int]
    """How many of them each source tells of."""
    places: Mapping[str, int]
    missed: Mapping[str, int]
    """Zero where nothing was."""
    sweeps: Mapping[str, int]
    """By why, in a word."""
    suspects: int


class Sample:
    """What the daemon is at one moment."""

    def __init__(  # noqa: PLR0913 - all that there is
        self,
        *,
        tasks: Mapping[str, int],
        connected: bool,
        uploads_waiting: int,
        uploads_running: int,
        volumes: int,
        tracking: TrackingSample,
        throttled: Mapping[str, float],
        store_requests: Mapping[str, int],
    ) -> None:
        self.tasks = dict(tasks)
        self.connected = connected
        self.uploads_waiting = uploads_waiting
        self.uploads_running = uploads_running
        self.volumes = volumes
        self.tracking = tracking
        self.throttled = dict(throttled)
        self.store_requests = dict(store_requests)


class _Live(Collector):
    """Asks when it is scraped, so nothing has to be kept up to date."""

    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._sample = sample
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the mark

    def describe(self) -> Iterator[Metric]:
        return iter(())  # or registering would take a sample

    @override
    def collect(self) -> Iterator[Metric]:
        sample = self._sample()
        tasks = GaugeMetricFamily("tidemark_agent_tasks_now", "Tasks by state.", labels=["state"])
        for state, count in sample.tasks.items():
            tasks.add_metric([state], count)
        yield tasks
        uploads = GaugeMetricFamily("tidemark_agent_uploads", "Packs by state.", labels=["state"])
        uploads.add_metric(["waiting"], sample.uploads_waiting - sample.uploads_running)
        uploads.add_metric(["running"], sample.uploads_running)
        yield uploads
        yield GaugeMetricFamily(
            "tidemark_agent_connected", "Whether the control stream is there.", sample.connected
        )
        yield GaugeMetricFamily(
            "tidemark_agent_volumes", "Volumes that are protected here.", sample.volumes
        )
        throttled = CounterMetricFamily(
            "tidemark_agent_throttled_seconds",
            "Waited because of a limit.",
            labels=["way"],
        )
        for way, seconds in sample.throttled.items():
            throttled.add_metric([way], seconds)
        yield throttled
        requests = CounterMetricFamily(
            "tidemark_agent_store_requests",
            "What this agent itself asked of the store, failed tries included.",
            labels=["operation"],
        )
        for operation, count in sample.store_requests.items():
            requests.add_metric([operation], count)
        yield requests
        yield from _of_tracking(sample.tracking)
        yield from self._of_process()

    def _of_process(self) -> Iterator[Metric]:
        with self._process.oneshot():
            memory = self._process.memory_info()
            cpu = self._process.cpu_times()
            figures = {
                "resident_memory_bytes": memory.rss,
                "virtual_memory_bytes": memory.vms,
                "cpu_seconds": cpu.user + cpu.system,
                "start_time_seconds": self._process.create_time(),
                "open_fds": self._process.num_fds(),
                "threads": self._process.num_threads(),
            }
        for name, value in figures.items():
            yield GaugeMetricFamily(f"process_{name}", f"Of this process: {name}.", value)


def _of_tracking(tracking: TrackingSample) -> Iterator[Metric]:
    missed = CounterMetricFamily(
        "tidemark_missed_changes", "Changes that nothing told of.", labels=["volume"]
    )
    tracked = GaugeMetricFamily(
        "tidemark_agent_volumes_tracked", "Protected volumes by what tells.", labels=["source"]
    )
    places = GaugeMetricFamily(
        "tidemark_agent_dirty_places", "Places kept for the next backup.", labels=["volume"]
    )
    sweeps = CounterMetricFamily(
        "tidemark_agent_sweeps", "Backups that began to look at everything.", labels=["why"]
    )
    figures: list[tuple[GaugeMetricFamily | CounterMetricFamily, Mapping[str, int]]] = [
        (missed, tracking.missed),
        (tracked, tracking.volumes),
        (places, tracking.places),
        (sweeps, tracking.sweeps),
    ]
    for family, values in figures:
        for label, value in values.items():
            family.add_metric([label], value)
        yield family
    yield GaugeMetricFamily(
        "tidemark_agent_suspects", "Files that may be written without event.", tracking.suspects
    )
