"""Integer functions that closed forms of cycles may call; `tapeout.isa.native` has each in C++."""

import math


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def gcd(a: int, b: int) -> int:
    """Greatest common divisor; gcd(0, b) = b."""
    return math.gcd(a, b)


def bank_cycles(kind: int, stride: int, sublanes: int, banks: int) -> int:
    """Cycles in which an operand delivers `sublanes` rows; 1 where it is not in spm (kinds 1, 2).

    Rows `stride` apart meet banks / gcd(stride, banks) banks; an fp32 row is a pair of rows whose
    stride counts both, so contiguous pairs (stride 2) run at half rate. Stride 0 is one row.
    """
    if kind != 1 and kind != 2:
        return 1
    if stride == 0:
        return 1
    return ceil_div(sublanes * gcd(stride, banks), banks)
