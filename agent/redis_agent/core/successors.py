"""Whom the epoch can be handed to."""

from __future__ import annotations

from redis_agent.core.reading import Part
from redis_agent.core.takeover import Takeover
from redis_agent.rdb_format import can_load


class Successors(Takeover):
    """Knows who could take over, and why the others could not."""

    def unfitness(self, name: str) -> str:
        """Why a member cannot take over, in a few words; empty if it can."""
        view, info = self.view, self.redis.info
        member, presence = view.members.get(name), view.presences.get(name)
        if member is None:
            known = ", ".join(sorted(view.members))
            return f"there is no member {name}; the members are {known}"
        if name not in view.config.voters or not member.voter:
            return f"{name} does not vote (nofailover), so it never leads"
        if presence is None:
            return f"the agent of {name} is not there"
        if not presence.redis_up:
            return f"the Redis of {name} is down"
        if presence.sick:
            return f"the Redis of {name} is sick: {presence.sick}"
        link = next((link for link in info.replicas if link.address == member.redis), None) if info else None
        # Behind a full resync a link is online a while before its replica says how far it is.
        silent = link is not None and link.offset_bytes == 0 and info is not None and info.offset_bytes > 0
        if link is None or not link.online or silent or not presence.intact:
            return f"{name} is not in sync with this leader"
        behind_bytes = info.offset_bytes - link.offset_bytes if info else 0
        if behind_bytes > view.config.max_lag_bytes:
            return f"{name} is {behind_bytes} bytes behind, more than max_lag_bytes = {view.config.max_lag_bytes}"
        return self._unreadable_to_others(name, presence.redis_version)

    def _unreadable_to_others(self, name: str, version: str) -> str:
        """Who could not load what this member would send in a full resync, in a few words; empty if there is nobody.

        A replica of an older version that needs one throws its data away and then fails to load what replaces them. So
        while others are live that cannot read its RDB, a newer member is not handed to: an upgrade goes from follower
        to follower, and to the leader last. Ourselves are not counted: the leader that is upgraded last hands over to
        a newer one, rejoins it by a partial resync, and is restarted anyway. Those who are fit read each other's RDB,
        so among them the version need not rank.
        """
        for other in sorted(self.view.config.voters):
            live = self.view.presences.get(other)
            if other in (name, self.settings.name) or live is None or not live.redis_up:
                continue
            if not can_load(live.redis_version, version):
                return (
                    f"{name} runs {_product(version)}, whose RDB {other}, with {_product(live.redis_version)}, could "
                    f"not load: upgrade {other} first"
                )
        return ""

    def fit_successors(self) -> tuple[str, ...]:
        """Who could take over, the furthest first."""
        info, view = self.redis.info, self.view
        names = [name for name in view.config.voters if name != self.settings.name and not self.unfitness(name)]
        reached = {link.address: link.offset_bytes for link in info.replicas} if info else {}

        def rank(name: str) -> tuple[int, int, str]:
            member = view.members[name]
            return -reached.get(member.redis, -1), -member.priority, name

        return tuple(sorted(names, key=rank))

    def knows_who_is_fit(self, since: float) -> bool:
        """What presences say was read since then; else it is read, as long as that is possible."""
        waited_long = self.now >= since + self.settings.handover_s
        if self.view.presences_read_at >= since or waited_long or not self.session.connected:
            return True
        self.look(Part.PRESENCES)
        return False


def _product(version: str) -> str:
    """As people say it."""
    return version.capitalize() if version.startswith("valkey") else f"Redis {version}"
