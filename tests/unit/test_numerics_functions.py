"""Accuracy and special values of the functions, and that their tables are what the fit prints."""

import math

import numpy as np
import pytest

from tapeout.numerics import Function, arith, functions, micro, native, tables

INF, NAN = np.float32(np.inf), np.float32(np.nan)

# Largest error in ulp of the exact result, over the operands of `operands`; measured, rounded up.
# gelu multiplies 1 + erf: relative error grows where that cancels, so it is bounded from -1 on;
# gelu_tanh's grows with the exponent's rounding: from -4 on.
MAX_ULP = {
    Function.EXP2: 1.0,
    Function.LOG2: 1.7,
    Function.RECIP: 0.51,
    Function.RSQRT: 1.05,
    Function.SQRT: 0.51,
    Function.TANH: 1.4,
    Function.ERF: 1.1,
    Function.SIGMOID: 2.7,
    Function.SILU: 3.0,
    Function.GELU: 2.7,
    Function.GELU_TANH: 12.0,
    Function.SIN: 1.5,
    Function.COS: 1.5,
    Function.FLOOR: 0.0,
}
LEAST_OPERAND = {Function.SILU: -87.0, Function.GELU: -1.0, Function.GELU_TANH: -4.0}
# Largest absolute error for -100 < x < 0, where the relative one is unbounded.
MAX_ABSOLUTE = {Function.GELU: 2e-7, Function.GELU_TANH: 6e-8, Function.SILU: 6e-8}


def operands():
    """Every 40,009th fp32, and 60,000 more with magnitudes between 2**-15 and 144."""
    every = np.arange(0, 2**32, 40009, dtype=np.uint64).astype(np.uint32)
    usual = np.random.default_rng(1).integers(0x38000000, 0x43100000, 60000, dtype=np.uint32)
    usual[::2] |= 0x80000000
    x = np.concatenate([every, usual]).view(np.float32)
    return x[np.isfinite(x) & (np.abs(x) >= 2.0**-126)]


def sigmoid64(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def exactly(function, x):
    """The function in float64, whose own error is some 1e-9 of a fp32 ulp."""
    per_element = {
        Function.ERF: lambda v: math.erf(v),
        Function.GELU: lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)),
    }
    if function in per_element:
        return np.array([per_element[function](float(v)) for v in x])
    with np.errstate(all="ignore"):
        return {
            Function.EXP2: np.exp2,
            Function.LOG2: np.log2,
            Function.RECIP: lambda v: 1 / v,
            Function.RSQRT: lambda v: 1 / np.sqrt(v),
            Function.SQRT: np.sqrt,
            Function.TANH: np.tanh,
            Function.SIGMOID: sigmoid64,
            Function.SILU: lambda v: v * sigmoid64(v),
            Function.GELU_TANH: lambda v: (
                v * sigmoid64(2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))
            ),
            Function.SIN: np.sin,
            Function.COS: np.cos,
            Function.FLOOR: np.floor,
        }[function](x)


def errors_in_ulp(function, x):
    """(errors, operands) where the exact result is a normal fp32."""
    want = exactly(function, x.astype(np.float64))
    with np.errstate(all="ignore"):
        normal = (np.abs(want) >= 2.0**-126) & (np.abs(want) < 2.0**128 * (1 - 2.0**-25))
    got = functions.apply(function, x).astype(np.float64)[normal]
    ulp = 2.0 ** (np.floor(np.log2(np.abs(want[normal]))) - 23)
    return np.abs(got - want[normal]) / ulp, x[normal]


@pytest.mark.parametrize("function", MAX_ULP, ids=lambda f: f.name.lower())
def test_error_in_ulp(function):
    x = operands()
    if function in (Function.SIN, Function.COS):
        x = x[np.abs(x) <= 2.0**17]
    errors, at = errors_in_ulp(function, x[x >= LEAST_OPERAND.get(function, -np.inf)])
    worst = np.argmax(errors)
    assert errors.size > 10000
    assert errors[worst] <= MAX_ULP[function], f"{errors[worst]} ulp at {at[worst]!r}"


@pytest.mark.parametrize("function", MAX_ABSOLUTE, ids=lambda f: f.name.lower())
def test_absolute_error_of_negative_operands(function):
    x = operands()
    x = x[(x < 0) & (x > -100)]
    error = np.abs(functions.apply(function, x) - exactly(function, x.astype(np.float64)))
    assert error.max() <= MAX_ABSOLUTE[function]


def test_sine_near_multiples_of_pi_against_mpmath():
    mpmath = pytest.importorskip("mpmath")
    x = (np.arange(1, 83443, 97) * (math.pi / 2)).astype(np.float32)
    for function, exact in ((Function.SIN, mpmath.sin), (Function.COS, mpmath.cos)):
        got = functions.apply(function, x)
        with mpmath.workdps(40):
            want = np.array([float(exact(mpmath.mpf(float(v)))) for v in x])
        ulp = 2.0 ** (np.floor(np.log2(np.abs(want))) - 23)
        assert (np.abs(got - want) / ulp).max() <= MAX_ULP[function]


def test_an_error_of_two_ulp_is_seen():
    x = np.array([1.5], np.float32)
    good = errors_in_ulp(Function.EXP2, x)[0][0]
    shifted = arith.from_bits(arith.bits(functions.exp2(x)) + np.uint32(2))
    want = 2.0**1.5
    assert abs(float(shifted[0]) - want) / 2.0**-22 > 1.4 > good


