"""Properties of banked memories."""

from amaranth.hdl import Cat, Module, Signal

from tapeout.rtl.memory import BankedMemory, RowReads, RowWrites

from .property import COMPONENT, Property

STRIPES, BANKS, ROWS = 2, 2, 4  # a memory of every kind of neighbour; the chip's has more of each
PORTS = 2  # that read, and that write
BITS = 2


class Banks(Property):
    """Two engines read and two write; each position keeps to its bank, and of all positions that
    reach one bank one at most reads and one at most writes. (What grants that is the schedule.)

    Any one row is followed: what is written to it is read from it, at whichever port and position
    asks, in the next cycle; and no write to other rows, and no other port, changes it.
    """

    title = "a bank answers the port and position that asked, and loses or moves no write"
    component = BankedMemory
    reach_depth = 6

    def state(self, m: Module) -> None:
        rows = STRIPES * ROWS
        reads = RowReads(BANKS, rows, 1, BITS)
        writes = RowWrites(BANKS, rows, 1, BITS)
        read_names = [f"read{k}" for k in range(PORTS)]
        write_names = [f"write{k}" for k in range(PORTS)]
        m.submodules[COMPONENT] = memory = self.make(
            name="banks", stripes=STRIPES, banks=BANKS, rows_per_stripe=ROWS, lanes=1,
            element_bits=BITS,
            ports={**dict.fromkeys(read_names, reads), **dict.fromkeys(write_names, writes)},
        )  # fmt: skip
        watched = self.fixed(m, range(rows), "watched")
        value, is_known = Signal(BITS, name="value"), Signal(name="is_known")
        # By kind: positions enabled at each bank of each stripe.
        at_bank: dict[tuple[str, int, int], list[Signal]] = {}
        reads_it = Signal(name="reads_it")
        for name in (*read_names, *write_names):
            port = getattr(memory, name)
            for bank in range(BANKS):
                enable = self.free(m, 1, f"{name}_{bank}_enable")
                row = self.free(m, range(rows), f"{name}_{bank}_row")
                m.d.comb += [port.enable[bank].eq(enable), port.row[bank].eq(row)]
                self.assume(m, ~enable | (row % BANKS == bank))
                for stripe in range(STRIPES):
                    here = Signal(name=f"{name}_{bank}_at_{stripe}")
                    m.d.comb += here.eq(enable & (row // ROWS == stripe))
                    at_bank.setdefault((name[:-1], stripe, bank), []).append(here)
                hits = enable & (row == watched)
                if name in read_names:
                    came, expected = (
                        Signal(name=f"{name}_{bank}_came"),
                        Signal(BITS, name=f"{name}_{bank}_expected"),
                    )
                    m.d.sync += [came.eq(hits & is_known), expected.eq(value)]
                    self.claim(m, f"{name}_{bank}", ~came | (port.data[bank] == expected))
                    self.reach(m, f"{name}_{bank}_of_a_written_row", came)
                    with m.If(hits):
                        m.d.comb += reads_it.eq(1)
                else:
                    written = self.free(m, BITS, f"{name}_{bank}_data")
                    mask = self.free(m, 1, f"{name}_{bank}_mask")
                    m.d.comb += [port.data[bank].eq(written), port.mask[bank].eq(mask)]
                    with m.If(hits & mask):
                        m.d.sync += [value.eq(written), is_known.eq(1)]
        for here in at_bank.values():
            self.assume(m, Cat(here) & (Cat(here) - 1) == 0)
