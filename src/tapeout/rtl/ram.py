"""Memories as macros: modules that a foundry's memory compiler replaces.

Contract: a read enabled in a cycle gives its data in the next one, as the row was before that
cycle's writes; a disabled one gives anything. `RamShape.verilog` is the model that simulation uses.
"""

from dataclasses import dataclass

from amaranth.hdl import ClockSignal, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .boxes import Macros


@dataclass(frozen=True, kw_only=True)
class RamShape:
    """A memory of `depth` rows of `lanes` elements, written by lanes."""

    depth: int
    lanes: int
    element_bits: int
    reads: int = 1  # ports
    writes: int = 1

    @property
    def width(self) -> int:
        return self.lanes * self.element_bits

    @property
    def name(self) -> str:
        return f"ram_{self.depth}x{self.lanes}x{self.element_bits}_{self.reads}r{self.writes}w"

    @property
    def address_bits(self) -> int:
        return max(1, (self.depth - 1).bit_length())

    def verilog(self) -> str:
        """The module; ports read<i>_enable, _row, _data and write<i>_row, _data, _mask."""
        ports, body = ["input wire clk"], []
        top, row = self.width - 1, self.address_bits - 1
        for i in range(self.reads):
            ports += [
                f"input wire read{i}_enable",
                f"input wire [{row}:0] read{i}_row",
                f"output reg [{top}:0] read{i}_data",
            ]
            body.append(f"    if (read{i}_enable) read{i}_data <= rows[read{i}_row];")
        for i in range(self.writes):
            ports += [
                f"input wire [{row}:0] write{i}_row",
                f"input wire [{top}:0] write{i}_data",
                f"input wire [{self.lanes - 1}:0] write{i}_mask",
            ]
            body += [
                f"    for (lane = 0; lane < {self.lanes}; lane = lane + 1)",
                f"      if (write{i}_mask[lane])",
                f"        rows[write{i}_row][lane * {self.element_bits} +: {self.element_bits}] <=",
                f"          write{i}_data[lane * {self.element_bits} +: {self.element_bits}];",
            ]
        return "\n".join(
            [
                f"module {self.name}(",
                ",\n".join(f"  {port}" for port in ports),
                ");",
                f"  reg [{top}:0] rows [0:{self.depth - 1}] /*verilator public_flat_rw*/;",
                "  integer lane;",
                "  always @(posedge clk) begin",
                *body,
                "  end",
                "endmodule",
                "",
            ]
        )


class Ram(wiring.Component):
    """One memory macro:

    Ports: read<i>_enable, read<i>_row, read<i>_data; write<i>_row, write<i>_data, write<i>_mask (by
    lane; none set: no write).
    """

    def __init__(self, shape: RamShape) -> None:
        self.shape = shape
        ports: dict = {}
        for i in range(shape.reads):
            ports |= {
                f"read{i}_enable": In(1),
                f"read{i}_row": In(shape.address_bits),
                f"read{i}_data": Out(shape.width),
            }
        for i in range(shape.writes):
            ports |= {
                f"write{i}_row": In(shape.address_bits),
                f"write{i}_data": In(shape.width),
                f"write{i}_mask": In(shape.lanes),
            }
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        if isinstance(platform, Macros):
            platform.macro(self.shape.name, self.shape.verilog())
        m = Module()
        connections: dict = {"i_clk": ClockSignal()}
        for name, port in self.signature.members.items():
            signal: Signal = getattr(self, name)
            connections[f"{'i' if port.flow is In else 'o'}_{name}"] = signal
        m.submodules.macro = Instance(self.shape.name, **connections)
        return m
