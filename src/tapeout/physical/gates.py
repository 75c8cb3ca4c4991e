"""Simulation of a mapped netlist: many streams of inputs at once, changes of every pin counted.

Contract: no delays, so glitches are not counted; asynchronous set and reset are idle. A signal is
an integer with one bit for each stream; registers begin at zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .functions import expression, functions
from .pdk import Pdk, PhysicalError

Words = dict[str, list[int]]  # by port, a word for each of its bits


class GateSimulator:
    """A flat netlist as straight lines of Python.

    Args:
        module: of Yosys' JSON.
        streams: how many run side by side.

    Raises: PhysicalError for a cell without a function, or a loop of gates.
    """

    def __init__(self, module: dict[str, Any], pdk: Pdk, *, streams: int) -> None:
        self.streams = streams
        ports = module["ports"].items()
        self._inputs = {n: p["bits"] for n, p in ports if p["direction"] == "input"}
        self._outputs = {n: p["bits"] for n, p in ports if p["direction"] == "output"}
        self._pins: dict[str, int] = {}
        logic: dict[int, tuple[str, list[int]]] = {}
        states, shown = [], []
        known = functions(pdk)
        for name, cell in module["cells"].items():
            function, connections = known.get(cell["type"]), cell["connections"]
            if function is None or not function.outputs:
                raise PhysicalError(f"{cell['type']} of {name} has no function in its library")
            nets = {pin: _word(bits[0]) for pin, bits in connections.items() if bits}
            outputs = [pin for pin in function.outputs if pin in nets]
            needs = [
                bits[0] for pin, bits in connections.items()
                if bits and isinstance(bits[0], int) and pin not in function.outputs
            ]  # fmt: skip
            for pin in outputs:
                net = connections[pin][0]
                self._pins[f"{name}/{pin}"] = net
                if function.next_state:
                    both = {function.state[0]: f"s[{net}]", function.state[1]: f"(ones^s[{net}])"}
                    states.append(f"n[{net}]={expression(function.next_state, nets)}")
                    shown.append(f"v[{net}]={expression(function.outputs[pin], both)}")
                else:
                    logic[net] = (expression(function.outputs[pin], nets), needs)
        names = {**{net: _word(net) for net in logic}}
        settle = [f"{names[net]}={logic[net][0]}" for net in _in_order(logic)]
        ones = (1 << streams) - 1
        self._show = _function(shown, ones)
        self._settle = _function(settle, ones)
        self._next = _function(states, ones)
        self._nets = sorted(
            {*self._pins.values(), *(b for bits in self._inputs.values() for b in bits)}
        )
        self._size = 1 + max(self._nets)

    def run(self, cycles: Sequence[Words]) -> tuple[list[Words], dict[str, tuple[float, float]]]:
        """Runs cycles of inputs; a port that a cycle does not name keeps its value.

        Returns: outputs of each cycle; and by pin `instance/pin` or bit of an input, changes a
        cycle and the share of cycles at one.
        """
        values, state = [0] * self._size, [0] * self._size
        before: list[int] = []
        changes, high = [0] * self._size, [0] * self._size
        outputs = []
        for inputs in cycles:
            for name, words in inputs.items():
                for net, word in zip(self._inputs[name], words, strict=True):
                    values[net] = word
            self._show(values, state, state)
            self._settle(values, state, state)
            for net in self._nets:
                high[net] += values[net].bit_count()
                if before:
                    changes[net] += (values[net] ^ before[net]).bit_count()
            outputs.append(
                {
                    name: [values[b] if isinstance(b, int) else 0 for b in bits]
                    for name, bits in self._outputs.items()
                }
            )
            before = values.copy()
            following = state.copy()
            self._next(values, state, following)
            state = following
        share = 1 / (self.streams * max(1, len(cycles) - 1))
        pins = dict(self._pins)
        for name, bits in self._inputs.items():
            pins |= {f"{name}[{k}]" if len(bits) > 1 else name: b for k, b in enumerate(bits)}
        return outputs, {
            pin: (changes[net] * share, min(1.0, high[net] / (self.streams * len(cycles))))
            for pin, net in pins.items()
        }


def _word(net: int | str) -> str:
    return f"v[{net}]" if isinstance(net, int) else ("ones" if net == "1" else "0")


def _function(lines: list[str], ones: int) -> Callable[[list[int], list[int], list[int]], None]:
    """A function of values v, states s and next states n."""
    space: dict[str, Any] = {"ones": ones}
    exec("def f(v, s, n):\n  pass\n" + "".join(f"  {line}\n" for line in lines), space)
    return space["f"]


def _in_order(logic: dict[int, tuple[str, list[int]]]) -> list[int]:
    """Nets, each behind those that it needs."""
    order: list[int] = []
    state: dict[int, int] = {}
    for first in logic:
        stack = [first]
        while stack:
            net = stack[-1]
            if state.get(net) is None:
                state[net] = 0
                for need in logic[net][1]:
                    if need in logic and state.get(need) is None:
                        stack.append(need)
                    elif state.get(need) == 0:
                        raise PhysicalError("the netlist has a loop of gates")
            else:
                stack.pop()
                if state[net] == 0:
                    state[net] = 1
                    order.append(net)
    return order
