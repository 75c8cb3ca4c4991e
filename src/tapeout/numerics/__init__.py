"""Bit-exact numerics of the ISA in NumPy: the definition that simulator and RTL agree with.

Values travel as float32 arrays; bf16 as uint16 bit patterns; narrower formats as bytes.

* `arith`: fp32 fma, add, sub, mul, maximum, minimum with one rounding, flushing, canonical NaN
* `encodings`, `formats`: bf16, fp8, fp4, int8; HBM tiles: `Format`, `decode_rows`, `pack_rows`
* `functions`: exp2, log2, recip, ...: micro-programs over the operations of `arith`
* `reduce`: folds over lanes; `mxu`: one pass through the matrix unit
"""

from tapeout.numerics import arith, encodings, formats, functions, micro, mxu, reduce
from tapeout.numerics.formats import Format
from tapeout.numerics.functions import Function

__all__ = [
    "Format",
    "Function",
    "arith",
    "encodings",
    "formats",
    "functions",
    "micro",
    "mxu",
    "reduce",
]
