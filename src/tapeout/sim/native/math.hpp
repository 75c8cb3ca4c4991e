// Bit-exact numerics of the ISA for the simulator: the same bits as tapeout.numerics, at CPU speed.
//
// Every function gives the same bits on AVX-512, AVX2 and plain code; the best level the host has
// is chosen once, and tests can ask for a lower one. bf16 values are uint16_t bit patterns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tapeout::math {

#include "functions_tables.inc"  // enum Function, enum Format, tables and functions

// ---- instruction-set level -------------------------------------------------------------------

// "avx512", "avx2" or "plain": the level in use.
std::string isa_level();
// The levels this host can run, best first.
std::vector<std::string> isa_levels();
// Use this level from now on. Throws std::invalid_argument where the host lacks it. Not
// thread-safe: call it before work starts.
void set_isa_level(const std::string& level);

// While alive: results and operands that are subnormal are zero, rounding is to nearest, on the
// calling thread. Every function below takes one for itself; a caller that makes many small calls
// holds one around them and the inner ones cost a register read. A no-op where the host is not x86.
class FtzGuard {
 public:
  FtzGuard();
  ~FtzGuard();
  FtzGuard(const FtzGuard&) = delete;
  FtzGuard& operator=(const FtzGuard&) = delete;

 private:
  unsigned saved_ = 0;
  bool changed_ = false;
};

// ---- matrix unit -----------------------------------------------------------------------------

inline constexpr int kMaxTile = 256;  // K and N of a stationary tile

// Where the rows of a tile lie: `first` and evenly on from it, or each behind a pointer of its own
// where `first` is null.
struct TileRows {
  const std::uint16_t* const* each = nullptr;
  const std::uint16_t* first = nullptr;
  std::ptrdiff_t step_bytes = 0;
};

// A stationary tile: K rows of N bf16 lanes each (straight), or N rows of K lanes each
// (transposed): w[k][n] = rows[k][n], or rows[n][k]. Pointers are copied, the rows are not: they
// must stay valid and unchanged until the next set() or release(). Panels of fp32 are made only
// when a matmul of so many rows comes that they pay.
class Stationary {
 public:
  Stationary() = default;
  ~Stationary();
  Stationary(Stationary&& other) noexcept;
  Stationary& operator=(Stationary&& other) noexcept;

  // Throws std::invalid_argument unless 1 <= K, N <= kMaxTile.
  void set(const std::uint16_t* const* rows, int K, int N, bool transposed);
  // The same for rows `step_bytes` apart, without a pointer for each.
  void set_spaced(const std::uint16_t* first, std::ptrdiff_t step_bytes, int K, int N,
                  bool transposed);
  // Forget the tile (its panels' memory is kept for the next one).
  void release() { K_ = N_ = 0; }

  int K() const { return K_; }
  int N() const { return N_; }
  bool is_transposed() const { return transposed_; }
  const std::uint16_t* const* rows();  // a pointer to each
  TileRows tile_rows() const { return {rows_, first_, step_bytes_}; }
  // Panels in the layout of the level in use, made on first use.
  const float* panels();
  bool has_panels() const { return packed_ != nullptr; }

 private:
  void shape(int K, int N, bool transposed);
  int count() const { return transposed_ ? N_ : K_; }

  const std::uint16_t* rows_[kMaxTile];
  const std::uint16_t* first_ = nullptr;  // of rows evenly spaced; null where rows_ has them
  std::ptrdiff_t step_bytes_ = 0;
  float* panels_ = nullptr;       // kMaxTile x (kMaxTile + padding) floats, 64-byte aligned
  const void* packed_ = nullptr;  // the level whose layout the panels have; null where not packed
  int K_ = 0;
  int N_ = 0;
  bool transposed_ = false;
};

// One pass: for m < M, n < N: s = -0.0; s = fma(moving[m][k], w[k][n], s) for k = 0..K-1; then
// acc[m][n] = s, or acc[m][n] + s where `accumulate`. NaN is stored canonical. `acc` points to
// float rows acc_stride floats apart; lanes from N on are untouched. Throws std::logic_error on a
// tile that is not set.
void matmul(Stationary& stationary, const std::uint16_t* const* moving_rows, int M, float* acc,
            std::size_t acc_stride, bool accumulate);

// ---- vector unit -----------------------------------------------------------------------------

// n lanes, or one lane for all of them.
struct Operand {
  const float* data;
  bool is_scalar = false;
};

enum class Op : int { fma = 0, add = 1, sub = 2, mul = 3, max = 4, min = 5 };
enum class Fold : int { sum = 0, sumsq = 1, max = 2 };

// out[i] = f(x[i]); out may be x.
void apply(Function f, const float* x, float* out, std::size_t n);
// out[i] = a[i] op b[i], or fma: a[i] * b[i] + c[i]; out may be any of them.
void combine(Op op, Operand a, Operand b, Operand c, float* out, std::size_t n);
// Halves folded onto each other, as tapeout.numerics.reduce. n <= kMaxLanes.
float fold(Fold kind, const float* x, std::size_t n);

inline constexpr std::size_t kMaxLanes = 1024;  // of a fold and of a decoded row

}  // namespace tapeout::math
