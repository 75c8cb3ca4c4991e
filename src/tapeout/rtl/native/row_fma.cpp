// Arithmetic of a row of the array, for its model (rtl/row_model.py).
#include "scalar.hpp"
#include "svdpi.h"

using tapeout::math::Scalar;

// result[n] = a[n] * b[n] + c[n] of so many columns, column 0 in the lowest bits: factors are bf16,
// sums fp32.
extern "C" void row_fma(int columns, const svBitVecVal* a, const svBitVecVal* b,
                        const svBitVecVal* c, svBitVecVal* result) {
  const auto factor = [](const svBitVecVal* words, int n) {
    return Scalar::as_float(words[n / 2] >> (16 * (n % 2)) << 16);
  };
  for (int n = 0; n < columns; ++n) {
    result[n] = Scalar::as_int(Scalar::fma(factor(a, n), factor(b, n), Scalar::as_float(c[n])));
  }
}
