"""What cells compute, from the functions in liberty files, as Python expressions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .pdk import Pdk, PhysicalError

_LINE = re.compile(
    r'^\s*(?:cell\s*\(\s*"?([\w$]+)"?\s*\)|pin\s*\(\s*"?(\w+)"?\s*\)|'
    r'function\s*:\s*"([^"]*)"|ff\s*\(\s*"?(\w+)"?\s*,\s*"?(\w+)"?\s*\)|'
    r'next_state\s*:\s*"([^"]*)")',
    re.M,
)
_TOKEN = re.compile(r"\w+|[!()*&+|^]|\S")


@dataclass
class Function:
    """Expressions by output pin; of a flip-flop, its next state and the names of its state."""

    outputs: dict[str, str] = field(default_factory=dict)
    next_state: str = ""
    state: tuple[str, str] = ("", "")  # and its inverse


def functions(pdk: Pdk) -> dict[str, Function]:
    """Those of all cells of a library."""
    found: dict[str, Function] = {}
    for content in pdk.texts().values():
        cell, pin = Function(), ""
        for m in _LINE.finditer(content.decode(errors="replace")):
            if m[1]:
                cell = found.setdefault(m[1], Function())
            elif m[2]:
                pin = m[2]
            elif m[3] is not None:
                cell.outputs[pin] = m[3]
            elif m[4]:
                cell.state = (m[4], m[5])
            else:
                cell.next_state = m[6]
    return found


def expression(text: str, names: Mapping[str, str]) -> str:
    """A liberty function as Python over words of bits; `ones` there has all bits set.

    Args:
        names: what pins are called there.

    Raises: PhysicalError for what is not a function of these pins.
    """
    tokens = _TOKEN.findall(text)

    def refuse() -> PhysicalError:
        return PhysicalError(f"function {text!r} of a cell is not read by this program")

    def chain(operators: str, python: str, inner: int) -> str:
        terms = [level(inner)]
        while tokens and (tokens[0] in operators or (python == "&" and tokens[0] not in "+|^)")):
            if tokens[0] in operators:
                tokens.pop(0)
            terms.append(level(inner))
        return terms[0] if len(terms) == 1 else f"({python.join(terms)})"

    def level(depth: int) -> str:
        if depth == 0:
            return chain("+|", "|", 1)
        if depth == 1:
            return chain("*&", "&", 2)
        if depth == 2:
            return chain("^", "^", 3)
        token = tokens.pop(0) if tokens else ""
        if token == "!":
            return f"(ones^{level(3)})"
        if token == "(":
            inner = level(0)
            if not tokens or tokens.pop(0) != ")":
                raise refuse()
            return inner
        if token in ("0", "1"):
            return "0" if token == "0" else "ones"
        if token not in names:
            raise refuse()
        return names[token]

    result = level(0)
    if tokens:
        raise refuse()
    return result
