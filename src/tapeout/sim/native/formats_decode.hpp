// Dequantisation of HBM tiles over a backend's lane type. Internal to math_*.cpp.
//
// Layouts are those of tapeout.numerics.formats. Rows of nibbles are read as bytes, one in each
// 32-bit lane: the low nibble is the even column, the high one the odd column, and the two bf16
// results share the lane they came from. Their scales are therefore kept even and odd apart.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math_lanes.hpp"

namespace tapeout::math {

template <class B>
struct Decode {
  using F = typename B::F;
  using I = typename B::I;
  using M = typename B::M;
  using L = Lanes<B>;
  static constexpr int W = B::W;
  static constexpr int kGroup = 32;
  static constexpr std::size_t kBuffer = kMaxLanes + 64;

  // The value of a code in the low bits of each lane, by format.
  template <Format f>
  static F element(I code) {
    if constexpr (f == Format::FP8_E4M3 || f == Format::MXFP8_E4M3) {
      return minifloat<4, 3>(code, 0x7F, 0x7F);
    } else if constexpr (f == Format::FP8_E5M2 || f == Format::MXFP8_E5M2) {
      return minifloat<5, 2>(code, 0x7C, 0x7D);
    } else if constexpr (f == Format::MXFP4) {
      return minifloat<2, 1>(code, 0xFF, 0xFF);
    } else if constexpr (f == Format::Q4_1) {
      return B::to_float(code);
    } else {
      return B::to_float(B::template sar<24>(B::template shl<24>(code)));  // int8
    }
  }

  // Codes whose magnitude is `inf` or more are Inf, `nan` or more are NaN (inf >= nan: no Inf).
  template <int E, int Mantissa>
  static F minifloat(I code, std::uint32_t inf, std::uint32_t nan) {
    constexpr std::uint32_t kBias = (1u << (E - 1)) - 1;
    constexpr std::uint32_t kMagnitude = (1u << (E + Mantissa)) - 1;
    const I magnitude = B::iand(code, B::const_i(kMagnitude));
    const I normal = B::iadd(B::template shl<23 - Mantissa>(magnitude),
                             B::const_i((127u - kBias) << 23));
    const F small = B::mul(B::to_float(magnitude),
                           B::const_f((127u + 1 - kBias - Mantissa) << 23));  // 2^(1-bias-M)
    F value = B::select(B::less(magnitude, B::const_i(1u << Mantissa)), small,
                        B::as_float(normal));
    if (inf <= kMagnitude) {
      value = B::select(B::less(magnitude, B::const_i(inf)), value, B::const_f(0x7F800000u));
      value = B::select(B::less(magnitude, B::const_i(nan)), value, B::const_f(0x7FC00000u));
    }
    const I sign = B::template shl<31 - E - Mantissa>(
        B::iand(code, B::const_i(1u << (E + Mantissa))));
    return B::as_float(B::ior(B::as_int(value), sign));
  }

  // Two fp32 factors a lane: (d, m) of q4_1, (d, -) of q8_0, and for MX two powers of two whose
  // product is 2^(e-127), so that neither is subnormal and only the second product can be tiny.
  struct Scales {
    alignas(64) float first[kBuffer];
    alignas(64) float second[kBuffer];
  };

  static float power_of_two(int exponent) {
    const std::uint32_t bits = static_cast<std::uint32_t>(exponent + 127) << 23;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }

  static void f16_row(const std::uint8_t* source, std::size_t lanes, float* out) {
    std::size_t i = 0;
    for (; i + W <= lanes; i += W) B::store(out + i, B::load_f16(source + 2 * i));
    if (i < lanes) {
      alignas(64) std::uint8_t rest[2 * 64] = {};
      __builtin_memcpy(rest, source + 2 * i, 2 * (lanes - i));
      B::store(out + i, B::load_f16(rest));
    }
  }

  template <Format f>
  static const std::uint8_t* read_scales(const std::uint8_t* source, std::size_t lanes,
                                         Scales& s) {
    if constexpr (f == Format::Q4_1 || f == Format::Q8_0) {
      f16_row(source, lanes, s.first);
      source += 2 * lanes;
      if constexpr (f == Format::Q4_1) {
        f16_row(source, lanes, s.second);
        source += 2 * lanes;
      }
      return source;
    } else {
      for (std::size_t l = 0; l < lanes; ++l) {
        const int exponent = static_cast<int>(source[l]) - 127;
        const int half = exponent >> 1;
        s.first[l] = power_of_two(half);
        s.second[l] = source[l] == 255 ? __builtin_nanf("") : power_of_two(exponent - half);
      }
      return source + lanes;
    }
  }

  // Even lanes to the first half of the buffer, odd lanes to the second.
  static void part(float* v, std::size_t lanes) {
    alignas(64) float odd[kBuffer / 2];
    for (std::size_t i = 0; i < lanes / 2; ++i) {
      odd[i] = v[2 * i + 1];
      v[i] = v[2 * i];
    }
    __builtin_memcpy(v + kBuffer / 2, odd, lanes / 2 * sizeof(float));
  }

