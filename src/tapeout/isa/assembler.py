"""Assembly text: `format_instruction`, `parse_line` and whole programs, exact in both directions.

    .chip solo
    .segment weights base=0 bytes=32768 readonly
    .source matmul layers.0 kernels.py 12    ; kernel, layer, file, line: source 0
    .queue mxu
    .at 0                                    ; what follows came from source 0
    mxu.load src=128 k=128 n=128 waits=dma0.1
    mxu.matmul src=0+r2 rows=4 dst=0 accumulate=add posts=vpu.0 drain
    seq.halt

A field that has its default value is left out; a flag stands for itself; enumerations are written
in lower case. Addresses and counts are `imm`, `imm+rN` or `rN`; HBM addresses `b0[offset+rN]`; vpu
operands `kind[address:tile_stride:row_stride]` or `#constant`; `waits` and `posts` list
`peer.channel`, or give the mask as a number. `;` starts a comment.
"""

import dataclasses
import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tapeout.chip import Chip

from .fields import Addr, Bits, Count, EncodingError, HbmAddr, Kind, Operand
from .instruction import BY_MNEMONIC, Instruction
from .program import Program, Segment, Source, channel_bit, channel_peer

MASKS = ("waits", "posts")


class AssemblyError(ValueError):
    """Text that is not a program: the message says line, rule, value and nearest right name."""

    def __init__(self, rule: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {rule}" if line else rule)
        self.rule = rule


# --- writing -------------------------------------------------------------------------------------


def format_instruction(
    instruction: Instruction, queue: str | None = None, chip: Chip | None = None
) -> str:
    """One line of text. With a queue and its chip, channels have names; without, masks are hex."""
    words: list[str] = []
    header: list[str] = []
    for f in dataclasses.fields(instruction):
        value, spec = getattr(instruction, f.name), f.metadata["spec"]
        if value == f.default and not _is_negative_zero(value):
            continue
        into = header if f.name in Instruction.__dataclass_fields__ else words
        if f.type is bool:
            into.append(f.name)
        elif f.name in MASKS and queue is not None and chip is not None:
            into.append(f"{f.name}={','.join(_channels(value, queue, chip)) or hex(value)}")
        elif f.name in MASKS:
            into.append(f"{f.name}={value:#x}")
        else:
            into.append(f"{f.name}={_text(spec, value)}")
    return " ".join([instruction.mnemonic, *words, *header])


def _is_negative_zero(value: Any) -> bool:
    return isinstance(value, Operand) and str(value.value) == "-0.0"


def _text(spec: Any, value: Any) -> str:
    if isinstance(spec, Bits) and spec.enum is not None:
        return spec.enum(value).name.lower()
    if isinstance(spec, Bits) and spec.register:
        return f"r{value}"
    if isinstance(spec, Bits):
        return str(int(value))
    return str(value)


def _channels(mask: int, queue: str, chip: Chip) -> list[str]:
    names = chip.queue_names
    number, per_pair = names.index(queue), chip.tokens.channels_per_pair
    out = []
    for bit in range(mask.bit_length()):
        if mask >> bit & 1:
            peer, channel = channel_peer(number, bit, per_pair)
            if peer >= len(names):
                return []
            out.append(f"{names[peer]}.{channel}")
    return out


def disassemble(program: Program, chip: Chip) -> str:
    """The program's text; `assemble` gives back an equal program."""
    return "\n".join(_program_lines(program, chip)) + "\n"


def _program_lines(program: Program, chip: Chip) -> Iterator[str]:
    yield f".chip {program.chip}"
    for s in program.segments:
        mode = "writable" if s.writable else "readonly"
        yield f".segment {shlex.quote(s.name)} base={s.base} bytes={s.bytes} {mode}"
    for source in program.source_table:
        yield (
            " ".join(
                [".source", *(shlex.quote(t) for t in (source.kernel, source.layer, source.file))]
            )
            + f" {source.line}"
        )
    for queue, stream in program.streams.items():
        yield f".queue {queue}"
        table, current = program.sources.get(queue), None
        for pc, instruction in enumerate(stream):
            if table and table[pc] != current:
                current = table[pc]
                yield f".at {current}"
            yield f"  {format_instruction(instruction, queue, chip)}"


# --- reading -------------------------------------------------------------------------------------


def parse_line(text: str, queue: str | None = None, chip: Chip | None = None) -> Instruction:
    """The instruction of one line; named channels need the queue and its chip.

    Raises:
        AssemblyError: an unknown mnemonic, field, member or channel, or a value that does not fit.
    """
    words = text.split(";")[0].split()
    if not words:
        raise AssemblyError("no instruction in an empty line")
    cls = BY_MNEMONIC.get(words[0])
    if cls is None:
        raise AssemblyError(f"no instruction {words[0]!r}{_nearest(words[0], BY_MNEMONIC)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if name not in fields:
            raise AssemblyError(f"{cls.mnemonic} has no field {name!r}{_nearest(name, fields)}")
        if name in values:
            raise AssemblyError(f"{cls.mnemonic}: field {name} is given twice")
        flag = fields[name].type is bool
        if flag == bool(equals):
            form = "a flag: write it without a value" if flag else f"given as {name}=value"
            raise AssemblyError(f"{cls.mnemonic}: {name} is {form}")
        values[name] = flag or _value(cls, name, fields[name].metadata["spec"], value, queue, chip)
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise AssemblyError(f"{cls.mnemonic} needs {', '.join(f'{n}=' for n in missing)}")
    instruction = cls(**values)
    try:
        instruction.encode()
    except EncodingError as error:
        raise AssemblyError(str(error)) from None
    return instruction


def _value(
    cls: type[Instruction], name: str, spec: Any, text: str, queue: str | None, chip: Chip | None
) -> Any:
    where = f"{cls.mnemonic}.{name}"
    if name in MASKS:
        return _mask(where, text, queue, chip)
    if isinstance(spec, Bits) and spec.enum is not None:
        members = {m.name.lower(): m for m in spec.enum}
        if text not in members:
            raise AssemblyError(f"{where} has no member {text!r}{_nearest(text, members)}")
        return members[text]
    if isinstance(spec, Bits) and spec.register:
        return _number(where, "a register rN", r"r(\d+)", text, lambda m: int(m[1]))
    if isinstance(spec, Bits):
        return _number(where, "an integer", r"-?\w+", text, lambda m: int(m[0], 0))
    if spec in (Addr, Count):
        return spec(*_sum(where, text))
    if spec is HbmAddr:
        return _number(
            where,
            "an HBM address b0[offset+rN]",
            r"b(\d+)\[([^\]]*)\]",
            text,
            lambda m: HbmAddr(int(m[1]), *_sum(where, m[2])),
        )
    return _operand(where, text)


def _number(where: str, kind: str, pattern: str, text: str, make: Callable[[Any], Any]) -> Any:
    match = re.fullmatch(pattern, text)
    try:
        if match is not None:
            return make(match)
    except AssemblyError:
        raise
    except ValueError:
        pass
    raise AssemblyError(f"{where} takes {kind}, not {text!r}")


def _sum(where: str, text: str) -> tuple[int, int]:
    """(imm, register) of `imm`, `imm+rN` or `rN`."""
    return _number(
        where,
        "imm, imm+rN or rN",
        r"(?:(\d+)\+r|r)(\d+)|(\d+)",
        text,
        lambda m: (int(m[3]), 0) if m[3] else (int(m[1] or 0), int(m[2])),
    )


def _operand(where: str, text: str) -> Operand:
    if text == "-":
        return Operand()
    if text.startswith("#"):
        value = _number(where, "a constant #x", r"#(.+)", text, lambda m: float(m[1]))
        return Operand(kind=Kind.IMMEDIATE, value=value)
    match = re.fullmatch(r"(\w+)\[([^:\]]*):(\d+):(\d+)\]", text)
    if match is None:
        raise AssemblyError(
            f"{where} takes kind[address:tile_stride:row_stride] or #constant, not {text!r}"
        )
    kinds = {k.name.lower(): k for k in Kind if k not in (Kind.NONE, Kind.IMMEDIATE)}
    if match[1] not in kinds:
        raise AssemblyError(f"{where} has no operand kind {match[1]!r}{_nearest(match[1], kinds)}")
    imm, reg = _sum(where, match[2])
    return Operand(kinds[match[1]], imm, reg, int(match[3]), int(match[4]))


def _mask(where: str, text: str, queue: str | None, chip: Chip | None) -> int:
    if re.fullmatch(r"0x[0-9a-fA-F]+|\d+", text):
        return int(text, 0)
    if queue is None or chip is None:
        raise AssemblyError(f"{where}: channel names need a .queue; here a mask as a number")
    mask, names = 0, chip.queue_names
    for item in text.split(","):
        match = re.fullmatch(r"(\w+)\.(\d+)", item)
        if match is None:
            raise AssemblyError(f"{where} takes peer.channel,... or a number, not {item!r}")
        if match[1] not in names or match[1] == queue:
            others = [n for n in names if n != queue]
            raise AssemblyError(
                f"{where}: {queue} has no channel with {match[1]!r}{_nearest(match[1], others)}"
            )
        channel, limit = int(match[2]), chip.tokens.channels_per_pair
        if channel >= limit:
            raise AssemblyError(f"{where}: channels are 0..{limit - 1}, not {channel}")
        mask |= 1 << channel_bit(names.index(queue), names.index(match[1]), channel, limit)
    return mask


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f": did you mean {near[0]}?" if near else f": there are {', '.join(names)}"


def assemble(text: str, chip: Chip) -> Program:
    """The program of a text (see the module's docstring).

    Raises:
        AssemblyError: with the number of the line.
    """
    reader = _Reader(chip)
    for number, line in enumerate(text.splitlines(), 1):
        try:
            reader.line(line.strip())
        except AssemblyError as error:
            raise AssemblyError(error.rule, number) from None
    return reader.program


class _Reader:
    """A program as it is read line by line."""

    def __init__(self, chip: Chip) -> None:
        self.streams: dict[str, list[Instruction]] = {}
        self.chip, self.program = chip, Program(chip.name, self.streams)
        self.queue: str | None = None
        self.source: int | None = None

    def line(self, line: str) -> None:
        if not line or line.startswith(";"):
            return
        if not line.startswith("."):
            self.instruction(line)
            return
        lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
        lexer.whitespace_split, lexer.commenters = True, ";"
        try:
            directive, *words = lexer
        except ValueError as error:
            raise AssemblyError(f"a quote is not closed: {error}") from None
        known: dict[str, Callable[..., None]] = {
            ".chip": self.on_chip,
            ".segment": self.on_segment,
            ".source": self.on_source,
            ".queue": self.on_queue,
            ".at": self.on_at,
        }
        if directive not in known:
            raise AssemblyError(f"no directive {directive!r}{_nearest(directive, known)}")
        try:
            known[directive](*words)
        except TypeError:
            raise AssemblyError(f"{directive} does not take {len(words)} words") from None

    def instruction(self, line: str) -> None:
        if self.queue is None:
            raise AssemblyError("an instruction must follow a .queue")
        self.streams[self.queue].append(parse_line(line, self.queue, self.chip))
        if self.source is not None:
            self.program.sources.setdefault(self.queue, []).append(self.source)
        table = self.program.sources.get(self.queue, [])
        if table and len(table) != len(self.program.streams[self.queue]):
            raise AssemblyError("the first .at of a queue must precede its first instruction")

    def on_chip(self, name: str) -> None:
        if name != self.chip.name:
            raise AssemblyError(
                f"the text is for chip {name}, not {self.chip.name}: load that chip"
            )

    def on_segment(self, name: str, base: str, nbytes: str, mode: str) -> None:
        number, size = (
            _number(".segment", f"{key}=integer", rf"{key}=(\d+)", text, lambda m: int(m[1]))
            for key, text in (("base", base), ("bytes", nbytes))
        )
        if mode not in ("readonly", "writable"):
            raise AssemblyError(
                f".segment is readonly or writable{_nearest(mode, ('readonly', 'writable'))}"
            )
        self.program.segments.append(Segment(name, number, size, mode == "writable"))

    def on_source(self, kernel: str, layer: str, file: str, line: str) -> None:
        number = _number(".source", "a line number last", r"\d+", line, lambda m: int(m[0]))
        self.program.source_table.append(Source(kernel, layer, file, number))

    def on_queue(self, name: str) -> None:
        if name not in self.chip.queue_names:
            raise AssemblyError(
                f"{self.chip.name} has no queue {name!r}{_nearest(name, self.chip.queue_names)}"
            )
        self.queue, self.source = name, None
        self.streams.setdefault(name, [])

    def on_at(self, number: str) -> None:
        index = _number(".at", "a source's number", r"\d+", number, lambda m: int(m[0]))
        if index >= len(self.program.source_table):
            raise AssemblyError(
                f".at {index}: there are {len(self.program.source_table)} .source lines before"
            )
        self.source = index
