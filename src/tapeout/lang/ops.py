"""Operations that kernels are written in: vector maps, matrix products, transfers.

Each takes the `Builder` first, traces instructions, and declares what they touch.
"""

from tapeout.isa import Addr, Count, HbmAddr, Kind, When, dma, mxu, seq, vpu
from tapeout.isa.mxu import Accumulate
from tapeout.isa.seq import Alu
from tapeout.isa.vpu import Combine, Combine2, Function, Mask, Reduce

from .builder import Access, Builder
from .memory import ChipTooSmall
from .scalar import LoopVar, Scalar
from .tensor import HbmTensor, Tensor

MXU, VPU = 0, 1
RUN_TILES = 4  # of K whose load and product are written out: a loop's code must stay in its cache
Input = Tensor | float | None


def _reads(port: str, *tensors: Input) -> list[Access]:
    return [(r, False, port) for t in tensors if isinstance(t, Tensor) for r in t.resources]


def _writes(port: str, *tensors: Tensor | None) -> list[Access]:
    return [(r, True, port) for t in tensors if t is not None for r in t.resources]


def vector(
    k: Builder,
    a: Tensor | float,
    b: Input = None,
    c: Input = None,
    d: Input = None,
    *,
    dst: Tensor | None = None,
    combine: Combine = Combine.A,
    function: Function = Function.NONE,
    combine2: Combine2 = Combine2.U,
    rows: Scalar | int | None = None,
    tiles: int | None = None,
    width: Scalar | int | None = None,
    roll: int = 0,
    xor: int = 0,
    lanes: tuple[int, int] = (0, 0),
    below: tuple[Scalar | LoopVar | int, int, int] | None = None,
    drop: Tensor | None = None,
    reduce: Reduce = Reduce.NONE,
    reduce_dst: Tensor | None = None,
    reduce_accumulate: bool = False,
) -> None:
    """One `vpu.map` over the rows of `a` (of `dst`, if a is a constant).

    Args:
        rows, tiles, width: default to those of the leading tensor.
        below: (value, imm, step): keeps lane index < value + imm + step * row.
        drop: packed vmem row of int32 lane indices to mask out.
    """
    if rows is None or tiles is None or width is None:
        lead = a if isinstance(a, Tensor) else dst
        assert isinstance(lead, Tensor)
        rows = lead.rows if rows is None else rows
        tiles = lead.tiles if tiles is None else tiles
        width = lead.width if width is None else width
    fields: dict = {}
    if below is not None:
        value, imm, step = below
        reg = 0 if isinstance(value, int) else k.registers[VPU].number(value)
        limit = imm + (value if isinstance(value, int) else 0)
        fields |= {"mask": Mask.BELOW, "limit": limit, "limit_reg": reg, "limit_step": step}
    if drop is not None:
        fields |= {"mask": Mask.NOT_INDEX, "limit": drop.base}
    if reduce_dst is not None:
        fields |= {
            "reduce": reduce,
            "reduce_dst": k.addr(VPU, reduce_dst.base, reduce_dst.reg),
            "reduce_accumulate": reduce_accumulate,
        }
    accesses = _reads("vpu", a, b, c, d, drop, reduce_dst if reduce_accumulate else None)
    accesses += _writes("vpu", dst, reduce_dst)
    _check_stripes(k, [a, b, c, d], dst)
    k.emit(
        VPU,
        vpu.Map,
        accesses,
        tiles=tiles,
        rows=k.count(VPU, rows),
        width=Count(0) if width == tiles * k.chip.lanes else k.count(VPU, width),
        a=k.operand(VPU, a),
        b=k.operand(VPU, b),
        c=k.operand(VPU, c),
        d=k.operand(VPU, d),
        dst=k.operand(VPU, dst),
        roll=roll,
        xor=xor,
        lane_begin=lanes[0],
        lane_end=lanes[1],
        combine=combine,
        function=function,
        combine2=combine2,
        **fields,
    )


def _check_stripes(k: Builder, sources: list[Input], dst: Tensor | None) -> None:
    """A vpu instruction's spm operands lie in distinct stripes; acc has one read port a stripe."""
    seen: set = set()
    for t in sources:
        if isinstance(t, Tensor) and t.memory in ("spm", "acc"):
            if seen & t.resources:
                raise ValueError(
                    f"two operands share the stripe {sorted(seen & t.resources)[0]}: allocate one "
                    f"of them with avoid=(the other,)"
                )
            seen |= t.resources
    if dst is not None and dst.memory == "spm" and seen & dst.resources:
        raise ValueError(
            f"the result shares the stripe {sorted(seen & dst.resources)[0]} with an operand: "
            f"allocate it with avoid=(the operand,)"
        )


def fence(k: Builder, queue: int) -> None:
    """Later instructions of the queue issue after all earlier ones have retired."""
    k.streams[queue][k.append(queue, seq.Nop)].drain = True


