"""A row of the array as a model: its registers in Verilog, its arithmetic in C, called by DPI.

Contract: port for port and cycle for cycle `array.Row`, from the cycle after reset, once what was
under way in reset has left. An array of 128 rows of 128 elements is too much logic to simulate;
128 of these are not.
"""

from tapeout.chip import Chip

from .array import transposed_bus

NAME = "mxu_row"  # of the box that it stands for


def row_model(chip: Chip) -> str:
    """The Verilog module, whose function `row_fma` is in `native/row_fma.cpp`."""
    mxu, bus = chip.mxu, transposed_bus(chip)
    columns, group, stages = mxu.cols, mxu.column_group, mxu.adder_stages
    buses = mxu.load_rows_per_cycle_transposed
    groups = -(-columns // group)
    wide, last = 16 * columns - 1, 32 * columns - 1

    def bits_of(values: list[str], first: str) -> str:
        """A value for each column, its group's, of 16 bits; `first` is the one of group 0."""
        each = []
        for g, value in enumerate([first, *values]):
            members = min(group, columns - g * group)
            each.append(f"{{{members}{{{value}}}}}")
        return "{" + ", ".join(reversed(each)) + "}"

    waves = [f"wave_{g}" for g in range(1, groups)]
    masks = {
        name: bits_of([f"{{16{{{w}[{at}]}}}}" for w in waves], f"{{16{{wave[{at}]}}}}")
        for name, at in (("used", 16), ("swaps", 17))
    }
    moved = bits_of([f"{w}[15:0]" for w in waves], "wave[15:0]")
    lines = []
    for g in range(groups):
        tags = "transposed" if g == 0 else f"transposed_{g}"
        for b in range(buses):
            first = b * bus.size
            write, weight = f"{tags}[{first}]", f"{tags}[{first + bus.size - 16} +: 16]"
            column = f"{tags}[{first + 1} +: {bus.size - 17}]"
            for c in range(g * group, min((g + 1) * group, columns)):
                if c % buses == b:
                    lines.append(
                        f"    if ({write} && {column} == {c // buses}) "
                        f"shadow[{16 * c} +: 16] <= {weight};"
                    )
        first, size = 16 * g * group, 16 * min(group, columns - g * group)
        lines.append(
            f"    if ({'wave' if g == 0 else f'wave_{g}'}[18]) "
            f"shadow[{first} +: {size}] <= weights[{first} +: {size}];"
        )
    delays = [f"    wave_{g} <= {'wave' if g == 1 else f'wave_{g - 1}'};" for g in range(1, groups)]
    delays += [
        f"    transposed_{g} <= {'transposed' if g == 1 else f'transposed_{g - 1}'};"
        for g in range(1, groups)
    ]
    pipe = [f"sums_{s}" for s in range(1, stages)]
    chain = zip(["sums", *reversed(pipe)], [*reversed(pipe), "fused"], strict=True)
    registers = [
        *(f"reg [18:0] wave_{g};" for g in range(1, groups)),
        *(f"reg [{buses * bus.size - 1}:0] transposed_{g};" for g in range(1, groups)),
        *(f"reg [{last}:0] {name};" for name in pipe),
    ]
    newline = "\n"
    return f"""\
module {NAME}(
  input wire clk, input wire rst,
  input wire [15:0] moving, input wire \\use , input wire swap, input wire write,
  input wire [{wide}:0] weights, input wire [{buses * bus.size - 1}:0] transposed,
  input wire [{last}:0] sums_in, output reg [{last}:0] sums
);
  import "DPI-C" function void row_fma(
    input int columns, input bit [{wide}:0] a, input bit [{wide}:0] b, input bit [{last}:0] c,
    output bit [{last}:0] result);
  wire [18:0] wave = {{write, swap, \\use , moving}};
  reg [{wide}:0] shadow, active, a, b;
  bit [{last}:0] fused;
{newline.join("  " + r for r in registers)}
  wire [{wide}:0] used = {masks["used"]};
  wire [{wide}:0] swaps = {masks["swaps"]};
  wire [{wide}:0] moved = {moved};
  wire [{wide}:0] stationary = (shadow & swaps) | (active & ~swaps);
  always @(posedge clk) begin
    row_fma({columns}, a, b, sums_in, fused);
{newline.join(f"    {into} <= {of};" for into, of in chain)}
    a <= (moved & used) | ({{{columns}{{16'h8000}}}} & ~used);
    b <= stationary & used;
    active <= stationary;
{newline.join(delays)}
{newline.join(lines)}
    if (rst) begin
      {"".join(f"wave_{g} <= 0; transposed_{g} <= 0; " for g in range(1, groups))}
      shadow <= 0; active <= 0; a <= 0; b <= 0;
    end
  end
endmodule
"""
