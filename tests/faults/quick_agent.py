"""The agent as it is, but that it finds in 2 s that nobody answers, and calls again each second."""

import sys

from agent import __main__, channel, session

if __name__ == "__main__":
    channel.KEEPALIVE_SECONDS = 1.0  # type: ignore[misc]
    session._BACKOFF_SECONDS = (0.3, 1.0)  # type: ignore[misc]
    sys.exit(__main__.run(sys.argv[1:]))
