"""Convolution of images in HBM, channels last, without a matrix of windows.

y[n, oy, ox, o] = sum over taps (dy, dx) and channels c of x[n, oy * s + dy, ox * s + dx, c]
w[dy, dx, c, o]. A block is some rows of output pixels (or a part of one) of one image by some
column tiles of outputs. The input pixels that it needs, borders of zeros included, lie in spm as
they lie in the image; for each tap the array reads them from another row on, with the strides of
the image (`mxu.matmul` has two). Chunks of channels go by as chunks of K do in `gemm`, whose
epilogues apply.

Where channels are few, the array's rows hold several taps (`Shape.few`): each output pixel has a
row of spm with the inputs under its window.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from tapeout.chip import Chip
from tapeout.isa import Count, Kind, dma, mxu
from tapeout.isa.dma import HbmFormat
from tapeout.isa.forms import ceil_div
from tapeout.isa.mxu import Accumulate
from tapeout.lang import Builder, ChipTooSmall, HbmTensor, Tensor, ops

from .epilogue import Epilogue, Finish
from .gemm import HBM_WEIGHT, STEP_CYCLES, run_rates
from .rings import Chunks, Rings
from .rows import STRIDE_MAX, load_rows, load_tiled, spans, spm_rows, transfer

EDGE_CYCLES = 400  # latencies of the first chunk and of the way out

MXU = ops.MXU


@dataclass(frozen=True)
class Axis:
    """One of the two dimensions of an image."""

    inputs: int
    outputs: int
    taps: int
    stride: int = 1
    dilation: int = 1
    before: int = 0  # zeros in front

    @property
    def sparse(self) -> bool:
        """Only the inputs under the one tap are read."""
        return self.taps == 1 and self.stride > 1

    @property
    def step(self) -> int:
        """From an output's inputs to the next one's, where they lie on chip."""
        return 1 if self.sparse else self.stride

    def extent(self, outputs: int) -> int:
        """Inputs on chip for that many outputs."""
        return (outputs - 1) * self.step + (self.taps - 1) * self.dilation + 1

    def inside(self, first: int, outputs: int) -> tuple[int, int, int]:
        """(borders in front, inputs that exist, index of the first) for outputs from `first` on."""
        by = self.stride if self.sparse else 1
        start = first * self.stride - self.before
        count = self.extent(outputs)
        skip = min(count, max(0, ceil_div(-start, by))) if start < 0 else 0
        there = max(0, min(count, ceil_div(self.inputs - start, by)) - skip)
        return skip, there, start + skip * by


@dataclass(frozen=True)
class Shape:
    """What is convolved: images [batch, rows.inputs, columns.inputs, channels].

    Attributes:
        few: windows are written out on chip; the images have their borders of zeros in HBM.
    """

    batch: int
    rows: Axis
    columns: Axis
    channels: int
    outputs: int
    few: bool = False

    @property
    def taps(self) -> int:
        return self.rows.taps * self.columns.taps

    @property
    def matrix(self) -> tuple[int, int]:
        """The result as a matrix: (pixels, outputs)."""
        return self.batch * self.rows.outputs * self.columns.outputs, self.outputs


@dataclass(frozen=True)
class Piece:
    """`count` elements of a window that follow each other in HBM, of tap (row, column) from its
    channel `first` on."""

    row: int
    column: int
    first: int
    count: int


@cache  # a plan is chosen among thousands, each of which asks
def window_tiles(shape: Shape, tall: int) -> list[list[Piece]]:
    """The elements of a window, in the order of weights, as tiles of up to `tall` rows."""
    taps, channels = shape.columns.taps, shape.channels
    together = taps if shape.columns.dilation == 1 else 1  # taps whose elements follow each other
    tiles: list[list[Piece]] = []
    room = 0
    for row, column in itertools.product(range(shape.rows.taps), range(0, taps, together)):
        first, end = 0, together * channels
        while first < end:
            count = min(tall, end - first)
            if count > room:
                tiles.append([])
                room = tall
            tiles[-1].append(Piece(row, column, first, count))
            room, first = room - count, first + count
    return tiles


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of blocks; `width` < columns.outputs only with `height` 1."""

    height: int
    width: int
    columns: int  # column tiles
    depth: int  # channels of a chunk
    slots: int  # of each input ring
    cycles: float


