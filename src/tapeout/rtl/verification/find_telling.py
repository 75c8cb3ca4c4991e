"""Writes telling.py: arguments of the vector unit's functions that tell every constant apart.

Run `python -m tapeout.rtl.verification.find_telling > src/tapeout/rtl/verification/telling.py`;
needs a C++ compiler for this machine, and half an hour. For each constant of a function (an entry
of a table, a coefficient, a bound, a mask) it goes through all fp32 operands until the result
differs where the constant is one unit in the last place more, and, but for tables, one less.
Changes that no operand tells are counted: there the function is the same with either constant.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tapeout.numerics.functions import Function, program
from tapeout.numerics.micro import OPERATIONS, MicroOp, MicroProgram
from tapeout.numerics.tables import TABLES

_CHUNK = 1 << 12  # operands at once

_HEAD = """\
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>
#include <xmmintrin.h>
using F = float; using I = std::uint32_t; using M = bool;
static inline F as_float(I x) { return std::bit_cast<F>(x); }
static inline I as_int(F x) { return std::bit_cast<I>(x); }
static inline F canonical(F x) { return x != x ? as_float(0x7FC00000u) : x; }
static inline F fma(F a, F b, F c) { return canonical(std::fmaf(a, b, c)); }
static inline F mul(F a, F b) { return canonical(a * b); }
static inline F add(F a, F b) { return canonical(a + b); }
static inline F sub(F a, F b) { return canonical(a - b); }
static inline bool less(I a, I b) { return static_cast<int>(a) < static_cast<int>(b); }
constexpr I kCount = CHUNK;
struct Site { int number; int entries; void (*run)(const F*, I*, I*); };
"""
# All results of a chunk, and the entries used; then what differs from the sound function.
_MAIN = """\
template <int site>
static void run(const F* x, I* y, I* entry) {
  for (I n = 0; n < kCount; ++n) y[n] = as_int(function<site>(x[n], entry[n]));
}
int main() {
  _mm_setcsr(_mm_getcsr() | 0x8040);  // subnormals are zero, in and out
  static F x[kCount];
  static I sound[kCount], y[kCount], entry[kCount];
  std::vector<std::vector<bool>> found;
  std::vector<int> left;
  for (const Site& s : kSites) {
    found.emplace_back(s.entries, false);
    left.push_back(s.entries);
  }
  for (std::uint64_t chunk = 0; chunk < (1ull << 32) / kCount; ++chunk) {
    const I first = static_cast<I>(chunk * 0x9E3779B1u) * kCount;  // each once, near and far
    for (I n = 0; n < kCount; ++n) x[n] = as_float(first + n);
    run<-1>(x, sound, entry);
    for (std::size_t k = 0; k < found.size(); ++k) {
      if (!left[k]) continue;
      kSites[k].run(x, y, entry);
      I differs = 0;
      for (I n = 0; n < kCount; ++n) differs |= y[n] ^ sound[n];
      if (!differs) continue;
      for (I n = 0; n < kCount; ++n) {
        if (y[n] == sound[n] || found[k][entry[n]]) continue;
        found[k][entry[n]] = true;
        --left[k];
        std::printf("%d %u %08X\\n", kSites[k].number, entry[n], as_int(x[n]));
      }
    }
  }
}
"""


def _expression(number: int, op: MicroOp) -> str:
    """Operation `number`; `site`, of template `function`, says which constant is changed."""
    arguments = ", ".join(f"v{i}" for i in op.arguments)
    a, *rest = (f"v{i}" for i in op.arguments) if op.arguments else ("",)
    changed = f"(site == {2 * number} ? 1u : site == {2 * number + 1} ? ~0u : 0u)"
    infix = {"iadd": "+", "isub": "-", "iand": "&", "ior": "|", "ixor": "^", "equal": "=="}
    match op.name:
        case "input":
            return "input"
        case "const_f":
            return f"as_float(0x{op.immediate:08X}u + {changed})"
        case "const_i":
            return f"0x{op.immediate:08X}u + {changed}"
        case "table":
            return f"as_float(k{op.table}[{a}] + {changed})"
        case "shl":
            return f"{a} << {op.immediate}"
        case "shr":
            return f"{a} >> {op.immediate}"
        case "sar":
            return f"static_cast<I>(static_cast<int>({a}) >> {op.immediate})"
        case "select":
            return f"as_float({a} ? as_int({rest[0]}) : as_int({rest[1]}))"
        case "fma" | "mul" | "add" | "sub" | "as_int" | "as_float" | "less":
            return f"{op.name}({arguments})"
    return f"{a} {infix[op.name]} {rest[0]}"


def _sites(p: MicroProgram) -> Iterator[tuple[int, int]]:
    """(number, entries): 2 * operation for a constant one more, and one behind for one less."""
    for k, op in enumerate(p.operations):
        if op.name == "table":
            yield 2 * k, len(TABLES[op.table])
        elif op.name in ("const_f", "const_i"):
            yield from ((2 * k, 1), (2 * k + 1, 1))


def source(function: Function) -> str:
    """A program in C++ that prints, of a function, lines of: number of the site, entry, operand."""
    p = program(function)
    lines = [_HEAD.replace("CHUNK", str(_CHUNK))]
    for name in sorted({op.table for op in p.operations} - {""}):
        entries = ", ".join(f"0x{e:08X}u" for e in TABLES[name] * 2)  # for any index
        lines.append(f"static const I k{name}[] = {{{entries}}};")
    lines += ["template <int site>", "static inline F function(F input, I& entry) {", "entry = 0;"]
    for k, op in enumerate(p.operations):
        kind = {"f": "F", "i": "I", "m": "M"}[OPERATIONS[op.name][1]]
        lines.append(f"const {kind} v{k} = {_expression(k, op)};")
        if op.name == "table":
            lines.append(f"if constexpr (site == {2 * k}) entry = v{op.arguments[0]};")
    lines += [f"return v{len(p.operations) - 1};", "}"]
    before, main = _MAIN.split("int main", 1)
    runs = ", ".join(f"{{{n}, {entries}, run<{n}>}}" for n, entries in _sites(p))
    lines += [before, f"static const Site kSites[] = {{{runs}}};", f"int main{main}"]
    return "\n".join(lines)


def telling(function: Function) -> tuple[list[int], int]:
    """(bits of operands that tell constants, how many of the changes none tells)."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "telling.cpp").write_text(source(function))
        command = ["c++", "-std=c++20", "-O3", "-march=native", "-fno-trapping-math",
                   "-ffp-contract=off", "-o", "telling", "telling.cpp"]  # fmt: skip
        subprocess.run(command, cwd=folder, check=True)
        done = subprocess.run(["./telling"], cwd=folder, check=True, capture_output=True, text=True)
    found = done.stdout.splitlines()
    total = sum(entries for _, entries in _sites(program(function)))
    return sorted({int(line.split()[2], 16) for line in found}), total - len(found)


def main() -> None:
    print('"""Arguments that tell each constant of a function from its neighbours, as fp32 bits.')
    print("\nWritten by find_telling.py, which says more: do not edit.\n")
    print("SILENT: how many of the changes to a function's constants no operand tells.")
    print('"""\n\nfrom tapeout.numerics.functions import Function\n\n# fmt: off')
    print("TELLING: dict[Function, tuple[int, ...]] = {")
    silent = {}
    for function in Function:
        arguments, silent[function] = telling(function)
        print(f"    Function.{function.name}: (", flush=True)
        for at in range(0, len(arguments), 7):
            print("        " + ", ".join(f"0x{a:08X}" for a in arguments[at : at + 7]) + ",")
        print("    ),")
    print("}\nSILENT: dict[Function, int] = {")
    for function, count in silent.items():
        print(f"    Function.{function.name}: {count},")
    print("}")


if __name__ == "__main__":
    main()
