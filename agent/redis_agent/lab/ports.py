"""Free TCP ports for servers that can't be told to pick one themselves."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10_000


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Distinct ports on ``host`` that nothing listens on at this moment.

    They are chosen at random below the range from which the kernel serves outgoing connections, so that neither a
    client's own port nor another test run is likely to take one before it is used. It may happen all the same: whoever
    starts a server on one tries again with others.

    :raises OSError: if there are none.
    """
    highest = _first_outgoing_port() - 1
    found: list[int] = []
    for port in random.SystemRandom().sample(range(_LOWEST, highest), k=min(2_000, highest - _LOWEST)):
        if len(found) == count:
            return found
        if _is_free(host, port):
            found.append(port)
    raise OSError(f"no {count} free TCP ports between {_LOWEST} and {highest} on {host}")


def free_port(*, host: str = "127.0.0.1") -> int:
    """One such port."""
    return free_ports(1, host=host)[0]


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port with connections in TIME_WAIT counts as free, one with a listener doesn't.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _first_outgoing_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 32_768
