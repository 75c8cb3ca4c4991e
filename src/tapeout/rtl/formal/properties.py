"""All properties, by the names that `tapeout prove` takes."""

from .arithmetic import Add, Arithmetic, MultiplyAdd, VectorMultiply, VectorMultiplyAdd
from .dma import Loads, Stores, Writes
from .loops import Loops
from .memory import Banks
from .property import Property
from .queues import Fifo
from .reads import Fetches, Reads
from .retirement import Retirement, TransferRetirement
from .slave import Registers
from .tokens import Delivery, Tokens


class UnknownPropertyError(Exception):
    """No property has this name; the message lists those there are."""


PROPERTIES: dict[str, type[Property] | type[Arithmetic]] = {
    "tokens": Tokens,
    "token-delivery": Delivery,
    "retirement": Retirement,
    "transfer-retirement": TransferRetirement,
    "fifo": Fifo,
    "banks": Banks,
    "loops": Loops,
    "axi-reads": Reads,
    "axi-fetches": Fetches,
    "axi-writes": Writes,
    "axi-stores": Stores,
    "axi-loads": Loads,
    "axi-registers": Registers,
    "multiply-add": MultiplyAdd,
    "vector-multiply-add": VectorMultiplyAdd,
    "vector-multiply": VectorMultiply,
    "add": Add,
}


def find(names: list[str]) -> dict[str, type[Property] | type[Arithmetic]]:
    """Those with these names; all where there are none."""
    for name in names:
        if name not in PROPERTIES:
            raise UnknownPropertyError(
                f"no property is named {name!r}: there are {', '.join(PROPERTIES)}"
            )
    return {name: PROPERTIES[name] for name in names or PROPERTIES}
