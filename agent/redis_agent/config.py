"""The agent's settings: one frozen record, with a description of every key.

The descriptions are the single source of the configuration reference and of the commented example. Reading files and
the environment, and the checks that say what is wrong with them, are in ``config_file``.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from msgspec import Meta, Struct, structs, to_builtins

from redis_agent.core.settings import CoreSettings
from redis_agent.election import Mode
from redis_agent.lease import steady_lease
from redis_agent.replication import Address

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=1, le=1_000)]
Bytes = Annotated[int, Meta(ge=0)]


class ConfigError(Exception):
    """A configuration that cannot be used.

    Args:
        source: the file, or "environment".
        key: the key, as ``[section] key``; empty if it is the file as a whole.
        problem: what is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, source: str, key: str, problem: str, remedy: str) -> None:
        self.source, self.key, self.problem, self.remedy = source, key, problem, remedy
        where = f"{source}: {key}" if key else source
        super().__init__(f"{where}: {problem}; {remedy}".replace("\n", " "))


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""


class Agent(Section, frozen=True, kw_only=True):
    """This agent and where it keeps its own files."""

    name: Annotated[
        str,
        Meta(
            pattern=f"{NAME_PATTERN}|^$",
            description="Name of this member, unique in the cluster. Default: the host's name up to the first dot.",
        ),
    ] = ""
    state_dir: Annotated[
        str,
        Meta(
            description="Directory of the state file and its lock, on a local file system; it must survive a reboot. "
            "Default: $STATE_DIRECTORY (set by systemd), else /var/lib/redis-agent/<cluster>."
        ),
    ] = ""
    run_dir: Annotated[
        str,
        Meta(
            description="Directory of the generated redis.conf and of the unix socket; made if it is missing. "
            "Default: $RUNTIME_DIRECTORY (set by systemd), else /run/redis-agent/<cluster>."
        ),
    ] = ""


class Cluster(Section, frozen=True, kw_only=True):
    """The cluster that this member belongs to. The same on every member."""

    name: Annotated[
        Name, Meta(description="Name of the cluster: the hosts that replicate one data set and elect one leader.")
    ]
    bootstrap_expect: Annotated[
        Count,
        Meta(
            description="A new cluster waits for this many voters before its first election. "
            "Without meaning once the cluster exists."
        ),
    ]
    root: Annotated[
        str,
        Meta(
            pattern=r"^/?[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$",
            description="Znode below which all clusters live.",
        ),
    ] = "redis-agent"
    mode: Annotated[
        Literal["quorum", "async"],
        Meta(
            description="How a leader is chosen. quorum: a write confirmed by WAIT survives the loss of any minority; "
            "a majority of the voters is needed to elect. async: the best of those who answer leads; writes can be "
            "lost. Taken from ZooKeeper once the cluster exists."
        ),
    ] = "quorum"
    max_lag_bytes: Annotated[
        Bytes,
        Meta(
            description="Mode async only: a member further behind the last leader than this never leads. "
            "Taken from ZooKeeper once the cluster exists."
        ),
    ] = 1 << 20


class ZooKeeper(Section, frozen=True, kw_only=True):
    """The ZooKeeper ensemble."""

    hosts: Annotated[
        str,
        Meta(
            min_length=1,
            description='Servers, with an optional chroot: "zk1:2181,zk2:2181,[2001:db8::3]:2181/chroot". '
            "The chroot must exist.",
        ),
    ]
    session_timeout_s: Annotated[
        Seconds,
        Meta(
            description="Session timeout to ask for. A lost host is replaced after this time; "
            "servers allow 2 to 20 times their tickTime."
        ),
    ] = 6.0
    tick_s: Annotated[
        Seconds,
        Meta(
            description="The servers' tickTime (zoo.cfg says milliseconds). ZooKeeper does not tell it, "
            "and the leader's lease depends on it: too small a value is unsafe."
        ),
    ] = 2.0
    auth_file: Annotated[
        str,
        Meta(
            description='File with "user:password" for the digest scheme, mode 0600. Empty: no authentication. '
            "A relative path is looked up in $CREDENTIALS_DIRECTORY (systemd) first."
        ),
    ] = ""


