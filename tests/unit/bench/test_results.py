"""The bench's figures: medians, ratios that say who is better, goals, and the table of them."""

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.bench.data import (
    CASES,
    PAGE_BYTES,
    change_pages,
    change_region,
    change_small,
    differences,
    make_pages,
    make_random,
    make_small,
    make_text,
    size_of,
)
from tests.bench.results import (
    ADDED,
    BUCKET,
    CPU,
    GETS_PER_8_MIB,
    HIGHEST,
    LOWEST,
    MEMORY,
    MIB,
    PLAIN,
    READ,
    STORED,
    Figure,
    Goal,
    Sample,
    Step,
    figures,
    verdict,
)
from tests.bench.table import failures, render
from tests.bench.tools import run


def sample(
    tool: str,
    step: Step,
    seconds: float | None,
    stored: int = 0,
    memory: dict[str, int] | None = None,
    number: int = 1,
) -> Sample:
    error = "" if seconds is not None else "it broke"
    return Sample("small", tool, step, number, seconds, stored, memory or {}, {}, error)


SAMPLES = [
    sample("tidemark", Step.FULL, 2.0, memory={"agent": 100 * MIB, "coordinator": 60 * MIB}),
    sample("tidemark", Step.FULL, 9.0, memory={"agent": 120 * MIB, "command": 40 * MIB}),
    sample("tidemark", Step.FULL, 3.0),
    sample("restic", Step.FULL, 6.0, memory={"": 70 * MIB}),
    sample("tidemark", Step.CHANGED, 1.0, stored=100 * MIB),
    sample("restic", Step.CHANGED, 1.0, stored=80 * MIB),
    sample("restic", Step.RESTORE, 4.0),
    sample("tidemark", Step.RESTORE, None),
]


def found(row: str, samples: list[Sample] = SAMPLES) -> Figure:
    (figure,) = [each for each in figures(samples) if each.row == row]
    return figure


def test_the_processors_are_told_for_each_process_and_by_the_gib() -> None:
    cpu = {"radosgw": 3.0, "command": 0.2, "agent": 4.0, "coordinator": 1.0}
    ours = sample("tidemark", Step.FULL, 2.0)._replace(cpu_seconds_per_gib=cpu)
    peer = sample("plain", Step.FULL, 1.0)._replace(cpu_seconds_per_gib={"": 1.5, "radosgw": 3.0})

    figure = found(CPU, [ours, ours._replace(cpu_seconds_per_gib={"agent": 5.0}), peer])

    assert figure.medians["tidemark agent"] == 4.5
    assert not figure.ratios
    shown = render([figure], ["tidemark", "plain"])
    assert "4.5+1.0+0.2+3.0 s" in shown
    assert "1.5+3.0 s" in shown


def test_a_figure_is_the_median_of_the_rounds() -> None:
    assert found(Step.FULL).medians == {"tidemark": 3.0, "restic": 6.0}


def test_a_ratio_of_times_says_how_many_times_faster_we_are() -> None:
    assert found(Step.FULL).ratios == {"restic": 2.0}


def test_a_ratio_of_bytes_says_how_many_times_more_we_store() -> None:
    assert found(STORED).medians == {"tidemark": 100 * MIB, "restic": 80 * MIB}
    assert found(STORED).ratios == {"restic": 1.25}


def test_memory_is_the_highest_of_all_steps_by_process() -> None:
    assert found(MEMORY).medians == {
        "tidemark agent": 120 * MIB,
        "tidemark coordinator": 60 * MIB,
        "tidemark command": 40 * MIB,
        "restic": 70 * MIB,
    }
    assert found(MEMORY).ratios == {}


def test_a_step_that_failed_has_no_figure_and_is_named() -> None:
    assert found(Step.RESTORE) == Figure(
        "small", Step.RESTORE, {"restic": 4.0}, {}, frozenset({"tidemark"})
    )
    assert failures(SAMPLES) == ["small, tidemark, restore, round 1: it broke"]


