"""Faults that change nothing, proven by SAT."""

import pytest

pytest.importorskip("pyosys")

from tapeout.rtl.verification.equal import changes_nothing

PORTS = """  input clk;
  wire clk;
  input [1:0] a;
  wire [1:0] a;
  output [1:0] y;
  wire [1:0] y;
"""
INNER = f"""module inner(clk, a, y);
{PORTS}  assign y = ~ a;
endmodule
"""


def outer(result: str) -> str:
    """Two registers, `low` 0 but for the first cycle, and a module in it."""
    return f"""module outer(clk, a, y);
{PORTS}  wire [1:0] given;
  reg [1:0] held;
  reg low;
  inner inside (.clk(clk), .a(held), .y(given));
  always @(posedge clk) held <= a;
  always @(posedge clk) low <= 1'h0;
  assign y = {result};
endmodule
"""


@pytest.mark.parametrize(
    ("good", "bad", "is_equal"),
    [
        ("given & held", "held & given", True),  # whatever the state
        ("low ? held : given", "low ? a : given", True),  # after a cycle
        ("low ? held : given", "low ? a : held", False),
        ("given & held", "given | held", False),  # what the module inside gives is not known
    ],
)
def test_what_is_proven(good: str, bad: str, is_equal: bool) -> None:
    assert changes_nothing(outer(good), outer(bad), {"inner": INNER}) == is_equal
