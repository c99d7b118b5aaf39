"""The coordinator's own errors. The tree they hang on is drawn in repository/errors.py.

UsageError            exit 2
├── NotFoundError                no node, volume, job or snapshot of that name
├── AmbiguousError               the name fits several; the message lists them
└── ConfigError                  the configuration is wrong; all problems in one message
UnauthenticatedError  exit 1     who calls has no identity here, or a revoked one
└── ExpiredError                 its certificate was good when the connection was made
ForbiddenError        exit 1     known, but not allowed this
RejectedError         exit 1     an agent sent what no sound agent sends
IncompatibleError     exit 1     an agent speaks no version of the protocol that is spoken here
CatalogError          exit 1     the coordinator's own database failed
UpgradeError          exit 1     the catalog could not be upgraded; it is as it was
"""

from repository.errors import (
    BusyError,
    CanceledError,
    DamagedError,
    FencedError,
    FormatError,
    KeyMaterialError,
    LockedError,
    NoRepositoryError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    TidemarkError,
    UnsupportedFormatError,
    UsageError,
    WrongKeyError,
    first_error,
)

__all__ = [
    "AmbiguousError",
    "BusyError",
    "CanceledError",
    "CatalogError",
    "ConfigError",
    "DamagedError",
    "ExpiredError",
    "FencedError",
    "ForbiddenError",
    "FormatError",
    "IncompatibleError",
    "KeyMaterialError",
    "LockedError",
    "NoRepositoryError",
    "NotFoundError",
    "ObjectExistsError",
    "ObjectMissingError",
    "RejectedError",
    "StoreError",
    "StoreFullError",
    "StoreUnavailableError",
    "TidemarkError",
    "UnauthenticatedError",
    "UnsupportedFormatError",
    "UpgradeError",
    "UsageError",
    "WrongKeyError",
    "first_error",
]


class NotFoundError(UsageError):
    """Nothing has that name or id."""


class AmbiguousError(UsageError):
    """Several things have that name; the message lists them."""


class ConfigError(UsageError):
    """The configuration does not say what it must."""


class UnauthenticatedError(TidemarkError):
    """The caller's certificate names nobody that is known here."""


class ExpiredError(UnauthenticatedError):
    """The certificate has expired under the connection; with a new one the same call is good."""

    retryable = True


class ForbiddenError(TidemarkError):
    """The caller is known, and may not do this."""


class RejectedError(TidemarkError):
    """What was sent does not check out; it is stored nowhere and trusted for nothing."""


class IncompatibleError(TidemarkError):
    """Agent and coordinator have no version of the protocol in common; the hint says whose turn.

    An agent asks again by itself: it is let in as soon as the other side was upgraded.
    """


class CatalogError(TidemarkError):
    """The catalog cannot be read or written for now."""

    retryable = True


class UpgradeError(TidemarkError):
    """The catalog could not be brought to this version; it is as it was before."""
