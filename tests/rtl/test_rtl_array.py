"""A row of the array as a model (`rtl.row_model`) against the row that the hardware has."""

import ctypes
import re
from pathlib import Path

import pytest

from tapeout.chip import Chip, load
from tapeout.rtl import row_model
from tapeout.rtl.array import Row, transposed_bus
from tapeout.rtl.boxes import Boxes
from tapeout.rtl.build import ROW_FMA, compiled

# Both rows get bf16 and fp32 of any bits, of magnitudes that meet, and special ones.
PAIR = """
module pair(input wire clk, input wire rst, output wire differ);
  reg [15:0] moving; reg using, swap, write;
  reg [16*{columns}-1:0] weights; reg [{bus}*{buses}-1:0] transposed;
  reg [32*{columns}-1:0] sums_in;
  wire [32*{columns}-1:0] gates, model;
  assign differ = gates != model;
  gates_row a (.clk(clk), .rst(rst), .moving(moving), .\\use (using), .swap(swap), .write(write),
    .weights(weights), .transposed(transposed), .sums_in(sums_in), .sums(gates));
  mxu_row b (.clk(clk), .rst(rst), .moving(moving), .\\use (using), .swap(swap), .write(write),
    .weights(weights), .transposed(transposed), .sums_in(sums_in), .sums(model));
  function automatic [31:0] value();
    reg [31:0] r, s;
    begin
      r = $urandom; s = $urandom;
      case (s[3:0])
        0: value = r;
        1: value = {{r[31], 8'h00, r[22:0]}};
        2: value = {{r[31], 8'hff, r[0] ? 23'h0 : r[22:0]}};
        3: value = {{r[31], 31'h3f800000}};
        4: value = {{r[31], 8'h01, r[22:0]}};
        5: value = {{r[31], 4'h7, r[26:0]}};
        default: value = {{r[31], 5'b01111, r[25:0]}};
      endcase
    end
  endfunction
  integer c;
  reg [31:0] v;
  always @(posedge clk) begin
    v = value(); moving <= v[31:16];
    v = $urandom; using <= v[3:0] != 0; swap <= v[7:4] == 0; write <= v[9:8] == 0;
    for (c = 0; c < {columns}; c = c + 1) begin
      v = value(); weights[16*c +: 16] <= v[31:16];
      sums_in[32*c +: 32] <= value();
    end
    for (c = 0; c < {buses}; c = c + 1) begin
      v = value(); transposed[{bus}*c + {bus} - 16 +: 16] <= v[31:16];
      v = $urandom; transposed[{bus}*c +: {bus} - 16] <= v[{bus}-17:0];
    end
    if (rst) begin
      using <= 0; swap <= 0; write <= 0; transposed <= 0;
    end
  end
endmodule
"""


def differs(chip: Chip, cycles: int, model: str | None = None) -> int:
    """The cycle in which row and model first differ, or -1."""
    mxu = chip.mxu
    buses = mxu.load_rows_per_cycle_transposed
    model = model or row_model.row_model(chip)

    def text() -> str:
        rows = Boxes().convert(Row(chip), "gates_row")
        sizes = {"columns": mxu.cols, "buses": buses, "bus": transposed_bus(chip).size}
        return "\n".join([rows, model, PAIR.format(**sizes)])

    path = compiled(
        "row-pair", "pair", f"{mxu}{PAIR}{model}", lambda: {"pair.v": text()},
        [Path(__file__).with_name("row_pair.cpp"), *ROW_FMA],
    )  # fmt: skip
    native = ctypes.CDLL(str(path))
    native.pair_run.restype = ctypes.c_int64
    return int(native.pair_run(ctypes.c_uint64(cycles), ctypes.c_uint32(7)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mxu.adder_stages": 1},
        {"mxu.rows": 16, "mxu.cols": 16, "mxu.adder_stages": 3, "mxu.load_rows_per_cycle": 2,
         "mxu.load_rows_per_cycle_transposed": 4, "dma.bytes_per_cycle": 64},
    ],
    ids=["tiny", "one stage", "groups and buses"],
)  # fmt: skip
def test_model_is_the_row(changes: dict[str, int]) -> None:
    """Two million multiply-adds and more of each."""
    chip = load("tiny", [f"{name}={value}" for name, value in changes.items()])
    assert differs(chip, 2_000_000 // chip.mxu.cols) == -1


def test_wrong_model_is_found() -> None:
    right = row_model.row_model(load("tiny"))
    wrong = re.sub(r"stationary & used", "stationary", right)
    assert wrong != right
    assert differs(load("tiny"), 10_000, wrong) > 0
