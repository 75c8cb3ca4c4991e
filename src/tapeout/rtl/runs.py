"""Cutting transfers into runs of HBM, and the addresses of indexed rows.

Contract: runs and their cycles are those of docs/timing.md ("Transfers").
"""

import itertools

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip

from .fetch import ADDRESS_BITS
from .memory import vmem_reads
from .pieces import RUN_BITS
from .transfer import COUNT_BITS, SEGMENTS

AHEAD = 6  # indexed addresses that are held or on their way: as many as the stages of the loop


class IndexedAddresses(wiring.Component):
    """Addresses of an indexed transfer's rows, in order, one a cycle:

    A row of vmem is read for each, its index chosen in the cycle after, then multiplied, added to
    the base and compared with its end: the address is there in the sixth cycle after `start`.

    Ports:
        start: a transfer with `segments` issues.
        address, outside, is_there: of the next row, and whether it leaves the base's segment.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        super().__init__(
            {
                "start": In(1),
                "segments": In(SEGMENTS),
                "take": In(1),
                "address": Out(ADDRESS_BITS),
                "outside": Out(1),
                "is_there": Out(1),
                "vmem_index": Out(vmem_reads(chip, 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.chip.lanes
        lane_bits = exact_log2(lanes)
        its = Signal(SEGMENTS)
        row, outer_left = Signal(COUNT_BITS), Signal(COUNT_BITS)
        outer_address = Signal(ADDRESS_BITS)
        held = Signal(range(AHEAD + 1))
        reads = Signal()
        m.d.comb += [
            reads.eq((outer_left != 0) & (held - self.take < AHEAD)),
            self.vmem_index.enable.eq(reads),
            self.vmem_index.row[0].eq(its.index_row + (row >> lane_bits)),
        ]
        with m.If(self.start):
            m.d.sync += [
                its.eq(self.segments),
                row.eq(0),
                outer_left.eq(Mux(self.segments.indexed, self.segments.outer, 0)),
                outer_address.eq(self.segments.address),
            ]
        with m.Elif(reads):
            m.d.sync += row.eq(row + 1)
            with m.If(row + 1 == its.units):
                m.d.sync += [
                    row.eq(0),
                    outer_left.eq(outer_left - 1),
                    outer_address.eq(outer_address + its.outer_step),
                ]
        m.d.sync += held.eq(held + reads - self.take)

        # The index comes, and is multiplied.
        came, came_lane, came_outer = Signal(), Signal(lane_bits), Signal(ADDRESS_BITS)
        ready, index, index_outer = Signal(), Signal(signed(32)), Signal(ADDRESS_BITS)
        indices = Array(self.vmem_index.data[0][32 * k : 32 * k + 32] for k in range(lanes))
        m.d.sync += [
            came.eq(reads), came_lane.eq(row[:lane_bits]), came_outer.eq(outer_address),
            ready.eq(came), index.eq(indices[came_lane]), index_outer.eq(came_outer),
        ]  # fmt: skip
        multiplied, product, product_outer = Signal(), Signal(signed(65)), Signal(ADDRESS_BITS)
        added, address = Signal(), Signal(signed(67))
        m.d.sync += [
            multiplied.eq(ready), product.eq(index * its.row_bytes), product_outer.eq(index_outer),
            added.eq(multiplied), address.eq(product_outer + product),
        ]  # fmt: skip
        outside = (address < its.low) | (address + its.unit_bytes > its.high)

        # A short queue of addresses.
        entry = data.StructLayout({"address": ADDRESS_BITS, "outside": 1})
        places = [Signal(entry, name=f"place_{k}") for k in range(AHEAD)]
        count = Signal(range(AHEAD + 1))
        with m.If(self.take):
            for here, behind in itertools.pairwise(places):
                m.d.sync += here.eq(behind)
        with m.If(added):
            for k, place in enumerate(places):
                with m.If(count - self.take == k):
                    m.d.sync += [place.address.eq(address), place.outside.eq(outside)]
        m.d.sync += count.eq(count + added - self.take)
        m.d.comb += [
            self.address.eq(places[0].address),
            self.outside.eq(places[0].outside),
            self.is_there.eq(count != 0),
        ]
        return m


class RunGenerator(wiring.Component):
    """The runs of one transfer after the other:

    A segment is a unit, or two where the last of an outer step touches the first of the next; it is
    cut at multiples of the interleave, and the run at the head waits in a register.

    Ports:
        start: a transfer issues that moves something; its first run may be taken two cycles later.
        active: it has runs left. is_there, address, bytes, is_last: the run at the head.
        take: it is requested. outside: its indexed row leaves the base's segment.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        super().__init__(
            {
                "start": In(1),
                "segments": In(SEGMENTS),
                "active": Out(1),
                "is_there": Out(1),
                "address": Out(ADDRESS_BITS),
                "bytes": Out(RUN_BITS),
                "is_last": Out(1),
                "outside": Out(1),
                "take": In(1),
                "vmem_index": Out(vmem_reads(chip, 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.indexed = indexed = IndexedAddresses(self.chip)
        wiring.connect(m, indexed.vmem_index, wiring.flipped(self.vmem_index))
        its, cutting = Signal(SEGMENTS), Signal()
        cut = Signal()
        run = data.StructLayout({"address": ADDRESS_BITS, "bytes": RUN_BITS, "is_last": 1})
        following, head = Signal(run), Signal(run)
        has_head, is_outside = Signal(), Signal()
        at, left = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)  # of the segment
        begins = Signal()  # of an indexed row: its address is still with `indexed`
        unit_at, outer_at = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)  # of the segment's last unit
        units_left, outer_left = Signal(COUNT_BITS), Signal(COUNT_BITS)  # behind it

        waits = its.indexed & begins
        interleave_bits = exact_log2(self.chip.hbm.interleave_bytes)
        room = (1 << interleave_bits) - following.address[:interleave_bits]
        segment_ends = Signal()
        m.d.comb += [
            indexed.start.eq(self.start),
            indexed.segments.eq(self.segments),
            indexed.take.eq(cut & waits),
            cut.eq(cutting & (~waits | indexed.is_there) & (~has_head | self.take)),
            following.address.eq(Mux(waits, indexed.address, at)),
            segment_ends.eq(left <= room),
            following.bytes.eq(Mux(segment_ends, left, room)),
            following.is_last.eq(segment_ends & (units_left == 0) & (outer_left == 0)),
            self.is_there.eq(has_head & ~is_outside),
            self.outside.eq(has_head & is_outside),
            self.address.eq(head.address),
            self.bytes.eq(head.bytes),
            self.is_last.eq(head.is_last),
        ]
        m.d.sync += has_head.eq(cut | (has_head & ~self.take))
        with m.If(cut):
            m.d.sync += [head.eq(following), is_outside.eq(waits & indexed.outside)]
        with m.If(self.take & self.is_last):
            m.d.sync += self.active.eq(0)

        # The segment after this one begins with the next unit.
        next_at, next_outer_at = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        next_units, next_outer = Signal(COUNT_BITS), Signal(COUNT_BITS)
        joins = Signal()
        with m.If(units_left != 0):
            m.d.comb += [
                next_at.eq(unit_at + its.unit_step),
                next_outer_at.eq(outer_at),
                next_units.eq(units_left - 1),
                next_outer.eq(outer_left),
                joins.eq(its.ends_touch & (units_left == 1) & (outer_left != 0)),
            ]
        with m.Else():
            m.d.comb += [
                next_at.eq(outer_at + its.outer_step),
                next_outer_at.eq(next_at),
                next_units.eq(its.units - 1),
                next_outer.eq(outer_left - 1),
            ]
        with m.If(cut):
            m.d.sync += [
                at.eq(following.address + following.bytes),
                left.eq(left - following.bytes),
                begins.eq(0),
            ]
            with m.If(following.is_last):
                m.d.sync += cutting.eq(0)
            with m.If(segment_ends):
                m.d.sync += [
                    at.eq(next_at),
                    left.eq(Mux(joins, its.unit_bytes << 1, its.unit_bytes)),
                    begins.eq(1),
                    unit_at.eq(next_at),
                    outer_at.eq(next_outer_at),
                    units_left.eq(next_units),
                    outer_left.eq(next_outer),
                ]
                with m.If(joins):
                    m.d.sync += [
                        unit_at.eq(outer_at + its.outer_step),
                        outer_at.eq(outer_at + its.outer_step),
                        units_left.eq(its.units - 1),
                        outer_left.eq(outer_left - 1),
                    ]
        with m.If(self.start):
            m.d.sync += [
                its.eq(self.segments),
                self.active.eq(1),
                cutting.eq(1),
                begins.eq(1),
                at.eq(self.segments.address),
                left.eq(self.segments.unit_bytes),
                unit_at.eq(self.segments.address),
                outer_at.eq(self.segments.address),
                units_left.eq(self.segments.units - 1),
                outer_left.eq(self.segments.outer - 1),
            ]
        return m
