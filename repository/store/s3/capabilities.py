"""What a store can do beyond what every S3 can, as a probe found it. Pure."""

from typing import Self

import msgspec

from repository.errors import UNDECODABLE, FormatError


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Recorded once. With none of them everything works, by more requests or fewer promises.

    Fields of a later version are passed over: what this one does not know it does not use.
    """

    # A write that names a condition fails where the name is taken, instead of replacing.
    conditional_put: bool = False
    # A SHA-256 sent along is compared with what arrived.
    checksum_sha256: bool = False
    # A deleted object stays as a version until that version is deleted.
    versioning: bool = False
    # Versions can be kept from deletion until a time.
    object_lock: bool = False
    # The last bytes can be asked for without knowing the length.
    suffix_ranges: bool = False
    # What was written is in the next listing, and what was deleted is not.
    list_after_write: bool = False
    # A signed request works without a key, and for nothing but what was signed.
    presign: bool = False

    def encode(self) -> bytes:
        """As JSON, for whoever keeps it."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From what `encode` made; FormatError where it was not."""
        try:
            return msgspec.json.decode(data, type=cls)
        except UNDECODABLE as error:
            raise FormatError("the record of what the store can do does not decode") from error


# For a store that nobody has probed.
NONE_KNOWN = Capabilities()
