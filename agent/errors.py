"""The agent's errors.

What the caller may do is in the class, as in repository/errors.py, from which all derive:

    TidemarkError
    ├── ConfigError            exit 2: the configuration is wrong; all problems at once
    ├── SourceError            one path of a volume cannot be read; the rest can
    │   └── VolumeError        the volume itself cannot; its backup is Failed
    ├── UntrackableError       events cannot tell what changes in a volume; sweep it
    ├── TargetError            a restore cannot be written where it was asked to
    ├── StateError             the agent's own state directory is unusable
    ├── EngineError            the container engine does not answer; try again
    ├── CoordinatorError       the coordinator, or the store behind it, said no
    └── UnreachableError       the coordinator is not there now; try again

Refusals that have a class of their own in repository/errors.py (fenced, busy, wrong key) keep it.
A failed write to the repository is a StoreError or a CoordinatorError, never a SourceError.
"""

from repository.errors import TidemarkError, UsageError
from repository.errors import first_error as first_error


class ConfigError(UsageError):
    """The configuration is wrong; the message lists every problem found."""


class SourceError(TidemarkError):
    """A path of a volume could not be read. The backup goes on without it, and says so."""


class VolumeError(SourceError):
    """The volume as a whole could not be read: it has gone, or nobody lets us in."""


class UntrackableError(TidemarkError):
    """Events cannot tell what changes in a volume; the message says why. A sweep can."""


class TargetError(TidemarkError):
    """A restore could not be written to its target."""


class StateError(TidemarkError):
    """The agent's state directory or its database is unusable."""


class EngineError(TidemarkError):
    """The container engine does not answer, or answers what nobody understands."""

    retryable = True


class CoordinatorError(TidemarkError):
    """The coordinator refused a call, or the repository behind it failed; its own words."""


class UnreachableError(TidemarkError):
    """The coordinator cannot be reached, or did not answer in time."""

    retryable = True