@pytest.mark.parametrize(
    ("goal", "ratio", "met"),
    [
        (Goal(1.5), 1.5, True),
        (Goal(1.5), 1.49, False),
        (Goal(1.05, at_most=True), 1.05, True),
        (Goal(1.05, at_most=True), 1.06, False),
    ],
)
def test_a_goal_is_met_or_missed(goal: Goal, ratio: float, met: bool) -> None:
    assert goal.is_met(ratio) is met


def test_a_verdict_compares_with_restic_and_with_the_limit_of_memory() -> None:
    assert verdict(found(Step.FULL)) == "≥2 met"
    assert verdict(found(STORED)) == "≤1.05 MISSED"
    assert verdict(found(Step.UNCHANGED)) == ""
    assert verdict(found(Step.CHANGED)) == ""
    assert verdict(found(MEMORY)) == "<256 MiB met"
    large = [sample("tidemark", Step.FULL, 1.0, memory={"agent": 256 * MIB})]
    assert verdict(found(MEMORY, large)) == "<256 MiB MISSED"
    alone = [sample("restic", Step.FULL, 1.0, memory={"": 1})]
    assert verdict(found(MEMORY, alone)) == ""


def test_a_goal_may_be_another_tool_than_restic() -> None:
    samples = [
        Sample("text", tool, Step.FULL, 1, seconds, 0, {}, {}, "")
        for tool, seconds in (("tidemark", 2.0), ("restic", 4.0), ("zstd", 1.0))
    ]

    assert verdict(found(Step.FULL, samples)) == "≥1.5 met, ≥0.6 of zstd MISSED"


def test_what_a_backup_added_is_the_growth_of_the_repository() -> None:
    samples = [
        sample(tool, step, 1.0, stored=stored, number=number)
        for number in (1, 2, 3)
        for tool, step, stored in (
            ("tidemark", Step.UNCHANGED, 100 * number),
            ("tidemark", Step.CHANGED, 110 * number),
            ("restic", Step.UNCHANGED, 100),
            ("restic", Step.CHANGED, 100 + 40 * number),
        )
    ]

    assert found(ADDED, samples).medians == {"tidemark": 20, "restic": 80}
    assert found(ADDED, samples).ratios == {"restic": 0.25}


def test_the_table_fits_a_terminal_and_says_what_failed() -> None:
    table = render(figures(SAMPLES), ["restic", "tidemark"])

    assert max(map(len, table.splitlines())) <= 100
    assert table.splitlines() == [
        "case   step          tidemark    restic  vs restic  goal (to restic)",
        "--------------------------------------------------------------------",
        "small  full            3.00 s    6.00 s       2.00  ≥2 met",
        "       changed         1.00 s    1.00 s       1.00",
        "       restore         failed    4.00 s",
        "       stored       100.0 MiB  80.0 MiB       1.25  ≤1.05 MISSED",
        "       memory   120+60+40 MiB    70 MiB             <256 MiB met",
    ]


def test_a_tool_alone_has_no_ratios() -> None:
    table = render(figures([sample("restic", Step.FULL, 1.0)]), ["restic"])

    assert "vs" not in table
    assert "1.00 s" in table


def test_what_a_changed_file_costs_is_shown_beside_the_peers_and_limited() -> None:
    samples = [
        Sample("pages", tool, Step.CHANGED, 1, 1.0, 0, {}, {"bytes_read": read * MIB}, "")
        for tool, read in (("tidemark", 12), ("restic", 1024))
    ]

    [figure] = [each for each in figures(samples) if each.row == READ]

    assert figure.medians == {"tidemark": 12 * MIB, "restic": 1024 * MIB}
    assert figure.ratios == {"restic": 12 / 1024}
    assert verdict(figure) == "≤16 MiB met"
    assert verdict(figure._replace(medians={"tidemark": 17 * MIB})) == "≤16 MiB MISSED"
    assert "12.0 MiB" in render([figure], ["tidemark", "restic"])


def test_the_reads_of_a_command_are_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MIB))

    done = run(["cat", "file"], {}, tmp_path)

    assert 3 * MIB <= done.bytes_read < 4 * MIB


