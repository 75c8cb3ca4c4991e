"""Products with what is computed of them as one step, and weights as products want them.

A group that is the only reader of a product, element by element, becomes the product's epilogue: it
is computed where the product lies, and the product itself is never stored.
"""

from collections import defaultdict
from collections.abc import Callable

from tapeout.kernels import convolution, gemm
from tapeout.kernels.epilogue import Epilogue, vmem_sizes
from tapeout.lang import Builder, ChipTooSmall, HbmTensor

from .programs import Emitter
from .schedule import PRODUCTS, Group, Launch, Schedule, made_by, reads_of
from .values import Buffer, Kernel, Result, Value, as_view


def matrix_of(kernel: Kernel) -> tuple[int, int] | None:
    """The result as one matrix [M, N] that the kernel makes block by block; None: it does not."""
    if kernel.op == "convolution":
        return kernel.params["shape"].matrix
    if kernel.op != "mm":
        return None
    batch, m, n, _ = kernel.params["shape"]
    return (m, n) if batch == 1 else None


def fuse(schedule: Schedule, k: Builder, in_place: frozenset[Buffer]) -> None:
    """Gives products their epilogues, where the chip has room for them."""
    steps = schedule.steps
    readers: dict[object, set[int]] = defaultdict(set)
    made: dict[object, int] = {}
    for at, step in enumerate(steps):
        for view in reads_of(step, schedule.roots):
            readers[view.source].add(at)
        made |= dict.fromkeys(made_by(step), at)
    buffers = dict.fromkeys(
        [*schedule.stored.values(), *(v for v in readers if isinstance(v, Buffer))]
    )
    places = {b: HbmTensor(0, i, 0) for i, b in enumerate(buffers)}  # as long as nothing has one
    emitter = Emitter(schedule, k.chip.lanes, places)
    ends = set(schedule.ends)
    gone: set[int] = set()
    for at, group in enumerate(steps):
        if not isinstance(group, Group) or group.lanes:
            continue
        products = [
            v for v in dict.fromkeys(view.source for view in reads_of(group, schedule.roots))
            if isinstance(v, Result) and readers[v] == {at} and v not in ends
        ]  # fmt: skip
        for product in reversed(products):
            launch = steps[made[product]]
            assert isinstance(launch, Launch)
            shape = matrix_of(product.kernel)
            if shape is None or len(launch.results) > 1 or launch.finish is not None:
                continue
            between = steps[made[product] + 1 : at]
            written = {schedule.stored.get(v) for step in between for v in made_by(step)} & in_place
            if written & {view.source for view in reads_of(launch, schedule.roots)}:
                continue
            epilogue = emitter.epilogue(group, product, shape)
            plan = None if epilogue is None else _plan(k, launch, epilogue)
            if plan is not None:
                launch.finish, launch.plan = group, plan
                steps[at] = launch
                gone.add(made[product])
                del schedule.stored[product]
                break
    schedule.steps = [step for i, step in enumerate(steps) if i not in gone]


Matrices = tuple[tuple[int, int, int], bool]  # (count, K, N), and whether they are given turned


def tile_weights(schedule: Schedule, can: Callable[[Value], bool]) -> dict[Value, Matrices]:
    """Launches whose right factors may lie tile by tile, which then they do; these factors. Comes
    before `fuse`, which chooses sizes.

    Args:
        can: says whether a stored value can have any layout.
    """
    wanted: dict[Value, set[Matrices]] = defaultdict(set)
    taken: dict[Value, list[Launch]] = defaultdict(list)
    other: set[Value] = set()
    for step in schedule.steps:
        rights: set[Value] = set()
        if isinstance(step, Launch) and step.kernel.op in PRODUCTS:
            matrices = _right_factors(step.kernel)
            for v in step.kernel.inputs[1::2]:
                view = as_view(v)
                if view.offset or view.numel != view.source.numel:
                    other.add(view.source)
                wanted[view.source].add(matrices)
                taken[view.source].append(step)
                rights.add(view.source)
            other |= {as_view(v).source for v in step.kernel.inputs[::2]}
        else:
            other |= {v.source for v in reads_of(step, schedule.roots)}
    bad = {v for v in wanted if v in other or not can(v) or len(wanted[v]) > 1}
    while True:  # all factors of a launch are tiled, or none
        more = {
            as_view(v).source
            for b in bad for step in taken[b] for v in step.kernel.inputs[1::2]
        } - bad  # fmt: skip
        if not more:
            break
        bad |= more
    found = {v: next(iter(m)) for v, m in wanted.items() if v not in bad}
    for v in found:
        for step in taken[v]:
            step.tiled = True
    return found


def _right_factors(kernel: Kernel) -> Matrices:
    shape = kernel.params["shape"]
    if kernel.op == "convolution":
        return (1, shape.taps * shape.channels, shape.outputs), False
    batch, _, n, depth = shape
    return (batch, depth, n), kernel.params["transposed"]


def _plan(k: Builder, launch: Launch, epilogue: Epilogue) -> gemm.Plan | convolution.Plan | None:
    """Sizes of the kernel with the epilogue; None if the chip has no room for both."""
    chip, stripes, shape = k.chip, len(k.places.spm.stripes), launch.kernel.params["shape"]
    plan: gemm.Plan | convolution.Plan
    try:
        if launch.kernel.op == "convolution":
            plan = convolution.choose(chip, shape, epilogue.formats, stripes, tiled=launch.tiled)
            rows = plan.height * plan.width
        else:
            plan = gemm.choose(
                chip, *shape[1:], formats=epilogue.formats, tiled=launch.tiled, stripes=stripes
            )
            rows = plan.rows
        vmem_sizes(chip, epilogue, rows, plan.columns)
    except ChipTooSmall:
        return None
    return plan
