// Vector-unit kernels over a backend's lane type. Internal to math_*.cpp.
//
// A backend B has W lanes of types F (fp32), I (32-bit integer) and M (truth), one static function
// for each micro-operation of functions_tables.inc, and loads and stores, whole and of n < W lanes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math_kernels.hpp"

namespace tapeout::math {

template <class B>
struct Lanes {
  using F = typename B::F;
  using I = typename B::I;
  using M = typename B::M;

  static F flush(F x) {
    const I u = B::as_int(x);
    const M is_zero = B::equal(B::iand(u, B::const_i(0x7F800000u)), B::const_i(0));
    return B::as_float(B::iselect(is_zero, B::iand(u, B::const_i(0x80000000u)), u));
  }

  // Integers in the order of the floats, -0 below +0.
  static I order_key(F x) {
    const I u = B::as_int(x);
    return B::ixor(u, B::iand(B::template sar<31>(u), B::const_i(0x7FFFFFFFu)));
  }

  static F max(F a, F b) {
    const F x = flush(a), y = flush(b);
    const F picked = B::select(B::less(order_key(x), order_key(y)), y, x);
    return B::nan_if_either(x, y, picked);
  }

  static F min(F a, F b) {
    const F x = flush(a), y = flush(b);
    const F picked = B::select(B::less(order_key(x), order_key(y)), x, y);
    return B::nan_if_either(x, y, picked);
  }

  // bf16 in the high half of each 32-bit lane, zeros below.
  static I round_bf16(F x) {
    const I u = B::as_int(B::canonical(x));
    const I odd = B::iand(B::template shr<16>(u), B::const_i(1));
    const I sum = B::iadd(u, B::iadd(odd, B::const_i(0x7FFFu)));
    const M is_zero = B::equal(B::iand(u, B::const_i(0x7F800000u)), B::const_i(0));
    const I kept = B::iselect(is_zero, B::iand(u, B::const_i(0x80000000u)), sum);
    return B::iand(kept, B::const_i(0xFFFF0000u));
  }

  template <Op op>
  static F combine_one(F a, F b, F c) {
    if constexpr (op == Op::fma) return B::canonical(B::fma(a, b, c));
    if constexpr (op == Op::add) return B::canonical(B::add(a, b));
    if constexpr (op == Op::sub) return B::canonical(B::sub(a, b));
    if constexpr (op == Op::mul) return B::canonical(B::mul(a, b));
    if constexpr (op == Op::max) return max(a, b);
    if constexpr (op == Op::min) return min(a, b);
  }

  template <Op op>
  static void combine(Operand a, Operand b, Operand c, float* out, std::size_t n) {
    const F a1 = B::set1(a.data[0]), b1 = B::set1(b.data[0]), c1 = B::set1(c.data[0]);
    std::size_t i = 0;
    for (; i + B::W <= n; i += B::W) {
      const F x = a.is_scalar ? a1 : B::load(a.data + i);
      const F y = b.is_scalar ? b1 : B::load(b.data + i);
      const F z = c.is_scalar ? c1 : B::load(c.data + i);
      B::store(out + i, combine_one<op>(x, y, z));
    }
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      const F x = a.is_scalar ? a1 : B::load_n(a.data + i, rest);
      const F y = b.is_scalar ? b1 : B::load_n(b.data + i, rest);
      const F z = c.is_scalar ? c1 : B::load_n(c.data + i, rest);
      B::store_n(out + i, combine_one<op>(x, y, z), rest);
    }
  }

