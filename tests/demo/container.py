"""A container whose volume the demonstration loses: made with whatever Docker engine answers."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Where `up --docker` looks, whatever context the docker command may have.
_ADDRESS = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
_IMAGE = "tidemark-demo"
_VOLUME = "tidemark-demo-shop"
_COMMAND_SECONDS = 30


class Container:
    """A container with one named volume. It never runs: its files are copied in and out."""

    volume = _VOLUME
    restored = f"{_VOLUME}-restored"

    def __init__(self) -> None:
        self._name = f"{_VOLUME}-container"

    @property
    def created(self) -> str:
        """The command that made it, for people."""
        return f"docker create --volume {_VOLUME}:/data {_IMAGE}"

    def make(self, volume: str) -> Path:
        """Make it anew with this volume; where the volume lies."""
        docker("create", "--name", self._name, "--volume", f"{volume}:/data", _IMAGE, "/none")
        return Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume).decode())

    def write(self, files: dict[str, bytes]) -> None:
        """Put files into its volume."""
        docker("cp", "-", f"{self._name}:/data", stdin=_packed(files))

    def read(self) -> dict[str, bytes]:
        """All files that it sees in its volume."""
        packed = docker("cp", f"{self._name}:/data", "-")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            members = {one.name: archive.extractfile(one) for one in archive if one.isfile()}
            return {
                name.removeprefix("data/"): file.read() for name, file in members.items() if file
            }

    def lose(self) -> None:
        """Remove it and its volume."""
        docker("rm", "--force", self._name)
        docker("volume", "rm", self.volume)

    def clean(self) -> None:
        """Remove whatever is left of the demonstration."""
        for arguments in (
            ("rm", "--force", self._name),
            ("volume", "rm", "--force", self.volume, self.restored),
            ("image", "rm", "--force", _IMAGE),
        ):
            _run(*arguments)


@contextmanager
def container() -> Iterator[Container | None]:
    """A container with a volume, gone when the block ends; None where no engine answers here."""
    if os.geteuid() != 0 or not _ADDRESS.startswith("unix:///") or not _answers():
        yield None
        return
    made = Container()
    made.clean()
    try:
        docker("import", "-", _IMAGE, stdin=_packed({"none": b""}))
        yield made
    finally:
        made.clean()


def docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    """Run one command; what it printed."""
    done = _run(*arguments, stdin=stdin)
    done.check_returncode()
    return done.stdout.strip() if "-" not in arguments[-1:] else done.stdout


def _answers() -> bool:
    try:
        return _run("version").returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["docker", "--host", _ADDRESS, *arguments],
        input=stdin,
        capture_output=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )


def _packed(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
