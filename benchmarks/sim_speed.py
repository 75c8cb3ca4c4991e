"""Speed of `sim` on a decode-like program: weights stream from HBM once, tile by tile.

`python benchmarks/sim_speed.py [--mb 256] [--chip solo]` prints the processor time in milliseconds
of a pass over the weights (functional with and without checks, timing only), beside the time in
which the same process reads the weights once (`numpy.max` over 64-bit words), and simulated cycles
a second.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from tapeout.chip import Chip, load
from tapeout.isa import Addr, Count, HbmAddr, Kind, Operand, dma, mxu, seq, vpu
from tapeout.isa.instruction import Instruction
from tapeout.isa.program import Program, channel_bit
from tapeout.sim.target import Loaded, Sim


def program(chip: Chip, chunks: int) -> Program:
    """`chunks` DMA loads of a stripe, each followed by load and pass (one row) of its tiles."""
    names, per_pair = chip.queue_names, chip.tokens.channels_per_pair
    lanes, stripe = chip.lanes, chip.spm.rows_per_stripe
    queues, slots = chip.dma.queues, chip.spm.stripes - 4
    tiles = stripe // chip.mxu.rows

    def bit(queue: str, peer: str, channel: int = 0) -> int:
        return 1 << channel_bit(names.index(queue), names.index(peer), channel, per_pair)

    streams: dict[str, list[Instruction]] = {name: [] for name in names}
    moving = chip.spm.rows - 1
    streams["vpu"].append(
        vpu.Map(
            rows=Count(1),
            a=Operand(Kind.IMMEDIATE, value=1.0),
            dst=Operand(Kind.SPM_BF16, imm=moving),
            posts=bit("vpu", "mxu"),
        )
    )
    for chunk in range(chunks):
        name = f"dma{chunk % queues}"
        slot = chunk % slots
        streams[name].append(
            dma.Load(
                hbm=HbmAddr(0, chunk * stripe * lanes * 2),
                row=Addr(slot * stripe),
                lanes=lanes,
                rows=Count(stripe),
                row_bytes=lanes * 2,
                waits=bit(name, "mxu") if chunk >= slots else 0,
                posts=bit(name, "mxu"),
            )
        )
        last = chunk + slots < chunks
        for tile in range(tiles):
            waits = bit("mxu", name) if tile == 0 else 0
            if chunk == 0 and tile == 0:
                waits |= bit("mxu", "vpu")
            release = f"dma{(chunk + slots) % queues}"
            streams["mxu"].append(
                mxu.Load(
                    src=Addr(slot * stripe + tile * chip.mxu.rows),
                    k=Count(chip.mxu.rows),
                    n=Count(chip.mxu.cols),
                    waits=waits,
                    posts=bit("mxu", release) if last and tile == tiles - 1 else 0,
                )
            )
            streams["mxu"].append(
                mxu.Matmul(
                    src=Addr(moving),
                    rows=Count(1),
                    dst=Addr(tile % 64),
                    accumulate=mxu.Accumulate.ADD if chunk or tile >= 64 else mxu.Accumulate.WRITE,
                )
            )
    for stream in streams.values():
        stream.append(seq.Halt())
    return Program(chip=chip.name, streams=streams)


def best_ms(run: Callable[[], object], times: int = 5) -> float:
    spans = []
    for _ in range(times):
        start = time.process_time()
        run()
        spans.append(time.process_time() - start)
    return min(spans) * 1e3


def prepare(chip: Chip, code: Program, nbytes: int, checks: bool) -> tuple[Sim, Loaded, int]:
    sim = Sim(chip, checks=checks)
    at = sim.allocate(nbytes, 1 << 21)
    pattern = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    bits = (pattern.view(np.uint32) >> 16).astype(np.uint16)
    for offset in range(0, nbytes, bits.nbytes):
        sim.write(at + offset, bits[: (nbytes - offset) // 2])
    return sim, sim.load(code, {0: (at, nbytes, False)}), at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=256, help="megabytes of weights")
    parser.add_argument("--chip", default="solo")
    arguments = parser.parse_args()
    chip = load(arguments.chip)
    stripe_bytes = chip.spm.rows_per_stripe * chip.spm_row_bytes
    chunks = max(arguments.mb * 2**20 // stripe_bytes, 1)
    code = program(chip, chunks)
    nbytes = chunks * stripe_bytes
    rows = []
    read_ms = 0.0
    for checks in (True, False):
        sim, handle, at = prepare(chip, code, nbytes, checks)
        if checks:
            result = sim.run(handle)
            read_ms = best_ms(sim._hbm[at : at + nbytes].view(np.uint64).max)
        for functional in (True, False):
            name = "functional" if functional else "timing only"
            ms = best_ms(partial(sim.run, handle, functional=functional))
            rows.append((name + (", checks" if checks else ""), ms))
        del sim, handle
    runs = sum(q.hbm_runs for q in result.queues.values())
    used = nbytes / result.cycles / chip.hbm_bytes_per_cycle
    print(
        f"{nbytes / 1e6:.0f} MB, {result.instructions} instructions, {runs} runs, "
        f"{result.cycles} cycles, HBM at {used:.1%} of peak"
    )
    print(f"{'host reads the weights':24s} {read_ms:8.2f} ms")
    for label, ms in rows:
        print(
            f"{label:24s} {ms:8.2f} ms  {ms / read_ms:5.2f} x reading  "
            f"{result.cycles / ms / 1e3:7.1f} M cycles/s  {ms * 1e6 / runs:6.1f} ns/run"
        )


if __name__ == "__main__":
    main()