class Redis(Section, frozen=True, kw_only=True):
    """The local redis-server, which the agent launches."""

    announce_host: Annotated[
        str,
        Meta(
            min_length=1,
            description="Address or name by which the other members and the clients reach this Redis.",
        ),
    ]
    announce_port: Annotated[
        Port, Meta(description="Port by which they reach it. Default (0): the port that Redis listens on.")
    ] = 0
    binary: Annotated[str, Meta(min_length=1, description="The server, looked up in PATH.")] = "redis-server"
    conf: Annotated[
        str,
        Meta(
            description="The operator's redis.conf. It is included and never written to; what the protocol "
            "depends on is pinned behind it. Empty: Redis's own defaults."
        ),
    ] = ""
    port: Annotated[
        Port,
        Meta(description="Port to listen on. Default (0): as in redis.conf, else 6379."),
    ] = 0
    data_dir: Annotated[
        str,
        Meta(description="Redis's working directory (dir), which holds its data. Default: as in redis.conf."),
    ] = ""
    backlog_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            description="repl-backlog-size: a member that was away for less than this many bytes need not be copied "
            "in full. A larger value in redis.conf is kept.",
        ),
    ] = 64 << 20
    keep_diverged: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000,
            description="What a former leader has and its successor lacks is saved as diverged/<position>.rdb in the "
            "data directory before it is discarded; this many of these files are kept. 0: none are saved.",
        ),
    ] = 3
    username: Annotated[
        str, Meta(description="ACL user of the agent, here and on the other members. Empty: the default user.")
    ] = ""
    password_file: Annotated[
        str,
        Meta(
            description="File with that user's password, mode 0600. Default: requirepass of redis.conf. "
            "A relative path is looked up in $CREDENTIALS_DIRECTORY (systemd) first."
        ),
    ] = ""


class Member(Section, frozen=True, kw_only=True):
    """What this member may become."""

    nofailover: Annotated[bool, Meta(description="true: a non-voter, which follows but never leads.")] = False
    priority: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Of members that are equally far, the one with the highest priority leads. "
            "(Redis's own replica-priority is the other way round.)",
        ),
    ] = 100