def choose(
    chip: Chip, shape: Shape, formats: Sequence[HbmFormat], stripes: int, *, tiled: bool = False
) -> Plan:
    """The cheapest sizes that fit `stripes` stripes of spm. ChipTooSmall.

    Args:
        formats: of the results, and of other tensors that the epilogue loads.
    """
    best: Plan | None = None
    lanes, tall = chip.lanes, chip.mxu.rows
    tiles = ceil_div(shape.outputs, lanes)
    channel_tiles = ceil_div(shape.channels, tall)
    depths = {min(shape.channels, ceil_div(channel_tiles, i) * tall) for i in range(1, 9)}
    if shape.few:
        depths = {shape.channels}
    for (height, width), columns, depth in itertools.product(_blocks(shape), range(1, 9), depths):
        if columns > tiles:
            continue
        slots = _slots(chip, shape, height, width, columns, depth, formats, stripes)
        if slots < 2:
            continue
        cycles = _cost(chip, shape, height, width, columns, depth, formats, tiled)
        if best is None or cycles < best.cycles:
            best = Plan(
                height=height, width=width, columns=columns, depth=depth, slots=slots, cycles=cycles
            )
    if best is None:
        raise ChipTooSmall(
            f"no block of a convolution {shape} fits {stripes} stripes of "
            f"{chip.spm.rows_per_stripe} rows of spm and {chip.acc.stripes} of "
            f"{chip.acc.rows_per_stripe} of acc: raise spm.stripes (8 or more) or their rows"
        )
    return best


def _blocks(shape: Shape) -> list[tuple[int, int]]:
    """Heights and widths to try, each dividing the image about evenly."""
    high, wide = shape.rows.outputs, shape.columns.outputs
    heights = {ceil_div(high, i) for i in range(1, high + 1)}
    widths = {ceil_div(wide, 1 << i) for i in range(1, 12)}
    return [*((h, wide) for h in sorted(heights)), *((1, w) for w in sorted(widths))]


