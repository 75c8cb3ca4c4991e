// Runs operands through the vector unit's function pipeline, one set every `passes` cycles.
#include <cstdint>

#include "Vfunction.h"
#include "verilated.h"

// result[i] of function x[i]; what does not end is left as it is. Returns the number that ended.
extern "C" uint64_t sequence_run(uint32_t function, uint64_t interval, const uint32_t* x,
                                 uint32_t* result, uint64_t count, uint64_t limit) {
  VerilatedContext context;
  context.threads(1);  // no workers
  Vfunction top(&context);
  top.rst = 1;
  top.clk = 0;
  top.eval();
  top.clk = 1;
  top.eval();
  top.rst = 0;
  top.clk = 0;
  uint64_t ended = 0;
  for (uint64_t t = 0; t < limit && ended < count; ++t) {
    const uint64_t i = t / interval;
    top.enters = t % interval == 0 && i < count;
    top.x = top.enters ? x[i] : 0xDEADBEEF;
    top.kind = function;
    top.eval();
    if (top.comes) result[ended++] = top.result;
    top.clk = 1;
    top.eval();
    top.clk = 0;
  }
  return ended;
}
