"""The campaign: program after program on three targets, until enough instructions agree.

Contract: the same chip and seed give the same programs in the same order. The first difference ends
the campaign, with the smallest program that still shows it.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tapeout.chip import Chip
from tapeout.isa.assembler import disassemble

from .compare import Difference, Unsound, compare
from .coverage import Coverage
from .faults import with_fault
from .minimise import fewest_blocks, minimised
from .programs import Case, random_program

BLOCKS = 25  # of a program
FAULTS = 4  # every so many programs, one runs again with a fault planted


@dataclass(frozen=True)
class Failure:
    """A difference between targets.

    Attributes:
        seed: of the program (`random_program(seed, chip, blocks)`).
        what: the difference.
        assembly: the smallest program that shows it.
    """

    seed: int
    blocks: int
    planted: int
    what: str
    assembly: str


@dataclass
class Campaign:
    """What has been compared on one chip so far."""

    chip: Chip
    programs: int = 0
    instructions: int = 0
    cycles: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    unsound: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    failure: Failure | None = None


def verify(
    chip: Chip,
    *,
    instructions: int = 0,
    programs: int = 0,
    seed: int = 0,
    progress: Callable[[Campaign], None] | None = None,
) -> Campaign:
    """Runs programs `seed`, `seed` + 1, ... until so many instructions and programs have agreed."""
    campaign = Campaign(chip)
    for number in itertools.count(seed):
        enough = campaign.instructions >= instructions and campaign.programs >= programs
        if enough or campaign.failure is not None:
            return campaign
        case = random_program(number, chip, BLOCKS)
        _try(campaign, case, number, 0)
        if campaign.failure is None and campaign.programs % FAULTS == 0:
            planted = with_fault(case, number)
            _try(campaign, planted, number, 1)
        if progress is not None:
            progress(campaign)
    raise AssertionError("unreachable")


def _try(campaign: Campaign, case: Case, seed: int, planted: int) -> None:
    try:
        found = compare(case)
    except Unsound:
        campaign.unsound += 1
        return
    if isinstance(found, Difference):
        campaign.failure = _failure(campaign.chip, seed, planted, found)
        return
    if planted:
        campaign.faults[found.fault.name.lower()] += 1
        return
    campaign.programs += 1
    campaign.instructions += found.instructions
    campaign.cycles += found.cycles
    campaign.coverage.add(case.program)


def _failure(chip: Chip, seed: int, planted: int, found: Difference) -> Failure:
    def case_of(blocks: int) -> Case:
        case = random_program(seed, chip, blocks)
        return with_fault(case, seed) if planted else case

    def fails(case: Case) -> bool:
        try:
            return isinstance(compare(case), Difference)
        except Unsound:
            return False

    blocks = BLOCKS if planted else fewest_blocks(lambda n: fails(case_of(n)), BLOCKS)
    case = case_of(blocks)
    if not planted:
        case = minimised(case, fails)
        again = compare(case)
        assert isinstance(again, Difference)
        found = again
    return Failure(seed, blocks, planted, found.what, disassemble(case.program, chip))
