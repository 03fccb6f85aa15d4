"""A network of a test's own: each node in a namespace, all on one bridge with us, so that the wires between
them can be cut one by one and in one direction."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_NOBODY = "02:00:00:00:00:01"  # an address no card has: what is sent there is lost, and nobody is told


def why_no_namespaces() -> str:
    """Why this machine lets us make no networks; empty if it does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"there is no {missing[0]}"
    try:
        with network(("try",)):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network can be made: {error.stderr.strip()}"


@dataclass(frozen=True)
class Namespace:
    """A node's own network. `card` is our end of its wire."""

    name: str
    address: str
    card: str

    @property
    def enter(self) -> list[str]:
        """Words before a command that run it inside, as the same process."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]


class Network:
    """The bridge, our own address on it, and the nodes by name."""

    def __init__(self, bridge: str, address: str, nodes: dict[str, Namespace]) -> None:
        self.bridge, self.address, self.nodes = bridge, address, nodes

    def cut(self, node: str) -> None:
        """Pulls the plug of a node: it loses its carrier, nothing goes in or out."""
        _ip("link", "set", self.nodes[node].card, "down")

    def deafen(self, node: str) -> None:
        """Nothing reaches the node any more; what it sends arrives."""
        there = self.nodes[node].address
        _lose([], there, self.bridge)
        for other in self._others(node):
            _lose(["-n", other.name], there, "eth0")

    def mute(self, node: str) -> None:
        """Nothing that the node sends arrives; it hears everybody."""
        inside = ["-n", self.nodes[node].name]
        for address in (self.address, *(other.address for other in self._others(node))):
            _lose(inside, address, "eth0")

    def heal(self, node: str) -> None:
        """Puts everything of a node right."""
        namespace = self.nodes[node]
        _ip("link", "set", namespace.card, "up")
        known: list[tuple[list[str], str, str]] = [([], namespace.address, self.bridge)]
        known += [(["-n", other.name], namespace.address, "eth0") for other in self._others(node)]
        for address in (self.address, *(other.address for other in self._others(node))):
            known.append((["-n", namespace.name], address, "eth0"))
        for where, address, card in known:
            with suppress(subprocess.CalledProcessError):  # it was not lost
                _ip(*where, "neigh", "del", address, "dev", card)

    def _others(self, node: str) -> list[Namespace]:
        return [namespace for name, namespace in self.nodes.items() if name != node]


@contextmanager
def network(nodes: tuple[str, ...]) -> Iterator[Network]:
    """Makes a network of nodes, and removes it."""
    key = secrets.token_hex(3)
    prefix = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
    bridge = f"ts{key}"
    made = {
        node: Namespace(f"ts{key}-{number}", f"{prefix}.{number + 2}", f"ts{key}v{number}")
        for number, node in enumerate(nodes)
    }
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{prefix}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for namespace in made.values():
            _wire(namespace, bridge)
        yield Network(bridge, f"{prefix}.1", made)
    finally:
        for namespace in made.values():
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", namespace.name)  # its card goes with it, and so does our end
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", bridge)


def _wire(namespace: Namespace, bridge: str) -> None:
    inside = ["-n", namespace.name]
    _ip("netns", "add", namespace.name)
    _ip("link", "add", namespace.card, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
    _ip("link", "set", namespace.card, "master", bridge, "up")
    _ip(*inside, "addr", "add", f"{namespace.address}/24", "dev", "eth0")
    for card in ("eth0", "lo"):
        _ip(*inside, "link", "set", card, "up")


def _lose(where: list[str], address: str, card: str) -> None:
    _ip(*where, "neigh", "replace", address, "lladdr", _NOBODY, "dev", card, "nud", "permanent")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
