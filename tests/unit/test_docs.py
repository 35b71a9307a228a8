"""The documents: links lead somewhere, and what they tell people to type exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from redis_agent.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository, and every anchor a heading of it."""
    broken = []
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Each `redis-agent` subcommand and each `make` target that is named is one."""
    text = page.read_text()
    named = set(re.findall(r"(?:`|^)(?:sudo )?redis-agent ([a-z]+)", text, flags=re.MULTILINE))
    assert named <= COMMANDS.keys(), named - COMMANDS.keys()
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    wanted = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert wanted <= targets, wanted - targets


def test_the_readme_names_every_required_key() -> None:
    """The configuration that it shows is a whole one."""
    (shown,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    keys = {(section, key) for section, values in tomllib.loads(shown).items() for key in values}
    required = {
        ("cluster", "name"),
        ("cluster", "bootstrap_expect"),
        ("zookeeper", "hosts"),
        ("redis", "announce_host"),
    }
    assert keys == required
