"""Mutants of the product's own adapters: the simulator has its own, so a test on real servers has to notice."""

from __future__ import annotations

from tests.sim.mutant import AGENT, Edit, Mutant

_GUARD, _LINK = "tests/contract/test_guard_contract.py::", "tests/integration/test_redis_link.py::"

ADAPTERS: tuple[Mutant, ...] = (
    # --- the guard --------------------------------------------------------------------------------------------------
    Mutant(
        "real-guard-fences-on-death",
        "an armed guard fences when its agent dies",
        "5",
        (Edit(AGENT + "guard_loop.py", 'self.fire("the agent is gone")', "self.set_deadline(None)"),),
        test=f"{_GUARD}test_an_agent_that_dies_while_armed_leaves_a_fenced_redis[guard]",
    ),
    Mutant(
        "real-guard-hears-first",
        "the guard hears what the agent has sent before it acts on a deadline",
        "5",
        (
            Edit(
                AGENT + "guard_loop.py",
                "            if self.agent is not None:\n                self.hear(self.agent)\n"
                "            if self.output in",
                "            if self.output in",
            ),
            Edit(
                AGENT + "guard_loop.py",
                "        if self.agent is not None:\n            self.hear(self.agent)\n"
                "        if self.until is None or",
                "        if self.until is None or",
            ),
            Edit(
                AGENT + "guard_loop.py",
                "                self.deadline()\n            self.flush()\n",
                "                self.deadline()\n            if self.agent is not None:\n"
                "                self.hear(self.agent)\n            self.flush()\n",
            ),
        ),
        test=f"{_GUARD}test_what_the_agent_has_sent_comes_before_a_deadline[guard]",
    ),
    Mutant(
        "real-guard-disarms",
        "a guard that was disarmed does not act",
        "5",
        (
            Edit(
                AGENT + "guard_loop.py",
                'self.set_deadline(float(message["until"]) if arming else None)',
                'self.set_deadline(float(message["until"]) if arming else self.until)',
            ),
        ),
        test=f"{_GUARD}test_after_a_disarming_a_death_changes_nothing[guard]",
    ),
    Mutant(
        "real-guard-kills-redis",
        "the guard kills a Redis that does not answer its fence",
        "5",
        (Edit(AGENT + "guard_loop.py", "            self.kill_group()\n            outcome", "            outcome"),),
        test=f"{_GUARD}test_a_redis_that_does_not_answer_the_fence_is_killed[guard-deadline]",
    ),
    Mutant(
        "real-guard-kills-group",
        "Redis is killed with its process group, so that no child of it keeps its sockets open",
        "5",
        (
            Edit(
                AGENT + "guard_loop.py",
                "            os.killpg(self.pid, signal.SIGKILL)\n",
                "            os.kill(self.pid, signal.SIGKILL)\n",
            ),
        ),
        test="tests/integration/test_guard.py::test_a_redis_that_does_not_confirm_is_killed_with_its_group",
    ),
    Mutant(
        "real-guard-closes-roles",
        "the guard closes the role connections, so what a dead agent has left in them is never executed",
        "5",
        (
            Edit(
                AGENT + "guard_fence.py",
                '    return [("CLIENT", "KILL", "ID", number) for number in numbers]',
                '    return [("PING",) for number in numbers]',
            ),
        ),
        test="tests/integration/test_guard.py::test_what_a_role_connection_has_not_been_read_of_is_never_executed[False]",
    ),
    # --- role commands ----------------------------------------------------------------------------------------------
    Mutant(
        "real-not-after",
        "a promotion or a lift that is too late is not sent",
        "5",
        (
            Edit(
                AGENT + "redis_link.py",
                "if isinstance(command, Promote | LiftFence) and self._clock() >= command.not_after:",
                "if isinstance(command, Promote | LiftFence) and self._clock() < 0.0:",
            ),
        ),
        test=f"{_LINK}test_late_commands_are_not_sent",
    ),
    Mutant(
        "real-promote-the-voter",
        "only the very process that cast the ballot is promoted",
        "4",
        (
            Edit(
                AGENT + "redis_link.py",
                "if isinstance(command, Promote) and command.run_id != self._run_id:",
                'if isinstance(command, Promote) and command.run_id == "":',
            ),
        ),
        test=f"{_LINK}test_another_process_is_not_promoted",
    ),
    Mutant(
        "real-backlog",
        "a promotion makes a backlog, so the replid is final",
        "4",
        (
            Edit(
                AGENT + "redis_link.py",
                "if isinstance(command, Promote) and outcome.info is not None and not outcome.info.backlog:",
                "if isinstance(command, Promote) and outcome.info is None:",
            ),
        ),
        test=f"{_LINK}test_promotion_makes_a_backlog_so_that_the_replid_stays",
    ),
    Mutant(
        "real-freeze-kills-clients",
        "clients' connections end with the freeze",
        "4",
        (
            Edit(
                AGENT + "redis_role.py",
                'kills = (Step(("CLIENT", "KILL", "TYPE", "normal")), Step(("CLIENT", "KILL", "TYPE", "pubsub")))',
                "kills: tuple[Step, ...] = ()",
            ),
        ),
        test=f"{_LINK}test_a_freeze_keeps_the_position_and_kills_the_clients",
    ),
    Mutant(
        "real-follow-fences",
        "every follower stays fenced, also where somebody promotes it",
        "5",
        (
            Edit(
                AGENT + "redis_role.py",
                'steps = (lag, fence, follow, Step(("CLIENT", "UNPAUSE")), *pins)',
                'steps = (follow, Step(("CLIENT", "UNPAUSE")), *pins)',
            ),
        ),
        test="tests/contract/test_redis_contract.py::test_a_follower_that_led_is_fenced[redis]",
    ),
    Mutant(
        "real-attach-fences",
        "an agent that attaches to a running Redis fences it first",
        "5",
        (
            Edit(
                AGENT + "redis_start.py",
                '    ("CONFIG", "SET", "min-replicas-to-write", FENCED),\n    ("CONFIG", "GET", "min',
                '    ("CONFIG", "GET", "min',
            ),
        ),
        test="tests/integration/test_attach.py::test_a_redis_that_was_left_open_is_found_fenced",
    ),
)
