"""Writes tables.py: every coefficient of the functions, fitted with mpmath at 60 digits.

Run `python -m tapeout.numerics.fit_tables > src/tapeout/numerics/tables.py`; needs mpmath. A test
checks that the committed file is what this prints. Polynomials are Chebyshev fits (within a few
percent of minimax), lowest order first, each coefficient rounded to fp32.
"""

from collections.abc import Callable
from functools import partial

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np

mp.mp.dps = 60

Real = Callable[[mp.mpf], mp.mpf]


def _bits(value: mp.mpf) -> int:
    """fp32 bits of the nearest float; 40 digits to float64 to fp32 is safe for fitted constants."""
    return int(np.float32(float(value)).view(np.uint32))


def _value(bits: int) -> mp.mpf:
    return mp.mpf(float(np.uint32(bits).view(np.float32)))


def _fit(function: Real, low: mp.mpf, high: mp.mpf, terms: int) -> list[mp.mpf]:
    """`terms` coefficients over [low, high], lowest order first."""
    return list(reversed(mp.chebyfit(function, [low, high], terms)))


def _segments(
    count: int, terms: int, function: Callable[[int, mp.mpf], mp.mpf], half: mp.mpf
) -> list[list[int]]:
    """One polynomial a segment in the local offset within +-half: `terms` tables of `count`."""
    fits = [_fit(partial(function, j), -half, half, terms) for j in range(count)]
    return [[_bits(fits[j][i]) for j in range(count)] for i in range(terms)]


def _recip_segment(j: int, t: mp.mpf) -> mp.mpf:
    return 1 / (1 + (mp.mpf(2 * j + 1)) / 32 + t)


def _rsqrt_segment(j: int, t: mp.mpf) -> mp.mpf:
    """Segments 0..15 cover [0.5, 1), whose offset is half as wide; 16..31 cover [1, 2)."""
    m = 1 + (mp.mpf(2 * (j % 16) + 1)) / 32 + t
    return 1 / mp.sqrt(m if j >= 16 else m / 2)


def _log2_segments() -> tuple[list[int], list[int]]:
    """Reciprocals r of the segment centres and -log2(r), by mantissa in [0.6875, 1.375).

    The index is the top four bits of the offset from 0.6875 in the bit pattern: ten segments of
    1/32 up to 1, six of 1/16 from 1. Those that touch 1 have r = 1 exactly, so log2 near 1 is all
    polynomial.
    """
    reciprocals, logs = [], []
    for j in range(16):
        if j in (9, 10):
            r = _bits(mp.mpf(1))
        else:
            centre = (
                mp.mpf("0.6875") + (mp.mpf(2 * j + 1)) / 64
                if j < 10
                else 1 + (mp.mpf(2 * (j - 10) + 1)) / 32
            )
            r = _bits(1 / centre)
        reciprocals.append(r)
        logs.append(_bits(-mp.log(_value(r), 2)))
    return reciprocals, logs


def _erf_segment(j: int, t: mp.mpf) -> mp.mpf:
    return mp.erf(mp.mpf(j) / 8 + t)


def _odd_tail(function: Real) -> Real:
    """(f(x)/x - 1)/u with u = x*x: what multiplies x**3 in an odd function of unit slope."""

    def tail(u: mp.mpf) -> mp.mpf:
        x = mp.sqrt(u)
        return (function(x) / x - 1) / u

    return tail


def _polynomials() -> dict[str, list[mp.mpf]]:
    tiny = mp.mpf(10) ** -20
    quarter_pi_squared = (mp.pi / 4) ** 2
    return {
        "LOG2_POLY": _fit(
            lambda f: mp.log(1 + f, 2) / f if f else 1 / mp.log(2),
            -mp.mpf(1) / 32, mp.mpf(1) / 16, 5,
        ),
        "SIN_POLY": _fit(_odd_tail(mp.sin), tiny, quarter_pi_squared * 1.01, 3),
        "COS_POLY": _fit(
            lambda u: (mp.cos(mp.sqrt(u)) - 1 + u / 2) / u**2, tiny, quarter_pi_squared * 1.01, 3
        ),
        "TANH_POLY": _fit(_odd_tail(mp.tanh), tiny, mp.mpf("0.625") ** 2, 5),
        "ERF_POLY": _fit(lambda u: mp.erf(mp.sqrt(u)) / mp.sqrt(u) - 1, tiny, mp.mpf(1) / 16, 4),
    }  # fmt: skip


def tables() -> dict[str, list[int]]:
    """Every table's fp32 bits, by name."""
    half = mp.mpf(1) / 32
    log2_r, log2_l = _log2_segments()
    out: dict[str, list[int]] = {}
    for name, fitted in (
        ("EXP2", _segments(16, 4, lambda j, t: mp.mpf(2) ** (mp.mpf(j) / 16 + t), half)),
        ("RECIP", _segments(16, 3, _recip_segment, half)),
        ("RSQRT", _segments(32, 3, _rsqrt_segment, half)),
        ("ERF", _segments(32, 5, _erf_segment, mp.mpf(1) / 16)),
    ):
        out |= {f"{name}_C{i}": column for i, column in enumerate(fitted)}
    out["LOG2_R"], out["LOG2_L"] = log2_r, log2_l
    return out


def scalars() -> dict[str, list[int]]:
    """Polynomials and constants, as fp32 bits, lowest order first."""
    out = {name: [_bits(c) for c in poly] for name, poly in _polynomials().items()}
    log2e, half_pi = 1 / mp.log(2), mp.pi / 2
    high = _bits(log2e)
    out["LOG2E"] = [high, _bits(log2e - _value(high))]
    first = _bits(half_pi)
    second = _bits(half_pi - _value(first))
    third = _bits(half_pi - _value(first) - _value(second))
    out["HALF_PI"] = [first, second, third]
    out["TWO_OVER_PI"] = [_bits(1 / half_pi)]
    out["SQRT_HALF"] = [_bits(mp.sqrt(mp.mpf(1) / 2))]
    k0 = 2 * mp.sqrt(2 / mp.pi) * log2e
    out["GELU_TANH"] = [_bits(k0), _bits(k0 * mp.mpf("0.044715"))]
    return out


def _text(name: str, groups: dict[str, list[int]]) -> str:
    lines = [f"{name}: Mapping[str, tuple[int, ...]] = {{"]
    for key, entries in groups.items():
        lines.append(f'    "{key}": (')
        for start in range(0, len(entries), 8):
            row = ", ".join(f"0x{e:08X}" for e in entries[start : start + 8])
            lines.append(f"        {row},")
        lines.append("    ),")
    return "\n".join([*lines, "}"])


def source() -> str:
    """The text of tables.py."""
    return "\n".join(
        [
            '"""Coefficients of the functions, as fp32 bits: written by fit_tables.py.',
            "",
            "TABLES are indexed by segment; C0, C1, ... of a name are a polynomial's coefficients",
            "in the local offset, lowest order first. SCALARS are polynomials and constants",
            "without segments.",
            '"""',
            "",
            "from collections.abc import Mapping",
            "",
            "# fmt: off",
            _text("TABLES", tables()),
            "",
            _text("SCALARS", scalars()),
            "",
        ]
    )


if __name__ == "__main__":
    print(source(), end="")
