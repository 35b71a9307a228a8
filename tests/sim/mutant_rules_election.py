"""Mutants of DESIGN.md sections 3 and 4: sessions, positions, rounds, claims."""

from __future__ import annotations

from tests.sim.mutant import AGENT, CORE, PROGRESS, SAFETY, SIM, Edit, Mutant

ELECTION: tuple[Mutant, ...] = (
    # --- sessions ---------------------------------------------------------------------------------------------------
    Mutant(
        "session-number",
        "events of an older session are dropped",
        "3",
        (
            Edit(
                CORE + "agent.py",
                "if isinstance(event, _ZK_EVENTS) and event.session != self.session.number:",
                "if isinstance(event, _ZK_EVENTS) and event.session > self.session.number:",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "sync",
        "decisive reads are preceded by sync",
        "3",
        (
            Edit(
                CORE + "reading.py",
                "sync = Part.LEADER in parts and (self._must_sync or not self.view.fresh)",
                "sync = False",
            ),
        ),
    ),
    Mutant(
        "read-order",
        "the ledger is read before `leader`, so a missing `leader` is that of this epoch",
        "3",
        (
            Edit(
                CORE + "reading.py",
                "names += [paths.leader] if Part.LEADER in parts else []",
                "names = [*([paths.leader] if Part.LEADER in parts else []), *names]",
            ),
        ),
    ),
    Mutant(
        "read-before-write",
        "what was read before a write about leadership is read again",
        "3",
        (Edit(CORE + "reading.py", "if event.request < self._barrier:", "if event.request < 0:"),),
    ),
    Mutant(
        "leader-by-guid",
        "`leader` is ours only by the session's guid, not by our name",
        "3",
        (
            Edit(
                CORE + "base.py",
                "return leader is not None and bool(self.session.guid) and leader.guid == self.session.guid",
                "return leader is not None and leader.name == self.settings.name",
            ),
        ),
    ),
    Mutant(
        "resume-after-read",
        "after a disconnection roles are resumed only by what is read since",
        "3",
        (
            Edit(
                CORE + "sessions.py",
                "        self.view.fresh = False\n        self.forget_reads()\n"
                '        self.log("warning", "session_down"',
                '        self.forget_reads()\n        self.log("warning", "session_down"',
            ),
            Edit(
                CORE + "sessions.py",
                '        self.view.fresh = False\n        self.forget_reads()\n        self.log("info", "session_up"',
                '        self.forget_reads()\n        self.log("info", "session_up"',
            ),
            Edit(
                CORE + "agent.py",
                "            self.view.fresh = False\n            self.look_at_all()\n"
                '            self.fire("lease_ended")',
                '            self.look_at_all()\n            self.fire("lease_ended")',
            ),
        ),
    ),
    Mutant(
        "resume-same-redis",
        "a leader resumes only with the process that served, still a primary with its replid",
        "3",
        (
            Edit(
                CORE + "takeover.py",
                "return same and serving and self.fence_due == inf and not self.role_requests",
                "return True",
            ),
        ),
    ),
    Mutant(
        "serve-lost-reply",
        "a `serve` whose reply was lost is looked up before the fence is lifted",
        "3",
        (
            Edit(
                CORE + "takeover.py",
                "        if isinstance(event, CommitDone):\n            view = self.view\n"
                "            view.ledger, view.ledger_version = self._served_ledger, event.versions[0]\n"
                "            view.leader, view.leader_version = self._served_leader, event.versions[1]\n",
                "        if not isinstance(event, CommitRefused):\n",
            ),
        ),
    ),
    Mutant(
        "claim-lost-reply",
        "a claim whose reply was lost is looked up before the promotion",
        "3",
        (
            Edit(
                CORE + "rounds.py",
                "            self.round.claim_unknown = True\n"
                "            self.view.fresh = False\n            self.look_at_all()",
                "            self.view.ledger, self.view.leader = self._claimed_ledger, self._claimed_leader\n"
                "            self.view.ledger_version += 1\n"
                '            self.fire("claim_won")',
            ),
        ),
    ),
    # --- positions --------------------------------------------------------------------------------------------------
    Mutant(
        "offsets-across-epochs",
        "positions are compared by epoch before offset",
        "4",
        (
            Edit(
                AGENT + "electability.py",
                "return a is not None and (b is None or a > b)",
                "return a is not None and (b is None or a.offset_bytes > b.offset_bytes)",
            ),
        ),
    ),
    Mutant(
        "replid-below-start",
        "a replid counts for its epoch only from the offset on at which that epoch began",
        "4",
        (Edit(AGENT + "replication.py", "reached = offset_bytes >= entry.start.offset_bytes", "reached = True"),),
    ),
    Mutant(
        "unserved-epoch",
        "an epoch that never served ranks as its parent",
        "4",
        (
            Edit(
                AGENT + "replication.py",
                'served = entry.served and replid in ("", entry.replid)',
                'served = replid in ("", entry.replid) or not entry.served',
            ),
        ),
    ),
    Mutant(
        "unserved-bytes",
        "bytes beyond the start of an epoch that never served are PINGs",
        "4",
        (
            Edit(
                AGENT + "replication.py",
                "offset_bytes = min(offset_bytes, entry.start.offset_bytes)",
                "pass",
            ),
        ),
    ),
    Mutant(
        "second-replid-branch",
        "an older replid counts only up to where the history left it",
        "4",
        (
            Edit(
                AGENT + "replication.py",
                "replid, offset_bytes = replid2, min(offset_bytes, second_offset_bytes - 1)",
                "replid = replid2",
            ),
        ),
    ),
    Mutant(
        "promotions",
        "a replid that was promoted and never served is resolved through the promoter's word",
        "4",
        (Edit(AGENT + "replication.py", "    epoch = promotions.get(replid)\n", "    epoch = None\n"),),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "empty-has-no-position",
        "an empty Redis has no position",
        "4",
        (
            Edit(
                AGENT + "ballots.py",
                "    if not ballot.up or (ballot.keys == 0 and not ballot.intact):\n        return None",
                "    if not ballot.up:\n        return None",
            ),
        ),
    ),
    Mutant(
        "files-against-memory",
        "a state file does not win against the memory of a process that was not interrupted",
        "4",
        (Edit(AGENT + "electability.py", "position=exact if remembered else told,", "position=told,"),),
    ),
    Mutant(
        "backlog-before-serve",
        "a backlog is made before `serve`, so the replid is final",
        "4",
        (Edit(SIM + "redis_adapter.py", "            redis.make_backlog()\n", "            pass\n"),),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "served-replid",
        "a serving leader whose replid is not the published one fences",
        "4",
        (
            Edit(
                CORE + "following.py",
                "if not info.is_primary or info.replid != leader.replid:",
                "if not info.is_primary:",
            ),
        ),
        test="tests/sim/test_scenarios.py::test_a_leader_whose_replid_changes_fences",
    ),
    # --- intact -----------------------------------------------------------------------------------------------------
    Mutant(
        "intact-ballots-only",
        "only ballots of members that are intact count",
        "4",
        (
            Edit(
                AGENT + "electability.py",
                "if ballot.intact and case.exact[name] is not None]",
                "if case.exact[name] is not None]",
            ),
        ),
    ),
    Mutant(
        "intact-at-link-up",
        "a member is intact only once it has what the serving leader had after its link came up",
        "4",
        (
            Edit(
                CORE + "worth.py",
                "        if redis.proof is not None and redis.proof[:2] != (leader.epoch, info.replid):",
                "        redis.proof = (leader.epoch, info.replid, 0)\n"
                "        if redis.proof is not None and redis.proof[:2] != (leader.epoch, info.replid):",
            ),
        ),
    ),
    Mutant(
        "intact-proof-per-link",
        "the proof of being intact is asked for again when the link was broken",
        "4",
        (
            Edit(
                CORE + "worth.py",
                "            redis.proof = None\n            # The link is coming up",
                "            # The link is coming up",
            ),
        ),
    ),
    Mutant(
        "intact-full-resync",
        "a full resync that replaces the data ends being intact",
        "4",
        (
            Edit(
                CORE + "worth.py",
                "            if info.loading:\n",
                "            if info.loading and False:\n",
            ),
            Edit(
                CORE + "worth.py",
                "elif before is not None and before.replid not in (info.replid, info.replid2):",
                "elif before is not None and False:",
            ),
        ),
    ),
    Mutant(
        "emptied-by-resync",
        "a full resync that could not be loaded leaves an empty Redis with its old replid and offset",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "return self.redis.followed and info.keys == 0 and info.replica_offset_bytes != info.offset_bytes",
                "return False",
            ),
        ),
    ),
    Mutant(
        "intact-bound-to-run-id",
        "the state file's word on the memory counts for the process with that run id only",
        "4",
        (Edit(CORE + "worth.py", "same = record.run_id == info.run_id", "same = True"),),
    ),
    Mutant(
        "intact-bound-to-replid",
        "the state file's word on the memory counts for the history that it names only",
        "4",
        (
            Edit(
                CORE + "worth.py",
                "redis.intact = redis.intact and record.intact_replid in (info.replid, info.replid2)",
                "pass",
            ),
        ),
    ),
    # --- the round --------------------------------------------------------------------------------------------------
    Mutant(
        "freeze",
        "a replica is cut from its primary before it votes",
        "4",
        (
            Edit(
                SIM + "redis_adapter.py",
                "                redis.replicaof(NOWHERE)\n",
                "                if redis.is_primary:\n                    redis.replicaof(NOWHERE)\n",
            ),
        ),
    ),
    Mutant(
        "freeze-primary",
        "a primary is frozen, too, before it votes",
        "4",
        (
            Edit(
                SIM + "redis_adapter.py",
                "                redis.replicaof(NOWHERE)\n",
                "                if not redis.is_primary:\n                    redis.replicaof(NOWHERE)\n",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "freeze-before-ballot",
        "the ballot waits for the answer to the freeze",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "            self.order_freeze(kill_clients=True)\n        elif",
                "            self.order_freeze(kill_clients=True)\n"
                "            if self.redis.info is not None and not self.redis.info.loading:\n"
                "                self.round.evidence, self.round.intact = self.redis.info, self.redis.intact\n"
                '                self.fire("frozen")\n'
                "        elif",
            ),
        ),
    ),
    Mutant(
        "freeze-latest",
        "only the answer to the latest freeze is evidence",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "if info is None or request != self.freeze_request:",
                "if info is None:",
            ),
        ),
    ),
    Mutant(
        "freeze-kills-clients",
        "clients' connections end with the freeze, so no WAIT of an older epoch is answered later",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "            self.order_freeze(kill_clients=True)\n        elif",
                "            self.order_freeze(kill_clients=False)\n        elif",
            ),
        ),
    ),
    Mutant(
        "thawed",
        "a ballot is void when the member was pointed elsewhere after its freeze",
        "4",
        (
            Edit(
                CORE + "following.py",
                '            self.fire("thawed")\n',
                "            pass\n",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "ballots-of-the-round",
        "only ballots of this round count",
        "4",
        (
            Edit(CORE + "reading.py", "if round_ == view.ledger.epoch + 1:", "if round_ <= view.ledger.epoch + 1:"),
            Edit(
                AGENT + "electability.py",
                "for name, ballot in sorted(ballots.items()) if ballot.round == round_}",
                "for name, ballot in sorted(ballots.items())}",
            ),
        ),
    ),
    Mutant(
        "own-ballot-as-sent",
        "one's own ballot is the one that was sent, not the one that was read",
        "4",
        (Edit(CORE + "rounds.py", "        view.ballots[settings.name] = round_.ballot\n", ""),),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "promise",
        "after a ballot for a round no leader of a lower epoch is followed",
        "4",
        (Edit(CORE + "considering.py", "if leader.epoch < self.promised_round:", "if leader.epoch < 0:"),),
    ),
    Mutant(
        "promise-survives-restart",
        "the promise binds the next life of the agent, too",
        "4",
        (
            Edit(CORE + "agent.py", "self.promised_round = record.promised_round", "self.promised_round = 0"),
            Edit(CORE + "reading.py", "self.promised_round = max(self.promised_round, round_)", "pass"),
        ),
    ),
    Mutant(
        "ballot-not-during-takeover",
        "no ballot for the next round while somebody takes over",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "            return  # Somebody takes over: a ballot for the next round would bind us "
                "not to follow it.",
                "            pass",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "ballot-checks-ledger",
        "a ballot, and the resignation in it, checks the version of the ledger",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "ops: list[Op] = [Check(self.paths.epoch, view.ledger_version)]\n        if self.owns_leader:",
                "ops: list[Op] = []\n        if self.owns_leader:",
            ),
        ),
        expects=(*SAFETY, *PROGRESS),
    ),
    Mutant(
        "standing-owner",
        "where `leader` vanished under a living owner nobody claims before it has frozen",
        "4",
        (
            Edit(
                AGENT + "election.py",
                "if standing_owner and standing_owner not in cast:",
                'if standing_owner == "nobody":',
            ),
        ),
    ),
    Mutant(
        "quorum",
        "R intact ballots elect, not fewer",
        "4",
        (Edit(AGENT + "electability.py", "needed = quorum(len(case.rules.voters))[1]", "needed = 1"),),
    ),
    Mutant(
        "not-ahead",
        "ballots that are ahead do not count for a candidate",
        "4",
        (
            Edit(
                AGENT + "electability.py",
                "behind = [other for other in intact if not _ahead(case.exact[other], own)]",
                "behind = list(intact)",
            ),
        ),
    ),
    Mutant(
        "everyone-testified",
        "without intact data the best leads only if every voter has testified",
        "4",
        (
            Edit(
                AGENT + "electability.py",
                '    if silent:\n        return set(), ""  # What',
                '    if len(silent) > 1:\n        return set(), ""  # What',
            ),
        ),
    ),
    Mutant(
        "record-taken-back",
        "the state file counts no more than Redis itself, where Redis knows its position",
        "4",
        (
            Edit(
                CORE + "worth.py",
                '            self.save("memory")\n        self._take_back(info)\n',
                '            self.save("memory")\n',
            ),
        ),
    ),
    Mutant(
        "best-of-all",
        "of all that have testified the furthest leads",
        "4",
        (
            Edit(
                AGENT + "electability.py",
                "if not any(_outdoes(case, other, name) for other",
                "if not any(_outdoes(case, name, other) for other",
            ),
        ),
    ),
    # --- the claim --------------------------------------------------------------------------------------------------
    Mutant(
        "claim-checks-ledger",
        "the claim checks the version of the ledger",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "Put(self.paths.epoch, encode(ledger), view.ledger_version),\n            Create(",
                "Put(self.paths.epoch, encode(ledger)),\n            Create(",
            ),
        ),
    ),
    Mutant(
        "serve-checks-ledger",
        "`serve` checks the version of the ledger",
        "4",
        (
            Edit(
                CORE + "takeover.py",
                "Put(self.paths.epoch, encode(self._served_ledger), view.ledger_version),",
                "Put(self.paths.epoch, encode(self._served_ledger)),",
            ),
        ),
    ),
    Mutant(
        "heartbeat-checks-ledger",
        "a leader's heartbeat checks the version of the ledger",
        "3",
        (
            Edit(
                CORE + "sessions.py",
                "ops: list[Op] = [Check(self.paths.epoch, self.view.ledger_version)] if self.leading else []",
                "ops: list[Op] = []",
            ),
        ),
    ),
    Mutant(
        "claim-min-lease",
        "a claim needs a minimum of lease",
        "4",
        (
            Edit(
                CORE + "rounds.py",
                "elif self.lease.until - self.now >= settings.min_claim_lease_s:",
                "elif self.lease.until > 0.0:",
            ),
            Edit(
                CORE + "rounds.py",
                "        not_after = self.lease.until - settings.min_claim_lease_s / 2\n",
                "        not_after = None\n",
            ),
        ),
    ),
    Mutant(
        "promote-not-after",
        "a promotion is not sent after the lease",
        "4",
        (
            Edit(
                CORE + "takeover.py",
                "Promote(redis.incarnation, request, evidence.run_id, self.lease.until, self.settings.role_limit_s)",
                "Promote(redis.incarnation, request, evidence.run_id, self.now + 99, self.settings.role_limit_s)",
            ),
        ),
    ),
    Mutant(
        "promote-the-voter",
        "only the very Redis process that cast the ballot is promoted",
        "4",
        (
            Edit(
                CORE + "takeover.py",
                "if evidence is None or not redis.up or evidence.run_id != redis.run_id:",
                "if evidence is None or not redis.up:",
            ),
        ),
    ),
    Mutant(
        "serve-before-lift",
        "the fence is lifted only behind a committed `serve`",
        "4",
        (
            Edit(
                CORE + "takeover.py",
                "        self.taking_over_request = self.barrier()\n",
                "        self.taking_over_request = self.barrier()\n        self.lift_fence()\n",
            ),
            Edit(CORE + "leading.py", "        if not self.guarded:\n", "        if False:\n"),
            Edit(CORE + "leading.py", "at_least, redis.guard_until, self", "at_least, redis.guard_asked, self"),
        ),
    ),
)
