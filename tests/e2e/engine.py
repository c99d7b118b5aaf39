"""A real Docker engine of our own: its data, its socket and its containers go when it goes.

It needs root, Debian's docker.io and busybox-static, and no network: the one image it has is made
of busybox alone.
"""

import io
import os
import select
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE = "tidemark-test"
_NEEDED = ("dockerd", "docker", "busybox")
_READY_SECONDS = 60.0
_COMMAND_SECONDS = 60.0
_STOP_SECONDS = 20.0


def missing() -> str:
    """What an engine needs and this machine lacks; "" if it has everything."""
    lacking = [name for name in _NEEDED if _which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)} here (Debian: docker.io, busybox-static)"
    return "" if os.geteuid() == 0 else "dockerd runs as root"


class Engine:
    """One dockerd."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "docker.sock"
        self.address = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, if it does not run, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        (self.root / "daemon.json").write_text("{}")
        with (self.root / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _which("dockerd") or "dockerd",
                    *("--config-file", self.root / "daemon.json"),
                    *("--data-root", self.root / "data"),
                    *("--exec-root", self.root / "exec"),
                    *("--pidfile", self.root / "dockerd.pid"),
                    *("--host", self.address),
                    *("--bridge=none", "--iptables=false", "--ip6tables=false"),
                    *("--ip-forward=false", "--ip-masq=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + _READY_SECONDS
        while self._docker("version").returncode != 0:
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self.root / "dockerd.log").read_text()[-4000:]
                raise AssertionError(f"dockerd does not answer:\n{said}")
            select.select([], [], [], 0.05)

    def stop(self) -> None:
        """End it, as a machine that shuts down does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, *arguments: str | Path) -> str:
        """Run one `docker` command; what it printed."""
        done = self._docker(*arguments)
        assert done.returncode == 0, f"docker {arguments}: {done.stderr.decode()}"
        return done.stdout.decode().strip()

    def shell(self, mount: str, script: str, *options: str) -> str:
        """What a container that mounts this prints, once it has run the script."""
        return self.run(
            *("run", "--rm", "--network", "none", "--volume", mount, *options),
            *(IMAGE, "sh", "-c", script),
        )

    def make_volume(self, name: str, *options: str) -> Path:
        """Make a volume; where its data lie."""
        self.run("volume", "create", *options, name)
        return Path(self.run("volume", "inspect", "--format", "{{.Mountpoint}}", name))

    def make_image(self) -> None:
        """Make the image."""
        busybox = _which("busybox")
        assert busybox is not None
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(busybox, "bin/busybox")
            for applet in ("sh", "cat", "chown", "ls", "mkdir", "rm", "sleep", "stat"):
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        self._docker("import", "-", IMAGE, input_=packed.getvalue()).check_returncode()

    def _docker(
        self, *arguments: str | Path, input_: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [_which("docker") or "docker", "--host", self.address, *arguments],
            input=input_,
            capture_output=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine with its image, as long as the block lasts; nothing is left behind."""
    # The path of a socket has at most 107 letters.
    root = Path(tempfile.mkdtemp(prefix="tm-docker-", dir="/var/tmp"))
    engine = Engine(root)
    try:
        engine.start()
        engine.make_image()
        yield engine
        if containers := engine.run("ps", "--all", "--quiet").split():
            engine.run("rm", "--force", *containers)
    finally:
        engine.stop()
        shutil.rmtree(root)


def _which(name: str) -> str | None:
    # A login as root need not have the directories where Debian puts daemons.
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")
