// Runs operands through a verilated fused multiply-add, one set a cycle. Port types are those of the
// element it is compiled with: factors of 16 or 32 bits.
#include <cstdint>

#include "Vfma.h"
#include "verilated.h"

// result[i] of a[i], b[i], c[i]; `latency_cycles` from a and b to the result, c comes one cycle later.
extern "C" void vectors_run(const uint32_t* a, const uint32_t* b, const uint32_t* c,
                            uint32_t* result, uint64_t count, uint64_t latency_cycles) {
  VerilatedContext context;
  context.threads(1);  // no workers
  Vfma top(&context);
  for (uint64_t t = 0; t < count + latency_cycles; ++t) {
    top.a = t < count ? a[t] : 0;
    top.b = t < count ? b[t] : 0;
    top.c = t > 0 && t - 1 < count ? c[t - 1] : 0;
    top.eval();
    if (t >= latency_cycles) result[t - latency_cycles] = top.result;
    top.clk = 1;
    top.eval();
    top.clk = 0;
  }
}
