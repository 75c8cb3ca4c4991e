// AVX-512 (F, BW, DQ, VL) backend: 16 lanes. Compiled with those flags; run only where the host has
// them. Empty on other hosts.
#include "math_kernels.hpp"

#if defined(TAPEOUT_X86)
// GCC 12 takes the undefined operands inside its own intrinsics for a mistake (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "math_level.hpp"

namespace tapeout::math {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  static constexpr int W = 16;
  static constexpr int kRows = 12;  // of outputs held in registers
  static constexpr int kPanel = 2;  // vectors of outputs held in registers
  static constexpr int kPanelRows = 48;  // measured: below, strips from bf16 are faster

  // Chunks of 32 columns a strip of M rows holds: two accumulators each, 28 registers at most.
  static constexpr int chunks_for(int m) { return m <= 3 ? 4 : 2; }

  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static __mmask32 first32(int n) {
    return static_cast<__mmask32>((std::uint64_t{1} << n) - 1u);
  }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static I load_u16(const std::uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I load_u16_n(const std::uint16_t* p, int n) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static void store_u16(std::uint16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }
  static void store_u16_n(std::uint16_t* p, I x, int n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(x));
  }
  static I load_pairs(const std::uint16_t* p) { return _mm512_loadu_si512(p); }
  static I load_pairs_n(const std::uint16_t* p, int n) {
    return _mm512_maskz_loadu_epi16(first32(n), p);
  }
  static void store_pairs(std::uint16_t* p, I x) { _mm512_storeu_si512(p, x); }
  static void store_pairs_n(std::uint16_t* p, I x, int n) {
    _mm512_mask_storeu_epi16(p, first32(n), x);
  }
  static I load_u8(const std::uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I load_u8_n(const std::uint8_t* p, int n) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p));
  }
  static F load_f16(const std::uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void prefetch(const std::uint16_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + kPrefetchBytes, _MM_HINT_T0);
  }
  static constexpr int kPrefetchBytes = 4096;

  static F set1(float x) { return _mm512_set1_ps(x); }
  static F const_f(std::uint32_t bits) { return as_float(const_i(bits)); }
  static I const_i(std::uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static I as_int(F x) { return _mm512_castps_si512(x); }
  static F as_float(I x) { return _mm512_castsi512_ps(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I iand(I a, I b) { return _mm512_and_si512(a, b); }
  static I ior(I a, I b) { return _mm512_or_si512(a, b); }
  static I ixor(I a, I b) { return _mm512_xor_si512(a, b); }
  template <int count>
  static I shl(I x) { return _mm512_slli_epi32(x, count); }
  template <int count>
  static I shr(I x) { return _mm512_srli_epi32(x, count); }
  template <int count>
  static I sar(I x) { return _mm512_srai_epi32(x, count); }
  static M less(I a, I b) { return _mm512_cmplt_epi32_mask(a, b); }
  static M equal(I a, I b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
  static I iselect(M m, I a, I b) { return _mm512_mask_blend_epi32(m, b, a); }

  // The index is always below the length, so the lanes of one or two registers hold the table.
  template <int length>
  static F table(const std::uint32_t* entries, I index) {
    static_assert(length == 16 || length == 32);
    const F low = as_float(_mm512_load_si512(entries));
    if constexpr (length == 16) return _mm512_permutexvar_ps(index, low);
    return _mm512_permutex2var_ps(low, index, as_float(_mm512_load_si512(entries + length - 16)));
  }

  static F canonical(F x) {
    const M is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_blend_ps(is_nan, x, const_f(0x7FC00000u));
  }
  static F nan_if_either(F a, F b, F x) {
    const M is_nan = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
    return _mm512_mask_blend_ps(is_nan, x, const_f(0x7FC00000u));
  }

  static float first_lane(F x) { return _mm512_cvtss_f32(x); }
  // Lane l of the result is lane l ^ distance.
  template <int distance>
  static F swap(F x) {
    if constexpr (distance == 8) return _mm512_shuffle_f32x4(x, x, 0x4E);
    if constexpr (distance == 4) return _mm512_shuffle_f32x4(x, x, 0xB1);
    if constexpr (distance == 2) return _mm512_permute_ps(x, 0x4E);
    if constexpr (distance == 1) return _mm512_permute_ps(x, 0xB1);
  }

  // first, second = even[0], odd[0], even[1], ...
  static void weave(F even, F odd, F& first, F& second) {
    const I low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    first = _mm512_permutex2var_ps(even, low, odd);
    second = _mm512_permutex2var_ps(even, _mm512_add_epi32(low, const_i(8)), odd);
  }

  static void transpose(I (&r)[16]) {
    I t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
      t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
      r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
      r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
      r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
  }
};

}  // namespace

constinit const Kernels kAvx512Kernels = make_kernels<Avx512>("avx512");

}  // namespace tapeout::math
#endif
