"""The demonstration, step by step. Exits 1, and still cleans up, if a step does not hold."""

import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sized
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.demo.container import Container, container
from tests.demo.data import change, collect, create_database, differences, rows_of, writer
from tests.demo.stage import DemoError, Row, Stage

# Enough to tell snapshots apart, as people would type them.
_ID_DIGITS = 8


def main() -> int:
    """Run it in a directory of its own, and remove that whatever happens."""
    signal.signal(signal.SIGTERM, _interrupted)
    place = Path(tempfile.mkdtemp(prefix="tidemark-demo-"))
    stage = Stage(place)
    try:
        _demonstrate(stage, time.monotonic())
    except DemoError as error:
        stage.console.print(f"\n[bold red]The demonstration failed:[/] {error}", markup=True)
        for log in sorted((place / "tidemark/logs").glob("*.log")):
            stage.console.print(f"--- {log.name}\n{log.read_text()[-3000:]}", markup=False)
        return 1
    except KeyboardInterrupt:
        stage.console.print("\ninterrupted; cleaning up")
        return 130
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def _demonstrate(stage: Stage, began: float) -> None:
    docs, database = stage.place / "docs", stage.place / "app"
    stage.title()

    stage.step("Real data: this machine's documentation, and a database in use")
    with stage.console.status("   copying", spinner="dots"):
        collected = collect(docs)
        database.mkdir()
        create_database(database / "readings.db")
    stage.say(
        f"{collected.files:,} files of {', '.join(collected.sources)}, "
        f"{collected.links:,} of them links: {collected.size_bytes / 2**20:.0f} MiB"
    )
    size = (database / "readings.db").stat().st_size
    stage.say(f"a SQLite database of {size / 2**20:.0f} MiB, which a writer changes from now on")

    with container() as shop, writer(database / "readings.db"):
        if shop is not None:
            shop.make(shop.volume)
            shop.write(orders := _orders())
            stage.say(f"a container with {len(orders)} files in a named volume: {shop.created}")
        else:
            stage.note("no Docker engine answers here (or not to root): no container is shown")
        stage.step("One command protects all of it")
        with stage.up(f"docs={docs}", f"app={database}", docker=shop is not None):
            _protect(stage, docs, database)
            if shop is not None:
                _lose_and_restore(stage, shop)
            _prove(stage)
            stored = stage.run("repo", "show")["stored_bytes"]
    stage.closing_table(stored, time.monotonic() - began)


def _protect(stage: Stage, docs: Path, database: Path) -> None:
    stage.step("The first backup reads everything")
    first = _backup(stage, "full backup", "docs", "app")

    stage.step("Some files change; the second backup sends only what is new")
    stage.say(change(docs))
    second = _backup(stage, "incremental backup", "docs", "app")
    changes = stage.run("snapshot", "diff", first["docs"], second["docs"])
    stage.say(f"the two snapshots of docs differ in {len(changes):,} paths")

    stage.step("Restore the latest snapshots, and compare")
    _restore(stage, "restore docs", second["docs"], stage.place / "restored/docs")
    _restore(stage, "restore database", second["app"], stage.place / "restored/app")
    compared, different = differences(docs, stage.place / "restored/docs")
    if different:
        raise DemoError(f"{len(different)} entries differ: {different[:5]}")
    stage.say(f"{compared:,} entries are the same: bytes, modes, owners, times and links")
    rows, check = rows_of(stage.place / "restored/app/readings.db")
    if check != "ok":
        raise DemoError(f"the restored database is damaged: {check}")
    live, _ = rows_of(database / "readings.db")
    stage.say(
        f"the restored database is sound and has {rows:,} rows; "
        f"the live one has {live - rows:,} more by now"
    )


