// Floating point of the chip, one value at a time, as tapeout.numerics.arith does it. It neither
// needs nor heeds the host's flush modes: operands are flushed, sums are rounded to odd in double,
// then once to float, and tininess is found after rounding.
#pragma once

#include <bit>
#include <cstdint>

namespace tapeout::math {

struct Scalar {
  static std::uint32_t as_int(float x) { return std::bit_cast<std::uint32_t>(x); }
  static float as_float(std::uint32_t x) { return std::bit_cast<float>(x); }

  static float flush(float x) {
    const std::uint32_t u = as_int(x);
    return (u & 0x7F800000u) == 0 ? as_float(u & 0x80000000u) : x;
  }
  static float canonical(float x) {
    return (as_int(x) & 0x7FFFFFFFu) > 0x7F800000u ? as_float(0x7FC00000u) : x;
  }
  static float round(double s) {
    constexpr double kLeastNotTiny = 0x1p-126 - 0x1p-151;
    if (s < kLeastNotTiny && s > -kLeastNotTiny) {
      return (std::bit_cast<std::uint64_t>(s) >> 63) != 0 ? as_float(0x80000000u) : 0.0f;
    }
    return canonical(static_cast<float>(s));
  }

  static float fma(float a, float b, float c) {
    const double p = static_cast<double>(flush(a)) * static_cast<double>(flush(b));
    const double z = flush(c);
    const double s = p + z;
    const double back = s - p;
    const double e = (p - (s - back)) + (z - back);
    std::int64_t bits = std::bit_cast<std::int64_t>(s);
    if ((e > 0 || e < 0) && (bits & 1) == 0) bits += (e > 0) == (s > 0) ? 1 : -1;
    return round(std::bit_cast<double>(bits));
  }
};

}  // namespace tapeout::math
