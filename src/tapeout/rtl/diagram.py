"""The block diagram of a core as SVG, drawn from its components and their ports.

Each queue is a column: its sequencer, its engine, and below it a line for every port that it has to
a memory. A memory is a bar across all columns; an arrow up is a read, one down a write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from tapeout.chip import Chip

from .core import Core
from .memory import RowReads, RowWrites

_PITCH, _GAP, _MARGIN = 17, 26, 16  # between lines, columns, and at the edges
_BOX, _BAR, _LABEL = 44, 40, 96  # heights: of a box, of a memory, of the names of ports
_STYLE = """\
text { font: 11px sans-serif; fill: #1b2733; }
.name { font-weight: bold; }
.small { font-size: 9.5px; fill: #41505e; }
.box { fill: #e8eef4; stroke: #51677c; }
.memory { fill: #f3ead8; stroke: #8a6d3b; }
.fabric { fill: #e4efe4; stroke: #5b7f5b; }
.wire { stroke: #51677c; fill: none; marker-end: url(#arrow); }"""


@dataclass(frozen=True)
class _Line:
    """A port: `name`, to a bar, `is_read` or a write."""

    name: str
    bar: str
    is_read: bool


def core_svg(chip: Chip) -> str:
    """The core of `chip`: sequencers, engines, memories with their ports, HBM and the tokens."""
    core = Core(chip)
    columns = [list(_lines(core, q.number)) for q in core.queues]
    wide = max(
        _MARGIN * 2 + sum(_width(lines) for lines in columns) + _GAP * (len(columns) - 1), 640
    )
    bars = {
        "acc": f"{chip.acc.stripes} stripes x {chip.vpu.sublanes} banks, fp32",
        "vmem": f"{chip.vmem.rows} rows, fp32",
        "spm": f"{chip.spm.stripes} stripes x {chip.spm.banks_per_stripe} banks, bf16",
        "HBM": f"{chip.hbm.pseudo_channels} pseudo-channels",
    }
    seq_y = _MARGIN + _BAR + 28
    engine_y = seq_y + _BOX + 22
    ports_y = engine_y + _BOX
    at = {name: ports_y + _LABEL + n * (_BAR + 18) for n, name in enumerate(bars)}
    high = at["HBM"] + _BAR + _MARGIN

    parts = [_fabric(chip, wide)]
    x = float(_MARGIN)
    for queue, lines in zip(core.queues, columns, strict=True):
        width = _width(lines)
        middle = x + width / 2
        parts += _box("box", x, seq_y, width, _BOX, f"sequencer {queue.name}",
                      f"{queue.channels} channels in, out")  # fmt: skip
        parts += _box("box", x, engine_y, width, _BOX, type(core.engines[queue.number]).__name__,
                      ", ".join(queue.instructions))  # fmt: skip
        parts += [
            _wire(middle - 8, _MARGIN + _BAR, middle - 8, seq_y),
            _wire(middle + 8, seq_y, middle + 8, _MARGIN + _BAR),
            _wire(middle, seq_y + _BOX, middle, engine_y),
        ]
        for n, line in enumerate(lines):
            parts += _port(x + _PITCH * (n + 0.5), ports_y, at[line.bar], line)
        x += width + _GAP
    for name, note in bars.items():  # lines to those below pass behind
        size = f", {chip.lanes} lanes" if name != "HBM" else ""
        parts += _box("memory", _MARGIN, at[name], wide - 2 * _MARGIN, _BAR, name, note + size)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" '
            f'width="{wide:g}" height="{high:g}" role="img" '
            f'aria-label="block diagram of a core of {escape(chip.name)}">',
            f"<style>{_STYLE}</style>",
            '<defs><marker id="arrow" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" '
            'markerHeight="6" orient="auto">'
            '<path d="M0 0L6 3L0 6z" fill="#51677c"/></marker></defs>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _lines(core: Core, number: int) -> Iterator[_Line]:
    """Ports of a queue, by memory; then what it has to HBM."""
    members = core.engines[number].signature.members
    for memory in ("acc", "vmem", "spm"):
        for name, member in members.items():
            if member.is_signature and name.startswith(f"{memory}_"):
                assert isinstance(member.signature, RowReads | RowWrites)
                short = name.removeprefix(f"{memory}_")
                yield _Line(short, memory, isinstance(member.signature, RowReads))
    if "run_request" in members:
        yield _Line("loads", "HBM", True)
        yield _Line("stores", "HBM", False)
    yield _Line("instructions", "HBM", True)
    yield _Line("seq.load", "HBM", True)


def _width(lines: list[_Line]) -> float:
    return max(_PITCH * len(lines), 130)


def _fabric(chip: Chip, wide: float) -> str:
    queues, tokens = chip.queue_count, chip.tokens
    channels = queues * (queues - 1) * tokens.channels_per_pair
    note = f"{channels} channels of {tokens.capacity} tokens, {tokens.latency_cycles} cycles"
    return "\n".join(
        _box("fabric", _MARGIN, _MARGIN, wide - 2 * _MARGIN, _BAR, "token channels", note)
    )


def _box(kind: str, x: float, y: float, w: float, h: float, name: str, note: str) -> list[str]:
    middle = x + w / 2
    return [
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3"/>',
        f'<text class="name" x="{middle:g}" y="{y + h / 2 - 3:g}" text-anchor="middle">'
        f"{escape(name)}</text>",
        f'<text class="small" x="{middle:g}" y="{y + h / 2 + 11:g}" text-anchor="middle">'
        f"{escape(note)}</text>",
    ]


def _port(x: float, top: float, bar: float, line: _Line) -> list[str]:
    ends = (bar, top) if line.is_read else (top, bar)
    return [
        _wire(x, ends[0], x, ends[1]),
        f'<text class="small" x="{x - 3:g}" y="{top + _LABEL - 8:g}" '
        f'transform="rotate(-90 {x - 3:g} {top + _LABEL - 8:g})">{escape(line.name)}</text>',
    ]


def _wire(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="wire" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>'
