// Clocks a pair of rows (tests/rtl/test_rtl_array.py) that make their own stimulus.
#include <cstdint>

#include "Vpair.h"
#include "verilated.h"

// The cycle in which the two first differ, or -1.
extern "C" int64_t pair_run(uint64_t cycles, uint32_t seed) {
  VerilatedContext context;
  context.threads(1);
  context.randSeed(static_cast<int>(seed));
  Vpair top(&context);
  for (uint64_t t = 0; t < cycles; ++t) {
    top.rst = t < 4;
    top.clk = 0;
    top.eval();
    if (t > 16 && top.differ) return static_cast<int64_t>(t);
    top.clk = 1;
    top.eval();
  }
  return -1;
}
