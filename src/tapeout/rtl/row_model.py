"""A row of the array as a model: its registers in Verilog, its arithmetic in C, called by DPI.

Contract: port for port and cycle for cycle `array.Row`, from the cycle after reset, once what was
under way in reset has left. An array of 128 rows of 128 elements is too much logic to simulate;
128 of these are not.
"""

import itertools
from collections.abc import Iterator

from tapeout.chip import Chip

from .array import column_groups, transposed_bus

NAME = "mxu_row"  # of the box that it stands for


def row_model(chip: Chip) -> str:
    """The Verilog module, whose function `row_fma` is in `native/row_fma.cpp`."""
    mxu, bus = chip.mxu, transposed_bus(chip)
    columns, group, buses = mxu.cols, mxu.column_group, mxu.load_rows_per_cycle_transposed
    wide, last, tag_bits = 16 * columns - 1, 32 * columns - 1, buses * bus.size
    groups = range(column_groups(chip))
    members = [range(g * group, min((g + 1) * group, columns)) for g in groups]
    # What enters at the left, by group.
    waves = ["wave", *(f"wave_{g}" for g in groups[1:])]
    tags = ["transposed", *(f"transposed_{g}" for g in groups[1:])]
    pipe = [f"sums_{stage}" for stage in range(1, mxu.adder_stages)]

    def by_column(form: str) -> str:
        """16 bits a column: `form` of its group's wave."""
        each = [f"{{{len(m)}{{{form.format(w)}}}}}" for m, w in zip(members, waves, strict=True)]
        return f"{{{', '.join(reversed(each))}}}"

    def writes(g: int) -> Iterator[str]:
        """Of weights: those of the transposed load, and behind them those of the straight one."""
        for first in range(0, tag_bits, bus.size):
            write, weight = f"{tags[g]}[{first}]", f"{tags[g]}[{first + bus.size - 16} +: 16]"
            column = f"{tags[g]}[{first + 1} +: {bus.size - 17}]"
            for c in members[g]:
                if c % buses == first // bus.size:
                    where = f"{write} && {column} == {c // buses}"
                    yield f"if ({where}) shadow[{16 * c} +: 16] <= {weight};"
        place = f"[{16 * members[g].start} +: {16 * len(members[g])}]"
        yield f"if ({waves[g]}[18]) shadow{place} <= weights{place};"

    registers = [
        *(f"reg [18:0] {wave};" for wave in waves[1:]),
        *(f"reg [{tag_bits - 1}:0] {tag};" for tag in tags[1:]),
        *(f"reg [{last}:0] {name};" for name in pipe),
    ]
    steps = [
        *itertools.pairwise(["sums", *reversed(pipe), "fused"]),
        *((after, before) for line in (waves, tags) for before, after in itertools.pairwise(line)),
    ]
    cleared = [*waves[1:], *tags[1:], "shadow", "active", "a", "b"]
    newline = "\n"
    return f"""\
module {NAME}(
  input wire clk, input wire rst,
  input wire [15:0] moving, input wire \\use , input wire swap, input wire write,
  input wire [{wide}:0] weights, input wire [{tag_bits - 1}:0] transposed,
  input wire [{last}:0] sums_in, output reg [{last}:0] sums
);
  import "DPI-C" function void row_fma(
    input int columns, input bit [{wide}:0] a, input bit [{wide}:0] b, input bit [{last}:0] c,
    output bit [{last}:0] result);
  wire [18:0] wave = {{write, swap, \\use , moving}};
  reg [{wide}:0] shadow, active, a, b;
  bit [{last}:0] fused;
{newline.join("  " + r for r in registers)}
  wire [{wide}:0] used = {by_column("{{16{{{0}[16]}}}}")};
  wire [{wide}:0] swaps = {by_column("{{16{{{0}[17]}}}}")};
  wire [{wide}:0] moved = {by_column("{0}[15:0]")};
  wire [{wide}:0] stationary = (shadow & swaps) | (active & ~swaps);
  always @(posedge clk) begin
    row_fma({columns}, a, b, sums_in, fused);
    a <= (moved & used) | ({{{columns}{{16'h8000}}}} & ~used);
    b <= stationary & used;
    active <= stationary;
{newline.join(f"    {into} <= {of};" for into, of in steps)}
{newline.join(f"    {line}" for g in groups for line in writes(g))}
    if (rst) begin
{newline.join(f"      {name} <= 0;" for name in cleared)}
    end
  end
endmodule
"""
