"""Every error that Tidemark raises on purpose, as one tree.

    TidemarkError                exit 1
    ├── UsageError               exit 2    the request itself is wrong
    ├── NoRepositoryError        exit 10   nothing there that is a repository
    ├── BusyError                exit 11   somebody else works on it; try again later
    ├── FencedError              exit 11   the right to write was lost; begin anew
    ├── KeyMaterialError         exit 12
    │   ├── WrongKeyError                  the key does not open what it should
    │   └── LockedError                    custody is locked; unlock it first
    ├── CanceledError            exit 130  somebody asked for it to stop
    ├── UnsupportedFormatError             written by a newer Tidemark
    ├── DamagedError                       stored bytes are not what was stored
    │   └── FormatError                    bytes that do not decode at all
    └── StoreError                         the place where packs lie failed
        ├── StoreUnavailableError          for now; the same call may succeed later
        ├── StoreForbiddenError            the key may not do this
        ├── StoreFullError                 no space left
        ├── ObjectMissingError             no object of that name
        └── ObjectExistsError              a name is never used twice

The class says what the caller may do, the message what happened, the hint what comes next. A
failed store is never reported as an unreadable source: the two trees do not meet.
"""

from typing import ClassVar, Final

import msgspec

# What msgspec raises for bytes that are not what they should be; for deeply nested ones it is the
# interpreter's limit that stops it.
UNDECODABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)


class TidemarkError(Exception):
    """Root of the tree. Messages are lower-case without a full stop; a hint is a next step."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TidemarkError):
    """The request can't be right, whatever the state of things."""

    exit_code = 2


class NoRepositoryError(TidemarkError):
    """There is no repository where one was expected."""

    exit_code = 10


class BusyError(TidemarkError):
    """Somebody else holds what is needed; it will be free later."""

    exit_code = 11
    retryable = True


class FencedError(TidemarkError):
    """The session has lost its right to write; whatever it goes on to write is refused."""

    exit_code = 11


class KeyMaterialError(TidemarkError):
    """A key is missing or wrong."""

    exit_code = 12


class WrongKeyError(KeyMaterialError):
    """A key or passphrase does not open what it should."""


class LockedError(KeyMaterialError):
    """Custody of the recovery key is locked."""


class CanceledError(TidemarkError):
    """Stopped on request."""

    exit_code = 130


class UnsupportedFormatError(TidemarkError):
    """The format is unknown, or a feature of what is to be written or collected."""


class DamagedError(TidemarkError):
    """Stored bytes are not those that were stored, or not signed by whom they should be."""


class FormatError(DamagedError):
    """Bytes that do not decode as what they should be."""


class StoreError(TidemarkError):
    """The store refused or failed."""


class StoreUnavailableError(StoreError):
    """The store does not answer for now."""

    retryable = True


class StoreForbiddenError(StoreError):
    """The store says that the key may not do this; some stores say so when they are in trouble."""


class StoreFullError(StoreError):
    """The store has no space left."""


class ObjectMissingError(StoreError):
    """No object of that name."""


class ObjectExistsError(StoreError):
    """An object of that name exists; names are never reused, so it is not replaced."""


def first_error(error: BaseException) -> BaseException:
    """Return the first error of a group, however deep; any other error is its own first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