def load_stationary(
    k: Builder,
    src: Tensor,
    tile: int,
    kdim: Scalar | int,
    n: Scalar | int,
    *,
    transposed: bool = False,
) -> None:
    """Column tile `tile` of an spm tensor becomes the next stationary weights."""
    k.emit(
        MXU, mxu.Load, _reads("transposed" if transposed else "load", src),
        src=k.addr(MXU, src.base + tile * src.tile_stride, src.reg), stride=src.row_stride,
        k=k.count(MXU, kdim), n=k.count(MXU, n), transposed=transposed,
    )  # fmt: skip


def unload(k: Builder, dst: Tensor) -> None:
    """Row k of tile 0 of `dst` (acc) = row k of the stationary weights."""
    k.emit(MXU, mxu.Unload, _writes("mxu", dst), dst=k.addr(MXU, dst.base, dst.reg))


def stream(
    k: Builder,
    dst: Tensor,
    moving: Tensor,
    *,
    rows: Scalar | int | None = None,
    accumulate: Accumulate = Accumulate.WRITE,
) -> None:
    """Streams the rows of tile 0 of `moving` through the array into tile 0 of `dst`."""
    port = "mxu" if accumulate == Accumulate.WRITE else "accumulate"
    accesses = _reads("stream", moving) + _writes("mxu", dst)
    if port == "accumulate":
        accesses += [(r, False, port) for r in dst.resources]
    k.emit(
        MXU, mxu.Matmul, accesses,
        src=k.addr(MXU, moving.base, moving.reg), stride=moving.row_stride,
        rows=k.count(MXU, moving.rows if rows is None else rows),
        dst=k.addr(MXU, dst.base, dst.reg), accumulate=accumulate,
    )  # fmt: skip


def matmul(
    k: Builder,
    dst: Tensor,
    moving: Tensor,
    weights: Tensor,
    *,
    rows: Scalar | int | None = None,
    accumulate: bool = False,
    transposed: bool = False,
) -> None:
    """dst[m, n] (+)= sum_k moving[m, k] weights[k, n], all column tiles of dst, all k.

    Args:
        dst: acc tensor [M, N].
        moving: spm bf16 tensor [M, K].
        weights: spm bf16 tensor of K rows and width N: column tile n is K rows from
            `base + n * tile_stride`, row_stride 1.
        transposed: weights are given as [N, K]: tile k is N rows from `base + k * tile_stride`.
    """
    lanes = k.chip.lanes
    full, rest = divmod(dst.width, lanes)
    count = k.count(MXU, moving.rows if rows is None else rows)
    first = len(k.streams[MXU])
    if full:
        _columns(k, dst, moving, weights, 0, full, lanes, count, accumulate, transposed)
    if rest:
        _columns(k, dst, moving, weights, full, 1, rest, count, accumulate, transposed)
    accesses = _reads("transposed" if transposed else "load", weights)
    accesses += _reads("stream", moving) + _writes("mxu", dst)
    if accumulate:
        accesses += [(r, False, "accumulate") for r in dst.resources]
    k.settle(MXU, first, accesses)


