"""The clients of one run: processes of the fault tests' workload, the same ones for both systems."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from redis_agent.lab.waiting import wait_for
from tests.faults.bed import Bed, Host
from tests.faults.history import Entry, read
from tests.faults.workload import Plugin, Role, Spec

PREFIX = "cmp"
ANSWER_LIMIT_S = 60.0
STAYER_RATE_PER_S = 50.0
_ROOT = Path(__file__).resolve().parents[2]


def roles(rate_per_s: float) -> list[Role]:
    """Two writers of SET, two of SET and WAIT, one of INCR, who share this rate."""
    each = rate_per_s / 5
    return [
        *(Role(op="set", rate_per_s=each) for _ in range(2)),
        *(Role(op="set", rate_per_s=each, wait=True) for _ in range(2)),
        Role(op="incr", rate_per_s=each),
    ]


class Clients:
    """Client programs on several hosts. ``with`` ends them.

    Two of them look for the primary: one on a host of its own, which stays with the majority, and one beside the
    primary, which is cut off with it. Besides one client stays on each node, whatever it says, so that a second node
    that takes writes is seen at once.

    Args:
        bed: the hosts.
        directory: for the histories.
        plugin: how they find the primary.
        nodes: of each member's name, its Redis (address:port).
        beside: the primary's name.
        rate_per_s: of those that look for the primary, together.
    """

    def __init__(
        self, bed: Bed, directory: Path, plugin: Plugin, nodes: Mapping[str, str], beside: str, rate_per_s: float
    ) -> None:
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._start("far", bed.host("clients"), roles(0.8 * rate_per_s), plugin)
        self._start("near", bed[beside], roles(0.2 * rate_per_s), plugin)
        for name, node in nodes.items():
            # Beside its node, so that no cut is between the two.
            stays = [Role(op="set", rate_per_s=STAYER_RATE_PER_S, stubborn=node)]
            self._start(f"stays-{name}", bed[name], stays, None)
        for client, process in self._processes.items():
            self._expect(process, "ready")
            self._tell(process, f"begin {PREFIX} {self._path(client)}")
        for process in self._processes.values():
            self._expect(process, "begun")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()

    def _start(self, client: str, host: Host, of: list[Role], plugin: Plugin | None) -> None:
        spec = msgspec.json.encode(Spec(client=client, roles=of, finder=plugin)).decode()
        self._processes[client] = host.popen(
            [sys.executable, "-m", "tests.faults.workload", spec],
            guest=True,
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _path(self, client: str) -> Path:
        return self._directory / f"{client}.jsonl"

    @staticmethod
    def _tell(process: subprocess.Popen[str], order: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{order}\n")
        process.stdin.flush()

    @staticmethod
    def _expect(process: subprocess.Popen[str], word: str) -> None:
        assert process.stdout is not None
        # One that hangs is killed, and has said nothing then.
        limit = threading.Timer(ANSWER_LIMIT_S, process.kill)
        limit.start()
        said = process.stdout.readline().strip()
        limit.cancel()
        if said != word:
            raise RuntimeError(f"a client process said {said!r} instead of {word!r}")

    def end(self) -> None:
        """Finish what is under way."""
        for process in self._processes.values():
            self._tell(process, "end")
        for process in self._processes.values():
            self._expect(process, "ended")

    def history(self, client: str = "*") -> list[Entry]:
        """What they have noted so far, in the order in which it was sent."""
        entries: list[Entry] = []
        for path in self._directory.glob(f"{client}.jsonl"):
            with suppress(FileNotFoundError):
                entries += read([path])
        return sorted(entries, key=lambda entry: entry.t0)

    def wait_written(self, since_ns: int, limit_s: float, *, past_node: str = "", count: int = 1) -> None:
        """Wait until the client of the majority has so many acknowledged writes, not of this node."""

        def written() -> bool:
            good = (e for e in self.history("far") if e.ok and e.t1 > since_ns and e.node != past_node)
            return sum(1 for _ in good) >= count

        wait_for(written, limit_s, f"{count} acknowledged writes past {past_node or 'nobody'}", pause_s=0.2)
