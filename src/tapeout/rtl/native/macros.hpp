// Access to the memory macros inside a verilated model.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "verilated.h"
#include "verilated_sym_props.h"

struct Macro {
  int memory;           // an index of tapeout.rtl.core.MEMORIES
  const char* scope;    // the instance
  size_t first, step;   // of the memory's bytes: where its first row begins, and to the next one
  size_t rows, row_bytes;
};

// Copies all rows of a memory's macros to `data`, or from there.
template <size_t N>
void copy_macros(const VerilatedContext& context, const Macro (&macros)[N], int memory,
                 uint8_t* data, bool write) {
  for (const Macro& macro : macros) {
    if (macro.memory != memory) continue;
    const VerilatedScope* const scope = context.scopeFind(macro.scope);
    if (scope == nullptr) throw std::logic_error(std::string("no macro ") + macro.scope);
    const VerilatedVar* const var = scope->varFind("rows");
    auto* const rows = static_cast<uint8_t*>(var->datap());
    const size_t stride = var->totalSize() / macro.rows;
    for (size_t k = 0; k < macro.rows; ++k) {
      uint8_t* const at = data + macro.first + k * macro.step;
      if (write)
        std::memcpy(rows + k * stride, at, macro.row_bytes);
      else
        std::memcpy(at, rows + k * stride, macro.row_bytes);
    }
  }
}
