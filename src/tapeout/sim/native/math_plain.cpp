// Plain C++ backend: one lane, for any host, with the arithmetic of scalar.hpp.
//
// The functions come through math.hpp, which holds: #include "functions_tables.inc"
#include "math_level.hpp"
#include "scalar.hpp"

namespace tapeout::math {
namespace {

struct Plain : Scalar {
  using F = float;
  using I = std::uint32_t;
  using M = bool;
  static constexpr int W = 1;
  static constexpr int kRows = 4;
  static constexpr int kPanel = 4;
  static constexpr int kPanelRows = 8;  // measured: below, strips from bf16 are faster

  static constexpr int chunks_for(int) { return 2; }

  static F mul(F a, F b) {
    return round(static_cast<double>(flush(a)) * static_cast<double>(flush(b)));
  }
  static F add(F a, F b) { return canonical(flush(flush(a) + flush(b))); }
  static F sub(F a, F b) { return canonical(flush(flush(a) - flush(b))); }
  static F to_float(I x) { return static_cast<float>(static_cast<std::int32_t>(x)); }
  static F set1(float x) { return x; }
  static F const_f(I bits) { return as_float(bits); }
  static I const_i(I bits) { return bits; }
  static I iadd(I a, I b) { return a + b; }
  static I isub(I a, I b) { return a - b; }
  static I iand(I a, I b) { return a & b; }
  static I ior(I a, I b) { return a | b; }
  static I ixor(I a, I b) { return a ^ b; }
  template <int count>
  static I shl(I x) { return x << count; }
  template <int count>
  static I shr(I x) { return x >> count; }
  template <int count>
  static I sar(I x) { return static_cast<I>(static_cast<std::int32_t>(x) >> count); }
  static M less(I a, I b) { return static_cast<std::int32_t>(a) < static_cast<std::int32_t>(b); }
  static M equal(I a, I b) { return a == b; }
  static F select(M m, F a, F b) { return m ? a : b; }
  static I iselect(M m, I a, I b) { return m ? a : b; }
  template <int length>
  static F table(const std::uint32_t* entries, I index) { return as_float(entries[index]); }
  static F nan_if_either(F a, F b, F x) {
    return a != a || b != b ? as_float(0x7FC00000u) : x;
  }

  static F load(const float* p) { return *p; }
  static F load_n(const float* p, int n) { return n > 0 ? *p : 0.0f; }
  static void store(float* p, F x) { *p = x; }
  static void store_n(float* p, F x, int n) { if (n > 0) *p = x; }
  static I load_u16(const std::uint16_t* p) { return *p; }
  static I load_u16_n(const std::uint16_t* p, int n) { return n > 0 ? *p : 0; }
  static void store_u16(std::uint16_t* p, I x) { *p = static_cast<std::uint16_t>(x); }
  static void store_u16_n(std::uint16_t* p, I x, int n) { if (n > 0) store_u16(p, x); }
  static I load_pairs(const std::uint16_t* p) { return p[0] | static_cast<I>(p[1]) << 16; }
  static I load_pairs_n(const std::uint16_t* p, int n) {
    return n > 1 ? load_pairs(p) : n > 0 ? p[0] : 0;
  }
  static void store_pairs(std::uint16_t* p, I x) {
    p[0] = static_cast<std::uint16_t>(x);
    p[1] = static_cast<std::uint16_t>(x >> 16);
  }
  static void store_pairs_n(std::uint16_t* p, I x, int n) { if (n > 1) store_pairs(p, x); }
  static I load_u8(const std::uint8_t* p) { return *p; }
  static I load_u8_n(const std::uint8_t* p, int n) { return n > 0 ? *p : 0; }
  static F load_f16(const std::uint8_t* p) {
    const I u = p[0] | static_cast<I>(p[1]) << 8;
    const I sign = (u & 0x8000u) << 16, exponent = (u >> 10) & 31, mantissa = u & 0x3FFu;
    if (exponent == 0) {
      return as_float(as_int(static_cast<float>(mantissa) * 0x1p-24f) | sign);
    }
    return as_float(sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) |
                    mantissa << 13);
  }
  static void prefetch(const std::uint16_t*) {}
  static float first_lane(F x) { return x; }
  static void weave(F even, F odd, F& first, F& second) {
    first = even;
    second = odd;
  }
  static void transpose(I (&)[1]) {}
};

}  // namespace

constinit const Kernels kPlainKernels = make_kernels<Plain>("plain");

}  // namespace tapeout::math