  template <Format f>
  static F scaled(F value, F first, F second) {
    if constexpr (f == Format::Q4_1) return B::fma(first, value, second);
    if constexpr (f == Format::Q8_0) return B::mul(value, first);
    return B::mul(B::mul(value, first), second);
  }

  template <Format f>
  static void nibble_row(const std::uint8_t* codes, std::size_t lanes, const Scales& s,
                         std::uint16_t* dst) {
    const std::size_t bytes = lanes / 2;
    for (std::size_t i = 0; i < bytes; i += W) {
      const int n = bytes - i < W ? static_cast<int>(bytes - i) : W;
      const I byte = n == W ? B::load_u8(codes + i) : B::load_u8_n(codes + i, n);
      const float* first = s.first + i;
      const float* second = s.second + i;
      const F even = scaled<f>(element<f>(B::iand(byte, B::const_i(15))), B::load(first),
                               B::load(second));
      const F odd = scaled<f>(element<f>(B::template shr<4>(byte)),
                              B::load(first + kBuffer / 2), B::load(second + kBuffer / 2));
      const I both = B::ior(B::template shr<16>(L::round_bf16(even)), L::round_bf16(odd));
      if (n == W) {
        B::store_pairs(dst + 2 * i, both);
      } else {
        B::store_pairs_n(dst + 2 * i, both, 2 * n);
      }
    }
  }

  template <Format f, bool has_scales>
  static void byte_row(const std::uint8_t* codes, std::size_t lanes, const Scales* s,
                       std::uint16_t* dst) {
    for (std::size_t i = 0; i < lanes; i += W) {
      const int n = lanes - i < W ? static_cast<int>(lanes - i) : W;
      F value = element<f>(n == W ? B::load_u8(codes + i) : B::load_u8_n(codes + i, n));
      if constexpr (has_scales) {
        value = scaled<f>(value, B::load(s->first + i), B::load(s->second + i));
      }
      const I rounded = B::template shr<16>(L::round_bf16(value));
      if (n == W) {
        B::store_u16(dst + i, rounded);
      } else {
        B::store_u16_n(dst + i, rounded, n);
      }
    }
  }

  template <Format f>
  static void plain(const std::uint8_t* source, std::size_t rows, std::size_t lanes,
                    std::uint16_t* dst, std::size_t dst_stride) {
    for (std::size_t r = 0; r < rows; ++r, source += lanes, dst += dst_stride) {
      byte_row<f, false>(source, lanes, nullptr, dst);
    }
  }

  template <Format f>
  static void blocks(const std::uint8_t* source, std::size_t rows, std::size_t lanes,
                     std::uint16_t* dst, std::size_t dst_stride) {
    constexpr bool kNibbles = f == Format::Q4_1 || f == Format::MXFP4;
    const std::size_t row_bytes = kNibbles ? lanes / 2 : lanes;
    Scales s;
    for (std::size_t r = 0; r < rows; ++r, source += row_bytes, dst += dst_stride) {
      if (r % kGroup == 0) {
        source = read_scales<f>(source, lanes, s);
        if constexpr (kNibbles) {
          part(s.first, lanes);
          part(s.second, lanes);
        }
      }
      if constexpr (kNibbles) {
        nibble_row<f>(source, lanes, s, dst);
      } else {
        byte_row<f, true>(source, lanes, &s, dst);
      }
    }
  }

  static void decode_rows(Format format, const std::uint8_t* source, std::size_t rows,
                          std::size_t lanes, std::uint16_t* dst, std::size_t dst_stride) {
    switch (format) {
      case Format::BF16:
        for (std::size_t r = 0; r < rows; ++r) {
          __builtin_memcpy(dst + r * dst_stride, source + r * lanes * 2, lanes * 2);
        }
        return;
      case Format::FP8_E4M3: return plain<Format::FP8_E4M3>(source, rows, lanes, dst, dst_stride);
      case Format::FP8_E5M2: return plain<Format::FP8_E5M2>(source, rows, lanes, dst, dst_stride);
      case Format::INT8: return plain<Format::INT8>(source, rows, lanes, dst, dst_stride);
      case Format::Q8_0: return blocks<Format::Q8_0>(source, rows, lanes, dst, dst_stride);
      case Format::Q4_1: return blocks<Format::Q4_1>(source, rows, lanes, dst, dst_stride);
      case Format::MXFP8_E4M3:
        return blocks<Format::MXFP8_E4M3>(source, rows, lanes, dst, dst_stride);
      case Format::MXFP8_E5M2:
        return blocks<Format::MXFP8_E5M2>(source, rows, lanes, dst, dst_stride);
      case Format::MXFP4: return blocks<Format::MXFP4>(source, rows, lanes, dst, dst_stride);
      case Format::FP32:
      case Format::INT32: return;  // refused by the caller
    }
  }
};

}  // namespace tapeout::math
