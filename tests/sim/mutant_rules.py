"""The mutants: which rule each of them lacks. Ordered as DESIGN.md has the rules."""

from __future__ import annotations

from tests.sim.mutant import Mutant
from tests.sim.mutant_rules_election import ELECTION
from tests.sim.mutant_rules_fence import FENCE
from tests.sim.mutant_rules_handover import HANDOVER

MUTANTS: tuple[Mutant, ...] = (*ELECTION, *FENCE, *HANDOVER)