  template <F (*function)(F)>
  static void apply(const float* x, float* out, std::size_t n) {
    std::size_t i = 0;
    for (; i + B::W <= n; i += B::W) B::store(out + i, function(B::load(x + i)));
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      B::store_n(out + i, function(B::load_n(x + i, rest)), rest);
    }
  }

  // x is padded to a power of two in a buffer and halved onto itself; the last W lanes stay in a
  // register.
  template <Fold kind>
  static float fold(const float* x, std::size_t n) {
    constexpr std::uint32_t kPadding = kind == Fold::max ? 0xFF800000u : 0x80000000u;
    alignas(64) float v[kMaxLanes + 64];
    std::size_t lanes = 1;
    while (lanes < n) lanes *= 2;
    const F padding = B::const_f(kPadding);
    for (std::size_t i = 0; i < lanes || i < 2 * B::W; i += B::W) B::store(v + i, padding);
    std::size_t i = 0;
    for (; i + B::W <= n; i += B::W) B::store(v + i, prepare<kind>(B::load(x + i)));
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      B::store_n(v + i, prepare<kind>(B::load_n(x + i, rest)), rest);
    }
    std::size_t half = lanes / 2;
    for (; half >= B::W && half > 0; half /= 2) {
      for (std::size_t l = 0; l < half; l += B::W) {
        B::store(v + l, fold_one<kind>(B::load(v + l), B::load(v + l + half)));
      }
    }
    return B::first_lane(fold_within<kind, B::W / 2>(B::load(v), half));
  }

  // Halves a vector onto itself, from the first of `half`, `half` / 2, ... that is at most `from`.
  template <Fold kind, int half>
  static F fold_within(F x, std::size_t from) {
    if constexpr (half > 0) {
      if (static_cast<std::size_t>(half) <= from) {
        x = fold_one<kind>(x, B::template swap<half>(x));
      }
      return fold_within<kind, half / 2>(x, from);
    }
    return x;
  }

  template <Fold kind>
  static F prepare(F x) {
    if constexpr (kind == Fold::sumsq) return B::canonical(B::mul(x, x));
    return B::canonical(flush(x));
  }

  template <Fold kind>
  static F fold_one(F a, F b) {
    if constexpr (kind == Fold::max) return max(a, b);
    return B::canonical(B::add(a, b));
  }

  static void f32_to_bf16(const float* x, std::uint16_t* out, std::size_t n) {
    std::size_t i = 0;
    for (; i + B::W <= n; i += B::W) {
      B::store_u16(out + i, B::template shr<16>(round_bf16(B::load(x + i))));
    }
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      B::store_u16_n(out + i, B::template shr<16>(round_bf16(B::load_n(x + i, rest))), rest);
    }
  }

  static void bf16_to_f32(const std::uint16_t* x, float* out, std::size_t n) {
    std::size_t i = 0;
    for (; i + B::W <= n; i += B::W) {
      B::store(out + i, B::as_float(B::template shl<16>(B::load_u16(x + i))));
    }
    for (; i < n; ++i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(x[i]) << 16;
      __builtin_memcpy(out + i, &bits, 4);
    }
  }

  static void split_planes(const float* x, std::uint16_t* high, std::uint16_t* low,
                           std::size_t n) {
    std::size_t i = 0;
    for (; i + B::W <= n; i += B::W) {
      const I u = B::as_int(B::load(x + i));
      B::store_u16(high + i, B::template shr<16>(u));
      B::store_u16(low + i, B::iand(u, B::const_i(0xFFFFu)));
    }
    for (; i < n; ++i) {
      std::uint32_t u;
      __builtin_memcpy(&u, x + i, 4);
      high[i] = static_cast<std::uint16_t>(u >> 16);
      low[i] = static_cast<std::uint16_t>(u);
    }
  }

  static void merge_planes(const std::uint16_t* high, const std::uint16_t* low, float* out,
                           std::size_t n) {
    std::size_t i = 0;
    for (; i + B::W <= n; i += B::W) {
      const I top = B::template shl<16>(B::load_u16(high + i));
      B::store(out + i, B::as_float(B::ior(top, B::load_u16(low + i))));
    }
    for (; i < n; ++i) {
      const std::uint32_t u = static_cast<std::uint32_t>(high[i]) << 16 | low[i];
      __builtin_memcpy(out + i, &u, 4);
    }
  }
};

}  // namespace tapeout::math
