"""What a container engine answered, as far as anybody here needs it. Pure.

The field names are the Engine API's; whatever else an engine says is passed over.
"""

import msgspec


class Mount(msgspec.Struct, frozen=True, rename="pascal"):
    """One mount of a container."""

    type: str
    """`bind`, `volume`, `tmpfs`, or a word that a newer engine knows."""
    destination: str
    """Where the container sees it."""
    name: str = ""
    """Of a named or anonymous volume."""
    source: str = ""
    """Path on the host, of a bind mount."""
    driver: str = ""


class Container(msgspec.Struct, frozen=True, rename="pascal"):
    """A container, running or not."""

    id: str
    names: tuple[str, ...] | None = None
    """Each with a slash before it."""
    labels: dict[str, str] | None = None
    mounts: tuple[Mount, ...] | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        # A name with a second slash is a link from another container.
        own = [name.removeprefix("/") for name in self.names or () if name.rfind("/") <= 0]
        return own[0] if own else self.id[:12]


class NamedVolume(msgspec.Struct, frozen=True, rename="pascal"):
    """A volume that the engine keeps, whether or not a container uses it."""

    name: str
    driver: str = "local"
    mountpoint: str = ""
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None


class Answer(msgspec.Struct, frozen=True):
    """Everything at one moment."""

    version: str
    data_root: str
    """Where the engine keeps images, containers and volumes."""
    containers: tuple[Container, ...] = ()
    volumes: tuple[NamedVolume, ...] = ()

    def paths(self) -> list[str]:
        """Return every path on the host that the answer mentions."""
        named = [path for volume in self.volumes for path in (volume.mountpoint, device(volume))]
        binds = [
            mount.source
            for container in self.containers
            for mount in container.mounts or ()
            if mount.type == "bind"
        ]
        return sorted({path for path in (self.data_root, *named, *binds) if path.startswith("/")})


def device(volume: NamedVolume) -> str:
    """Return the directory that a local volume is a bind of; "" where it is none."""
    options = volume.options or {}
    flags = options.get("o", "").split(",")
    is_bind = volume.driver == "local" and ("bind" in flags or "rbind" in flags)
    return options.get("device", "") if is_bind else ""
