"""A program: one instruction stream per queue, the HBM segments it addresses, and where each
instruction came from. Saved as one zip file of JSON and raw bytes (no pickle)."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import overload

from tapeout.chip import Chip

from .fields import WORD_BYTES, EncodingError
from .instruction import Instruction, decode

FORMAT_VERSION = 1
MAX_BASES = 16


@dataclass(frozen=True)
class Segment:
    """A range of HBM that the program reaches through base register `base`."""

    name: str
    base: int
    bytes: int
    writable: bool


@dataclass(frozen=True)
class Source:
    """Where an instruction came from."""

    kernel: str
    layer: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f" ({Path(self.file).name}:{self.line})" if self.file else ""
        return f"{self.layer + '/' if self.layer else ''}{self.kernel}{where}"


class Words(Sequence[Instruction]):
    """A stream as its 64-byte words; an instruction is decoded when it is looked at."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) % WORD_BYTES:
            raise EncodingError(
                f"{len(raw)} bytes are not a whole number of {WORD_BYTES}-byte words"
            )
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw) // WORD_BYTES

    @overload
    def __getitem__(self, index: int) -> Instruction: ...

    @overload
    def __getitem__(self, index: slice) -> list[Instruction]: ...

    def __getitem__(self, index: int | slice) -> Instruction | list[Instruction]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index] * WORD_BYTES
        return decode(self.raw[at : at + WORD_BYTES])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # compares by value, as a list does


@dataclass
class Program:
    """Streams by queue name; `sources[queue][pc]` indexes `source_table`.

    Token channels: on queue q, bit j of a wait mask is channel j % C from the (j // C)-th other
    queue in the order of `chip.queue_names`, C = tokens.channels_per_pair; post masks alike.
    """

    chip: str
    streams: Mapping[str, Sequence[Instruction]]
    segments: list[Segment] = field(default_factory=list)
    sources: dict[str, list[int]] = field(default_factory=dict)
    source_table: list[Source] = field(default_factory=list)

    def source(self, queue: str, pc: int) -> Source | None:
        table = self.sources.get(queue)
        return self.source_table[table[pc]] if table and pc < len(table) else None

    def encode(self, queue: str) -> bytes:
        """The stream's words, 64 bytes each."""
        stream = self.streams[queue]
        return stream.raw if isinstance(stream, Words) else b"".join(i.encode() for i in stream)

    def check_bindings(self, chip: Chip, bases: Mapping[int, tuple[int, int, bool]]) -> None:
        """Raises ValueError unless `chip` can run it with `bases`: (address, bytes, writable)."""
        if self.chip != chip.name:
            raise ValueError(
                f"the program was compiled for chip {self.chip}, this is {chip.name}: "
                f"compile it for {chip.name}"
            )
        for name in self.streams:
            if name not in chip.queue_names:
                raise ValueError(f"{chip.name} has no queue {name}: {', '.join(chip.queue_names)}")
        for segment in self.segments:
            have = bases.get(segment.base, (0, -1, False))[1]
            if have < segment.bytes:
                raise ValueError(
                    f"segment {segment.name} needs {segment.bytes} bytes at base b{segment.base}, "
                    f"not {'none' if have < 0 else have}: bind it when loading"
                )
        for base, (address, _, _) in bases.items():
            if address % 4:
                raise ValueError(
                    f"base b{base} = {address} must be a multiple of 4 (scalar loads): allocate it"
                )

    @property
    def instructions(self) -> int:
        return sum(len(s) for s in self.streams.values())

    def to_bytes(self) -> bytes:
        """One zip archive."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(
                "program.json",
                json.dumps(
                    {
                        "version": FORMAT_VERSION,
                        "chip": self.chip,
                        "segments": [asdict(s) for s in self.segments],
                        "sources": self.sources,
                        "source_table": [asdict(s) for s in self.source_table],
                        "queues": list(self.streams),
                    }
                ),
            )
            for queue in self.streams:
                archive.writestr(f"{queue}.bin", self.encode(queue))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Program":
        """Raises EncodingError when the data is not a program of this version."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                meta = json.loads(archive.read("program.json"))
                raw = {q: archive.read(f"{q}.bin") for q in meta["queues"]}
        except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
            raise EncodingError(f"not a program file: {error}") from None
        if meta.get("version") != FORMAT_VERSION:
            raise EncodingError(
                f"program of format version {meta.get('version')}, this build reads "
                f"{FORMAT_VERSION}: compile it again"
            )
        return cls(
            chip=meta["chip"],
            streams={q: Words(words) for q, words in raw.items()},
            segments=[Segment(**s) for s in meta["segments"]],
            sources=meta["sources"],
            source_table=[Source(**s) for s in meta["source_table"]],
        )


def channel_peer(queue: int, bit: int, channels_per_pair: int) -> tuple[int, int]:
    """(peer queue, channel) of bit `bit` in a wait or post mask of queue number `queue`."""
    peer, channel = divmod(bit, channels_per_pair)
    return (peer if peer < queue else peer + 1), channel


def channel_bit(queue: int, peer: int, channel: int, channels_per_pair: int) -> int:
    """The bit of queue `queue`'s wait or post mask for `channel` from or to `peer`."""
    return (peer if peer < queue else peer - 1) * channels_per_pair + channel
