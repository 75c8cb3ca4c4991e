"""The systolic array: elements that hold stationary weights, rows of them, and the skew around.

Moving lane k enters row k; its products are added to the sums that come down the columns, in
increasing k. Row k works `adder_stages` cycles after row k - 1, and a group of columns one cycle
after the group to its left. All that belongs to one row of results therefore travels as a wave: the
swap of weights with the first moving row, and the weights that are loaded for the next one.
"""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip

from .boxes import Delay, box
from .float import FusedMultiplyAdd

MINUS_ZERO_BF16 = 0x8000
MINUS_ZERO = 0x80000000
ONE_BF16 = 0x3F80


def column_groups(chip: Chip) -> int:
    return -(-chip.mxu.cols // chip.mxu.column_group)


def transposed_columns(chip: Chip) -> int:
    """Columns that one bus of the transposed load serves."""
    return -(-chip.mxu.cols // chip.mxu.load_rows_per_cycle_transposed)


def transposed_bus(chip: Chip) -> data.StructLayout:
    """One bus of the transposed load in one row: it serves every w_t-th column."""
    return data.StructLayout(
        {"write": 1, "column": max(1, (transposed_columns(chip) - 1).bit_length()), "weight": 16}
    )


class Element(wiring.Component):
    """One element of the array:

    sum = fma(moving, stationary, sum_in), where `sum_in` comes a cycle after `moving`. A moving
    value that is not to be used leaves the sum as it is: its product is -0. With `swap` the shadow
    weight becomes the stationary one, from this moving value on.
    """

    moving: In(16)
    use: In(1)
    swap: In(1)
    write: In(1)
    weight: In(16)
    sum_in: In(32)
    sum: Out(32)

    def __init__(self, chip: Chip) -> None:
        self.adder_stages = chip.mxu.adder_stages
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shadow, active, stationary = Signal(16), Signal(16), Signal(16)
        m.d.comb += stationary.eq(Mux(self.swap, shadow, active))
        m.d.sync += active.eq(stationary)
        with m.If(self.write):
            m.d.sync += shadow.eq(self.weight)
        m.submodules.fma = fma = FusedMultiplyAdd(factor_bits=16, adder_stages=self.adder_stages)
        m.d.comb += [
            fma.a.eq(Mux(self.use, self.moving, MINUS_ZERO_BF16)),
            fma.b.eq(Mux(self.use, stationary, 0)),
            fma.c.eq(self.sum_in),
            self.sum.eq(fma.result),
        ]
        return m


class Row(wiring.Component):
    """One row of elements:

    Everything but the sums enters at the left group of columns and reaches the next one a cycle
    later. `weights` are written where `write` is set; a transposed bus writes one of its columns.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        mxu = chip.mxu
        super().__init__(
            {
                "moving": In(16),
                "use": In(1),
                "swap": In(1),
                "write": In(1),
                "weights": In(data.ArrayLayout(16, mxu.cols)),
                "transposed": In(
                    data.ArrayLayout(transposed_bus(chip), mxu.load_rows_per_cycle_transposed)
                ),
                "sums_in": In(data.ArrayLayout(32, mxu.cols)),
                "sums": Out(data.ArrayLayout(32, mxu.cols)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        group, buses = self.chip.mxu.column_group, self.chip.mxu.load_rows_per_cycle_transposed
        wave = Signal(Cat(self.moving, self.use, self.swap, self.write).shape())
        transposed = Signal(self.transposed.shape())
        m.d.comb += [
            wave.eq(Cat(self.moving, self.use, self.swap, self.write)),
            transposed.eq(self.transposed),
        ]
        for column in range(self.chip.mxu.cols):
            if column and column % group == 0:
                wave, wave_before = Signal.like(wave, name=f"wave_{column}"), wave
                transposed, transposed_before = (
                    Signal(self.transposed.shape(), name=f"transposed_{column}"),
                    transposed,
                )
                m.d.sync += [wave.eq(wave_before), transposed.eq(transposed_before)]
            element = Element(self.chip)
            m.submodules[f"element_{column}"] = box(platform, "mxu_element", element)
            bus = transposed[column % buses]
            comes = bus.write & (bus.column == column // buses)
            m.d.comb += [
                element.moving.eq(wave[:16]),
                element.use.eq(wave[16]),
                element.swap.eq(wave[17]),
                element.write.eq(wave[18] | comes),
                element.weight.eq(Mux(wave[18], self.weights[column], bus.weight)),
                element.sum_in.eq(self.sums_in[column]),
                self.sums[column].eq(element.sum),
            ]
        return m


class SystolicArray(wiring.Component):
    """rows x cols elements with their skew:

    A moving row is given whole, with the lanes that count, and its sums come whole `latency_cycles`
    later.

    Ports:
        moving, use, swap: one moving row; `swap` with the first one behind a load.
        write: by row; its weights come on bus k % load_rows_per_cycle of `weights` in this cycle,
            k * adder_stages cycles after those of row 0 at the earliest (see `mxu.StraightLoad`).
        transposed: buses of the transposed load, each with the lanes of one source row; lane k is
            written k * adder_stages cycles later.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        mxu = chip.mxu
        self.latency_cycles = mxu.latency_cycles
        self.bus = data.StructLayout(
            {
                "write": 1,
                "column": transposed_bus(chip).size - 17,
                "lanes": data.ArrayLayout(16, mxu.rows),
            }
        )
        super().__init__(
            {
                "moving": In(data.ArrayLayout(16, mxu.rows)),
                "use": In(mxu.rows),
                "swap": In(1),
                "write": In(mxu.rows),
                "weights": In(
                    data.ArrayLayout(data.ArrayLayout(16, mxu.cols), mxu.load_rows_per_cycle)
                ),
                "transposed": In(data.ArrayLayout(self.bus, mxu.load_rows_per_cycle_transposed)),
                "sums": Out(data.ArrayLayout(32, mxu.cols)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        mxu = self.chip.mxu
        weights = self._skewed_weights(m)
        tags = Cat(self.swap, *(Cat(bus.write, bus.column) for bus in self.transposed))
        sums: Value = Cat(*(C(MINUS_ZERO, 32) for _ in range(mxu.cols)))
        for k in range(mxu.rows):
            row = Row(self.chip)
            m.submodules[f"row_{k}"] = box(platform, "mxu_row", row)
            if k:
                tags = self._delayed(m, f"tags_{k}", tags, mxu.adder_stages, clears=True)
            lanes = Cat(self.moving[k], self.use[k], *(bus.lanes[k] for bus in self.transposed))
            lanes = self._delayed(m, f"lanes_{k}", lanes, k * mxu.adder_stages)
            m.d.comb += [
                row.moving.eq(lanes[:16]),
                row.use.eq(lanes[16]),
                row.swap.eq(tags[0]),
                row.write.eq(self.write[k]),
                row.weights.eq(weights[k % mxu.load_rows_per_cycle]),
                row.sums_in.eq(sums),
            ]
            width = 1 + self.bus["column"].width
            for b in range(mxu.load_rows_per_cycle_transposed):
                tag = tags[1 + b * width : 1 + (b + 1) * width]
                m.d.comb += row.transposed[b].eq(Cat(tag, lanes[17 + 16 * b : 33 + 16 * b]))
            sums = row.sums.as_value()
        m.d.comb += self.sums.eq(self._together(m, sums))
        return m

    def _delayed(
        self, m: Module, name: str, value: Value, cycles: int, *, clears: bool = False
    ) -> Value:
        if cycles == 0:
            return value
        line = Delay(len(value), cycles, clears=clears)
        m.submodules[name] = line
        m.d.comb += line.input.eq(value)
        return line.output

    def _chunks(self, value: Value, bits: int) -> list[Value]:
        """Of the groups of columns, `bits` a column."""
        width = self.chip.mxu.column_group * bits
        return [value[at : at + width] for at in range(0, len(value), width)]

    def _skewed_weights(self, m: Module) -> list[Value]:
        """The buses of the straight load, group g a cycle later than group g - 1."""
        return [
            Cat(
                *(
                    self._delayed(m, f"weights_{b}_{g}", chunk, g)
                    for g, chunk in enumerate(self._chunks(bus.as_value(), 16))
                )
            )
            for b, bus in enumerate(self.weights)
        ]

    def _together(self, m: Module, sums: Value) -> Value:
        """The last row's sums, all groups in one cycle."""
        chunks = self._chunks(sums, 32)
        return Cat(
            *(
                self._delayed(m, f"sums_{g}", chunk, len(chunks) - 1 - g)
                for g, chunk in enumerate(chunks)
            )
        )
