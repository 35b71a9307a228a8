"""SIGHUP: settings are read again while the agent runs."""

from __future__ import annotations

import signal
from pathlib import Path

from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import lab, told, wait_told


def test_sighup_applies_what_it_can_and_says_what_needs_a_restart(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A new log level counts at once, a new timeout is named as waiting for a restart, a wrong file changes nothing:
    it is one line in the log, and the agent goes on leading. Case G5.
    """
    with lab(zookeeper, tmp_path, 1) as cluster:
        member = cluster.wait_settled()
        epoch = cluster.epoch()

        member.configure({"log": {"level": "debug"}, "timing": {"grace_s": 0.5}})
        member.send_signal(signal.SIGHUP)
        reloaded = wait_told(cluster, member, "reloaded")
        assert reloaded["applied"] == ["log.level"]
        assert reloaded["needs_restart"] == ["timing.grace_s"]

        member.configure({"timing": {"grace_s": 0.25}})
        member.send_signal(signal.SIGHUP)
        wait_told(cluster, member, "reloaded", needs_restart=[])

        member.config_path.write_text('[cluster]\nnmae = "x"\n')
        member.send_signal(signal.SIGHUP)
        wait_told(cluster, member, "reload_refused")
        assert "nmae" in str(told(member, "reload_refused")[-1]["problem"])
        assert member.running
        assert cluster.epoch() == epoch
