"""Agent, coordinator and store, each in a network of its own, with a cable between any two.

The store is this process's own network, where the gateway listens on loopback; a wire brings it to
an address that both others reach. A fourth cable is the administrator's. A cable that is pulled
takes no packet, and nobody is told: connections hang, as they do when a switch dies. Needs root.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

_PREFIX: Final = 30


@dataclass(frozen=True)
class Cable:
    """Two ends; an end without a network is in that of this process."""

    networks: tuple[str, str]
    devices: tuple[str, str]
    addresses: tuple[str, str]
    leads_to: str = ""
    """An address behind the second end."""

    def plug(self) -> None:
        """Let it be there."""
        first, second = self.devices
        ip("", "link", "add", first, "type", "veth", "peer", "name", second)
        for network, device, address in zip(
            self.networks, self.devices, self.addresses, strict=True
        ):
            if network:
                ip("", "link", "set", device, "netns", network)
            ip(network, "addr", "add", f"{address}/{_PREFIX}", "dev", device)
            ip(network, "link", "set", device, "up")
        self._lead()

    def pull(self) -> None:
        """Let nothing through."""
        ip(self.networks[0], "link", "set", self.devices[0], "down")

    def plug_in_again(self) -> None:
        """Let everything through again."""
        ip(self.networks[0], "link", "set", self.devices[0], "up")
        self._lead()

    def _lead(self) -> None:
        if self.leads_to:
            way = ("via", self.addresses[1], "dev", self.devices[0])
            ip(self.networks[0], "route", "replace", self.leads_to, *way)


@dataclass(frozen=True)
class Networks:
    """All of it."""

    agent: str
    coordinator: str
    store_address: str
    agent_coordinator: Cable
    agent_store: Cable
    coordinator_store: Cable
    administrator: Cable


@contextmanager
def networks() -> Iterator[Networks]:
    """Make them; gone when the block is left."""
    # Of the addresses that are for tests of networks, by RFC 2544: several runs at once.
    subnet = f"198.{random.choice((18, 19))}.{random.randrange(256)}"
    tag = f"{os.getpid()}{random.randrange(100):02}"
    agent, coordinator = f"tm-agent-{tag}", f"tm-coord-{tag}"
    store = f"{subnet}.200"

    def cable(number: int, here: str, there: str, leads_to: str = "") -> Cable:
        ends = (f"t{number}a{tag}", f"t{number}b{tag}")
        base = 4 * number
        return Cable(
            (here, there), ends, (f"{subnet}.{base + 1}", f"{subnet}.{base + 2}"), leads_to
        )

    made = Networks(
        agent,
        coordinator,
        store,
        agent_coordinator=cable(0, agent, coordinator),
        agent_store=cable(1, agent, "", store),
        coordinator_store=cable(2, coordinator, "", store),
        administrator=cable(3, coordinator, ""),
    )
    with ExitStack() as stack:
        for network in (agent, coordinator):
            ip("", "netns", "add", network)
            # Takes its ends of cables with it, and so the other ends.
            stack.callback(ip, "", "netns", "del", network)
            ip(network, "link", "set", "lo", "up")
        for each in (
            made.agent_coordinator,
            made.agent_store,
            made.coordinator_store,
            made.administrator,
        ):
            each.plug()
        ip("", "addr", "add", f"{store}/32", "dev", made.agent_store.devices[1])
        yield made


def within(network: str) -> tuple[str, ...]:
    """What runs a command there."""
    return ("nsenter", f"--net=/run/netns/{network}")


def ip(network: str, *arguments: str) -> None:
    """Tell the kernel."""
    where = ("-netns", network) if network else ()
    subprocess.run(["ip", *where, *arguments], check=True, capture_output=True, text=True)
