"""What settings say about each other: the relations between them, with the arithmetic. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from redis_agent.config import NAME_PATTERN, Settings

# A unix socket's path has 107 bytes at most, and this is the name of ours.
MAX_RUN_DIR_BYTES = 107 - len("/redis.sock")

LEAST_BUDGET_S = 0.2
"""Half of it is for the guard: a soft fence of 50 ms, and then SIGKILL."""

Problem = tuple[str, str, str]
"""Key, what is wrong, what to do."""


def relations(settings: Settings) -> Iterator[Problem]:
    """What settings say about each other, with the arithmetic."""
    yield from hosts_problems(settings.zookeeper.hosts)
    yield from _check_lease(settings)
    yield from _check_order(settings)
    if not re.fullmatch(NAME_PATTERN, settings.agent.name):
        yield "[agent] name", f'the host\'s name "{settings.agent.name}" is no name for a member', "set a name"
    if len(settings.agent.run_dir.encode()) > MAX_RUN_DIR_BYTES:
        yield (
            "[agent] run_dir",
            f"{settings.agent.run_dir} is longer than {MAX_RUN_DIR_BYTES} bytes, too long for a unix socket",
            "choose a shorter path",
        )


def hosts_problems(hosts: str) -> Iterator[Problem]:
    """What is wrong with a list of ZooKeeper's servers."""
    key, remedy = "[zookeeper] hosts", 'write "host:port,host:port/chroot", IPv6 addresses in brackets'
    servers, slash, chroot = hosts.partition("/")
    if slash and (not chroot or "//" in slash + chroot or chroot.endswith("/")):
        yield key, f'the chroot "{slash}{chroot}" is not a path', remedy
    for server in servers.split(","):
        bare = server.strip()
        if bare.startswith("["):
            host, bracket, rest = bare[1:].partition("]")
            port = rest.removeprefix(":") if rest.startswith(":") else rest or "2181"
            well = bool(bracket) and ":" in host
        else:
            host, colon, port = bare.partition(":")
            port = port if colon else "2181"
            well = bool(host) and " " not in host
        if not well or not port.isdecimal() or not 0 < int(port) < 65_536:
            yield key, f'"{bare}" is not a server', remedy


def _check_lease(settings: Settings) -> Iterator[Problem]:
    zookeeper, timing = settings.zookeeper, settings.timing
    session, tick = zookeeper.session_timeout_s, zookeeper.tick_s
    if session < 2 * tick:
        yield (
            "[zookeeper] session_timeout_s",
            f"{session:g} s is less than two ticks (2 x {tick:g} s), which servers do not grant",
            f"set it to {2 * tick:g} or more, or lower tickTime on the servers and tick_s with it",
        )
    if session > 20 * tick:
        yield (
            "[zookeeper] session_timeout_s",
            f"{session:g} s is more than twenty ticks (20 x {tick:g} s), which servers do not grant",
            f"set it to {20 * tick:g} or less",
        )
    (left, arithmetic), least = settings.steady_lease(), timing.min_claim_lease_s
    if left < least:
        yield (
            "[zookeeper] session_timeout_s",
            f"leaves too little lease: {arithmetic}, less than min_claim_lease_s {least:g}",
            f"raise session_timeout_s to {session + least - left:g} or lower the others",
        )


def _check_order(settings: Settings) -> Iterator[Problem]:
    """Pairs of which the first must be smaller."""
    timing, session = settings.timing, settings.zookeeper.session_timeout_s
    pairs = (
        ("fence_timeout_s", "fence_budget_s", "Redis must be killed before the budget is spent"),
        ("designation_s", "handover_s", "the clients' pause must outlast both"),
        ("probe_s", "hang_s", "one missed probe must not count as a hang"),
        ("probe_s", "busy_s", "one BUSY answer must not kill a script"),
        ("role_limit_s", "takeover_s", "a claimant must be able to promote in time"),
        ("restart_first_s", "restart_max_s", "the pauses grow from the first to the longest"),
    )
    for small, large, why in pairs:
        if getattr(timing, small) >= getattr(timing, large):
            yield (
                f"[timing] {small}",
                f"{getattr(timing, small):g} s is not below {large} = {getattr(timing, large):g} s: {why}",
                f"lower {small} or raise {large}",
            )
    if timing.fence_budget_s / 2 < timing.fence_timeout_s < timing.fence_budget_s:
        yield (
            "[timing] fence_timeout_s",
            (
                f"{timing.fence_timeout_s:g} s is more than half of fence_budget_s = {timing.fence_budget_s:g} s: "
                "the other half is the guard's, should the agent hang"
            ),
            f"set it to {timing.fence_budget_s / 2:g} or less",
        )
    if timing.fence_budget_s < LEAST_BUDGET_S:
        yield (
            "[timing] fence_budget_s",
            (
                f"{timing.fence_budget_s:g} s is too short: the guard, which acts after half of it, needs "
                f"{LEAST_BUDGET_S / 2:g} s"
            ),
            f"set it to {LEAST_BUDGET_S:g} or more",
        )
    stands = session + settings.zookeeper.tick_s
    if timing.name_taken_s <= stands:
        arithmetic = f"session_timeout_s + tick_s = {session:g} + {settings.zookeeper.tick_s:g} s"
        yield (
            "[timing] name_taken_s",
            f"{timing.name_taken_s:g} s is not above {arithmetic}: this agent's own predecessor is listed that long",
            f"raise it above {stands:g}",
        )
