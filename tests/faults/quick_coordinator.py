"""The coordinator as it is, but that it gives an agent seconds where it gives it half a minute.

An agent that says nothing for 2 s is gone; what it worked on fails another 4 s later.
"""

import sys
from functools import partial
from typing import Final

from coordinator import __main__, server
from coordinator.api import agent
from coordinator.running import Limits

SILENCE_SECONDS: Final = 2.0
LEASE_SECONDS: Final = 4.0


if __name__ == "__main__":
    agent.HEARTBEAT_SECONDS = 1  # type: ignore[misc]
    agent._HEARTBEATS_MISSED = 2  # type: ignore[misc]
    limits = Limits(agent_wait_seconds=60.0, grace_seconds=LEASE_SECONDS)
    # Agents ask it for a sign each second.
    server._OPTIONS.append(("grpc.http2.min_recv_ping_interval_without_data_ms", 100))
    server.serve = partial(server.serve, limits=limits)
    sys.exit(__main__.run(sys.argv[1:]))
