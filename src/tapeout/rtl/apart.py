"""Modules of a core that are verilated apart, and run only in cycles in which they may change.

Contract: `set_apart` replaces a module by one of the same ports that calls its model at each edge
of the clock (`native/block.hpp`). The core stays the same in every bit and cycle. Only modules of
which no output follows an input within a cycle can be set apart; the model stops where one does.

Most of what a simulated core costs are lanes of the vector unit and dequantisers, which rest most
of the time.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .verilog import instantiated, modules

_PORT = re.compile(r"^ *(input|output)(?: reg| wire)?(?: \[(\d+):0\])? (\w+) ?;", re.MULTILINE)


@dataclass(frozen=True)
class _Port:
    name: str
    width: int
    is_input: bool

    @property
    def bits(self) -> str:
        return f"bit [{self.width - 1}:0]" if self.width > 1 else "bit"

    @property
    def argument(self) -> str:
        kind = "svBitVecVal*" if self.width > 1 else "svBit" if self.is_input else "svBit*"
        const = "const " if self.is_input and self.width > 1 else ""
        return f"{const}{kind} {self.name}"

    @property
    def words(self) -> int:
        return -(-self.width // 32)


def set_apart(text: str, top: str, names: Collection[str]) -> dict[str, str]:
    """Files of module `top` of Verilog `text`, of its modules `names` set apart, none of which lies
    in another, and of their calls: `<top>.v`, `<name>.v` and `<name>.cpp`.

    Raises: ValueError where a port has a name that C++ cannot have, or there is no port clk.
    """
    bodies = dict(modules(text))
    files = {}
    for name in names:
        ports = _ports(name, bodies[name])
        files[f"{name}.v"] = "\n".join(bodies[n] for n in _needed(bodies, name))
        files[f"{name}.cpp"] = _calls(name, ports)
        bodies[name] = _stub(name, ports)
    return {f"{top}.v": "\n".join(bodies[n] for n in _needed(bodies, top)), **files}


def _ports(name: str, body: str) -> list[_Port]:
    """All but the clock."""
    ports = {
        port: _Port(port, int(last or 0) + 1, direction == "input")
        for direction, last, port in _PORT.findall(body)
    }
    head = body[body.index("(") + 1 : body.index(")")].split(",")
    if ports.keys() != {port.strip() for port in head} or "clk" not in ports:
        raise ValueError(f"{name} cannot be set apart: its ports are not plain names and a clk")
    return [port for port in ports.values() if port.name != "clk"]


def _needed(bodies: Mapping[str, str], top: str) -> list[str]:
    """`top` and all modules below it."""
    found, waiting = {top}, [top]
    while waiting:
        new = (instantiated(bodies[waiting.pop()]) & bodies.keys()) - found
        found |= new
        waiting += new
    return [name for name in bodies if name in found]


def _stub(name: str, ports: list[_Port]) -> str:
    outputs = [p for p in ports if not p.is_input]
    formal = ", ".join(f"{'input' if p.is_input else 'output'} {p.bits} {p.name}" for p in ports)
    actual = ", ".join(p.name if p.is_input else f"next_{p.name}" for p in ports)
    newline = "\n"
    return f"""\
module {name}(clk, {", ".join(p.name for p in ports)});
  input clk;
{newline.join(f"  {'input' if p.is_input else 'output'} {p.bits} {p.name};" for p in ports)}
  import "DPI-C" function chandle {name}_create();
  import "DPI-C" function void {name}_destroy(input chandle block);
  import "DPI-C" function void {name}_edge(input chandle block, {formal});
  chandle block;
{newline.join(f"  {p.bits} next_{p.name};" for p in outputs)}
  initial block = {name}_create();
  final {name}_destroy(block);
  always @(posedge clk) begin
    {name}_edge(block, {actual});
{newline.join(f"    {p.name} <= next_{p.name};" for p in outputs)}
  end
endmodule
"""


def _calls(name: str, ports: list[_Port]) -> str:
    inputs = [p for p in ports if p.is_input]
    outputs = [p for p in ports if not p.is_input]
    copies, at = [], 0
    for p in outputs:
        copies.append(f"  get(top.{p.name}, words.data() + {at});")
        at += p.words
    newline = "\n"
    return f"""\
#include "V{name}.h"
#include "V{name}__Syms.h"
#include "block.hpp"

namespace {{
void outputs(const V{name}& top, std::vector<uint32_t>& words) {{
  words.resize({at});
{newline.join(copies)}
}}
using ItsBlock = Block<V{name}, V{name}__Syms, outputs>;
}}  // namespace

extern "C" {{
void* {name}_create() {{
  const SameContext same;
  return new ItsBlock("{name}");
}}
void {name}_destroy(void* block) {{
  const SameContext same;
  delete static_cast<ItsBlock*>(block);
}}
void {name}_edge(void* block, {", ".join(p.argument for p in ports)}) {{
  auto& its = *static_cast<ItsBlock*>(block);
  bool moves = false;
{newline.join(f"  moves |= put(its.top.{p.name}, {p.name});" for p in inputs)}
  its.edge(moves);
{newline.join(f"  get(its.top.{p.name}, {p.name});" for p in outputs)}
}}
}}
"""
