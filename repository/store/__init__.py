"""Where a repository's objects lie. One interface, one file per kind of place."""
