"""The agent's figures for Prometheus, in a registry of their own.

Counters grow where things happen; the rest is asked for when somebody scrapes. No label names a
file.
"""

from collections.abc import Callable, Iterator, Mapping

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
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


class Sample:
    """What the daemon is at one moment."""

    def __init__(
        self,
        *,
        tasks: Mapping[str, int],
        connected: bool,
        uploads_waiting: int,
        uploads_running: int,
        volumes: int,
    ) -> None:
        self.tasks = dict(tasks)
        self.connected = connected
        self.uploads_waiting = uploads_waiting
        self.uploads_running = uploads_running
        self.volumes = volumes


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
