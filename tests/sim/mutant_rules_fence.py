"""Mutants of DESIGN.md section 5: the lease, the fence ladder, the guard, and giving way."""

from __future__ import annotations

from tests.sim.mutant import AGENT, CORE, PROGRESS, SAFETY, SIM, Edit, Mutant

FENCE: tuple[Mutant, ...] = (
    # --- the lease --------------------------------------------------------------------------------------------------
    Mutant(
        "lease-stamp",
        "the lease counts from when a heartbeat was sent, not from when it was answered",
        "5",
        (
            Edit(
                CORE + "agent.py",
                "self.lease.acknowledged(event.sent_at, self.now)",
                "self.lease.acknowledged(self.now, self.now)",
            ),
        ),
    ),
    Mutant(
        "lease-tick",
        "what a heartbeat proves was answered more than half a tick before the one in between was sent",
        "5",
        (
            Edit(
                AGENT + "lease.py",
                "latest = self._second - self._relay_s",
                "latest = self._second",
            ),
        ),
    ),
    Mutant(
        "lease-writes-only",
        "only a committed write proves the session, a read proves nothing",
        "5",
        (
            Edit(
                CORE + "sessions.py",
                "        if self.read_done(event):\n",
                "        self.lease.acknowledged(event.sent_at, self.now)\n        if self.read_done(event):\n",
            ),
        ),
    ),
    Mutant(
        "lease-margin",
        "the lease ends before the session can: fence budget",
        "5",
        (
            Edit(
                AGENT + "lease.py",
                "self._worth_s = timeout_s - self._fence_budget_s",
                "self._worth_s = timeout_s",
            ),
        ),
    ),
    Mutant(
        "lease-before-event",
        "the lease is looked at before an event is heard",
        "5",
        (
            Edit(
                CORE + "agent.py",
                "        self._run_timers()\n        self._hear(event)\n",
                "        self._hear(event)\n        self._run_timers()\n",
            ),
        ),
    ),
    Mutant(
        "lease-end-fences",
        "at the end of the lease the agent fences, before its guard has to",
        "5",
        (
            Edit(
                AGENT + "machine.py",
                '"lease_ended", CONNECTING, "fence", ',
                '"lease_ended", CONNECTING, "", ',
            ),
        ),
        test="tests/sim/test_guarded.py::test_a_lease_that_ends_without_a_hang_costs_no_agent",
    ),
    # --- the ladder -------------------------------------------------------------------------------------------------
    Mutant(
        "boots-fenced",
        "Redis boots fenced",
        "5",
        (
            Edit(
                SIM + "redis.py",
                "        self.min_replicas = FENCE\n        self.paused_until",
                "        self.min_replicas = 0\n        self.paused_until",
            ),
        ),
    ),
    Mutant(
        "followers-fenced",
        "every follower stays fenced, also one that led",
        "5",
        (
            Edit(
                SIM + "redis_adapter.py",
                "            case Follow():\n                redis.fence()\n",
                "            case Follow():\n                redis.lift_fence(0)\n",
            ),
        ),
    ),
    Mutant(
        "attach-fences",
        "an agent that attaches to a running Redis fences it first",
        "5",
        (
            Edit(
                SIM + "redis_life.py",
                "        redis.role_generation = generation\n        redis.fence()\n",
                "        redis.role_generation = generation\n",
            ),
        ),
    ),
    Mutant(
        "deposed-fences",
        "a deposed leader fences",
        "5",
        (Edit(AGENT + "machine.py", 'CONNECTING, "fence look", ', 'CONNECTING, "look", '),),
    ),
    Mutant(
        "expired-fences",
        "an expired session fences",
        "5",
        (Edit(AGENT + "machine.py", '        "fence renew_session",\n', '        "renew_session",\n'),),
    ),
    Mutant(
        "hard-fence",
        "a soft fence that is not confirmed in time is followed by SIGKILL",
        "5",
        (
            Edit(
                CORE + "agent.py",
                '            self.kill_redis("the soft fence was not confirmed in time")',
                "            self.fence_due = inf",
            ),
        ),
    ),
    Mutant(
        "killed-resigns",
        "a leader resigns when its Redis is sent SIGKILL, whenever that dies",
        "5",
        (
            Edit(
                CORE + "base.py",
                "        elif self.state in (*machine.CANDIDATE, *machine.OWNING):\n"
                '            self.fire("redis_lost")\n',
                "",
            ),
        ),
    ),
    Mutant(
        "late-role-commands",
        "after a timeout the old connection is killed before anything else is sent",
        "4",
        (
            Edit(
                SIM + "redis_adapter.py",
                "        redis.role_generation = self.role_generation\n",
                "",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "late-commands-of-last-life",
        "the last life's role connection is killed before the next life attaches",
        "5",
        (
            Edit(
                SIM + "redis_life.py",
                "        redis.role_generation = generation\n        redis.fence()\n",
                "        redis.fence()\n",
            ),
        ),
    ),
    Mutant(
        "lift-not-after",
        "the fence is not lifted after the end of the lease that the guard knows",
        "5",
        (
            Edit(
                CORE + "leading.py",
                "at_least, redis.guard_until, self",
                "at_least, self.now + 99, self",
            ),
        ),
    ),
    # --- the guard --------------------------------------------------------------------------------------------------
    Mutant(
        "guard-armed",
        "the guard is armed before the fence is lifted",
        "5",
        (
            Edit(
                CORE + "base.py",
                "        self.order(ArmGuard(redis.incarnation, redis.guard_request, until))\n",
                "        del until\n        redis.guard_until, redis.guard_request = redis.guard_asked, 0\n"
                "        self.guard_due = inf\n",
            ),
        ),
    ),
    Mutant(
        "guard-acknowledges",
        "the guard's acknowledgement is awaited before the fence is lifted",
        "5",
        (
            Edit(CORE + "base.py", "return self.redis.guard_until > -inf", "return self.redis.guard_asked > -inf"),
            Edit(CORE + "leading.py", "at_least, redis.guard_until, self", "at_least, redis.guard_asked, self"),
        ),
    ),
    Mutant(
        "guard-deadline",
        "the guard is armed with the end of the lease",
        "5",
        (
            Edit(
                CORE + "base.py",
                "until = self.lease.until + self.settings.fence_budget_s / 2",
                "until = self.lease.until + 4.0",
            ),
        ),
    ),
    Mutant(
        "guard-disarm-in-flight",
        "the guard is disarmed only when nothing is in flight that lifts the fence",
        "5",
        (
            Edit(
                CORE + "base.py",
                '        if "lift" in pending or "raise" in pending:\n',
                '        if "lift" in pending and False:\n',
            ),
        ),
    ),
    Mutant(
        "guard-lost",
        "a leader whose guard does not answer gives way",
        "5",
        (
            Edit(
                CORE + "leading.py",
                '        if self.leading:\n            self.fire("unfit")\n',
                "",
            ),
        ),
    ),
    Mutant(
        "guard-kills-redis",
        "the guard kills a Redis that does not answer its fence",
        "5",
        (
            Edit(
                SIM + "guard.py",
                '            self._log("no answer from Redis: kills it")\n            self.redis.kill()\n',
                "",
            ),
        ),
    ),
    Mutant(
        "guard-fences-on-death",
        "an armed guard fences when its agent dies",
        "5",
        (
            Edit(
                SIM + "guard.py",
                '                self._fire("the agent is dead", late=False)\n',
                "                self.until = None\n",
            ),
        ),
    ),
    # --- followers ---------------------------------------------------------------------------------------------------
    Mutant(
        "writes-need-replicas",
        "with w followers attached a write needs them, so that frozen ones end it without a clock",
        "4",
        (
            Edit(
                CORE + "leading.py",
                "            if redis.min_replicas != w + others and self._may_set_replicas():\n",
                "            if redis.min_replicas > w + others and self._may_set_replicas():\n",
            ),
        ),
    ),
    Mutant(
        "lowered-behind-heartbeat",
        "min-replicas-to-write is lowered only behind a heartbeat that was sent after the loss",
        "4",
        (
            Edit(
                CORE + "leading.py",
                "        elif redis.min_replicas and self._replicas_lost_at is None:\n",
                '        elif redis.min_replicas and not self.role_requests:\n            self._lift(0, "raise")\n'
                "        elif redis.min_replicas and self._replicas_lost_at is None:\n",
            ),
        ),
    ),
    # --- giving way -------------------------------------------------------------------------------------------------
    Mutant(
        "leftover-guid",
        "an earlier life's `leader` is deleted only if the state file knows its guid",
        "5",
        (
            Edit(
                CORE + "sessions.py",
                "return self.lock_held and bool(guid) and guid == self._earlier_guid",
                "return self.lock_held and bool(guid)",
            ),
        ),
    ),
    Mutant(
        "leftover-fenced",
        "an earlier life's `leader` is deleted only once its Redis is fenced or dead",
        "5",
        (
            Edit(
                CORE + "sessions.py",
                "            if open_ or (self.old_redis_alive and not (self.redis.attached and self.redis.up)):\n",
                "            if open_ and False:\n",
            ),
        ),
    ),
    Mutant(
        "resign-behind-freeze",
        "a leader gives up `leader` only behind its freeze",
        "5",
        (
            Edit(
                CORE + "leaving.py",
                "        fenced = not self.redis.lifted and self.redis.guard_asked == -inf\n",
                "        fenced = True\n",
            ),
        ),
    ),
    Mutant(
        "leave-behind-fence",
        "Redis is left to the next life only once it is fenced",
        "5",
        (
            Edit(
                CORE + "leaving.py",
                "if self._leaving_redis and not redis.lifted and not redis.killed and redis.guard_asked == -inf:",
                "if self._leaving_redis and not redis.killed:",
            ),
        ),
    ),
    Mutant(
        "session-forsaken",
        "a session that cannot be proved for too long is let go of",
        "5",
        (Edit(CORE + "agent.py", '            "forsake": self.forsake_session,\n', ""),),
        expects=(*SAFETY, *PROGRESS),
    ),
)