class Timing(Section, frozen=True, kw_only=True):
    """Intervals and limits. The defaults suit a local network; the relations between them are checked."""

    heartbeat_s: Annotated[
        Seconds, Meta(description="A leader proves its session by a committed write at this interval.")
    ] = 0.5
    presence_s: Annotated[
        Seconds, Meta(description="Every agent rewrites its account of itself for people at most this often.")
    ] = 1.0
    fence_budget_s: Annotated[
        Seconds, Meta(description="Kept back from the session timeout for fencing: the lease ends this much earlier.")
    ] = 0.25
    fence_timeout_s: Annotated[
        Seconds, Meta(description="Redis must confirm the soft fence within this time, or it is killed.")
    ] = 0.1
    guard_timeout_s: Annotated[
        Seconds, Meta(description="A leader whose guard does not acknowledge within this time gives way.")
    ] = 1.0
    min_claim_lease_s: Annotated[
        Seconds, Meta(description="Nobody claims the lead with less lease left than this.")
    ] = 0.5
    grace_s: Annotated[
        Seconds, Meta(description="Once somebody is electable, wait this long for the ballots of other live members.")
    ] = 0.25
    stagger_s: Annotated[
        Seconds, Meta(description="The next best electable member claims this much later than the one before it.")
    ] = 0.1
    takeover_s: Annotated[Seconds, Meta(description="A claimant that does not serve within this time resigns.")] = 3.0
    handover_s: Annotated[
        Seconds, Meta(description="A leaving leader pauses writes at most this long for its successor to catch up.")
    ] = 5.0
    designation_s: Annotated[
        Seconds, Meta(description="A successor that does not take over within this time loses the offer.")
    ] = 1.0
    unfollowed_s: Annotated[
        Seconds,
        Meta(description="A leader that nobody has followed for this long resigns, if a majority of others is alive."),
    ] = 5.0
    tail_limit_s: Annotated[
        Seconds, Meta(description="Limit for saving what a former leader has and its successor lacks.")
    ] = 60.0
    probe_s: Annotated[Seconds, Meta(description="Interval at which Redis is asked how it is.")] = 0.5
    hang_s: Annotated[Seconds, Meta(description="A Redis that does not answer for this long is hung.")] = 2.0
    busy_s: Annotated[
        Seconds, Meta(description="A Redis that says BUSY for this long gets SCRIPT KILL, and later SIGKILL.")
    ] = 5.0
    role_limit_s: Annotated[
        Seconds,
        Meta(description="Limit of one role command (freeze, promote, follow); after it the outcome is unknown."),
    ] = 1.0
    restart_first_s: Annotated[Seconds, Meta(description="First pause before a dead Redis is started again.")] = 0.05
    restart_max_s: Annotated[Seconds, Meta(description="Longest such pause; the pauses double up to it.")] = 30.0
    stop_redis_s: Annotated[
        Seconds, Meta(description="Redis may take this long to save and stop, then it is killed.")
    ] = 30.0
    close_session_s: Annotated[Seconds, Meta(description="Limit for closing the ZooKeeper session.")] = 1.0
    reread_s: Annotated[
        Seconds, Meta(description="Everything in ZooKeeper is read again at this interval, in case a watch was lost.")
    ] = 10.0
    save_state_s: Annotated[
        Seconds, Meta(description="The position in the state file is refreshed at this interval.")
    ] = 5.0
    name_taken_s: Annotated[
        Seconds,
        Meta(description="If another live agent has held our name for this long, give up: two members share a name."),
    ] = 30.0


class Log(Section, frozen=True, kw_only=True):
    """What is written to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="The least level to write.")] = (
        "info"
    )
    format: Annotated[
        Literal["plain", "json"], Meta(description="plain: one line of key=value; json: one object a line.")
    ] = "plain"


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings, complete: what the file leaves out has its default."""

    agent: Agent = Agent()
    cluster: Cluster
    zookeeper: ZooKeeper
    redis: Redis
    member: Member = Member()
    timing: Timing = Timing()
    log: Log = Log()

    def core(self, *, announce: Address, host: str = "", agent_version: str = "") -> CoreSettings:
        """What the core must know.

        Args:
            announce: where other members and clients reach our Redis.
            host: the host's name, for people.
            agent_version: our own version, for people.
        """
        return CoreSettings(
            root=self.cluster.root.strip("/"),
            cluster=self.cluster.name,
            name=self.agent.name,
            host=host,
            pid=os.getpid(),
            agent_version=agent_version,
            redis=announce,
            voter=not self.member.nofailover,
            priority=self.member.priority,
            bootstrap_expect=self.cluster.bootstrap_expect,
            mode=Mode(self.cluster.mode),
            max_lag_bytes=self.cluster.max_lag_bytes,
            session_timeout_s=self.zookeeper.session_timeout_s,
            tick_s=self.zookeeper.tick_s,
            keep_diverged=self.redis.keep_diverged,
            **structs.asdict(self.timing),
        )

    def changed_keys(self, other: Settings) -> list[str]:
        """The keys, as ``section.key``, whose values differ in ``other``."""
        ours, theirs = to_builtins(self), to_builtins(other)
        return [f"{name}.{key}" for name, keys in ours.items() for key in keys if keys[key] != theirs[name][key]]

    def steady_lease(self) -> tuple[float, str]:
        """See `lease.steady_lease`: of the session timeout that is asked for."""
        return steady_lease(
            timeout_s=self.zookeeper.session_timeout_s,
            tick_s=self.zookeeper.tick_s,
            heartbeat_s=self.timing.heartbeat_s,
            fence_budget_s=self.timing.fence_budget_s,
        )
