// The kernel table of one backend. Internal to math_*.cpp.
#pragma once

#include "formats_decode.hpp"
#include "math_gemm.hpp"
#include "math_lanes.hpp"

namespace tapeout::math {

template <class B>
constexpr Kernels make_kernels(const char* name) {
  using L = Lanes<B>;
  using G = Gemm<B>;
#define TAPEOUT_APPLY(NAME, function) &L::template apply<fn_##function<B>>,
  return Kernels{
      .name = name,
      .panel_rows = B::kPanelRows,
      .panel_rows_transposed = 8,
      .pack = &G::pack,
      .gemm = &G::gemm,
      .gemv = &G::gemv,
      .apply = {TAPEOUT_FUNCTIONS(TAPEOUT_APPLY)},
      .combine = {&L::template combine<Op::fma>, &L::template combine<Op::add>,
                  &L::template combine<Op::sub>, &L::template combine<Op::mul>,
                  &L::template combine<Op::max>, &L::template combine<Op::min>},
      .fold = {&L::template fold<Fold::sum>, &L::template fold<Fold::sumsq>,
               &L::template fold<Fold::max>},
      .f32_to_bf16 = &L::f32_to_bf16,
      .bf16_to_f32 = &L::bf16_to_f32,
      .split_planes = &L::split_planes,
      .merge_planes = &L::merge_planes,
      .decode_rows = &Decode<B>::decode_rows,
  };
#undef TAPEOUT_APPLY
}

}  // namespace tapeout::math