def _slots(
    chip: Chip, shape: Shape, height: int, width: int, columns: int, depth: int,
    formats: Sequence[HbmFormat], stripes: int,
) -> int:  # fmt: skip
    """Slots an input ring may have; 0 where a block does not fit."""
    per, rows = chip.spm.rows_per_stripe, height * width
    pixels = shape.rows.extent(height) * shape.columns.extent(width)
    image_tiles, weight_rows = ceil_div(depth, chip.mxu.rows), shape.taps * _padded(chip, depth)
    if shape.few:
        pixels, image_tiles = rows, len(window_tiles(shape, chip.mxu.rows))
        weight_rows = image_tiles * _padded(chip, chip.mxu.rows)
    wide = [spm_rows(f) for f in formats]
    acc = 2 * ceil_div(rows * columns, chip.acc.rows_per_stripe) <= chip.acc.stripes
    if not acc or rows * max(wide) > STRIDE_MAX or pixels > STRIDE_MAX:
        return 0
    a = ceil_div(pixels * image_tiles, per)
    b = ceil_div(weight_rows * columns, per)
    c = sum(ceil_div(rows * columns * w, per) for w in wide)
    return min(4, (stripes - 2 * c) // (a + b))


def _padded(chip: Chip, rows: int) -> int:
    """Rows of weights of a tap: a straight load begins where banks do."""
    banks = chip.spm.banks_per_stripe
    return ceil_div(rows, banks) * banks


def _cost(
    chip: Chip, shape: Shape, height: int, width: int, columns: int, depth: int,
    formats: Sequence[HbmFormat], tiled: bool,
) -> float:  # fmt: skip
    """Cycles: the slowest of array, HBM and each queue's runs, and what nothing hides."""
    lanes, batch = chip.lanes, shape.batch
    groups, chunks = (
        ceil_div(ceil_div(shape.outputs, lanes), columns), ceil_div(shape.channels, depth)
    )  # fmt: skip
    pixels, blocks, array = 0, 0, 0
    load = ceil_div(chip.mxu.rows, chip.mxu.load_rows_per_cycle)
    passes = shape.taps * ceil_div(shape.channels, chip.mxu.rows)
    if shape.few:
        passes = len(window_tiles(shape, chip.mxu.rows))
    passes *= ceil_div(shape.outputs, lanes)
    for _, h, _, w in _places(shape, height, width):
        pixels += shape.rows.extent(h) * shape.columns.extent(w)
        array += passes * max(h * w, load, chip.mxu.accumulate_cycles)
        blocks += 1
    m, n = shape.matrix
    side = min(n, columns * lanes)  # columns of a block
    again = 1 if chunks == groups == 1 else batch * blocks
    rows = height * width
    image = shape.columns.extent(width) * (1 if depth == shape.channels else 0)
    traffic = [  # bytes in all, bytes of a run, bytes of the first chunk
        (
            2 * batch * pixels * shape.channels * (1 if chunks == 1 else groups),
            2 * depth * (max(1, image) if not shape.columns.sparse else 1),
            2 * shape.rows.extent(height) * shape.columns.extent(width) * depth,
        ),
        (
            2 * shape.taps * shape.channels * n * again,
            2 * (depth * lanes if tiled else lanes),  # rows of a tile follow each other, or not
            2 * shape.taps * depth * side,
        ),
        *(
            (size * m * n, size * (rows * n if side == n else side), size * rows * side)
            for size in (2 * spm_rows(f) for f in formats)
        ),
    ]
    spent, slowest, ways = 0.0, 0.0, []
    for total, run, first in traffic:
        rate, speed = run_rates(chip, run)
        slowest, spent = max(slowest, total / speed), spent + total / rate
        ways.append(first / speed)
    if shape.few:  # rows of spm one after another, by three queues
        count = sum(len(pieces) for pieces in window_tiles(shape, chip.mxu.rows))
        spent -= traffic[0][0] / run_rates(chip, traffic[0][1])[0]
        slowest, ways[0] = (
            max([m * count / 3, *(t / run_rates(chip, r)[1] for t, r, _ in traffic[1:])]),
            rows * count / 3,
        )
    edges = max(ways[0], ways[1]) + max(ways[2:])
    steps = batch * blocks * groups * chunks
    busy = max(batch * array, slowest, spent)
    return busy + edges + HBM_WEIGHT * spent + STEP_CYCLES * steps + EDGE_CYCLES


def _places(shape: Shape, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(first row, rows, first column, columns) of the blocks of an image."""
    high, wide = shape.rows.outputs, shape.columns.outputs
    for y, x in itertools.product(range(0, high, height), range(0, wide, width)):
        yield y, min(height, high - y), x, min(width, wide - x)


def convolve(
    k: Builder,
    terms: Sequence[tuple[HbmTensor, HbmTensor]],
    shape: Shape,
    epilogue: Epilogue,
    *,
    tiled: bool = False,
    plan: Plan | None = None,
) -> Plan:
    """The sum of convolutions of one shape, finished by the epilogue; the plan it followed.

    Args:
        terms: pairs of images [batch, rows, columns, channels] and weights [taps of rows, taps of
            columns, channels, outputs], bf16, row-major.
        tiled: weights lie column tile by column tile, of `lanes` outputs.
        plan: sizes to use instead of those of `choose`.
    """
    if plan is None:
        stripes = len(k.places.spm.stripes)
        plan = choose(k.chip, shape, epilogue.formats, stripes, tiled=tiled)
    with k.scope("convolution"):
        _Convolution(k, terms, shape, epilogue, tiled, plan).run()
    return plan


@dataclass(frozen=True)
class _Step:
    """One chunk of channels of one block."""

    image: int
    block: tuple[int, int, int, int]  # first row, rows, first column, columns
    column: int  # of outputs
    columns: int
    term: tuple[HbmTensor, HbmTensor]
    at: int  # channel
    depth: int
    first: bool


class _Convolution:
    """Traces one convolution."""

    def __init__(
        self, k: Builder, terms: Sequence[tuple[HbmTensor, HbmTensor]], shape: Shape,
        epilogue: Epilogue, tiled: bool, plan: Plan,
    ) -> None:  # fmt: skip
        self.k, self.terms, self.shape, self.plan = k, terms, shape, plan
        self.tiled = tiled
        self.lanes, self.tall = k.chip.lanes, k.chip.mxu.rows
        self.rings = Rings(k)
        width, rows = plan.columns * self.lanes, plan.height * plan.width
        self.pitch = shape.columns.extent(plan.width)  # from a row of pixels to the next
        pixels = shape.rows.extent(plan.height) * self.pitch
        tiles, tap_rows, taps = ceil_div(plan.depth, self.tall), plan.depth, shape.taps
        self.windows: list[list[Piece]] = []
        if shape.few:
            self.windows = window_tiles(shape, self.tall)
            pixels, taps, tap_rows = rows, len(self.windows), self.tall
            tiles = taps
        self.tap_rows = _padded(k.chip, tap_rows)
        make = self.rings.make
        self.finish = Finish(k, epilogue, rows, width, self.rings)
        self.images = Chunks(
            make(Kind.SPM_BF16, pixels, tiles * self.lanes, plan.slots), self._load_image
        )
        self.weights = Chunks(
            make(Kind.SPM_BF16, taps * self.tap_rows, width, plan.slots, stationary=True),
            self._load_weights,
        )
        self.sums = make(Kind.ACC, rows, width, 2)
        self.borders: dict[int, tuple[int, int]] = {}  # of a slot: columns that are zero

    def run(self) -> None:
        """A chunk is fetched before the product ahead of it: the vector unit clears borders, and
        must not have an epilogue to do first."""
        turns = itertools.cycle(self.sums)
        steps = list(self._steps())
        fetched = self._fetch(steps[0])
        for step, following in itertools.zip_longest(steps, steps[1:]):
            _, height, _, width = step.block
            row, rows, columns = self._row(step), height * width, step.columns
            if step.first:
                acc = replace(next(turns), width=columns)
                self.finish.fetch(row, rows, step.column, columns)
            pixels, w = fetched
            if following is not None:
                fetched = self._fetch(following)
            self._multiply(acc, pixels, w, (height, width), step.depth, not step.first)
            if following is None or following.first:
                self.finish.store(acc, row, rows, step.column, columns)
        self.rings.free()
        self.finish.free()

    def _steps(self) -> Iterator[_Step]:
        shape, plan = self.shape, self.plan
        across = plan.columns * self.lanes
        for image, block, column in itertools.product(
            range(shape.batch), _places(shape, plan.height, plan.width),
            range(0, shape.outputs, across),
        ):  # fmt: skip
            chunks = itertools.product(self.terms, range(0, shape.channels, plan.depth))
            for number, (term, at) in enumerate(chunks):
                yield _Step(
                    image, block, column, min(across, shape.outputs - column), term, at,
                    min(plan.depth, shape.channels - at), number == 0,
                )  # fmt: skip

    def _row(self, step: _Step) -> int:
        """The first pixel of the block, as a row of the result."""
        y, _, x, _ = step.block
        return (step.image * self.shape.rows.outputs + y) * self.shape.columns.outputs + x

    def _fetch(self, s: _Step) -> tuple[Tensor, Tensor]:
        """Pixels and weights of a step, each loaded into its ring's next slot unless the step
        before has the same."""
        a, b = s.term
        image = self.images.get(a, s.image, s.block, s.at, s.depth)
        return image, self.weights.get(b, s.at, s.depth, s.column, s.columns)

    # --- the array --------------------------------------------------------------------------------

    def _multiply(
        self, acc: Tensor, pixels: Tensor, w: Tensor, block: tuple[int, int], depth: int, add: bool
    ) -> None:
        """Column tile by column tile, all taps and channels of a chunk."""
        k, rows, columns = self.k, self.shape.rows, self.shape.columns
        height, width = block
        stride = 1 if self.windows else columns.step
        together = self.windows or height == 1 or (width == self.pitch * rows.step and stride == 1)
        first = len(k.streams[MXU])
        for tile in range(acc.tiles):
            lanes = min(self.lanes, acc.width - tile * self.lanes)
            for number, (row, count, src) in enumerate(self._passes(pixels, depth)):
                k.append(
                    MXU, mxu.Load, src=k.addr(MXU, w.base + tile * w.tile_stride + row),
                    k=Count(count), n=Count(lanes),
                )  # fmt: skip
                mode = Accumulate.ADD if add or number else Accumulate.WRITE
                k.append(
                    MXU, mxu.Matmul, src=k.addr(MXU, src), stride=stride,
                    rows=Count(height * width if together else width),
                    outer=1 if together else height, outer_stride=rows.step * self.pitch,
                    dst=k.addr(MXU, acc.base + tile * acc.tile_stride), accumulate=mode,
                )  # fmt: skip
        accesses = [(r, False, "load") for r in w.resources]
        accesses += [(r, False, "stream") for r in pixels.resources]
        accesses += [(r, True, "mxu") for r in acc.resources]
        if add:
            accesses += [(r, False, "accumulate") for r in acc.resources]
        k.settle(MXU, first, accesses)

    def _passes(self, pixels: Tensor, depth: int) -> Iterator[tuple[int, int, int]]:
        """(row of the weights' slot, rows, first moving row) for every tile of K."""
        for number, tile in enumerate(self.windows):
            count = sum(piece.count for piece in tile)
            yield number * self.tap_rows, count, pixels.base + number * pixels.tile_stride
        if self.windows:
            return
        rows, columns = self.shape.rows, self.shape.columns
        taps = itertools.product(range(rows.taps), range(columns.taps))
        for (tap, (dy, dx)), at in itertools.product(enumerate(taps), range(0, depth, self.tall)):
            src = pixels.base + at // self.tall * pixels.tile_stride
            src += dy * rows.dilation * self.pitch + dx * columns.dilation
            yield tap * self.tap_rows + at, min(self.tall, depth - at), src

    # --- transfers --------------------------------------------------------------------------------

    def _load_weights(
        self, slot: Tensor, b: HbmTensor, at: int, depth: int, column: int, columns: int
    ) -> Tensor:
        """Rows at.. of every tap (or every tile of windows), columns column.."""
        shape, queue = self.shape, self.k.weights_queue
        total = shape.taps * shape.channels
        spans_of_k = [(tap * shape.channels + at, depth) for tap in range(shape.taps)]
        if self.windows:
            counts = [sum(piece.count for piece in tile) for tile in self.windows]
            spans_of_k = list(zip(itertools.accumulate([0, *counts]), counts, strict=False))
        for number, (row, rows) in enumerate(spans_of_k):
            w = replace(slot, base=slot.base + number * self.tap_rows, rows=rows, width=columns)
            if not self.tiled:
                src = b.beyond(2 * (row * shape.outputs + column))
                load_rows(self.k, w, src, columns, self.lanes, 2 * shape.outputs, queue=queue)
                continue
            for first, tiles, span in spans(columns, self.lanes):
                src = b.beyond(2 * (total * (column + first * self.lanes) + row * span))
                load_tiled(self.k, w.tile(first, tiles), src, total, queue=queue)
        return slot

    def _load_windows(
        self, slot: Tensor, a: HbmTensor, image: int, block: tuple[int, int, int, int]
    ) -> None:
        """The inputs of each output pixel of the block as rows of spm."""
        k, shape, (y, height, x, width) = self.k, self.shape, block
        rows, columns = shape.rows, shape.columns
        line, pixel = 2 * shape.channels * columns.inputs, 2 * shape.channels
        start = (image * rows.inputs + y * rows.stride) * line + x * columns.stride * pixel
        queues = itertools.cycle((k.load_queue, k.vmem_queue, k.weights_queue))
        for number, tile in enumerate(self.windows):
            lane = 0
            for p in tile:
                at = p.row * rows.dilation * line + p.column * columns.dilation * pixel
                src, queue = a.beyond(start + at + 2 * p.first), next(queues)
                transfer(
                    k, dma.Load, slot.tile(number), src, queue=queue, fmt=HbmFormat.BF16,
                    lane=lane, lanes=p.count, inner=(width, columns.stride * pixel, 1),
                    outer=(height, rows.stride * line, width),
                )  # fmt: skip
                lane += p.count

    def _load_image(
        self, slot: Tensor, a: HbmTensor, image: int, block: tuple[int, int, int, int], at: int,
        depth: int,
    ) -> Tensor:  # fmt: skip
        """The pixels under a block's windows, channels at..; zeros where there are none."""
        if self.windows:
            self._load_windows(slot, a, image, block)
        else:
            self._load_pixels_under(slot, a, image, block, at, depth)
        return slot

    def _load_pixels_under(
        self, slot: Tensor, a: HbmTensor, image: int, block: tuple[int, int, int, int], at: int,
        depth: int,
    ) -> None:  # fmt: skip
        shape, (y, height, x, width) = self.shape, block
        top, high, first_row = shape.rows.inside(y, height)
        left, wide, first_column = shape.columns.inside(x, width)
        extent = shape.rows.extent(height), shape.columns.extent(width)
        self._clear(slot, (top, high, left, wide), extent)
        if not high or not wide:
            return
        pixel = 2 * shape.channels
        line = pixel * shape.columns.inputs
        start = (image * shape.rows.inputs + first_row) * line + first_column * pixel + 2 * at
        down = line * (shape.rows.stride if shape.rows.sparse else 1)
        across = pixel * (shape.columns.stride if shape.columns.sparse else 1)
        inner = replace(slot, base=slot.base + top * self.pitch + left)
        tiles = ceil_div(depth, self.tall)
        if wide == self.pitch and down == across * wide:  # all pixels are as far apart
            self._load_pixels(inner, a.beyond(start), high * wide, across, depth)
        elif tiles == 1:
            transfer(
                self.k, dma.Load, inner, a.beyond(start), queue=self.k.load_queue,
                fmt=HbmFormat.BF16, lanes=depth, inner=(wide, across, 1),
                outer=(high, down, self.pitch),
            )  # fmt: skip
        else:
            for i in range(high):
                line_of = replace(inner, base=inner.base + i * self.pitch)
                self._load_pixels(line_of, a.beyond(start + i * down), wide, across, depth)

    def _load_pixels(
        self, t: Tensor, src: HbmTensor, count: int, pitch_bytes: int, depth: int
    ) -> None:
        """`count` pixels `pitch_bytes` apart, the channels of each as tiles."""
        load_rows(
            self.k, replace(t, rows=count, width=depth), src, depth, self.tall, pitch_bytes,
            queue=self.k.load_queue,
        )  # fmt: skip

    def _clear(
        self, slot: Tensor, inside: tuple[int, int, int, int], extent: tuple[int, int]
    ) -> None:
        """Zeros around the pixels that exist; columns that are zero already stay as they are."""
        top, high, left, wide = inside
        right, bottom = extent[1] - left - wide, extent[0] - top - high
        if self.borders.get(slot.base, (0, 0)) != (left, right):
            lines = replace(slot, rows=slot.rows // self.pitch, row_stride=self.pitch)
            for column in (*range(left), *range(extent[1] - right, extent[1])):
                self._zero(replace(lines, base=slot.base + column))
            self.borders[slot.base] = left, right
        for first, count in ((0, top), (extent[0] - bottom, bottom)):
            if count:
                at = slot.base + first * self.pitch
                self._zero(replace(slot, base=at, rows=count * self.pitch))

    def _zero(self, t: Tensor) -> None:
        ops.vector(self.k, 0.0, dst=t, width=t.tiles * self.lanes)


def reference(x, w, stride: tuple[int, int], padding: tuple[int, int]):
    """float64 y of images [batch, rows, columns, channels] with w [taps, taps, channels, out]."""
    import numpy as np

    x = np.pad(x.astype(np.float64), ((0, 0), *((p, p) for p in padding), (0, 0)))
    high, wide = w.shape[:2]
    rows = (x.shape[1] - high) // stride[0] + 1
    columns = (x.shape[2] - wide) // stride[1] + 1
    y = np.zeros((x.shape[0], rows, columns, w.shape[3]))
    for dy, dx in itertools.product(range(high), range(wide)):
        part = x[:, dy : dy + (rows - 1) * stride[0] + 1 : stride[0],
                 dx : dx + (columns - 1) * stride[1] + 1 : stride[1]]  # fmt: skip
        y += part @ w[dy, dx].astype(np.float64)
    return y


def peak_cycles(chip: Chip, shape: Shape) -> int:
    """Cycles at every multiplier busy in each."""
    macs = math.prod(shape.matrix) * shape.taps * shape.channels
    return ceil_div(macs, chip.macs_per_cycle)
