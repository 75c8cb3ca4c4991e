"""Verilog of designs in which one part stands many times: each part is written once.

Amaranth writes every instance of a component anew. A part of class `Part` becomes a module of its
own, named by `name`, and an instance of it wherever it stands.
"""

from typing import Any

from amaranth.back import verilog
from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module, ResetSignal, Value
from amaranth.lib import wiring


class Parts:
    """The platform of `verilog_of`: collects the parts that a design is made of."""

    def __init__(self) -> None:
        self.found: dict[str, Part] = {}


class Part(wiring.Component):
    """A component that is written once:

    Subclasses put their logic into `build`; `name` tells apart what differs in ports or logic. Its
    ports have no names within names.
    """

    name: str

    def build(self) -> Module:
        """The logic inside."""
        raise NotImplementedError

    def elaborate(self, platform: object) -> Any:
        if not isinstance(platform, Parts):
            return self.build()
        platform.found.setdefault(self.name, self)
        ports: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for name, member in self.signature.members.items():
            flow = "i" if member.flow == wiring.In else "o"
            ports[f"{flow}_{name}"] = Value.cast(getattr(self, name))
        return Instance(self.name, **ports)


class _Inside(Elaboratable):
    """A part's own module."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def elaborate(self, platform: object) -> Module:
        return self.part.build()


def verilog_of(design: wiring.Component, name: str) -> str:
    """Verilog of a design, top module `name`, with the modules of its parts."""
    parts = Parts()
    texts = [verilog.convert(design, name=name, platform=parts, strip_internal_attrs=True)]
    written: set[str] = set()
    while missing := sorted(parts.found.keys() - written):
        for each in missing:
            part = parts.found[each]
            ports = [Value.cast(getattr(part, port)) for port in part.signature.members]
            texts.append(
                verilog.convert(
                    _Inside(part), name=each, platform=parts, ports=ports,
                    strip_internal_attrs=True,
                )
            )  # fmt: skip
            written.add(each)
    return "\n".join(texts)
