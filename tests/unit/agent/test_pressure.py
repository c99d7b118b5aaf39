from pathlib import Path

import pytest

from agent.load import read_load
from agent.pressure import (
    Load,
    Stall,
    allowed,
    parse_bytes,
    parse_cache,
    parse_quota,
    parse_stall,
    workers,
)

MIB = 1024 * 1024
CALM = {"cpu": Stall(0, 0), "io": Stall(0, 0), "memory": Stall(0, 0)}
PSI = (
    "some avg10=56.85 avg60=70.19 avg300=72.73 total=7049072937\n"
    "full avg10=1.50 avg60=0.00 avg300=0.00 total=0\n"
)


def load(
    system: dict[str, Stall] | None = None,
    own: dict[str, Stall] | None = None,
    room: int | None = None,
    processors: float | None = None,
) -> Load:
    return Load(CALM | (system or {}), own, room, processors)


def test_the_kernels_words_are_understood() -> None:
    assert parse_stall(PSI) == Stall(56.85, 1.5)
    assert parse_stall("some avg10=2.00 avg60=0 avg300=0 total=1\n") == Stall(2.0, 0.0)
    assert (parse_quota("150000 100000\n"), parse_quota("max 100000\n")) == (1.5, None)
    assert (parse_bytes("1048576\n"), parse_bytes("max\n")) == (MIB, None)
    assert parse_cache("anon 5\nfile 4096\nfile_mapped 1\n") == 4096


@pytest.mark.parametrize(
    "text", ["", "nonsense", "some", "some avg10=", "full avg10=1", "max", "0 0"]
)
def test_other_words_say_nothing(text: str) -> None:
    assert parse_stall(text) is None
    assert parse_quota(text) is None
    assert parse_cache(text) == 0


@pytest.mark.parametrize(
    ("found", "count"),
    [
        (load(), 6),
        # An idle node that only a backup keeps busy: it waits for itself.
        (load({"cpu": Stall(90, 0), "io": Stall(95, 90)}), 6),
        (load({"cpu": Stall(90, 0)}, own={"cpu": Stall(80, 0)}), 6),
        # Others wait beside it.
        (load({"cpu": Stall(90, 0)}, own={"cpu": Stall(20, 0)}), 3),
        (load({"io": Stall(60, 0)}, own=CALM), 3),
        (load({"memory": Stall(10, 0)}), 1),
        (load(own={"memory": Stall(30, 5)}), 1),
        (load(room=64 * MIB), 1),
        (load(room=1024 * MIB), 6),
    ],
)
def test_there_is_less_in_hand_where_others_have_it_hard(found: Load, count: int) -> None:
    assert allowed(found, 6) == count


@pytest.mark.parametrize(
    ("quota", "processors", "count"),
    [(None, 4, 4), (None, 64, 8), (None, 1, 2), (1.5, 16, 2), (3.2, 16, 4), (0.5, 16, 2)],
)
def test_there_are_as_many_workers_as_processors_that_may_be_used(
    quota: float | None, processors: int, count: int
) -> None:
    assert workers(load(processors=quota), processors) == count


def made(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_limits_of_a_group_and_of_those_above_it_count(tmp_path: Path) -> None:
    made(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/agent.service\n",
            "proc/pressure/cpu": PSI,
            "proc/pressure/memory": PSI,
            "groups/system.slice/memory.max": f"{300 * MIB}\n",
            "groups/system.slice/memory.current": f"{250 * MIB}\n",
            "groups/system.slice/memory.stat": f"anon 1\nfile {100 * MIB}\n",
            "groups/system.slice/cpu.max": "max 100000\n",
            "groups/system.slice/agent.service/memory.max": "max\n",
            "groups/system.slice/agent.service/memory.current": "5\n",
            "groups/system.slice/agent.service/cpu.max": "200000 100000\n",
            "groups/system.slice/agent.service/cpu.pressure": PSI,
        },
    )

    found = read_load(tmp_path / "proc", tmp_path / "groups")

    assert found.system == {"cpu": Stall(56.85, 1.5), "memory": Stall(56.85, 1.5)}
    assert found.own == {"cpu": Stall(56.85, 1.5)}
    assert (found.room_bytes, found.processors) == (150 * MIB, 2.0)


@pytest.mark.parametrize("groups", ["", "9:name=systemd:/\n0::/\n", "0::/../..\n"])
def test_a_kernel_that_tells_nothing_limits_nothing(groups: str, tmp_path: Path) -> None:
    made(tmp_path, {"proc/self/cgroup": groups, "groups/cgroup.procs": ""})

    found = read_load(tmp_path / "proc", tmp_path / "groups")

    assert found == Load({}, None, None, None)
    assert allowed(found, 6) == 6


def test_this_machine_can_be_read() -> None:
    assert all(0 <= stall.some <= 100 for stall in read_load().system.values())
