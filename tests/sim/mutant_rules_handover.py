"""Mutants of DESIGN.md sections 6 and 7: the handover, and the care for the local Redis."""

from __future__ import annotations

from tests.sim.mutant import AGENT, CORE, PROGRESS, SAFETY, Edit, Mutant

HANDOVER: tuple[Mutant, ...] = (
    Mutant(
        "seal-before-designation",
        "the old primary is frozen, not only paused, before a successor is named",
        "6",
        (
            Edit(
                AGENT + "machine.py",
                '"caught_up", SEALING, "freeze_quietly"',
                '"caught_up", DESIGNATING, "designate"',
            ),
            Edit(
                CORE + "handover.py",
                "info, leader, plan = self.round.evidence, self.view.leader, self.plan",
                "info, leader, plan = self.redis.info, self.view.leader, self.plan",
            ),
        ),
    ),
    Mutant(
        "designation-checks-ledger",
        "the designation checks the version of the ledger",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "            Check(self.paths.epoch, self.view.ledger_version),\n"
                "            Put(self.paths.leader, encode(self._designation)),",
                "            Put(self.paths.leader, encode(self._designation)),",
            ),
            Edit(CORE + "handover.py", "self._designation, event.versions[1]", "self._designation, event.versions[0]"),
        ),
    ),
    Mutant(
        "successor-intact",
        "only an intact member takes the epoch over",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "or redis.killed or not redis.intact or info is None:",
                "or redis.killed or info is None:",
            ),
        ),
    ),
    Mutant(
        "successor-has-everything",
        "the successor takes the epoch only at the final position",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "reached = min(applied, info.offset_bytes) >= leader.offset_bytes",
                "reached = applied >= 0",
            ),
        ),
    ),
    Mutant(
        "swap-checks-leader",
        "the swap checks the version of `leader`",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "ops.append(Delete(self.paths.leader, version))",
                "ops.append(Delete(self.paths.leader))",
            ),
            Edit(
                CORE + "handover.py",
                "ops.append(Put(self.paths.leader, encode(leader), version))",
                "ops.append(Put(self.paths.leader, encode(leader)))",
            ),
        ),
    ),
    Mutant(
        "swap-checks-ledger",
        "the swap checks the version of the ledger",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "            Put(self.paths.epoch, encode(ledger), view.ledger_version),\n        ]",
                "            Put(self.paths.epoch, encode(ledger)),\n        ]",
            ),
        ),
    ),
    Mutant(
        "reclaim-committed",
        "the old leader takes its epoch back only with a committed answer",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "        self._swap(final, TAKEN_BACK, (Put, self.view.leader_version))",
                "        self._swap(final, TAKEN_BACK, (Put, self.view.leader_version))\n"
                "        self.view.ledger, self.view.leader = self._claimed_ledger, self._claimed_leader\n"
                "        self.view.ledger_version, self.round.claim_request = self.view.ledger_version + 1, 0\n"
                '        self.fire("claim_won")',
            ),
        ),
    ),
    Mutant(
        "handover-promise",
        "a successor that has voted for a later round does not take the epoch",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "if leader.epoch < self.promised_round or self.view.ledger.epoch != leader.epoch or redis.unguarded:",
                "if self.view.ledger.epoch != leader.epoch or redis.unguarded:",
            ),
        ),
    ),
    Mutant(
        "unguarded-successor",
        "a successor without a guard does not take the epoch",
        "6",
        (
            Edit(
                CORE + "handover.py",
                "self.view.ledger.epoch != leader.epoch or redis.unguarded:",
                "self.view.ledger.epoch != leader.epoch:",
            ),
        ),
    ),
    # --- the local Redis --------------------------------------------------------------------------------------------
    Mutant(
        "redis-incarnation",
        "answers of an earlier Redis process are dropped",
        "7",
        (
            Edit(
                CORE + "agent.py",
                "if isinstance(event, _REDIS_EVENTS) and event.incarnation != self.redis.incarnation:",
                "if isinstance(event, _REDIS_EVENTS) and event.incarnation > self.redis.incarnation:",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "stale-probes",
        "what was asked before the last role command was answered is out of date",
        "7",
        (
            Edit(
                CORE + "local_redis.py",
                "if self.role_requests or event.sent_at < redis.settled_at:",
                "if redis.settled_at == inf:",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "dead-redis-resigns",
        "a leader whose Redis died does not let the restarted one lead without an election",
        "7",
        (
            Edit(
                AGENT + "machine.py",
                '"redis_lost", FREEZING, "cast_empty_ballot", "a dead Redis accepts nothing: resign"',
                '"redis_lost", TAKING_OVER, "", "a dead Redis accepts nothing: resign"',
            ),
            Edit(
                AGENT + "machine.py",
                '"redis_up": everywhere - {FREEZING, FOLLOWER},',
                '"redis_up": everywhere - {FREEZING, FOLLOWER, TAKING_OVER},',
            ),
            Edit(
                AGENT + "machine.py",
                '    _row(TAKING_OVER, "promoted", TAKING_OVER, "serve", ',
                '    _row(TAKING_OVER, "redis_up", TAKING_OVER, "repromote", "x"),\n'
                '    _row(TAKING_OVER, "promoted", TAKING_OVER, "serve", ',
            ),
            Edit(
                CORE + "takeover.py",
                "    def promote_done(self,",
                "    def repromote(self) -> None:\n"
                "        self.round.evidence = self.redis.info\n"
                "        self.promote()\n\n"
                "    def promote_done(self,",
            ),
        ),
    ),
    Mutant(
        "hung-follower-lives",
        "a hung follower is not killed while nobody leads",
        "7",
        (
            Edit(
                CORE + "local_redis.py",
                "return self.state == machine.FOLLOWER and leader is not None",
                "return leader is not None or True",
            ),
        ),
    ),
    Mutant(
        "unknown-data",
        "a data set of unknown lineage is not overwritten",
        "7",
        (
            Edit(
                CORE + "following.py",
                "        if not self.knows_its_data():\n            # Redis may",
                "        if False:\n            # Redis may",
            ),
            Edit(
                CORE + "considering.py",
                "if joining and self.redis.up and not self.knows_its_data():",
                "if joining and self.redis.up and False:",
            ),
        ),
    ),
)
