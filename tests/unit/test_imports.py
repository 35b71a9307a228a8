"""The shape of the code: which module may import what, what a program loads, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "agent" / "redis_agent"
MAX_LINES = 500
# A list of records, to be read one by one.
LISTS = {"messages": 750}
MAX_FUNCTION_LINES = 70

# A module may import modules of its own layer and of those above it in this list, not of those below.
LAYERS = (
    {"replication", "rdb_format", "lease"},
    {"ballots", "electability", "election"},
    {"znodes", "messages", "state_record"},
    {"machine"},
    {"core"},
    {"config", "redis_conf"},
    {"config_*", "logs"},
    {"coordination*", "redis_*", "process*", "guard*", "state_file", "workers"},
    {"runtime*"},
    {"client"},
    {"lab"},
    {"demo"},
    {"cli"},
)
PURE = {
    "replication",
    "rdb_format",
    "lease",
    "ballots",
    "electability",
    "election",
    "znodes",
    "messages",
    "state_record",
    "machine",
    "core",
}
# What would make the core depend on anything but its arguments.
IMPURE = {
    "asyncio",
    "datetime",
    "kazoo",
    "os",
    "psutil",
    "queue",
    "random",
    "redis",
    "secrets",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uuid",
}
# Applications import the client: it knows the wire formats and the tamed kazoo, and nothing of the server side.
CLIENT_MAY_IMPORT = {"client", "coordination_client", "replication", "znodes", "election", "ballots", "electability"}
# Tools for people and for tests may speak to ZooKeeper and Redis themselves.
OUTSIDE_THE_AGENT = {"cli", "client", "lab", "demo"}


def modules() -> dict[str, Path]:
    """Dotted name below the package: path."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, also inside functions and for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[str]:
    """Our own top-level modules that a module imports."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("redis_agent.")}
    return names & {name.partition(".")[0] for name in modules()}


def foreign(path: Path) -> set[str]:
    """Top-level names of everything else that it imports."""
    return {name.partition(".")[0] for name in imports(path)} - {"redis_agent"}


def layer(module: str) -> int:
    """Its number; 0 is the lowest."""
    top = module.partition(".")[0]
    for number, patterns in enumerate(LAYERS):
        if any(fnmatch(top, pattern) for pattern in patterns):
            return number
    raise AssertionError(f"say in LAYERS where {module} belongs")


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_imports_go_one_way(module: str) -> None:
    """No module imports one of a higher layer, so each can be understood with what is below it."""
    path = modules()[module]
    for imported in own(path):
        assert layer(imported) <= layer(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in modules() if name.partition(".")[0] in PURE])
def test_pure_modules_do_no_io_and_read_no_clock(module: str) -> None:
    """The core and what it rests on depend on their arguments only: this is what makes the simulator true."""
    assert not foreign(modules()[module]) & IMPURE


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_kazoo_and_redis_are_spoken_in_one_place(module: str) -> None:
    """In the agent, ZooKeeper's client lives in coordination*, and redis-py in redis_*."""
    top = module.partition(".")[0]
    if top in OUTSIDE_THE_AGENT:
        return
    used = foreign(modules()[module])
    assert "kazoo" not in used or top.startswith("coordination"), module
    assert "redis" not in used or top.startswith("redis_"), module


@pytest.mark.parametrize("module", [name for name in modules() if name.partition(".")[0] == "client"])
def test_the_client_never_imports_the_server_side(module: str) -> None:
    """An application that follows the leader does not load the agent."""
    assert own(modules()[module]) <= CLIENT_MAY_IMPORT


@pytest.mark.parametrize("module", sorted(modules()))
def test_files_and_functions_stay_short(module: str) -> None:
    """A file fits into a head, a function onto a screen."""
    path = modules()[module]
    text = path.read_text()
    assert len(text.splitlines()) <= LISTS.get(module, MAX_LINES), path
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines"


def loaded(code: str) -> set[str]:
    """What a fresh interpreter has loaded after running ``code``."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    """``import redis_agent`` itself loads no library at all."""
    assert not loaded("import redis_agent") & {"kazoo", "redis", "psutil", "transitions", "msgspec", "asyncio"}


def test_the_client_loads_nothing_of_the_agent() -> None:
    """``from redis_agent import LeaderObserver`` loads neither psutil nor transitions, nor the core."""
    modules_loaded = loaded("from redis_agent import LeaderObserver")
    assert "kazoo" in modules_loaded
    assert not modules_loaded & {"psutil", "transitions", "redis_agent.core", "redis_agent.runtime", "redis_agent.cli"}


def test_run_loads_nothing_that_only_terminals_use() -> None:
    """What ``redis-agent run`` imports has no tables, no demonstration, no client: it must restart fast."""
    modules_loaded = loaded("import redis_agent.cli.main, redis_agent.cli.run, redis_agent.runtime")
    unwanted = {
        "rich",
        "redis_agent.lab",
        "redis_agent.demo",
        "redis_agent.client",
        "redis_agent.cli.status",
    }
    assert not modules_loaded & unwanted
