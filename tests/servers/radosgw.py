"""Ceph's S3 gateway with the smallest cluster there is: one monitor, and one disk in memory.

It checks signatures, has conditional writes, versions and object lock. Debian has the packages;
it needs no root, and writes nothing outside its directory.
"""

import shutil
import uuid
from pathlib import Path

from tests.servers.keys import (
    ACCESS_KEY,
    GUEST,
    GUEST_ACCESS_KEY,
    GUEST_SECRET_KEY,
    SECRET_KEY,
)
from tests.servers.processes import answers, free_port, run, start, wait_until

_NEEDED = ("ceph-mon", "ceph-osd", "monmaptool", "osdmaptool", "radosgw", "radosgw-admin")
_STEP_SECONDS = 60.0
# By this name it serves a bucket as a host of its own; by its address, as the first part of a path.
HOST = "s3.test"

# No authentication between its parts: all of them end with the tests, and listen on loopback.
# The gateway asks its monitor in "secure" mode unless told otherwise, which needs keys.
# Without tcp_nodelay each of its answers waits 40 ms for an acknowledgement.
_CONFIGURATION = """[global]
fsid = {cluster}
mon host = [v2:127.0.0.1:{first},v1:127.0.0.1:{second}]
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {directory}
admin socket =
log file = {directory}/$name.log
mon cluster log file = {directory}/cluster.log
mon data = {directory}/mon
mon data avail warn = 1
mon data avail crit = 0
osd data = {directory}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class load list = *
osd class default list = *
mon allow pool size one = true
mon max pg per osd = 1000
paxos propose interval = 0.02
paxos min wait = 0.01
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw data = {directory}/rgw
rgw run sync thread = false
rgw enable usage log = false
rgw dns name = {host}
"""


def missing() -> str:
    """What it needs and this machine lacks; "" if it has everything."""
    lacking = [name for name in _NEEDED if shutil.which(name) is None]
    return f"no {', '.join(lacking)} here (Debian: radosgw, ceph-mon, ceph-osd)" if lacking else ""


def serve(directory: Path) -> str:
    """Start all of it; the URL, once it answers. Ends with the calling thread."""
    port, log = free_port(), directory / "start.log"
    conf = _configure(directory, port)
    for name in ("mon", "osd", "rgw"):
        (directory / name).mkdir()
    _make_monitor(directory, conf, log)
    start(["ceph-mon", *conf, "-i", "a", "-f"], log)
    run(["ceph-osd", *conf, "-i", "0", "--mkfs"], log, seconds=_STEP_SECONDS)
    start(["ceph-osd", *conf, "-i", "0", "-f"], log)
    _make_user(conf, "tests", ACCESS_KEY, SECRET_KEY, log)
    gateway = start(["radosgw", *conf, "-n", "client.rgw", "-f"], log)
    _make_user(conf, GUEST, GUEST_ACCESS_KEY, GUEST_SECRET_KEY, log)
    wait_until(lambda: answers(port), gateway, log, seconds=_STEP_SECONDS)
    return f"http://127.0.0.1:{port}"


def _configure(directory: Path, port: int) -> list[str]:
    """Write the configuration; the flags that name it."""
    path = directory / "ceph.conf"
    text = _CONFIGURATION.format(
        cluster=uuid.uuid4(),
        first=free_port(),
        second=free_port(),
        directory=directory,
        port=port,
        host=HOST,
    )
    path.write_text(text)
    return ["-c", str(path)]


def _make_user(conf: list[str], name: str, key: str, secret: str, log: Path) -> None:
    user = ["user", "create", f"--uid={name}", f"--display-name={name}"]
    keys = [f"--access-key={key}", f"--secret-key={secret}"]
    run(["radosgw-admin", *conf, *user, *keys], log, seconds=_STEP_SECONDS)


def _make_monitor(directory: Path, conf: list[str], log: Path) -> None:
    """The monitor's data, with a map that has its one disk already."""
    text = Path(conf[1]).read_text()
    cluster = text.partition("fsid = ")[2].partition("\n")[0]
    addresses = text.partition("mon host = ")[2].partition("\n")[0]
    monitors, disks = directory / "monmap", directory / "osdmap"
    made: list[str | Path] = [
        "monmaptool",
        "--create",
        "--fsid",
        cluster,
        "--addv",
        "a",
        addresses,
        monitors,
    ]
    run(made, log, seconds=_STEP_SECONDS)
    run(["osdmaptool", *conf, "--createsimple", "1", disks], log, seconds=_STEP_SECONDS)
    maps = ["--monmap", str(monitors), "--osdmap", str(disks)]
    run(["ceph-mon", *conf, "-i", "a", "--mkfs", *maps], log, seconds=_STEP_SECONDS)
