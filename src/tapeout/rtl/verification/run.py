"""The campaign: program after program on three targets, until enough instructions agree.

Contract: the same chip and seed give the same programs in the same order, on any number of
processes. One core runs all programs of a process, each on what the last one left. The first
difference ends the campaign, with the smallest program that still shows it. Each program runs again
with a fault planted.
"""

import itertools
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field

from tapeout.chip import Chip
from tapeout.isa.assembler import disassemble
from tapeout.rtl.build import library
from tapeout.rtl.target import Rtl

from .compare import Agreement, Difference, Unsound, compare, hardware
from .coverage import Coverage
from .faults import with_faults
from .minimise import fewest_blocks, minimised
from .programs import Case, random_program

BLOCKS = 25  # of a program


@dataclass(frozen=True)
class Failure:
    """A difference between targets.

    Attributes:
        seed: of the program (`random_program(seed, chip, blocks)`).
        planted: which of `with_faults(program, seed)` it is; None: the program itself.
        what: the difference.
        assembly: the smallest program that shows it.
    """

    seed: int
    blocks: int
    planted: int | None
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


@dataclass(frozen=True)
class _Outcome:
    """What came of a seed: of its program, and of those with a fault planted in it."""

    seed: int
    whole: Agreement | Difference | None  # None: unsound
    planted: list[Agreement | Difference | None]
    coverage: Coverage


def verify(
    chip: Chip,
    *,
    instructions: int = 0,
    programs: int = 0,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[Campaign], None] | None = None,
) -> Campaign:
    """Runs programs `seed`, `seed` + 1, ... until so many instructions and programs have agreed.

    Args:
        jobs: processes that run them.
    """
    campaign = Campaign(chip)
    for outcome in _outcomes(chip, seed, jobs):
        _add(campaign, outcome)
        if progress is not None:
            progress(campaign)
        enough = campaign.instructions >= instructions and campaign.programs >= programs
        if enough or campaign.failure is not None:
            return campaign
    raise AssertionError("unreachable")


def _outcomes(chip: Chip, seed: int, jobs: int) -> Iterator[_Outcome]:
    if jobs == 1:
        rtl = hardware(chip)
        for number in itertools.count(seed):
            yield _outcome(rtl, number)
    library(chip)
    waiting: deque[Future[_Outcome]] = deque()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(chip,)) as pool:
        try:
            for number in itertools.count(seed):
                waiting.append(pool.submit(_outcome_here, number))
                if len(waiting) > 4 * jobs:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_here: list[Rtl] = []  # the core of this process


def _begin(chip: Chip) -> None:
    _here.append(hardware(chip))


def _outcome_here(seed: int) -> _Outcome:
    return _outcome(_here[0], seed)


def _outcome(rtl: Rtl, seed: int) -> _Outcome:
    case = random_program(seed, rtl.chip, BLOCKS)
    whole = _agreement(case, rtl)
    coverage = Coverage()
    if isinstance(whole, Agreement):
        coverage.add(case.program, rtl.chip)
    planted = [_agreement(each, rtl) for each in with_faults(case, seed)]
    return _Outcome(seed, whole, planted, coverage)


def _agreement(case: Case, rtl: Rtl) -> Agreement | Difference | None:
    try:
        return compare(case, rtl)
    except Unsound:
        return None


def _add(campaign: Campaign, outcome: _Outcome) -> None:
    for planted, found in [(None, outcome.whole), *enumerate(outcome.planted)]:
        if isinstance(found, Difference):
            campaign.failure = _failure(campaign.chip, outcome.seed, planted, found)
            return
    if isinstance(outcome.whole, Agreement):
        campaign.programs += 1
        campaign.instructions += outcome.whole.instructions
        campaign.cycles += outcome.whole.cycles
        campaign.coverage.cells.update(outcome.coverage.cells)
    else:
        campaign.unsound += 1
    for found in outcome.planted:
        if isinstance(found, Agreement):
            campaign.faults[found.fault.name.lower()] += 1


def _failure(chip: Chip, seed: int, planted: int | None, found: Difference) -> Failure:
    """Made small on a core of its own: what fails only behind other programs stays whole."""
    rtl = hardware(chip)

    def case_of(blocks: int) -> Case:
        case = random_program(seed, chip, blocks)
        return case if planted is None else with_faults(case, seed)[planted]

    def fails(case: Case) -> bool:
        return isinstance(_agreement(case, rtl), Difference)

    case = case_of(BLOCKS)
    again = _agreement(case, rtl)
    if not isinstance(again, Difference):
        what = f"{found.what} (only behind the programs before it)"
        return Failure(seed, BLOCKS, planted, what, disassemble(case.program, chip))
    blocks = BLOCKS
    if planted is None:
        blocks = fewest_blocks(lambda n: fails(case_of(n)), BLOCKS)
        case = minimised(case_of(blocks), fails)
        again = _agreement(case, rtl)
        assert isinstance(again, Difference)
    return Failure(seed, blocks, planted, again.what, disassemble(case.program, chip))
