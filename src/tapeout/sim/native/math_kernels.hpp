// What one instruction-set level provides: a table of functions. Internal to math_*.cpp.
//
// Each level's file is compiled with its own flags, so these files share no inline function that a
// linker could merge: all their templates are over a backend type of an anonymous namespace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"
#include "math.hpp"

namespace tapeout::math {

struct Kernels {
  const char* name;

  // Panels pay for themselves from this many moving rows on, for straight and transposed tiles.
  int panel_rows;
  int panel_rows_transposed;
  void (*pack)(const std::uint16_t* const* rows, int K, int N, bool transposed, float* panels);
  void (*gemm)(const float* x, int M, int K, const float* panels, int N, float* acc,
               std::size_t acc_stride, bool accumulate);
  void (*gemv)(const float* x, int M, int K, TileRows rows, int N, bool transposed, float* acc,
               std::size_t acc_stride, bool accumulate);

  void (*apply[kFunctionCount])(const float* x, float* out, std::size_t n);
  void (*combine[6])(Operand a, Operand b, Operand c, float* out, std::size_t n);
  float (*fold[3])(const float* x, std::size_t n);

  void (*f32_to_bf16)(const float* x, std::uint16_t* out, std::size_t n);
  void (*bf16_to_f32)(const std::uint16_t* x, float* out, std::size_t n);
  void (*split_planes)(const float* x, std::uint16_t* high, std::uint16_t* low, std::size_t n);
  void (*merge_planes)(const std::uint16_t* high, const std::uint16_t* low, float* out,
                       std::size_t n);
  void (*decode_rows)(Format format, const std::uint8_t* source, std::size_t rows,
                      std::size_t lanes, std::uint16_t* dst, std::size_t dst_stride);
};

extern const Kernels kAvx512Kernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kPlainKernels;

// The level in use.
const Kernels& kernels();

}  // namespace tapeout::math
