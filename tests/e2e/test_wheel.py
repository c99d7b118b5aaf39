"""The main job with the built wheel, in an environment without the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def test_the_main_job_works_from_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
    subprocess.run([*build, tmp_path / "dist"], cwd=REPOSITORY, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")

    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    uv = Path(sys.executable).with_name("uv")
    install = [str(uv), "pip", "install", "--offline", "--no-deps", "--python"]
    subprocess.run([*install, python, wheel], check=True, capture_output=True)
    # The dependencies are those of the lock, where they are installed. A directory added by a .pth
    # file has its own .pth files ignored, so the checkout does not come along.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (environment / "lib" / version / "site-packages/dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )
    where = subprocess.run(
        [python, "-P", "-c", "import coordinator; print(coordinator.__file__)"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(str(environment))

    # What may not be skipped is the outer run's affair, and so are its workers.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "REQUIRE_TESTS" and not name.startswith("PYTEST_")
    }
    done = subprocess.run(
        [*PYTEST, "tests/e2e/test_main_job.py"],
        cwd=REPOSITORY,
        env=inherited | {"TIDEMARK_TEST_COMMAND": str(environment / "bin/tidemark")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
