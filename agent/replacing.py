"""What becomes of a name: decided from what a restore wants there and what stands there. Pure.

What is of the same kind stays and gets what differs. Anything else is made under another name and
takes the name when it is whole, so that whoever looks sees the old or the new. Only a directory
cannot be exchanged like that: it has to go before something else has its name, or the reverse.
"""

from enum import Enum
from typing import Final, NamedTuple

from repository.entries import Attributes, Entry, EntryType

# The system labels everything by its own rules: these are set where wanted, and never removed.
_LABELS: Final = frozenset(
    {
        b"security.selinux",
        b"security.SMACK64",
        b"security.apparmor",
        b"security.ima",
        b"security.evm",
    }
)


class Standing(NamedTuple):
    """What stands at a name of the target."""

    type: EntryType
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    identity: tuple[int, int]
    """Device and inode."""
    links: int
    device: int
    target: bytes | None
    """Of a symbolic link."""
    attributes: Attributes | None
    """The extended ones, ACLs among them."""


class Way(Enum):
    """How a name comes to be what the snapshot says."""

    CREATE = "nothing stands there"
    KEEP = "what stands there stays, and gets what differs"
    REPLACE = "made beside it, then it takes the name"
    CLEAR = "a directory stands in the way, or something else in the way of a directory"


def decide(wanted: Entry, standing: Standing | None) -> Way:
    """How a name comes to be as wanted, sockets left out: they are not restored."""
    if standing is None:
        return Way.CREATE
    if standing.type is not wanted.type:
        has_directory = EntryType.DIRECTORY in {standing.type, wanted.type}
        return Way.CLEAR if has_directory else Way.REPLACE
    if wanted.type in {EntryType.DIRECTORY, EntryType.FILE}:
        return Way.KEEP
    same = standing.target == wanted.target and standing.device == wanted.device
    return Way.KEEP if same else Way.REPLACE


def has_metadata(standing: Standing, wanted: Entry, *, times: bool = True) -> bool:
    """Whether owner, mode, attributes and, if asked, the time of change are as wanted."""
    return (
        (standing.uid, standing.gid) == (wanted.uid, wanted.gid)
        # The mode of a symbolic link is nothing that anybody could set.
        and (wanted.type is EntryType.SYMLINK or standing.mode == wanted.mode)
        and (not times or standing.mtime_ns == wanted.mtime_ns)
        and not any(attribute_edits(standing.attributes, wanted.xattrs))
    )


def attribute_edits(
    there: Attributes | None, wanted: Attributes | None
) -> tuple[list[bytes], Attributes]:
    """Names of the extended attributes to remove, and those to set, to get what is wanted."""
    if there == wanted:
        return [], []
    has, wants = dict(there or ()), dict(wanted or ())
    removed = [name for name in has if name not in wants and name not in _LABELS]
    return removed, [(name, value) for name, value in wants.items() if has.get(name) != value]


def is_one_inode(first: Standing, others: list[Standing | None]) -> bool:
    """Whether a file's names are `first` and those of `others` that are it, and no further ones.

    If so it may be written in place: nobody but the restored names sees that.
    """
    mine = sum(other is not None and other.identity == first.identity for other in others)
    return 1 + mine == first.links
