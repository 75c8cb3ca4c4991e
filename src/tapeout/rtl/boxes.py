"""Modules emitted once: what an array has thousands of, and macros written as Verilog.

Amaranth writes every instance of a component anew. With `Boxes` as the platform, a component handed
to `box` becomes an instance of a module that is converted once, and `macro` takes a module's text.
"""

from collections.abc import Collection, Iterator, Mapping

from amaranth.back import verilog
from amaranth.hdl import (
    ClockSignal,
    Elaboratable,
    Instance,
    Module,
    ResetInserter,
    ResetSignal,
    Value,
)
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from .verilog import convert


class Macros:
    """A platform that collects macros while a design is converted."""

    def __init__(self) -> None:
        self._macros: dict[str, str] = {}

    def macro(self, name: str, text: str) -> None:
        """Adds a module written as Verilog."""
        self._macros[name] = text

    @property
    def texts(self) -> str:
        """The texts of all macros."""
        return "\n".join(self._macros[n] for n in sorted(self._macros))


class Boxes(Macros):
    """A platform that collects modules, too.

    Args:
        clean: as linters want it (`verilog.convert`), which Verilator runs at two thirds of the
            speed; otherwise as Amaranth writes the same netlist.
        models: Verilog by the name of the module that it stands for.
    """

    def __init__(self, *, clean: bool = False, models: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._clean = clean
        self._models = models or {}
        self._components: dict[str, wiring.Component] = {}
        self._done: set[str] = set()

    def add(self, name: str, component: wiring.Component) -> None:
        self._components.setdefault(name, component)

    def convert(self, top: wiring.Component, name: str) -> str:
        """Verilog of `top` and of all modules it needs."""
        texts = [self._module(top, name)]
        texts += self._converted()
        return "\n".join([self.texts, *texts] if self._macros else texts)

    def verilator_configuration(self, apart: Collection[str] = ()) -> str:
        """Keeps each module one C++ class, whose code all its instances share.

        Args:
            apart: modules that become libraries of their own, where Verilator is asked for them
                with --hierarchical.
        """
        how = {name: "hier_block" if name in apart else "no_inline" for name in sorted(self._done)}
        lines = (f'{rule} -module "{name}"' for name, rule in how.items())
        return "\n".join(["`verilator_config", *lines, ""])

    def _converted(self) -> Iterator[str]:
        while waiting := sorted(set(self._components) - self._done):
            name = waiting[0]
            self._done.add(name)
            model = self._models.get(name)
            yield self._module(self._components[name], name) if model is None else model

    def _module(self, component: wiring.Component, name: str) -> str:
        if self._clean:
            return convert(component, name, self)
        return verilog.convert(component, name=name, platform=self, strip_internal_attrs=True)


def box(
    platform: object,
    name: str,
    component: wiring.Component,
    *,
    reset: Value | None = None,
    is_clocked: bool = True,
) -> Elaboratable:
    """What to add as the submodule for `component`, whose ports stay its own.

    Args:
        name: of the module; components of one name must be alike.
        reset: resets it, besides the reset of what it lies in.
        is_clocked: has registers, or something in it has.
    """
    if not isinstance(platform, Boxes):
        return component if reset is None else ResetInserter(reset)(component)
    platform.add(name, component)
    component._MustUse__silence = True  # only the first of a name is converted
    resets = ResetSignal() if reset is None else ResetSignal() | reset
    ports: dict = {"i_clk": ClockSignal(), "i_rst": resets} if is_clocked else {}
    for path, member, value in component.signature.flatten(component):
        port = "__".join(map(str, path))
        ports[f"{'i' if member.flow is In else 'o'}_{port}"] = value
    m = Module()
    m.submodules.box = Instance(name, **ports)
    return m


class Delay(wiring.Component):
    """A line of registers:

    `output` is `input` of `cycles` cycles ago. Long lines turn a pointer instead of moving data.

    Args:
        clears: reset makes what is under way zero.
    """

    def __init__(self, width: int, cycles: int, *, clears: bool = False) -> None:
        self.width, self.cycles, self.clears = width, cycles, clears
        super().__init__({"input": In(width), "output": wiring.Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.cycles == 0:
            m.d.comb += self.output.eq(self.input)
            return m
        name = f"delay_{self.width}x{self.cycles}{'_clears' if self.clears else ''}"
        assert isinstance(platform, Macros)
        platform.macro(name, self._verilog(name))
        m.submodules.line = Instance(
            name, i_clk=ClockSignal(), i_rst=ResetSignal(), i_in=self.input, o_out=self.output
        )
        return m

    def _verilog(self, name: str) -> str:
        top, last = self.width - 1, self.cycles - 1
        bits = max(1, last.bit_length())
        clear = f"    if (rst) for (k = 0; k <= {last}; k = k + 1) data[k] <= 0;\n"
        return f"""\
module {name}(
  input wire clk,
  input wire rst,
  input wire [{top}:0] in,
  output wire [{top}:0] out
);
  reg [{top}:0] data [0:{last}];
  reg [{bits - 1}:0] at;
{"  integer k;" if self.clears else ""}
  assign out = data[at];
  always @(posedge clk) begin
    data[at] <= in;
{clear if self.clears else ""}\
    at <= (rst || at == {last}) ? {bits}'d0 : at + 1'b1;
  end
endmodule
"""
