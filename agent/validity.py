"""How long a certificate is good, and when to renew it. Pure: times come as arguments, in ns.

Times are Unix times; a certificate holds whole seconds of them.
"""

from datetime import datetime
from typing import Final

import msgspec
from cryptography import x509

_SECOND_NS: Final = 1_000_000_000
# Around two thirds, so that nodes that joined together do not renew together: what is left is
# time for a coordinator that is away.
_EARLIEST: Final = 0.62
_LATEST: Final = 0.71
# Clocks are set and machines sleep: look at the time again this often.
_LOOK_SECONDS: Final = 60.0
_BACKOFF_SECONDS: Final = (0.5, 300.0)


class Validity(msgspec.Struct, frozen=True):
    """From when until when a certificate is good."""

    begins_ns: int
    expires_ns: int

    def expired(self, now_ns: int) -> bool:
        """Whether nobody takes it any more."""
        return now_ns >= self.expires_ns

    def renew_at(self, chance: float) -> int:
        """Return when to renew it. Chance, from 0 to 1, is drawn once for each certificate."""
        share = _EARLIEST + (_LATEST - _EARLIEST) * chance
        return self.begins_ns + int((self.expires_ns - self.begins_ns) * share)


def read_validity(certificate_pem: bytes) -> Validity:
    """Return the validity of a certificate; ValueError if it is none."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return Validity(
        _nanoseconds(certificate.not_valid_before_utc),
        _nanoseconds(certificate.not_valid_after_utc),
    )


def wait_seconds(renew_at_ns: int, now_ns: int) -> float:
    """Return how long to sleep before looking at the time again; 0 if it is time to renew."""
    return min(max(0, renew_at_ns - now_ns) / _SECOND_NS, _LOOK_SECONDS)


def retry_seconds(failures: int, chance: float) -> float:
    """Return how long to wait after so many failures in a row (1 or more), spread by chance."""
    shortest, longest = _BACKOFF_SECONDS
    # The exponent is bounded, or a year of failures would overflow.
    return min(shortest * 2.0 ** min(failures - 1, 30), longest) * (0.5 + chance)


def _nanoseconds(moment: datetime) -> int:
    return round(moment.timestamp()) * _SECOND_NS
