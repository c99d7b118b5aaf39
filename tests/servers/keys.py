"""The one user of every server."""

ACCESS_KEY = "AKIDTIDEMARKTESTS"
SECRET_KEY = "not-a-secret-of-anybody"  # noqa: S105
