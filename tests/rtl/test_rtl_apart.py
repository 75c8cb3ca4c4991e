"""Modules set apart: the same in every cycle, not run while they rest, and refused where wrong."""

import ctypes
from pathlib import Path

import pytest

from tapeout.rtl.apart import set_apart
from tapeout.rtl.build import BLOCK_SOURCES, compiled

WIDTHS = (1, 7, 12, 32, 40, 100)

# Registers behind each other, and a sum that goes on while `adds`. `name` is that of the module.
MODULE = """\
module {name}(clk, rst, adds, {ins}, {outs});
  input clk;
  input rst;
  input adds;
{declarations}
  reg [99:0] sum = 0;
{registers}
  import "DPI-C" function void ran();
  always @(posedge clk) begin
    ran();
    sum <= rst ? 100'd0 : adds ? sum + in_100 : sum;
{steps}
  end
{extra}
endmodule
"""
PAIR = """\
module pair(clk, rst, moves, differ);
  input clk;
  input rst;
  input moves;
  output differ;
  reg [127:0] state = 128'h0123456789abcdef0fedcba987654321;
  always @(posedge clk) if (moves) state <= {{state[126:0], state[127] ^ state[125] ^ state[3]}};
{wires}
  inline_block one (.clk(clk), .rst(rst), .adds(state[0]), {first});
  apart_block two (.clk(clk), .rst(rst), .adds(state[0]), {second});
  assign differ = {different};
endmodule
"""


def module(name: str, extra: str = "") -> str:
    return MODULE.format(
        name=name,
        ins=", ".join(f"in_{w}" for w in WIDTHS),
        outs=", ".join(f"out_{w}" for w in WIDTHS),
        declarations="\n".join(
            f"  input{bits} in_{w};\n  output{bits} out_{w};\n  reg{bits} out_{w} = 0;"
            for w in WIDTHS
            for bits in [f" [{w - 1}:0]" if w > 1 else ""]
        ),
        registers="\n".join(f"  reg [{w - 1}:0] old_{w} = 0;" for w in WIDTHS),
        steps="\n".join(
            f"    old_{w} <= in_{w};\n    out_{w} <= old_{w} ^ sum[{w - 1}:0];" for w in WIDTHS
        ),
        extra=extra,
    )


def pair() -> str:
    wires = [f"  wire [{w - 1}:0] {name}_{w};" for name in ("a", "b") for w in WIDTHS]
    ends = [
        ", ".join(f".in_{w}(state[{w + 27}:28]), .out_{w}({name}_{w})" for w in WIDTHS)
        for name in ("a", "b")
    ]
    different = " | ".join(f"(a_{w} != b_{w})" for w in WIDTHS)
    return PAIR.format(wires="\n".join(wires), first=ends[0], second=ends[1], different=different)


def run(apart: str, cycles: int, period: int) -> tuple[int, int, str]:
    """(first cycle that differs, edges that the block ran, what it says)."""
    text = "\n".join([pair(), module("inline_block"), apart])
    built = compiled(
        "block-pair", "pair", text, lambda: set_apart(text, "pair", ["apart_block"]),
        [Path(__file__).with_name("block_pair.cpp"), *BLOCK_SOURCES], apart=["apart_block"],
    )  # fmt: skip
    native = ctypes.CDLL(str(built))
    native.pair_run.restype = ctypes.c_int64
    native.pair_wrong.restype = ctypes.c_char_p
    edges = ctypes.c_uint64()
    found = native.pair_run(ctypes.c_uint64(cycles), ctypes.c_uint64(period), ctypes.byref(edges))
    return found, edges.value - cycles, native.pair_wrong().decode()  # its twin runs all


def test_block_set_apart_is_the_module() -> None:
    """Inputs that move in each cycle, now and then, and rarely; sums go on while inputs rest."""
    for period in (1, 3, 17, 1000):
        assert run(module("apart_block"), 20_000, period)[0] == -1


def test_block_rests_where_its_state_does() -> None:
    found, edges, _ = run(module("apart_block"), 100_000, 1000)
    # Half of the time it adds up; in the rest, it runs until two looks at its state are alike.
    assert found == -1
    assert 20_000 < edges < 80_000
    assert run(module("apart_block"), 1000, 1)[1] == 1000


def test_output_that_follows_an_input_is_refused() -> None:
    plain = module("apart_block")
    wrong = plain.replace("  reg [11:0] out_12 = 0;\n", "").replace(
        "    out_12 <= old_12 ^ sum[11:0];", ""
    )
    assert wrong != plain
    wrong = wrong.replace("\nendmodule", "  assign out_12 = old_12 ^ in_12;\nendmodule")
    found, _, message = run(wrong, 100, 3)
    assert found == -2
    assert message == "apart_block: an output follows an input at once"


def test_ports_without_plain_names_are_refused() -> None:
    text = pair() + module("inline_block") + module("apart_block").replace("adds", "\\use ")
    with pytest.raises(ValueError, match="apart_block cannot be set apart"):
        set_apart(text, "pair", ["apart_block"])
