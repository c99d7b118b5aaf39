"""Every mount has exactly one verdict, decided on what an engine answered."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.discovery.answer import Answer, Container, Mount, NamedVolume
from agent.discovery.ledger import Own, ledger
from agent.discovery.places import Kind, Place
from agent.services import Verdict, Volume
from repository.ids import NodeId, volume_id

NODE = NodeId(b"n" * 16)
ROOT = "/var/lib/docker"
PROTECTED, EXCLUDED = Verdict.PROTECTED, Verdict.EXCLUDED
UNSUPPORTED, UNPROTECTED = Verdict.UNSUPPORTED, Verdict.UNPROTECTED
EXCLUDE = "backup.tidemark.io/exclude"


def directory(path: str) -> str:
    return f"{ROOT}/volumes/{path}/_data"


def named(name: str, **more: Any) -> NamedVolume:
    return NamedVolume(name, mountpoint=directory(name), **more)


def bind(source: str, destination: str = "/data") -> Mount:
    return Mount("bind", destination, source=source)


def use(name: str, destination: str = "/data") -> Mount:
    return Mount("volume", destination, name=name, source=directory(name), driver="local")


def container(name: str, *mounts: Mount, **labels: str) -> Container:
    marked = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
    return Container(name * 12, (f"/{name}",), marked, mounts)


def decide(
    *parts: Container | NamedVolume,
    never: tuple[bytes, ...] = (),
    places: Mapping[str, Place] | None = None,
) -> dict[str, Volume]:
    """The ledger by name, where every path not told otherwise is a directory without links."""
    answer = Answer(
        "20.10",
        ROOT,
        tuple(part for part in parts if isinstance(part, Container)),
        tuple(part for part in parts if isinstance(part, NamedVolume)),
    )
    seen = {path: Place(Kind.DIRECTORY, path.encode()) for path in answer.paths()}
    made = ledger(answer, seen | dict(places or {}), Own(NODE, never))
    names = [volume.name for volume in made]
    assert names == sorted(set(names))
    return {volume.name: volume for volume in made}


def verdict_of(source: str, kind: Kind = Kind.DIRECTORY, **more: Any) -> tuple[Verdict, str]:
    place = Place(kind, source.encode())
    [volume] = decide(container("c", bind(source)), places={source: place}, **more).values()
    return volume.verdict, volume.reason


def test_a_named_volume_is_protected_and_known_by_its_users() -> None:
    volumes = decide(
        named("data", labels={"tier": "gold"}),
        container("web", use("data"), com_docker_compose_project="shop"),
        container("db", use("data", "/elsewhere")),
    )

    assert list(volumes) == ["data"]
    data = volumes["data"]
    assert data.volume_id == volume_id(NODE, "docker", "data")
    assert (data.path, data.source) == (directory("data").encode(), "docker-volume")
    assert (data.verdict, data.containers, data.project) == (PROTECTED, ("db", "web"), "shop")
    assert data.labels == (("tier", "gold"),)


def test_a_volume_that_no_container_uses_is_protected_too() -> None:
    assert decide(named("idle"))["idle"].verdict is PROTECTED


def test_a_bind_mount_is_named_by_its_path_and_may_be_a_file() -> None:
    file = Place(Kind.FILE, b"/srv/app.conf")
    volumes = decide(
        container("web", bind("/srv/app"), bind("/srv/app.conf", "/etc/app.conf")),
        places={"/srv/app.conf": file},
    )

    assert set(volumes) == {"/srv/app", "/srv/app.conf"}
    assert {volume.verdict for volume in volumes.values()} == {PROTECTED}
    assert volumes["/srv/app.conf"].source == "docker-bind"


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        ("/", Kind.DIRECTORY, "whole machine"),
        ("/proc", Kind.DIRECTORY, "made by the kernel"),
        ("/proc/sys/net", Kind.DIRECTORY, "made by the kernel"),
        ("/sys/fs/cgroup", Kind.DIRECTORY, "made by the kernel"),
        ("/dev", Kind.DIRECTORY, "made by the kernel"),
        ("/dev/mqueue", Kind.DIRECTORY, "made by the kernel"),
        ("/dev/sda", Kind.DEVICE, "a device"),
        ("/run/docker.sock", Kind.SOCKET, "a socket"),
        ("/srv/pipe", Kind.PIPE, "a pipe"),
        (ROOT, Kind.DIRECTORY, "Docker's own"),
        (f"{ROOT}/containers", Kind.DIRECTORY, "Docker's own"),
        (f"{ROOT}/containers/x/x-json.log", Kind.FILE, "Docker's own"),
        ("/run/containerd", Kind.DIRECTORY, "Docker's own"),
        ("/var/lib/containerd/io", Kind.DIRECTORY, "Docker's own"),
        ("/tidemark", Kind.DIRECTORY, "Tidemark's own"),
        ("/tidemark/repository", Kind.DIRECTORY, "Tidemark's own"),
    ],
)
def test_what_holds_no_data_is_excluded_by_a_rule(source: str, kind: Kind, reason: str) -> None:
    verdict, why = verdict_of(source, kind, never=(b"/tidemark",))

    assert verdict is EXCLUDED
    assert reason in why


@pytest.mark.parametrize("source", ["/process", "/system", "/devices", "/var/lib/docker-data"])
def test_a_path_that_only_begins_like_an_excluded_one_is_protected(source: str) -> None:
    assert verdict_of(source)[0] is PROTECTED


@pytest.mark.parametrize("kind", [Kind.ABSENT, Kind.UNREADABLE])
def test_what_ought_to_be_there_and_is_not_is_unprotected(kind: Kind) -> None:
    assert verdict_of("/srv/app", kind)[0] is UNPROTECTED
    place = Place(kind, directory("data").encode())
    assert decide(named("data"), places={directory("data"): place})["data"].verdict is UNPROTECTED


def test_rules_hold_for_where_a_path_leads_and_not_for_how_it_is_written() -> None:
    linked = Place(Kind.SOCKET, b"/run/docker.sock")
    assert (
        decide(
            container("c", bind("/var/run/docker.sock")), places={"/var/run/docker.sock": linked}
        )["/var/run/docker.sock"].verdict
        is EXCLUDED
    )
    root = Place(Kind.DIRECTORY, b"/mnt/disk/docker")
    volumes = decide(container("c", bind("/mnt/disk/docker/overlay2")), places={ROOT: root})
    assert "Docker's own" in volumes["/mnt/disk/docker/overlay2"].reason


def test_memory_and_unknown_kinds_of_mounts_are_unsupported() -> None:
    volumes = decide(
        container("c", Mount("tmpfs", "/scratch"), Mount("cluster", "/x"), Mount("npipe", "/y"))
    )

    assert set(volumes) == {"c:/scratch", "c:/x", "c:/y"}
    assert {volume.verdict for volume in volumes.values()} == {UNSUPPORTED}
    assert "memory" in volumes["c:/scratch"].reason
    assert "cluster" in volumes["c:/x"].reason


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"driver": "rexray"}, "driver rexray"),
        ({"options": {"type": "tmpfs", "device": "tmpfs"}}, "memory"),
        ({"options": {"type": "nfs", "device": ":/export", "o": "addr=10.0.0.1"}}, "its nfs"),
        ({"options": {"type": "ext4", "device": "/dev/sdb1"}}, "its ext4"),
        ({"options": {"device": "/dev/sdb1"}}, "its device"),
    ],
)
def test_a_volume_whose_directory_may_be_empty_is_unsupported(
    more: dict[str, Any], reason: str
) -> None:
    volume = decide(named("data", **more))["data"]

    assert volume.verdict is UNSUPPORTED
    assert reason in volume.reason


@pytest.mark.parametrize("options", [None, {}, {"size": "10G"}])
def test_other_options_of_a_local_volume_change_nothing(options: dict[str, str] | None) -> None:
    assert decide(named("data", options=options))["data"].verdict is PROTECTED


def test_a_named_volume_that_is_a_bind_is_read_where_it_lies() -> None:
    options = {"type": "none", "o": "rw,bind", "device": "/srv/data"}
    volumes = decide(named("data", options=options), container("c", bind("/srv/data")))

    assert list(volumes) == ["data"]
    assert (volumes["data"].path, volumes["data"].verdict) == (b"/srv/data", PROTECTED)
    assert volumes["data"].containers == ("c",)
    everything = named("all", options={"o": "bind", "device": "/"})
    assert decide(everything)["all"].verdict is EXCLUDED


def test_one_directory_is_one_volume() -> None:
    volumes = decide(
        named("data"),
        container("a", use("data")),
        container("b", bind(directory("data"))),
        container("d", bind("/srv/x"), bind("/srv/link")),
        places={"/srv/link": Place(Kind.DIRECTORY, b"/srv/x")},
    )

    assert {name: volume.verdict for name, volume in volumes.items()} == {
        "data": PROTECTED,
        "/srv/link": PROTECTED,
    }
    assert volumes["data"].containers == ("a", "b")
    assert volumes["/srv/link"].path == b"/srv/x"


def test_of_two_named_volumes_of_one_directory_one_is_protected() -> None:
    options = {"o": "bind", "device": "/srv/data"}
    volumes = decide(named("one", options=options), named("two", options=options))

    assert (volumes["one"].verdict, volumes["two"].verdict) == (PROTECTED, EXCLUDED)
    assert "volume one" in volumes["two"].reason


def test_a_part_of_a_named_volume_is_not_read_twice() -> None:
    volumes = decide(named("data"), container("c", bind(directory("data") + "/sub")))

    part = volumes[directory("data") + "/sub"]
    assert (part.verdict, volumes["data"].verdict) == (EXCLUDED, PROTECTED)
    assert "volume data" in part.reason


def test_a_path_through_a_link_that_containers_can_exchange_is_unsupported() -> None:
    outside = Place(Kind.DIRECTORY, b"/etc")
    volumes = decide(
        container("evil", bind("/srv/a")),
        container("c", bind("/srv/a/b")),
        places={"/srv/a/b": outside},
    )

    assert volumes["/srv/a/b"].verdict is UNSUPPORTED
    assert "link" in volumes["/srv/a/b"].reason
    # A link above all mounts is the administrator's, and one that stays inside leads nowhere new.
    inside = Place(Kind.DIRECTORY, b"/disk/a/c")
    volumes = decide(
        container("c", bind("/srv/a"), bind("/srv/a/b")),
        places={"/srv/a": Place(Kind.DIRECTORY, b"/disk/a"), "/srv/a/b": inside},
    )
    assert {volume.verdict for volume in volumes.values()} == {PROTECTED}


def test_a_bind_mount_that_holds_dockers_data_skips_it() -> None:
    assert decide(container("c", bind("/var")))["/var"].skip == (ROOT.encode(),)
    assert decide(container("c", bind("/srv")))["/srv"].skip == ()
    assert decide(named("data"))["data"].skip == ()


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", ""])
def test_a_label_excludes_a_volume(word: str) -> None:
    assert decide(named("data", labels={EXCLUDE: word}))["data"].verdict is EXCLUDED


@pytest.mark.parametrize("word", ["false", "no", "0", "perhaps"])
def test_any_other_word_protects(word: str) -> None:
    volume = decide(named("data", labels={EXCLUDE: word}))["data"]

    assert volume.verdict is PROTECTED
    assert ("neither" in volume.reason) == (word == "perhaps")


def test_labels_of_containers_exclude_only_what_all_of_them_exclude() -> None:
    out = container("out", use("shared"), use("own", "/own"), backup_tidemark_io__exclude="true")
    stays = container("stays", use("shared"))
    volumes = decide(named("shared"), named("own"), out, stays)

    assert (volumes["shared"].verdict, volumes["own"].verdict) == (PROTECTED, EXCLUDED)
    assert "out" in volumes["own"].reason


def test_a_volumes_own_label_beats_those_of_its_containers() -> None:
    out = container("out", use("data"), backup_tidemark_io__exclude="true")
    assert decide(named("data", labels={EXCLUDE: "false"}), out)["data"].verdict is PROTECTED


@pytest.mark.parametrize("word", ["data", "/cache", "a, data ,b"])
def test_a_container_may_exclude_single_mounts(word: str) -> None:
    marked = Container(
        "c" * 12,
        ("/c",),
        {"backup.tidemark.io/backup-volumes-excludes": word},
        (use("data", "/cache"), use("kept", "/kept")),
    )
    volumes = decide(named("data"), named("kept"), marked)

    assert (volumes["data"].verdict, volumes["kept"].verdict) == (EXCLUDED, PROTECTED)


def test_a_mount_of_a_volume_that_the_engine_did_not_list_is_not_passed_over() -> None:
    mount = Mount("volume", "/d", name="new", source="/mnt/new", driver="fancy")
    assert decide(container("c", mount))["new"].verdict is UNSUPPORTED
    assert (
        decide(
            container("c", use("new2")),
            places={directory("new2"): Place(Kind.DIRECTORY, directory("new2").encode())},
        )["new2"].verdict
        is PROTECTED
    )


def test_names_that_a_terminal_would_obey_are_shown_as_escapes() -> None:
    volumes = decide(container("c", bind("/srv/\x1b[31mred")))

    assert list(volumes) == ["/srv/\\x1b[31mred"]
    assert volumes["/srv/\\x1b[31mred"].path == b"/srv/\x1b[31mred"


_NAMES = st.sampled_from(["a", "b", "c"])
_PATHS = st.sampled_from(["/", "/srv", "/srv/a", "/proc", ROOT, directory("a"), "/link", ""])
_MOUNTS = st.one_of(
    st.builds(use, _NAMES),
    st.builds(bind, _PATHS),
    st.builds(Mount, st.sampled_from(["tmpfs", "cluster", ""]), st.just("/t")),
)
_CONTAINERS = st.lists(st.lists(_MOUNTS, max_size=4), max_size=4).map(
    lambda all_: [container(f"c{number}", *mounts) for number, mounts in enumerate(all_)]
)


@given(_CONTAINERS, st.lists(_NAMES, unique=True), st.sampled_from(list(Kind)))
def test_every_mount_has_exactly_one_verdict(
    containers: list[Container], names: list[str], kind: Kind
) -> None:
    linked = Place(kind, b"/srv/a")
    volumes = decide(*containers, *(named(name) for name in names), places={"/link": linked})

    assert set(names) <= set(volumes)
    assert all(volume.reason for volume in volumes.values())
    paths = [volume.path for volume in volumes.values() if volume.verdict is PROTECTED]
    assert len(paths) == len(set(paths))
    for each in containers:
        for mount in each.mounts or ():
            known = [
                volume
                for volume in volumes.values()
                if each.name in volume.containers
                and (
                    volume.name in {mount.name, mount.source, f"{each.name}:{mount.destination}"}
                    or volume.path in {mount.source.encode(), b"/srv/a"}
                )
            ]
            assert known, mount
