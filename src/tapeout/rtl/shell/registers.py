"""The register map: one table, from which hardware, documentation and C header come.

Contract: registers are 32 bits wide, at multiples of 4, little endian. A read of an address
without a register, and a write to one that cannot be written, or not now, is answered with SLVERR
and changes nothing.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from tapeout.chip import Chip
from tapeout.isa.instruction import Fault
from tapeout.isa.program import MAX_BASES

ADDRESS_BITS = 12
IDENTITY = 0x54415045  # "TAPE"
LAYOUT_VERSION = 1
QUEUES, QUEUE_STEP = 0x100, 0x10
BASES, BASE_STEP = 0x400, 0x20


class Access(StrEnum):
    """What the host may do with a register."""

    READ = "ro"
    CONFIGURE = "rw"  # written while no program runs
    WRITE = "rw, at any time"
    ORDER = "wo"  # a bit written as 1 is an order
    CLEAR = "rw1c"  # a bit written as 1 becomes 0


@dataclass(frozen=True, kw_only=True)
class Field:
    """Bits `low` to `low + width - 1` of a register."""

    name: str
    low: int
    width: int
    doc: str


@dataclass(frozen=True, kw_only=True)
class Register:
    """One register; bits that no field names read as zero and are not written."""

    name: str
    offset: int
    access: Access
    fields: tuple[Field, ...]
    doc: str = ""
    constant: int | None = None

    @property
    def mask(self) -> int:
        return sum(((1 << f.width) - 1) << f.low for f in self.fields)


@dataclass(frozen=True, kw_only=True)
class RegisterMap:
    """The registers of one chip, by offset."""

    chip: Chip = field(repr=False)
    registers: tuple[Register, ...]

    def __getitem__(self, name: str) -> Register:
        return next(r for r in self.registers if r.name == name)


def _whole(name: str, offset: int, access: Access, doc: str, **more: int) -> Register:
    return Register(
        name=name, offset=offset, access=access, doc=doc,
        fields=(Field(name="value", low=0, width=32, doc=doc),), **more,
    )  # fmt: skip


def _low(name: str, offset: int, width: int, doc: str) -> Register:
    fields = (Field(name="value", low=0, width=width, doc=doc),)
    return Register(name=name, offset=offset, access=Access.CONFIGURE, doc=doc, fields=fields)


def _flags(
    name: str, offset: int, access: Access, doc: str, *names: tuple[str, int, int, str]
) -> Register:
    fields = tuple(Field(name=n, low=low, width=w, doc=d) for n, low, w, d in names)
    return Register(name=name, offset=offset, access=access, fields=fields, doc=doc)


CAUSES = (
    ("done", 0, 1, "the program has ended without a fault"),
    ("fault", 1, 1, "the program has ended with a fault"),
    ("bus_error", 2, 1, "memory has answered with an error; the program was stopped"),
)
_FAULTS = "; ".join(f"{f.value} {f.name.lower()}" for f in Fault)


def register_map(chip: Chip) -> RegisterMap:
    """The map of a chip's shell."""
    ro, rw = Access.READ, Access.CONFIGURE
    found = [
        _whole("ID", 0x00, ro, '"TAPE" in ASCII', constant=IDENTITY),
        _whole("LAYOUT", 0x04, ro, "version of this map", constant=LAYOUT_VERSION),
        _whole("QUEUES", 0x08, ro, "number of queues", constant=chip.queue_count),
        _flags(
            "CONTROL", 0x10, Access.ORDER, "orders",
            ("start", 0, 1, "start the programs of all queues; STATUS.running must be 0"),
            ("stop", 1, 1, "stop, and make the core as new once its memory requests are answered"),
        ),
        _flags(
            "STATUS", 0x14, ro, "what the shell does, and how the last program ended",
            ("running", 0, 1, "a program runs, is being started or stopped"),
            ("done", 1, 1, "the program has ended, well or with a fault"),
            ("bus_error", 2, 1, "memory answered with an error since the last start"),
            ("fault", 8, 4, _FAULTS),
            ("fault_queue", 16, 5, "the queue of the fault"),
        ),
        _whole("FAULT_PC", 0x18, ro, "the instruction of the fault, counted in its stream"),
        _flags("IRQ_ENABLE", 0x20, Access.WRITE, "causes that set the interrupt", *CAUSES),
        _flags("IRQ_STATUS", 0x24, Access.CLEAR, "causes since they were cleared", *CAUSES),
        _whole("CYCLES_LOW", 0x28, ro, "cycles of the program; reading it holds CYCLES_HIGH"),
        _whole("CYCLES_HIGH", 0x2C, ro, "the upper half, of when CYCLES_LOW was read"),
    ]  # fmt: skip
    for q, name in enumerate(chip.queue_names):
        at, of = QUEUES + q * QUEUE_STEP, f"of queue {name}'s stream"
        found += [
            _flags(
                f"Q{q}_CODE_LOW",
                at,
                rw,
                f"address {of}, a multiple of 4096",
                ("page", 12, 20, "bits 12 to 31; those below are zero, whatever is written"),
            ),
            _low(f"Q{q}_CODE_HIGH", at + 4, 8, f"upper bits of the address {of}"),
            _whole(f"Q{q}_COUNT", at + 8, rw, f"instructions {of}; 0: the queue does nothing"),
        ]
    for b in range(MAX_BASES):
        at = BASES + b * BASE_STEP
        found += [
            _whole(f"B{b}_ADDRESS_LOW", at, rw, f"address of base {b}'s memory"),
            _low(f"B{b}_ADDRESS_HIGH", at + 4, 8, f"upper bits of base {b}'s address"),
            _whole(f"B{b}_BYTES_LOW", at + 8, rw, f"size of base {b}'s memory"),
            _low(f"B{b}_BYTES_HIGH", at + 12, 8, f"upper bits of base {b}'s size"),
            _flags(
                f"B{b}_FLAGS", at + 16, rw, f"what base {b} is",
                ("writable", 0, 1, "the program may write there"),
                ("given", 1, 1, "there is memory behind this base"),
            ),
        ]  # fmt: skip
    return RegisterMap(chip=chip, registers=tuple(found))
