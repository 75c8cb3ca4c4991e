// Arithmetic of a row of the array, for its model (rtl/row_model.py): what one multiply-add of bf16
// factors and an fp32 sum gives is tapeout.numerics.arith.fma. The host's flush modes must be off.
#include <bit>
#include <cstdint>

#include "svdpi.h"

namespace {

inline float flushed(std::uint32_t bits) {
  return std::bit_cast<float>((bits & 0x7F800000u) == 0 ? bits & 0x80000000u : bits);
}

// The product of two bf16 is exact in double; the sum is rounded to odd there, and once to float.
inline std::uint32_t fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const double p = static_cast<double>(flushed(a << 16)) * static_cast<double>(flushed(b << 16));
  const double z = flushed(c);
  const double s = p + z;
  const double back = s - p;
  const double e = (p - (s - back)) + (z - back);
  std::int64_t bits = std::bit_cast<std::int64_t>(s);
  if ((e > 0 || e < 0) && (bits & 1) == 0) bits += (e > 0) == (s > 0) ? 1 : -1;
  const double odd = std::bit_cast<double>(bits);
  constexpr double kLeastNotTiny = 0x1p-126 - 0x1p-151;
  if (odd < kLeastNotTiny && odd > -kLeastNotTiny) {
    return static_cast<std::uint32_t>(static_cast<std::uint64_t>(bits) >> 32) & 0x80000000u;
  }
  const std::uint32_t result = std::bit_cast<std::uint32_t>(static_cast<float>(odd));
  return (result & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC00000u : result;
}

}  // namespace

// result[n] = a[n] * b[n] + c[n] of so many columns, column 0 in the lowest bits.
extern "C" void row_fma(int columns, const svBitVecVal* a, const svBitVecVal* b,
                        const svBitVecVal* c, svBitVecVal* result) {
  const auto half = [](const svBitVecVal* words, int n) {
    return words[n / 2] >> (16 * (n % 2)) & 0xFFFFu;
  };
  for (int n = 0; n < columns; ++n) result[n] = fma(half(a, n), half(b, n), c[n]);
}