def _columns(
    k: Builder, dst: Tensor, moving: Tensor, weights: Tensor,
    column: int, columns: int, width: int, count: Count, accumulate: bool, transposed: bool,
) -> None:  # fmt: skip
    """`columns` column tiles from `column` on: a hardware loop over columns, and where K has many
    tiles one over runs of them. Registers move on between a load and its product, which waits for
    the load anyway."""
    kdim, array_rows = weights.width if transposed else weights.rows, k.chip.mxu.rows
    full, rest = divmod(kdim, array_rows)
    runs = -(-full // RUN_TILES)
    run = full // runs if runs else 0
    rounds = runs - 1 if runs > 2 else 0  # of the loop over runs; the last tiles are written out
    ahead = rounds * run  # tiles that rw has gone on behind it
    tiles = full + bool(rest)
    # From a tile of K to the next, and from a column tile to the next.
    step, across = array_rows * weights.row_stride, weights.tile_stride
    if transposed:
        step, across = weights.tile_stride, k.chip.lanes * weights.row_stride
    registers = k.registers[MXU]
    rw, ra = (registers.take(), registers.take()) if columns > 1 or rounds else (0, 0)
    rx = registers.take() if rounds else 0
    w0 = weights.base + column * across
    a0 = dst.base + column * dst.tile_stride
    end = When.LAST if rw else When.ALWAYS  # the last product posts when all columns are done

    def advance(register: int, by: int) -> None:
        k.append(MXU, seq.AluOp, op=Alu.ADD, dst=register, a=register, imm=by)

    def load(tile: int, rows: int) -> None:
        k.append(
            MXU, mxu.Load, src=Addr(w0 + tile * step, rw), stride=weights.row_stride,
            k=Count(rows), n=Count(width), transposed=transposed,
        )  # fmt: skip

    def multiply(tile: int, mode: Accumulate, reg: int = 0, post_when: When = When.ALWAYS) -> None:
        k.append(
            MXU, mxu.Matmul, src=Addr(moving.base + tile * moving.tile_stride, reg),
            stride=moving.row_stride, rows=count, dst=Addr(a0, ra), accumulate=mode,
            post_when=post_when,
        )  # fmt: skip

    if rw:
        body = 2 * (tiles - ahead) + 2 + (2 * run + 4 if rounds else 0)
        k.append(MXU, seq.Set, dst=ra, value=-dst.tile_stride)
        k.append(MXU, seq.Set, dst=rw, value=0)
        k.append(MXU, seq.Loop, count=Count(columns), length=body)
    begin = len(k.streams[MXU])
    if rounds:
        advance(ra, dst.tile_stride)
        k.append(MXU, seq.Set, dst=rx, value=-run * moving.tile_stride)
        k.append(MXU, seq.Loop, count=Count(rounds), length=2 * run + 2)
        for tile in range(run):
            load(tile, array_rows)
            if tile == 0:
                advance(rx, run * moving.tile_stride)
            if tile == run - 1:
                advance(rw, run * step)
            first = Accumulate.ADD if accumulate or tile else Accumulate.ADD_NOT_FIRST
            multiply(tile, first, rx)
    for tile in range(ahead, tiles):
        load(tile - ahead, array_rows if tile < full else rest)
        if rw and tile == 0:
            advance(ra, dst.tile_stride)
        last = tile == tiles - 1
        if rw and last:
            advance(rw, across - ahead * step)
        mode = Accumulate.ADD if accumulate or tile else Accumulate.WRITE
        multiply(tile, mode, post_when=end if last else When.ALWAYS)
    assert not rw or len(k.streams[MXU]) - begin == body
    for register in (rw, rx, ra):
        if register:
            registers.give(register)


def load(
    k: Builder,
    dst: Tensor,
    src: HbmTensor,
    *,
    queue: int | None = None,
    format: dma.HbmFormat = dma.HbmFormat.BF16,
    row_bytes: int | None = None,
    tile_bytes: int | None = None,
    rows: Scalar | int | None = None,
    lane: int = 0,
    width: int | None = None,
    index: Tensor | None = None,
) -> None:
    """Loads tensor `dst` [rows, width] from HBM rows `row_bytes` apart.

    Whole tiles go in one transfer and a last narrower tile in another; `tile_bytes` is the distance
    in HBM between column tiles (default: side by side in a row).
    """
    _transfer(k, dma.Load, dst, src, queue if queue is not None else k.load_queue, format,
              row_bytes, tile_bytes, rows, lane, width, index)  # fmt: skip


def store(
    k: Builder,
    src: Tensor,
    dst: HbmTensor,
    *,
    queue: int | None = None,
    format: dma.HbmFormat = dma.HbmFormat.BF16,
    row_bytes: int | None = None,
    tile_bytes: int | None = None,
    rows: Scalar | int | None = None,
    lane: int = 0,
    width: int | None = None,
    index: Tensor | None = None,
) -> None:
    """Stores tensor `src` to HBM; arguments as for `load`."""
    _transfer(k, dma.Store, src, dst, queue if queue is not None else k.store_queue, format,
              row_bytes, tile_bytes, rows, lane, width, index)  # fmt: skip


def _transfer(
    k: Builder, cls: type, chip_side: Tensor, hbm: HbmTensor, queue: int, fmt: dma.HbmFormat,
    row_bytes: int | None, tile_bytes: int | None, rows: Scalar | int | None, lane: int,
    width: int | None, index: Tensor | None,
) -> None:  # fmt: skip
    t, lanes = chip_side, k.chip.lanes
    if fmt not in dma.formats_of(k.chip):
        raise ChipTooSmall(
            f"{k.chip.name} has no {fmt.name.lower()}: dma.formats leaves it out; "
            f"take another chip, or bf16"
        )
    width = t.width if width is None else width
    bits = fmt.format.bits
    row_bytes = width * bits // 8 if row_bytes is None else row_bytes
    tile_bytes = lanes * bits // 8 if tile_bytes is None else tile_bytes
    rows = t.rows if rows is None else rows
    writing = cls is dma.Load
    port = "dma"
    accesses = _reads(port, index, None if writing else t) + (_writes(port, t) if writing else [])
    if hbm.resource is not None:
        accesses.append((("hbm", hbm.resource), not writing, port))
    whole, rest = divmod(width, lanes)
    for first, tiles, span in ((0, whole, lanes), (whole, 1, rest)):
        if tiles == 0 or span == 0:
            continue
        offset = hbm.offset + first * tile_bytes
        k.emit(
            queue, cls, accesses,
            hbm=HbmAddr(hbm.base, offset, k.registers[queue].number(hbm.reg)), format=fmt,
            memory=dma.Memory.VMEM if t.kind == Kind.VMEM else dma.Memory.SPM,
            row=k.addr(queue, t.base + first * t.tile_stride, t.reg),
            lane=lane, lanes=span, rows=k.count(queue, rows), row_bytes=row_bytes,
            row_stride=t.row_stride, outer=Count(tiles), outer_bytes=tile_bytes,
            outer_rows=t.tile_stride,
            indexed=index is not None,
            index_rows=k.addr(queue, index.base, index.reg) if index is not None else Addr(),
        )  # fmt: skip
