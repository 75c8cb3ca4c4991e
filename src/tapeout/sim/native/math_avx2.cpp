// AVX2 + FMA + F16C backend: 8 lanes. Compiled with those flags; run only where the host has them.
// Empty on other hosts.
#include "math_kernels.hpp"

#if defined(TAPEOUT_X86)
#include <immintrin.h>

#include "math_level.hpp"

namespace tapeout::math {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  using M = __m256i;  // all ones or all zeros in each lane
  static constexpr int W = 8;
  static constexpr int kRows = 6;
  static constexpr int kPanel = 2;
  static constexpr int kPanelRows = 16;  // measured: below, strips from bf16 are faster

  // Chunks of 16 columns a strip of M rows holds: two accumulators each, 14 registers at most.
  static constexpr int chunks_for(int m) { return m == 1 ? 4 : m <= 3 ? 2 : 1; }

  static I first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_n(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_n(float* p, F x, int n) { _mm256_maskstore_ps(p, first(n), x); }
  static I load_u16(const std::uint16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I load_u16_n(const std::uint16_t* p, int n) {
    alignas(16) std::uint16_t buffer[8] = {};
    __builtin_memcpy(buffer, p, 2 * static_cast<unsigned>(n));
    return load_u16(buffer);
  }
  static __m128i low_halves(I x) {
    const I halves = _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF));
    const I packed = _mm256_packus_epi32(halves, halves);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
  static void store_u16(std::uint16_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low_halves(x));
  }
  static void store_u16_n(std::uint16_t* p, I x, int n) {
    alignas(16) std::uint16_t buffer[8];
    store_u16(buffer, x);
    __builtin_memcpy(p, buffer, 2 * static_cast<unsigned>(n));
  }
  static I load_pairs(const std::uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static I load_pairs_n(const std::uint16_t* p, int n) {
    alignas(32) std::uint16_t buffer[16] = {};
    if (n > 0) __builtin_memcpy(buffer, p, 2 * static_cast<unsigned>(n < 16 ? n : 16));
    return load_pairs(buffer);
  }
  static void store_pairs(std::uint16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  static void store_pairs_n(std::uint16_t* p, I x, int n) {
    alignas(32) std::uint16_t buffer[16];
    store_pairs(buffer, x);
    __builtin_memcpy(p, buffer, 2 * static_cast<unsigned>(n));
  }
  static I load_u8(const std::uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static I load_u8_n(const std::uint8_t* p, int n) {
    alignas(8) std::uint8_t buffer[8] = {};
    __builtin_memcpy(buffer, p, static_cast<unsigned>(n));
    return load_u8(buffer);
  }
  static F load_f16(const std::uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void prefetch(const std::uint16_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + 4096, _MM_HINT_T0);
  }

  static F set1(float x) { return _mm256_set1_ps(x); }
  static F const_f(std::uint32_t bits) { return as_float(const_i(bits)); }
  static I const_i(std::uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static I as_int(F x) { return _mm256_castps_si256(x); }
  static F as_float(I x) { return _mm256_castsi256_ps(x); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I iand(I a, I b) { return _mm256_and_si256(a, b); }
  static I ior(I a, I b) { return _mm256_or_si256(a, b); }
  static I ixor(I a, I b) { return _mm256_xor_si256(a, b); }
  template <int count>
  static I shl(I x) { return _mm256_slli_epi32(x, count); }
  template <int count>
  static I shr(I x) { return _mm256_srli_epi32(x, count); }
  template <int count>
  static I sar(I x) { return _mm256_srai_epi32(x, count); }
  static M less(I a, I b) { return _mm256_cmpgt_epi32(b, a); }
  static M equal(I a, I b) { return _mm256_cmpeq_epi32(a, b); }
  static F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, as_float(m)); }
  static I iselect(M m, I a, I b) { return _mm256_blendv_epi8(b, a, m); }

  // Eight entries a register, the right one chosen by the index's upper bits: faster than gathers.
  template <int length>
  static F table(const std::uint32_t* entries, I index) {
    static_assert(length == 16 || length == 32);
    const F bit3 = as_float(_mm256_slli_epi32(index, 28));
    const F low = _mm256_blendv_ps(eight(entries, index), eight(entries + 8, index), bit3);
    if constexpr (length == 16) return low;
    const std::uint32_t* upper = entries + length - 16;
    const F high = _mm256_blendv_ps(eight(upper, index), eight(upper + 8, index), bit3);
    return _mm256_blendv_ps(low, high, as_float(_mm256_slli_epi32(index, 27)));
  }
  static F eight(const std::uint32_t* entries, I index) {
    const I values = _mm256_load_si256(reinterpret_cast<const __m256i*>(entries));
    return as_float(_mm256_permutevar8x32_epi32(values, index));
  }

  static F canonical(F x) { return nan_if_either(x, x, x); }
  static F nan_if_either(F a, F b, F x) {
    return _mm256_blendv_ps(x, const_f(0x7FC00000u), _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
  }

  static float first_lane(F x) { return _mm256_cvtss_f32(x); }
  // Lane l of the result is lane l ^ distance.
  template <int distance>
  static F swap(F x) {
    if constexpr (distance == 4) return _mm256_permute2f128_ps(x, x, 0x01);
    if constexpr (distance == 2) return _mm256_permute_ps(x, 0x4E);
    if constexpr (distance == 1) return _mm256_permute_ps(x, 0xB1);
  }

  // first, second = even[0], odd[0], even[1], ...
  static void weave(F even, F odd, F& first, F& second) {
    const F low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    first = _mm256_permute2f128_ps(low, high, 0x20);
    second = _mm256_permute2f128_ps(low, high, 0x31);
  }

  static void transpose(I (&r)[8]) {
    I t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }
};

}  // namespace

constinit const Kernels kAvx2Kernels = make_kernels<Avx2>("avx2");

}  // namespace tapeout::math
#endif
