"""An agent that passes messages between its own two ends and its guard, to be stopped and killed.

``python -m tests.contract.guard_agent DIRECTORY``: a JSON object a line, in both directions. It attaches to the guard
that is there, or launches one. ``gone``: there is no guard any more.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path

from redis_agent.guard_link import SOCKET_NAME, GuardGone, GuardLink
from tests.support.redis import LIMIT_S, server_binary


def tell(**message: object) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    directory = Path(sys.argv[1])
    found = GuardLink.find(directory / SOCKET_NAME)
    link = found or GuardLink.launch(directory / SOCKET_NAME, server_binary(), directory / "redis.conf", directory)
    greeting = link.greeting(LIMIT_S)
    tell(
        **{"is": "ready", "redis_pid": greeting.redis_pid, "guard_pid": greeting.guard_pid},
        create_time=greeting.create_time,
        attached=found is not None,
    )
    ends, asked = {0, link.fileno()}, b""
    while True:
        ready = select.select(list(ends), [], [])[0]
        if 0 in ready:
            received = os.read(0, 65_536)
            if not received:
                return
            *lines, asked = (asked + received).split(b"\n")
            for line in lines:
                link.send(json.loads(line))
        if link.fileno() in ready:
            try:
                for message in link.receive():
                    tell(**message)
            except GuardGone:
                ends.discard(link.fileno())
                tell(**{"is": "gone"})


if __name__ == "__main__":
    main()