SPECIAL_VALUES = [
    ("exp2", [-INF, INF, 0.0, -0.0, 1e-40, 128.0, -126.0, -126.5, 127.0, -3.0, 10.0],
     [0.0, INF, 1.0, 1.0, 1.0, INF, 2.0**-126, 0.0, 2.0**127, 0.125, 1024.0]),
    ("log2", [0.0, -0.0, 1e-40, 1.0, 2.0, 0.125, INF, -1.0, -INF, 2.0**-126],
     [-INF, -INF, -INF, 0.0, 1.0, -3.0, INF, NAN, NAN, -126.0]),
    ("recip", [0.0, -0.0, -1e-40, INF, -INF, 1.0, -4.0, 2.0**126, 2.0**127, -(2.0**127)],
     [INF, -INF, -INF, 0.0, -0.0, 1.0, -0.25, 2.0**-126, 0.0, -0.0]),
    ("rsqrt", [0.0, -0.0, INF, 1.0, 4.0, 0.25, -1.0, -INF],
     [INF, -INF, 0.0, 1.0, 0.5, 2.0, NAN, NAN]),
    ("sqrt", [0.0, -0.0, INF, 1.0, 4.0, 2.0**-126, -1.0, -INF, -1e-40],
     [0.0, -0.0, INF, 1.0, 2.0, 2.0**-63, NAN, NAN, -0.0]),
    ("tanh", [0.0, -0.0, INF, -INF, 20.0, -20.0], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
    ("erf", [0.0, -0.0, INF, -INF, 4.0, -4.0], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
    ("sigmoid", [0.0, -0.0, INF, -INF, 100.0, -100.0], [0.5, 0.5, 1.0, 0.0, 1.0, 0.0]),
    ("silu", [0.0, -0.0, INF, -INF, 3e38], [0.0, -0.0, INF, -0.0, 3e38]),
    ("gelu", [0.0, -0.0, INF, -INF, 3e38, -3e38], [0.0, -0.0, INF, -0.0, 3e38, -0.0]),
    ("gelu_tanh", [0.0, -0.0, INF, -INF, 3e38, -3e38], [0.0, -0.0, INF, -0.0, 3e38, -0.0]),
    ("sin", [0.0, -0.0, -1e-40, INF, -INF, 131073.0, -3e38], [0.0, -0.0, -0.0, NAN, NAN, NAN, NAN]),
    ("cos", [0.0, -0.0, INF, -INF, 131073.0], [1.0, 1.0, NAN, NAN, NAN]),
    ("abs", [-0.0, -1.5, -INF, -1e-40], [0.0, 1.5, INF, 0.0]),
    ("neg", [0.0, -0.0, 1.5, -INF, 1e-40], [-0.0, 0.0, -1.5, INF, -0.0]),
    ("floor", [0.0, -0.0, 0.3, -0.3, -1.0, 1.5, -1.5, 2.0**23 - 0.5, -(2.0**22) - 0.5, INF, -INF],
     [0.0, -0.0, 0.0, -1.0, -1.0, 1.0, -2.0, 2.0**23 - 1, -(2.0**22) - 1, INF, -INF]),
    ("floor", [3e38, -3e38, -1e-40, 1e-40, 0.99999994], [3e38, -3e38, -0.0, 0.0, 0.0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "x", "want"), SPECIAL_VALUES, ids=[v[0] for v in SPECIAL_VALUES])
def test_special_values(name, x, want):
    got = getattr(functions, name)(np.array([*x, NAN], np.float32))
    wanted = arith.canonical(np.array([*want, NAN], np.float32))
    np.testing.assert_array_equal(arith.bits(got), arith.bits(wanted))


def test_nan_payloads_and_signs_are_lost():
    x = np.array([0x7F800001, 0xFFC12345, 0xFF800001], np.uint32).view(np.float32)
    for function in Function:
        assert (arith.bits(functions.apply(function, x)) == 0x7FC00000).all()


def test_functions_keep_shapes():
    assert functions.exp2(np.zeros((2, 3), np.float32)).shape == (2, 3)
    assert functions.exp2(np.float32(3)).shape == ()


def test_monotone_at_segment_borders():
    """exp2 and recip never step the wrong way over a million neighbouring operands."""
    x = np.arange(0x3F700000, 0x3F800000, 3, dtype=np.uint32).view(np.float32)
    assert (np.diff(functions.exp2(x)) >= 0).all()
    assert (np.diff(functions.recip(x)) <= 0).all()


def test_tables_are_what_the_fit_prints():
    pytest.importorskip("mpmath")
    from pathlib import Path

    from tapeout.numerics import fit_tables

    assert Path(tables.__file__).read_text() == fit_tables.source()


def test_every_function_has_a_size():
    """What hardware must sequence: the fused multiply-adds and the operations of each function."""
    for function in Function:
        program = functions.program(function)
        assert program.count("fma", "mul", "add", "sub") <= 24
        assert len(program.operations) <= 110
        assert program.count("div") == 0


def test_builder_refuses_wrong_kinds_and_inexact_constants():
    b = micro.Builder()
    x = b.op("input")
    with pytest.raises(TypeError, match="convert with as_int or as_float"):
        b.op("iadd", x, x)
    with pytest.raises(ValueError, match="not exact in fp32"):
        b.f(0.1)


def test_native_text_has_every_function_and_table():
    text = native.native_tables()
    for function in Function:
        assert f"fn_{function.name.lower()}(" in text
    for table in tables.TABLES:
        assert f"kTable{table}[" in text
