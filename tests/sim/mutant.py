"""A mutant: the source with one rule taken out. The lists are in `mutant_rules`, the runner is `mutants`.

A mutant is a textual replacement that must match exactly once, so that the lists cannot rot silently: a test applies
every one of them. Rules that live in an adapter are taken out of the simulated one, which the contract tests hold to
what the real one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CORE = "agent/redis_agent/core/"
AGENT = "agent/redis_agent/"
SIM = "tests/sim/"

SAFETY = (
    "one writer",
    "epochs",
    "confirmed",
    "testified",
    "gives way",
    "divergence",
    "process",
    "kept WAIT",
    "guard",
    "handover",
    "refused",
    "orders",
    "wiped",
    "history",
    "counters",
    "core raised",
)
"""Invariants that a mutant of a safety rule may be caught by: a promise was broken, at once and for certain."""

PROGRESS = ("progress", "upgrade", "orderly exit")
"""Those of rules without which a cluster stands still, or an agent does not do as told."""


@dataclass(frozen=True, slots=True)
class Edit:
    """In ``file`` replace ``old``, which is there exactly once, by ``new``."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """``rule`` is what is taken out, ``section`` where DESIGN.md has it.

    expects: the invariants that it may be caught by; other violations are passed over.
    test: a directed test that fails with it. Without one, seeds have to find it.
    only: the kinds of fault that the nemesis is restricted to where seeds find it; plain ones would be too many.
    spared: why it is not caught, and need not be: which other rule stands behind it.
    """

    name: str
    rule: str
    section: str
    edits: tuple[Edit, ...]
    expects: tuple[str, ...] = SAFETY
    test: str = ""
    only: tuple[str, ...] = ()
    spared: str = ""

    @property
    def by_seeds(self) -> bool:
        """Seeds find it, of ``only`` these kinds of fault."""
        return bool(self.only) or not (self.test or self.spared)


class Mismatch(Exception):
    """An edit does not fit the source any more; the message says which."""


def apply(mutant: Mutant, root: Path) -> None:
    """Take the rule out of the sources below ``root``.

    Raises:
        Mismatch: an edit matches nowhere, or more than once.
    """
    for edit in mutant.edits:
        path = root / edit.file
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if found != 1:
            raise Mismatch(f"{mutant.name}: {found} matches instead of 1 in {edit.file}:\n{edit.old}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
