// Clocks a module and its twin that is set apart (tests/rtl/test_rtl_apart.py).
#include <cstdint>
#include <stdexcept>
#include <string>

#include "Vpair.h"
#include "context.hpp"

namespace {
uint64_t edges = 0;
std::string wrong;
}  // namespace

extern "C" {
// At each edge of the clock that a module runs.
void ran() { ++edges; }

// The cycle in which the two first differ, -1: none, -2: the block stopped as `pair_wrong` says.
// Inputs change in one cycle of `period`.
int64_t pair_run(uint64_t cycles, uint64_t period, uint64_t* ran_edges) {
  edges = 0;
  Context context;
  Vpair top(&context);
  int64_t found = -1;
  try {
    for (uint64_t t = 0; t < cycles && found == -1; ++t) {
      top.rst = t == 0;
      if (t % period == 0) top.moves = 1;
      top.eval();
      if (top.differ) found = int64_t(t);
      top.clk = 1;
      top.eval();
      top.moves = 0;
      top.clk = 0;
      top.eval();
    }
  } catch (const std::logic_error& error) {
    wrong = error.what();
    found = -2;
  }
  Verilated::threadContextp(&context);
  top.final();
  *ran_edges = edges;
  return found;
}
const char* pair_wrong() { return wrong.c_str(); }
}
