// Chooses the instruction-set level and forwards the public functions to its kernels.
#include <bit>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <utility>

#include "formats.hpp"
#include "math_kernels.hpp"

#if defined(TAPEOUT_X86)
#include <xmmintrin.h>
#endif

namespace tapeout::math {
namespace {

static_assert(std::endian::native == std::endian::little, "tiles are little-endian");

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> levels;
#if defined(TAPEOUT_X86)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) levels.push_back(&kAvx512Kernels);
  if (has_avx2) levels.push_back(&kAvx2Kernels);
#endif
  levels.push_back(&kPlainKernels);
  return levels;
}

const Kernels*& current() {
  static const Kernels* level = supported().front();
  return level;
}

void* aligned(std::size_t bytes) {
  void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

// Moving rows widened to fp32: rows of a chunk by K, one buffer a thread.
constexpr int kChunkRows = 120;

float* scratch() {
  struct Buffer {
    float* data = static_cast<float*>(aligned(kChunkRows * kMaxTile * sizeof(float)));
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffer;
  return buffer.data;
}

}  // namespace

const Kernels& kernels() { return *current(); }

std::string isa_level() { return current()->name; }

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (const Kernels* level : supported()) names.emplace_back(level->name);
  return names;
}

void set_isa_level(const std::string& name) {
  std::string known;
  for (const Kernels* level : supported()) {
    if (name == level->name) {
      current() = level;
      return;
    }
    known += known.empty() ? level->name : std::string(", ") + level->name;
  }
  throw std::invalid_argument("isa level must be one this host runs (" + known + "), not '" + name +
                              "'");
}

#if defined(TAPEOUT_X86)
namespace {
constexpr unsigned kFlushMode = 0x9FC0;  // FTZ, DAZ, round to nearest, all exceptions masked
constexpr unsigned kStickyFlags = 0x3F;
}  // namespace

FtzGuard::FtzGuard() : saved_(_mm_getcsr()) {
  changed_ = (saved_ & ~kStickyFlags) != kFlushMode;
  if (changed_) _mm_setcsr(kFlushMode);
}
FtzGuard::~FtzGuard() {
  if (changed_) _mm_setcsr(saved_);
}
#else
FtzGuard::FtzGuard() = default;
FtzGuard::~FtzGuard() = default;
#endif

Stationary::~Stationary() { std::free(panels_); }

Stationary::Stationary(Stationary&& other) noexcept { *this = std::move(other); }

Stationary& Stationary::operator=(Stationary&& other) noexcept {
  if (this == &other) return *this;
  for (int i = 0; i < kMaxTile; ++i) rows_[i] = other.rows_[i];
  first_ = other.first_;
  step_bytes_ = other.step_bytes_;
  std::swap(panels_, other.panels_);
  packed_ = std::exchange(other.packed_, nullptr);
  K_ = std::exchange(other.K_, 0);
  N_ = std::exchange(other.N_, 0);
  transposed_ = other.transposed_;
  return *this;
}

void Stationary::shape(int K, int N, bool transposed) {
  if (K < 1 || K > kMaxTile || N < 1 || N > kMaxTile) {
    throw std::invalid_argument("a stationary tile has 1 to " + std::to_string(kMaxTile) +
                                " rows and lanes, not K = " + std::to_string(K) +
                                ", N = " + std::to_string(N));
  }
  K_ = K;
  N_ = N;
  transposed_ = transposed;
  packed_ = nullptr;
}

void Stationary::set(const std::uint16_t* const* rows, int K, int N, bool transposed) {
  shape(K, N, transposed);
  first_ = nullptr;
  for (int i = 0; i < count(); ++i) rows_[i] = rows[i];
}

void Stationary::set_spaced(const std::uint16_t* first, std::ptrdiff_t step_bytes, int K, int N,
                            bool transposed) {
  shape(K, N, transposed);
  first_ = first;
  step_bytes_ = step_bytes;
}

const std::uint16_t* const* Stationary::rows() {
  if (first_ != nullptr) {
    const auto* at = reinterpret_cast<const std::uint8_t*>(first_);
    for (int i = 0; i < count(); ++i, at += step_bytes_)
      rows_[i] = reinterpret_cast<const std::uint16_t*>(at);
    first_ = nullptr;
  }
  return rows_;
}

const float* Stationary::panels() {
  const Kernels& level = kernels();
  if (packed_ == &level) return panels_;
  if (panels_ == nullptr) {
    constexpr std::size_t kPadding = 64;  // lanes the last panel may round up to
    panels_ = static_cast<float*>(aligned(kMaxTile * (kMaxTile + kPadding) * sizeof(float)));
  }
  level.pack(rows(), K_, N_, transposed_, panels_);
  packed_ = &level;
  return panels_;
}

void matmul(Stationary& stationary, const std::uint16_t* const* moving_rows, int M, float* acc,
            std::size_t acc_stride, bool accumulate) {
  const int K = stationary.K(), N = stationary.N();
  if (K == 0) throw std::logic_error("matmul before a stationary tile was set: call set() first");
  const FtzGuard guard;
  const Kernels& level = kernels();
  const bool use_panels =
      M >= (stationary.is_transposed() ? level.panel_rows_transposed : level.panel_rows) ||
      stationary.has_panels();
  float* x = scratch();
  for (int m0 = 0; m0 < M; m0 += kChunkRows) {
    const int rows = M - m0 < kChunkRows ? M - m0 : kChunkRows;
    for (int m = 0; m < rows; ++m) level.bf16_to_f32(moving_rows[m0 + m], x + m * K, K);
    float* out = acc + m0 * acc_stride;
    if (use_panels) {
      level.gemm(x, rows, K, stationary.panels(), N, out, acc_stride, accumulate);
    } else {
      level.gemv(x, rows, K, stationary.tile_rows(), N, stationary.is_transposed(), out, acc_stride,
                 accumulate);
    }
  }
}

void apply(Function f, const float* x, float* out, std::size_t n) {
  const FtzGuard guard;
  kernels().apply[static_cast<int>(f)](x, out, n);
}

void combine(Op op, Operand a, Operand b, Operand c, float* out, std::size_t n) {
  if (n == 0) return;
  const FtzGuard guard;
  kernels().combine[static_cast<int>(op)](a, b, c, out, n);
}

float fold(Fold kind, const float* x, std::size_t n) {
  if (n > kMaxLanes) {
    throw std::invalid_argument("a fold takes at most " + std::to_string(kMaxLanes) +
                                " lanes, not " + std::to_string(n));
  }
  const FtzGuard guard;
  return kernels().fold[static_cast<int>(kind)](x, n);
}

void f32_to_bf16(const float* x, std::uint16_t* out, std::size_t n) {
  const FtzGuard guard;
  kernels().f32_to_bf16(x, out, n);
}

void bf16_to_f32(const std::uint16_t* x, float* out, std::size_t n) {
  kernels().bf16_to_f32(x, out, n);
}

void split_planes(const float* x, std::uint16_t* high, std::uint16_t* low, std::size_t n) {
  kernels().split_planes(x, high, low, n);
}

void merge_planes(const std::uint16_t* high, const std::uint16_t* low, float* out, std::size_t n) {
  kernels().merge_planes(high, low, out, n);
}

}  // namespace tapeout::math
