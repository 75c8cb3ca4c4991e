"""Verilog of one component, such that linters have nothing to say about it.

Contract: as `amaranth.back.verilog.convert`, with operands as wide as their operator, a default in
every case and no signals without bits. Amaranth shortens operands for readers; linters warn.
"""

import copy
import re
from collections.abc import Iterator

from amaranth._toolchain.yosys import find_yosys
from amaranth.back import rtlil
from amaranth.hdl import Fragment
from amaranth.hdl import _ir as ir
from amaranth.hdl import _nir as nir
from amaranth.hdl._ast import SignalDict, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

_MODULE = re.compile(r"^module (\\\S+|\w+)", re.MULTILINE)
_INSTANCE = re.compile(r"^ *(\\\S+|\w+) +(?:\\\S+ |\w+) *\(", re.MULTILINE)
_ATTRIBUTES = ("generator", "top", "src", "amaranth.hierarchy", "amaranth.decoding")


def convert(component: wiring.Component, name: str, platform: object) -> str:
    """Verilog of `component` as module `name`, and of its submodules."""
    ports = {
        "__".join(map(str, path)): (
            Value.cast(value),
            ir.PortDirection.Input if member.flow is In else ir.PortDirection.Output,
        )
        for path, member, value in component.signature.flatten(component)
    }
    netlist = ir.build_netlist(Fragment.get(component, platform), ports=ports, name=name)
    return _verilog(_rtlil(netlist))


def modules(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each module in Verilog, a name as the language means it."""
    found = list(_MODULE.finditer(text))
    for match, following in zip(found, [*found[1:], None], strict=True):
        body = text[match.start() : following.start() if following else len(text)]
        end = body.rindex("endmodule") + len("endmodule")
        yield match[1].removeprefix("\\"), body[:end] + "\n"


def instantiated(body: str) -> set[str]:
    """Names of the modules that a module's text has instances of, among others."""
    return {match[1].removeprefix("\\") for match in _INSTANCE.finditer(body)}


def _rtlil(netlist: nir.Netlist) -> str:
    is_empty = rtlil.EmptyModuleChecker(netlist)
    design = rtlil.Design(emit_src=False)
    for index, module in enumerate(netlist.modules):
        if not is_empty.is_empty(index):
            builder = design.module(".".join(module.name), src_loc=module.src_loc)
            _Emitter(builder, netlist, module, SignalDict(), empty_checker=is_empty).emit()
            _drop_empty_wires(builder)
    return str(design)


def _drop_empty_wires(builder: rtlil.Module) -> None:
    """Signals of no bits, which Verilog cannot have."""
    empty = {
        name
        for name, item in builder.contents.items()
        if isinstance(item, rtlil.Wire) and item.width == 0 and item.port_kind is None
    }
    builder.contents = {n: item for n, item in builder.contents.items() if n not in empty}
    builder.connections = [(to, value) for to, value in builder.connections if to not in empty]


def _verilog(text: str) -> str:
    removed = " ".join(f"-remove {a}" for a in _ATTRIBUTES)
    script = [
        f"read_rtlil <<rtlil\n{text}\nrtlil",
        # No pass `proc`: it drops empty defaults, and writes x == 0 as !x.
        "memory_collect",
        f"attrmap {removed}",
        f"attrmap -modattr {removed}",
        "write_verilog -norename",
    ]
    yosys = find_yosys(lambda version: version >= (0, 40))
    return yosys.run(["-q", "-"], "\n".join(script), ignore_warnings=True)


class _Emitter(rtlil.ModuleEmitter):
    """Amaranth's, but for what linters warn of."""

    def shorten_operand(self, value: nir.Value, *, signed: bool) -> nir.Value:
        return value

    def emit_assignment_list(self, cell_idx: int, cell: nir.AssignmentList) -> None:
        super().emit_assignment_list(cell_idx, cell)
        process = next(reversed(self.builder.contents.values()))
        for switch in _switches(process.contents):
            if all(case.patterns for case in switch.cases):
                switch.default()

    def emit_part(self, cell_idx: int, cell: nir.Part) -> None:
        if cell.value_signed or cell.width >= len(cell.value):
            super().emit_part(cell_idx, cell)
            return
        # A shift is as wide as what it shifts, and its low bits are the part.
        whole, part = self.builder.wire(len(cell.value)), self.cell_wires[cell_idx]
        self.cell_wires[cell_idx] = whole
        shift = copy.copy(cell)
        shift.width = len(cell.value)
        super().emit_part(cell_idx, shift)
        self.cell_wires[cell_idx] = part
        self.builder.connect(part.name, f"{whole.name} [{cell.width - 1}:0]")


def _switches(contents: list) -> Iterator[rtlil.Switch]:
    for item in contents:
        if isinstance(item, rtlil.Switch):
            yield item
            for case in item.cases:
                yield from _switches(case.contents)