def _prove(stage: Stage) -> None:
    stage.step("Prove it: every stored byte is read, opened and hashed again")
    proof = _timed(stage, "verify", "verify", "create", "--all", "--depth", "data", "--wait")
    stage.say(f"{proof['packs_checked']} packs and {proof['chunks_checked']:,} chunks are sound")

    stage.step("Damage one byte of one pack; Tidemark finds it and names the files")
    pack = _damage(stage.place / "tidemark/repository/packs")
    stage.note(f"flipped one bit in the middle of {pack.name}")
    found = _timed(
        stage,
        *("find the damage", "verify", "create", "--all", "--depth", "data", "--wait"),
        code=1,
    )
    if found["damaged_total"] < 1:
        raise DemoError("the damage was not found")
    report = found["damaged"][0]
    stage.say(f"exit code 1; damaged pack {report['pack']}")
    stage.say(
        f"it is needed by {_count(report['snapshots'], 'snapshot')} and holds data of "
        f"{_count(report['paths'], 'path')}, such as {', '.join(report['paths'][:2])}"
    )


def _orders() -> dict[str, bytes]:
    """What the container has to lose."""
    source = random.Random(11)
    return {f"order-{number}.bin": source.randbytes(50_000) for number in range(40)}


def _lose_and_restore(stage: Stage, shop: Container) -> None:
    """Back a container's volume up, remove it, and let a new container read it."""
    stage.step("A container's volume was found by itself; it is lost, and comes back")
    found = stage.run("volume", "show", shop.volume)
    stage.say(f"{found['verdict']}: {found['reason']}; used by {', '.join(found['containers'])}")
    snapshot = _backup(stage, "volume backup", shop.volume)[shop.volume]
    shop.lose()
    stage.note(f"docker volume rm {shop.volume}: the container and its volume are gone")
    _restore(stage, "restore volume", snapshot, shop.make(shop.restored))
    if shop.read() != _orders():
        raise DemoError("a new container does not read what the lost one wrote")
    stage.say("a new container reads all its files as they were")


def _backup(stage: Stage, step: str, *volumes: str) -> dict[str, str]:
    """Back these volumes up; the snapshot of each."""
    began = time.monotonic()
    made = stage.run("backup", "create", *volumes, "--wait")
    seconds = time.monotonic() - began
    for one in made["snapshots"]:
        stage.say(
            f"{one['volume']}: {one['phase']}, {one['files_new']:,} new, "
            f"{one['files_changed']:,} changed, {one['files_removed']:,} removed"
        )
    read = sum(one["bytes_read"] for one in made["snapshots"])
    stored = sum(one["data_added_packed"] for one in made["snapshots"])
    total = sum(one["total_bytes_processed"] for one in made["snapshots"])
    stage.measured(Row(step, seconds, read, stored, f"of {total / 2**20:.0f} MiB protected"))
    return {one["volume"]: one["snapshot_id"][:_ID_DIGITS] for one in made["snapshots"]}


def _restore(stage: Stage, step: str, snapshot: str, target: Path) -> None:
    began = time.monotonic()
    made = stage.run("restore", "create", "--from", snapshot, "--to", str(target), "--wait")
    seconds = time.monotonic() - began
    stage.say(f"{made['files_restored']:,} files, {made['bytes_restored'] / 2**20:.0f} MiB")
    stage.measured(
        Row(
            step,
            seconds,
            made["bytes_fetched"],
            note=f"{made['bytes_restored'] / 2**20:.0f} MiB written",
        )
    )


def _timed(stage: Stage, step: str, *arguments: str, code: int = 0) -> Any:
    began = time.monotonic()
    made = stage.run(*arguments, code=code)
    note = f"{_count(range(made['damaged_total']), 'pack')} damaged"
    stage.measured(Row(step, time.monotonic() - began, made["bytes_read"], note=note))
    return made


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _damage(packs: Path) -> Path:
    """Flip one bit in the middle of the largest pack."""
    pack = max(
        (path for path in packs.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    pack.chmod(0o600)
    middle = pack.stat().st_size // 2
    with pack.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
    return pack


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
