import asyncio

import aiohttp
import pytest

from agent.config import Address
from agent.endpoint import Endpoint
from agent.metrics import Metrics, Sample, TrackingSample


def sample() -> Sample:
    return Sample(
        tasks={"running": 2},
        connected=True,
        uploads_waiting=3,
        uploads_running=1,
        volumes=4,
        tracking=TrackingSample(
            volumes={"fanotify": 3, "sweep": 1},
            places={"db": 7},
            missed={"db": 0, "web": 2},
            sweeps={"first": 4},
            suspects=5,
        ),
        throttled={"backup": 1.5, "restore": 0.0},
        store_requests={"put": 6, "get": 0},
    )


@pytest.mark.asyncio
async def test_metrics_and_health_are_shown_on_a_free_port() -> None:
    metrics = Metrics("1.2.3")
    metrics.watch(sample)
    metrics.tasks_total.labels("backup", "completed").inc()
    endpoint = Endpoint(metrics, sample)
    bound = await endpoint.open(Address("127.0.0.1", 0))
    try:
        async with aiohttp.ClientSession(f"http://{bound}") as session:
            async with session.get("/metrics") as answer:
                text = await answer.text()
            async with session.get("/healthz") as answer:
                health = await answer.json()
    finally:
        await endpoint.close()

    assert bound.port
    assert 'tidemark_agent_tasks_total{kind="backup",phase="completed"} 1.0' in text
    assert 'tidemark_agent_tasks_now{state="running"} 2.0' in text
    assert 'tidemark_agent_uploads{state="waiting"} 2.0' in text
    assert 'tidemark_agent_build_info{version="1.2.3"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert 'tidemark_missed_changes_total{volume="db"} 0.0' in text
    assert 'tidemark_missed_changes_total{volume="web"} 2.0' in text
    assert 'tidemark_agent_volumes_tracked{source="fanotify"} 3.0' in text
    assert 'tidemark_agent_dirty_places{volume="db"} 7.0' in text
    assert 'tidemark_agent_sweeps_total{why="first"} 4.0' in text
    assert "tidemark_agent_suspects 5.0" in text
    assert 'tidemark_agent_store_requests_total{operation="put"} 6.0' in text
    assert 'tidemark_agent_store_requests_total{operation="get"} 0.0' in text
    assert health == {"status": "ok", "connected": True, "tasks": {"running": 2}, "volumes": 4}


@pytest.mark.asyncio
async def test_whoever_asks_for_anything_else_is_told_what_there_is() -> None:
    endpoint = Endpoint(Metrics("1.2.3"), sample)
    bound = await endpoint.open(Address("127.0.0.1", 0))
    try:
        async with aiohttp.ClientSession(f"http://{bound}") as session:
            async with session.get("/") as answer:
                missing = answer.status, await answer.text()
            async with session.head("/healthz") as answer:
                head = answer.status, await answer.text()
            async with session.post("/healthz", data=b"x") as answer:
                posted = answer.status, answer.headers["Allow"]
    finally:
        await endpoint.close()

    assert missing == (404, "there are /metrics and /healthz\n")
    assert head == (200, "")
    assert posted == (405, "GET, HEAD")


@pytest.mark.asyncio
async def test_a_caller_who_never_asks_does_not_hold_up_the_end() -> None:
    endpoint = Endpoint(Metrics("1.2.3"), sample)
    bound = await endpoint.open(Address("127.0.0.1", 0))
    reader, writer = await asyncio.open_connection(bound.host, bound.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"

    async with asyncio.timeout(0.9):
        await endpoint.close()

    await reader.read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(bound.host, bound.port)
    writer.close()