@pytest.mark.parametrize("name", CASES)
def test_data_are_the_same_on_every_machine(name: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir()
        CASES[name].make(directory, 0.001)
        CASES[name].change(directory, random.Random(1))

    mine = {path.relative_to(one): path.read_bytes() for path in one.rglob("*") if path.is_file()}
    theirs = {
        path.relative_to(other): path.read_bytes() for path in other.rglob("*") if path.is_file()
    }
    assert mine == theirs


def test_sizes_are_what_was_asked_for(tmp_path: Path) -> None:
    for name, make in (("text", make_text), ("random", make_random)):
        (tmp_path / name).mkdir()
        make(tmp_path / name, 0.001)
        assert size_of(tmp_path / name) == (1 << 30) // 1000
    (tmp_path / "small").mkdir()
    make_small(tmp_path / "small", 0.003)
    sizes = [path.stat().st_size for path in (tmp_path / "small").rglob("*.log")]
    assert len(sizes) == 300
    assert 512 <= min(sizes) < 1024 < 8192 < max(sizes) <= 16 * 1024


def test_a_change_touches_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    make_text(tmp_path / "large", 0.001)
    before = (tmp_path / "large/application.log").read_bytes()
    change_region(tmp_path / "large", random.Random(1))
    after = (tmp_path / "large/application.log").read_bytes()
    assert len(before) == len(after)
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    assert max(changed) - min(changed) <= len(before) // 128

    (tmp_path / "small").mkdir()
    make_small(tmp_path / "small", 0.003)
    old = {path: path.read_bytes() for path in (tmp_path / "small").rglob("*.log")}
    change_small(tmp_path / "small", random.Random(1))
    assert sum(path.read_bytes() != content for path, content in old.items()) == 100


def test_pages_change_here_and_there(tmp_path: Path) -> None:
    make_pages(tmp_path, 0.02)
    before = (tmp_path / "accounts.ibd").read_bytes()
    change_pages(tmp_path, random.Random(1))
    after = (tmp_path / "accounts.ibd").read_bytes()

    starts = range(0, len(before), PAGE_BYTES)
    changed = [at for at in starts if before[at : at + PAGE_BYTES] != after[at : at + PAGE_BYTES]]
    assert len(before) == len(after)
    assert len(changed) == len(before) // PAGE_BYTES * 200 // 131_072
    assert max(changed) - min(changed) > len(before) // 10


def test_a_comparison_finds_every_difference(tmp_path: Path) -> None:
    source, restored = tmp_path / "source", tmp_path / "restored"
    make_small(source, 0.001)
    shutil.copytree(source, restored)
    assert differences(source, restored) == []

    one, two, three, four, *_ = sorted(restored.rglob("*.log"))
    one.unlink()
    two.chmod(0o600)
    modified = three.stat().st_mtime_ns
    three.write_bytes(three.read_bytes()[:-1] + b"!")
    os.utime(three, ns=(modified, modified))
    four.rename(four.with_name("renamed.log"))

    names = [str(path.relative_to(restored)) for path in (one, two, three, four)]
    assert [each for each in differences(source, restored) if "record" in each] == names


def test_a_bucket_is_told_by_a_plain_upload_and_by_what_samples_tell() -> None:
    told = {HIGHEST: 1.04, LOWEST: 0.9, GETS_PER_8_MIB: 1.5}
    samples = [
        Sample(BUCKET, "tidemark", Step.FULL, 1, 2.0, 0, {}, {}, ""),
        Sample(BUCKET, PLAIN, Step.FULL, 1, 1.5, 0, {}, {}, ""),
        Sample(BUCKET, "tidemark", Step.LIMITED, 1, 9.0, 0, {}, dict(told), ""),
    ]

    verdicts = {each.row: verdict(each) for each in figures(samples) if each.medians}

    assert verdicts[Step.FULL] == "≥0.8 of plain MISSED"
    assert verdicts[HIGHEST] == "≤1.05 met"
    assert verdicts[LOWEST] == "≥0.95 MISSED"
    assert verdicts[GETS_PER_8_MIB] == "≤1.2 MISSED"
    assert "1.040" in render(figures(samples), ["tidemark", PLAIN])
