"""The ranks of an attempt: how they find each other and what they exchange."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from tunesmith_trainer.failure import FailureClass, TrainerError

# A peer that dies closes its connections, which is noticed at once; this is for one that hangs.
EXCHANGE_TIMEOUT = datetime.timedelta(minutes=30)
_MEETING_SECONDS = 300.0
_LOOK_SECONDS = 0.02
_LEADER = "leader.json"
_SIOCGIFADDR = 0x8915  # linux/sockios.h


class Group:
    """A rank among `world_size`. Alone it exchanges nothing, and every method gives its own value back."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world_size = rank, world_size
        self._device = device or torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this rank writes: spool, status, snapshots, checkpoints and output."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.world_size == 1

    def gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, by rank; all have the same shape."""
        if self.alone:
            return [value]
        found = [torch.empty_like(value) for _ in range(self.world_size)]
        _checked(lambda: distributed.all_gather(found, value.contiguous()))
        return found

    def add(self, value: torch.Tensor) -> None:
        """Replace a tensor by the sum over all ranks: the same bits for the same number of ranks only."""
        if not self.alone:
            _checked(lambda: distributed.all_reduce(value))

    def spread(self, value: torch.Tensor) -> torch.Tensor:
        """Rank 0's tensor, into the given one of the same shape."""
        if not self.alone:
            _checked(lambda: distributed.broadcast(value, 0))
        return value

    def tell(self, value: Any) -> Any:
        """Rank 0's value, which is made of JSON's types."""
        if self.alone:
            return value
        data = json.dumps(value).encode() if self.leads else b""
        size = self.spread(torch.tensor([len(data)], device=self._device))
        raw = torch.zeros(int(size), dtype=torch.uint8, device=self._device)
        if self.leads:
            raw.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return json.loads(bytes(self.spread(raw).cpu().numpy()))

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, which are made of JSON's types, by rank."""
        if self.alone:
            return [value]
        data = json.dumps(value).encode()
        size = max(int(item) for item in self.gather(torch.tensor([len(data)], device=self._device)))
        raw = torch.frombuffer(bytearray(data.ljust(size)), dtype=torch.uint8).to(self._device)
        return [json.loads(bytes(item.cpu().numpy())) for item in self.gather(raw)]

    def close(self) -> None:
        """Leave the group; others may go on alone with what needs no exchange."""
        if not self.alone and distributed.is_initialized():
            distributed.destroy_process_group()


def join(folder: Path, rank: int, world_size: int, device: torch.device, rendezvous: str = "") -> Group:
    """Meet the other ranks of the attempt: in the folder `rendezvous/`, or on several nodes at `host:port`.

    Raises INFRA if they do not come.
    """
    if world_size == 1:
        return Group(device=device)
    if rendezvous:
        store = _store_at(rendezvous, rank, world_size)
    else:
        # Ranks of one node talk over the loopback: the first interface gloo finds may lead nowhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        path = _open(folder) if rank == 0 else _found(folder)
        store = FileStore(str(path), world_size)
    _checked(
        lambda: distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=EXCHANGE_TIMEOUT,
        )
    )
    return Group(rank, world_size, device)


def _store_at(rendezvous: str, rank: int, world_size: int) -> Store:
    host, _, port = rendezvous.rpartition(":")
    wait = datetime.timedelta(seconds=_MEETING_SECONDS)
    try:
        store = TCPStore(host, int(port), world_size, is_master=rank == 0, timeout=wait)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_to(host, int(port)))
        return store
    except (RuntimeError, OSError) as error:
        raise TrainerError(
            FailureClass.INFRA,
            "PEERS_MISSING",
            f"the ranks cannot meet at {rendezvous}: {error}"[:1000],
            "check that the nodes reach each other there (TUNESMITH_AGENT_ADDRESS); another attempt takes "
            "another port",
        ) from error


def _interface_to(host: str, port: int) -> str:
    """The network interface that leads to a host: gloo would take the first that it finds."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
        probe.connect(found[0][4])  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    raise OSError(f"no interface has the address {own}, from which {host} is reached")


def _open(folder: Path) -> Path:
    """Rank 0 makes a new meeting point; those of former attempts are removed."""
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    leader = {"pid": os.getpid(), "start": _start_of(os.getpid())}
    path = folder / f"{leader['pid']}-{leader['start']}.store"
    hidden = folder / f".{_LEADER}"
    hidden.write_text(json.dumps({**leader, "store": path.name}))
    hidden.replace(folder / _LEADER)
    return path


def _found(folder: Path) -> Path:
    """Wait for rank 0's meeting point. One whose maker is dead belongs to a former attempt."""
    deadline = time.monotonic() + _MEETING_SECONDS
    while time.monotonic() < deadline:
        try:
            leader = json.loads((folder / _LEADER).read_bytes())
            if _start_of(int(leader["pid"])) == leader["start"]:
                return folder / str(leader["store"])
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(_LOOK_SECONDS)
    raise TrainerError(
        FailureClass.INFRA,
        "PEERS_MISSING",
        f"rank 0 did not come within {_MEETING_SECONDS:.0f} s",
        "another attempt starts all ranks anew; see the log of rank 0",
    )


def _start_of(pid: int) -> int:
    """When a process began, in clock ticks since boot: with the pid it names the process for good.

    Raises OSError when there is none.
    """
    fields = (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def _checked(exchange: Any) -> None:
    try:
        exchange()
    except (RuntimeError, ConnectionError) as error:  # gloo raises plain RuntimeErrors
        raise TrainerError(
            FailureClass.INFRA,
            "PEER_LOST",
            f"another rank of the group is gone: {error}"[:1000],
            "another attempt starts all ranks anew; the logs of the other ranks tell more",
        ) from error
