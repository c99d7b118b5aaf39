"""The first page of docs/OPERATIONS.md, executed as it stands there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e import trees
from tests.e2e.harness import COMMAND, Machine, Up

DOCUMENT = Path(__file__).parents[2] / "docs/OPERATIONS.md"
RESTORES = "/var/lib/tidemark-agent/restores"
OTHER_NODE = "web-2"


def first_page() -> list[str]:
    """Its blocks of shell, in order."""
    page = DOCUMENT.read_text().split("\n## ")[1]
    assert page.startswith("Restore one volume now")
    return re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def execute(up: Up, block: str) -> str:
    """Type a block into a shell, as root would; what it printed."""
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", block],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=up.machine.environment(
            TIDEMARK_CONTEXT=str(up.context), PATH=f"{Path(COMMAND).parent}:/usr/bin:/bin"
        ),
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    volume = tmp_path / "shop"
    trees.build(volume)
    (volume / "etc").mkdir(exist_ok=True)
    (volume / "etc/app.conf").write_text("mode = safe\n")
    return volume


def test_the_page_for_three_in_the_morning_gets_a_volume_back(
    machine: Machine, shop: Path, tmp_path: Path
) -> None:
    blocks = first_page()
    whole = trees.snapshot_of(shop)
    restores = tmp_path / "restores"

    with machine.up(tmp_path / "data", f"shop-data={shop}") as up:
        up.backup()
        (node,) = up.json("node", "list")
        for block in blocks:
            (shop / "etc/app.conf").write_text("mode = broken\n")
            mine = block.replace(RESTORES, str(restores)).replace(OTHER_NODE, node["name"])
            printed = execute(up, mine)
            if RESTORES in block:
                assert "phase     Completed" in printed
                trees.assert_same(whole, trees.snapshot_of(restores / "shop-data"))
                shutil.rmtree(restores)
            if "--in-place" in block:
                assert (shop / "etc/app.conf").read_text() == "mode = safe\n"
            if "--in-place" in block and "--path" not in block:
                trees.assert_same(whole, trees.snapshot_of(shop))

    # Beside and in place, one file, on another node, and the proof.
    assert [
        sum(each in block for block in blocks) for each in ("--to", "--in-place", "--path")
    ] == [
        2,
        2,
        1,
    ]
    assert "verify create" in blocks[-1]
