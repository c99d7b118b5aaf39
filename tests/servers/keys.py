"""The one user of every server, and a second one of the gateway."""

ACCESS_KEY = "AKIDTIDEMARKTESTS"
SECRET_KEY = "not-a-secret-of-anybody"  # noqa: S105
# May do what the policy of somebody else's bucket lets it do, and nothing besides.
GUEST = "guest"
GUEST_ACCESS_KEY = "AKIDTIDEMARKGUEST"
GUEST_SECRET_KEY = "not-a-secret-either"  # noqa: S105
