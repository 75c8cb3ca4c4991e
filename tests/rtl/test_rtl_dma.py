"""The DMA engine as hardware: every byte of interp and sim, every issue and retire cycle of sim."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator
from rtl_chips import CHIPS
from transfer_programs import transfer_program

from tapeout.isa import Addr, Count, HbmAddr, Program, Segment, dma, seq
from tapeout.isa.assembler import assemble
from tapeout.isa.dma import HbmFormat, Memory
from tapeout.isa.errors import ProgramError
from tapeout.isa.interp import Interp
from tapeout.numerics import formats
from tapeout.rtl.dequantise import Dequantiser, kind_of
from tapeout.rtl.target import Rtl
from tapeout.rtl.verification.programs import Case
from tapeout.sim import Sim

HBM_BYTES = 1 << 20
TINY = CHIPS["tiny"]


def equal(case: Case) -> None:
    """Bits of interp, sim and rtl, and cycles of sim and rtl."""
    interp, sim = Interp(case.chip, hbm_bytes=HBM_BYTES), Sim(case.chip, hbm_bytes=HBM_BYTES)
    expected = case.run(interp)
    handle, _ = case.load(sim)
    timed = sim.run(handle, trace=True)
    rtl = Rtl(case.chip, hbm_bytes=HBM_BYTES, limit_cycles=timed.cycles + 1000)
    for memory in ("spm", "vmem"):
        rtl.poke(memory, 0)
    handle, bases = case.load(rtl)
    result = rtl.run(handle)
    for base, (address, nbytes, writable) in bases.items():
        if writable:
            assert rtl.read(address, nbytes).tobytes() == expected[f"b{base}"]
    for memory, bits in (("spm", np.uint16), ("vmem", np.uint32)):
        got = np.where(interp.peek_written(memory), rtl.peek(memory).view(bits), 0)
        np.testing.assert_array_equal(got, expected[memory], err_msg=memory)
    trace = timed.trace
    assert trace is not None
    for number, name in enumerate(case.chip.queue_names):
        mine, its = trace.queue == number, result.events[result.events["queue"] == number]
        for column in ("pc", "issue", "retire"):
            np.testing.assert_array_equal(
                its[column], getattr(trace, column)[mine], err_msg=f"{column} of {name}"
            )


@pytest.mark.parametrize("seed", range(40))
def test_random_transfers(seed: int) -> None:
    equal(transfer_program(seed, TINY))


@pytest.mark.slow
def test_random_transfers_of_a_narrow_chip() -> None:
    for seed in range(25):
        equal(transfer_program(seed, CHIPS["narrow"]))


def one_load(**fields: Any) -> Case:
    data = np.random.default_rng(0).integers(0, 256, 16384).astype(np.uint8).tobytes()
    transfer = dma.Load(hbm=HbmAddr(), row=Addr(4), rows=Count(32), lanes=TINY.lanes)
    streams = {"dma1": [replace(transfer, **fields), seq.Halt()]}
    segments = [Segment("data", 0, len(data), False)]
    return Case(TINY, Program(TINY.name, streams, segments), {0: (data, False)})


@pytest.mark.parametrize(("lanes", "lane", "stride"), [(8, 0, 1), (6, 1, 1), (2, 5, 2), (4, 2, 4)])
@pytest.mark.parametrize("fmt", HbmFormat, ids=lambda f: f.name.lower())
def test_formats(fmt: HbmFormat, lanes: int, lane: int, stride: int) -> None:
    """Any bits, over runs that end within rows and groups."""
    nbytes = 0 if fmt.format.is_block else fmt.format.bytes_for(1, lanes)
    shape = {"lanes": lanes, "lane": lane, "hbm": HbmAddr(0, 1012), "row_bytes": nbytes}
    pair = 2 if fmt == HbmFormat.FP32 else 1
    equal(one_load(format=fmt, row_stride=pair * stride, **shape))
    if fmt in (HbmFormat.BF16, HbmFormat.FP32):
        equal(one_load(format=fmt, memory=Memory.VMEM, row_stride=stride % 4, **shape))


def test_rows_that_meet_in_banks() -> None:
    for stride in (0, 1, 2, 3, 4, 6):
        equal(one_load(row_stride=stride, row_bytes=16, outer=Count(2), outer_bytes=512))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("row_bytes", [16, 20])
def test_outer_steps_that_touch(rows: int, row_bytes: int) -> None:
    """The last row of a step and the first of the next: one run where they touch."""
    span = (rows - 1) * row_bytes + 16
    for outer_bytes in (span - 2, span, span + 2):
        equal(one_load(rows=Count(rows), row_bytes=row_bytes, outer=Count(5),
                       outer_bytes=outer_bytes, outer_rows=8))  # fmt: skip


LOAD = "dma.load hbm=b0[{at}] row={row} lanes=8 rows={rows} row_bytes=16 "
FAULTS = {
    "no segment": "dma.load hbm=b5[0] row=0 lanes=8 rows=1",
    "behind the segment": LOAD.format(at=4080, row=0, rows=2),
    "behind the segment, by outer steps": LOAD.format(at=0, row=0, rows=2)
    + "outer=3 outer_bytes=2034",
    "below the segment": "seq.set dst=r1 value=-2\n dma.load hbm=b0[0+r1] row=0 lanes=8 rows=1",
    "store to a segment that is read-only": "dma.store hbm=b0[0] row=0 lanes=8 rows=1",
    "spm": LOAD.format(at=0, row=3071, rows=2),
    "spm, the lower half": "dma.load hbm=b0[0] format=fp32 row=3072 lanes=8 rows=1 row_stride=2",
    "spm, far beyond": "seq.set dst=r1 value=8796093022208\n"
    " dma.load hbm=b0[0] row=0+r1 lanes=8 rows=1",
    "far behind the segment": "seq.set dst=r1 value=70368744177664\n"
    " dma.load hbm=b0[0+r1] row=0 lanes=8 rows=1",
    "vmem": LOAD.format(at=0, row=127, rows=2) + "memory=vmem",
    "below vmem": "seq.set dst=r1 value=-1\n"
    " dma.load hbm=b0[0] row=0+r1 memory=vmem lanes=8 rows=1",
    "lanes": "dma.load hbm=b0[0] row=0 lane=1 lanes=8 rows=1",
    "no lanes": "dma.load hbm=b0[0] row=0 lanes=0 rows=1",
    "rows below zero": "seq.set dst=r1 value=-1\n"
    " dma.load hbm=b0[0] row=0 lanes=8 rows=0+r1",
    "outer": "seq.set dst=r1 value=65536\n dma.load hbm=b0[0] row=0 lanes=8 rows=0 outer=0+r1",
    "part of a group": "dma.load hbm=b0[0] format=q8_0 row=0 lanes=8 rows=31",
    "indexed groups": "dma.load hbm=b0[0] format=q8_0 row=0 lanes=8 rows=32 indexed",
    "half a byte": "dma.load hbm=b0[0] format=q4_1 row=0 lanes=7 rows=32",
    "narrow vmem": "dma.load hbm=b0[0] format=int8 memory=vmem row=0 lanes=8 rows=1",
    "odd pair": "dma.load hbm=b0[0] format=fp32 row=1 lanes=8 rows=1 row_stride=2",
    "odd address": LOAD.format(at=1, row=0, rows=1),
    "odd fp32 pitch": "dma.load hbm=b0[0] format=fp32 row=0 lanes=8 rows=1 row_stride=2"
    " row_bytes=34",
    "odd scales": "dma.load hbm=b0[0] format=q8_0 row=0 lanes=8 rows=32 outer_bytes=3",
    "narrow store": "dma.store hbm=b1[0] format=int8 row=0 lanes=8 rows=1",
    "index rows": LOAD.format(at=0, row=0, rows=9) + "indexed index_rows=127",
    "index": "dma.load hbm=b0[0] format=fp32 memory=vmem row=0 lanes=8 rows=1\n seq.nop drain\n"
    + LOAD.format(at=0, row=0, rows=5) + "indexed",
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS)
def test_faults(text: str) -> None:
    program = assemble(f".queue dma0\n {text}\n seq.halt", TINY)
    data = np.full(1024, 0, np.int32)
    data[3] = -1  # as an index
    found = []
    for target in (Sim(TINY, hbm_bytes=HBM_BYTES), Rtl(TINY, hbm_bytes=HBM_BYTES)):
        bases = {}
        for base in (0, 1):
            address = target.allocate(data.nbytes)
            target.write(address, data)
            bases[base] = (address, data.nbytes, base == 1)
        handle = target.load(program, bases)
        with pytest.raises(ProgramError) as error:
            target.run(handle)
        found.append((type(error.value), error.value.queue, error.value.pc))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "fmt", [f for f in HbmFormat if f.format.bits < 16], ids=lambda f: f.name.lower()
)
@pytest.mark.parametrize("has_others", [True, False])
def test_dequantiser(fmt: HbmFormat, has_others: bool) -> None:
    """Every code with no scale, else random ones with random and special scales."""
    known = list(HbmFormat) if has_others else [HbmFormat.BF16, HbmFormat.FP32, fmt]
    rng, count = np.random.default_rng(int(fmt)), 1000
    special = np.array([0, 0x8000, 1, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x7C01], np.uint16)
    first, second = rng.integers(0, 1 << 16, (2, count), np.uint16)
    for scales in (first, second):
        scales[::4] = rng.choice(special, len(scales[::4]))
    second[1::4] = first[1::4] ^ 0x8000  # sums that cancel
    codes = np.arange(count) % (1 << fmt.format.bits)
    f = fmt.format
    both = codes | codes << 4 if f.bits == 4 else codes
    expected = []
    for code, a, b in zip(both.astype(np.uint8), first, second, strict=True):
        scales = {0: b"", 1: bytes([a & 255] * 2), 2: bytes([*a.tobytes()] * 2)}.get(
            f.scale_bytes, a.tobytes() * 2 + b.tobytes() * 2
        )
        rows, row = f.group_rows, bytes([code] * (2 * f.bits // 8))
        expected.append(int(formats.decode_rows(f, scales + row * rows, rows, 2)[0, 0]))

    m = Module()
    m.submodules.unit = unit = Dequantiser(known)
    m.d.comb += unit.kind.eq(kind_of(m, Signal(4, init=int(fmt)), known))
    got = []

    async def bench(context: Any) -> None:
        for k in range(count + Dequantiser.STAGES - 1):
            at = min(k, count - 1)
            context.set(unit.code, int(codes[at]))
            context.set(unit.first, int(first[at]))
            context.set(unit.second, int(second[at]))
            await context.tick()
            got.append(context.get(unit.result))

    simulator = Simulator(m)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    assert got[Dequantiser.STAGES - 1 :] == expected
