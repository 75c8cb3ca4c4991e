// Matrix-unit kernels over a backend's lane type. Internal to math_*.cpp.
//
// Panels: the N columns are cut into panels of B::kPanel vectors (the last may have fewer); a panel
// holds, for each k, its columns as fp32, zero beyond N. Sums run in increasing k from -0.0, one
// fused multiply-add each, so registers hold a block of outputs for the whole of K.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math_kernels.hpp"

namespace tapeout::math {

template <class B>
struct Gemm {
  using F = typename B::F;
  using I = typename B::I;
  static constexpr int W = B::W;
  static constexpr int kPanelLanes = B::kPanel * B::W;

  static int vectors_of(int lanes) { return (lanes + W - 1) / W; }

  // ---- packing -------------------------------------------------------------------------------

  // bf16 lanes as fp32; lanes from n on are zero.
  static F widen(const std::uint16_t* row, int n) {
    const I u = n >= W ? B::load_u16(row) : B::load_u16_n(row, n);
    return B::as_float(B::template shl<16>(u));
  }

  static void pack(const std::uint16_t* const* rows, int K, int N, bool transposed,
                   float* panels) {
    for (int n0 = 0; n0 < N; n0 += kPanelLanes) {
      const int lanes = N - n0 < kPanelLanes ? N - n0 : kPanelLanes;
      const int width = vectors_of(lanes) * W;
      float* panel = panels + static_cast<std::size_t>(n0) * K;
      for (int v = 0; v < lanes; v += W) {
        const int n = lanes - v < W ? lanes - v : W;
        if (transposed) {
          for_transposed(rows + n0 + v, K, n, [&](int k, F column) __attribute__((always_inline)) {
            B::store(panel + static_cast<std::size_t>(k) * width + v, column);
          });
        } else {
          for (int k = 0; k < K; ++k) {
            B::store(panel + static_cast<std::size_t>(k) * width + v, widen(rows[k] + n0 + v, n));
          }
        }
      }
    }
  }

  // Calls use(k, column) for k = 0..K-1, column[l] = rows[l][k] for l < n <= W, else zero: blocks
  // of 2W values a row are read as W pairs and transposed as 32-bit elements.
  template <class Rows, class Use>
  [[gnu::always_inline]] static inline void for_transposed(Rows rows, int K, int n,
                                                           const Use& use) {
    int k0 = 0;
    if (n == W) {
      for (; k0 + 2 * W <= K; k0 += 2 * W) {
        I block[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) block[l] = B::load_pairs(rows[l] + k0);
        B::transpose(block);
#pragma GCC unroll 16
        for (int pair = 0; pair < W; ++pair) {
          use(k0 + 2 * pair, B::as_float(B::template shl<16>(block[pair])));
          use(k0 + 2 * pair + 1, B::as_float(B::iand(block[pair], B::const_i(0xFFFF0000u))));
        }
      }
    }
    for (; k0 < K; k0 += 2 * W) {
      const int count = K - k0 < 2 * W ? K - k0 : 2 * W;
      I block[W];
      for (int l = 0; l < W; ++l) {
        block[l] = l < n ? load_pairs(rows[l] + k0, count) : B::const_i(0);
      }
      B::transpose(block);
      for (int pair = 0; 2 * pair < count; ++pair) {
        use(k0 + 2 * pair, B::as_float(B::template shl<16>(block[pair])));
        if (2 * pair + 1 < count) {
          use(k0 + 2 * pair + 1, B::as_float(B::iand(block[pair], B::const_i(0xFFFF0000u))));
        }
      }
    }
  }

  static I load_pairs(const std::uint16_t* p, int count) {
    return count >= 2 * W ? B::load_pairs(p) : B::load_pairs_n(p, count);
  }

  // ---- many moving rows ----------------------------------------------------------------------

  static void put(float* out, F s, int n, bool accumulate) {
    if (n >= W) {
      B::store(out, B::canonical(accumulate ? B::add(B::load(out), s) : s));
    } else if (n > 0) {
      B::store_n(out, B::canonical(accumulate ? B::add(B::load_n(out, n), s) : s), n);
    }
  }

  template <int MR, int NV>
  static void block(const float* x, int K, const float* panel, int lanes, float* acc,
                    std::size_t acc_stride, bool accumulate) {
    F s[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) s[i][v] = B::const_f(0x80000000u);
    }
    for (int k = 0; k < K; ++k, panel += NV * W) {
      F w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) w[v] = B::load(panel + v * W);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const F a = B::set1(x[static_cast<std::size_t>(i) * K + k]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) s[i][v] = B::fma(a, w[v], s[i][v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        put(acc + i * acc_stride + v * W, s[i][v], lanes - v * W, accumulate);
      }
    }
  }

  template <int MR, int NV>
  static void block_of(int rows, int vectors, const float* x, int K, const float* panel, int lanes,
                       float* acc, std::size_t acc_stride, bool accumulate) {
    if (rows == MR && vectors == NV) {
      block<MR, NV>(x, K, panel, lanes, acc, acc_stride, accumulate);
    } else if (vectors < NV) {
      if constexpr (NV > 1) {
        block_of<MR, NV - 1>(rows, vectors, x, K, panel, lanes, acc, acc_stride, accumulate);
      }
    } else if constexpr (MR > 1) {
      block_of<MR - 1, NV>(rows, vectors, x, K, panel, lanes, acc, acc_stride, accumulate);
    }
  }

  static void gemm(const float* x, int M, int K, const float* panels, int N, float* acc,
                   std::size_t acc_stride, bool accumulate) {
    // Blocks of nearly equal height, so that no short one is left for the end.
    const int blocks = (M + B::kRows - 1) / B::kRows;
    for (int n0 = 0; n0 < N; n0 += kPanelLanes) {
      const int lanes = N - n0 < kPanelLanes ? N - n0 : kPanelLanes;
      const float* panel = panels + static_cast<std::size_t>(n0) * K;
      int m = 0;
      for (int b = 0; b < blocks; ++b) {
        const int rows = (M - m + blocks - b - 1) / (blocks - b);
        block_of<B::kRows, B::kPanel>(rows, vectors_of(lanes), x + static_cast<std::size_t>(m) * K,
                                      K, panel, lanes, acc + m * acc_stride + n0, acc_stride,
                                      accumulate);
        m += rows;
      }
    }
  }

  // ---- few moving rows -----------------------------------------------------------------------

  // Rows that lie evenly, in place of a pointer to each.
  struct Spaced {
    const std::uint16_t* first;
    std::ptrdiff_t step_bytes;
    const std::uint16_t* operator[](int k) const {
      return reinterpret_cast<const std::uint16_t*>(reinterpret_cast<const std::uint8_t*>(first) +
                                                    k * step_bytes);
    }
    Spaced operator+(int k) const { return {(*this)[k], step_bytes}; }
  };

  // A strip that takes whole rows reads memory in order, which the host's own prefetching follows
  // best. Where rows are cut into narrower ones, the first over 128 columns asks for the lines of
  // all of these some rows ahead. Tiles lie one after another, so past the end is the next one.
  static constexpr int kAheadLanes = 128;
  static constexpr int kLineLanes = 32;

  // M rows by C chunks of 2W columns, straight from bf16: a 32-bit lane holds columns 2l (low half)
  // and 2l + 1 (high half), whose sums are kept apart and woven together at the end.
  template <int M, int C, bool is_whole, class Rows>
  static void strip(const float* x, int K, Rows rows, int n0, int lanes,
                    [[maybe_unused]] bool is_ahead, float* acc, std::size_t acc_stride,
                    bool accumulate) {
    F even[M][C], odd[M][C];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) even[m][c] = odd[m][c] = B::const_f(0x80000000u);
    }
    for (int k = 0; k < K; ++k) {
      const std::uint16_t* row = rows[k] + n0;
      if constexpr (C * 2 * W < kAheadLanes) {
        if (is_ahead) {
          for (int l = 0; l < kAheadLanes; l += kLineLanes) B::prefetch(row + l);
        }
      }
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const std::uint16_t* p = row + c * 2 * W;
        const I pair = is_whole ? B::load_pairs(p) : load_pairs(p, lanes - c * 2 * W);
        const F low = B::as_float(B::template shl<16>(pair));
        const F high = B::as_float(B::iand(pair, B::const_i(0xFFFF0000u)));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const F a = B::set1(x[static_cast<std::size_t>(m) * K + k]);
          even[m][c] = B::fma(a, low, even[m][c]);
          odd[m][c] = B::fma(a, high, odd[m][c]);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        F first, second;
        B::weave(even[m][c], odd[m][c], first, second);
        float* out = acc + m * acc_stride + c * 2 * W;
        put(out, first, lanes - c * 2 * W, accumulate);
        put(out + W, second, lanes - c * 2 * W - W, accumulate);
      }
    }
  }

  template <int M, int C, class Rows>
  static void strips(const float* x, int K, Rows rows, int n0, int N, float* acc,
                     std::size_t acc_stride, bool accumulate) {
    for (; N - n0 > (C - 1) * 2 * W; n0 += C * 2 * W) {
      const int lanes = N - n0 < C * 2 * W ? N - n0 : C * 2 * W;
      const bool is_ahead = n0 % kAheadLanes == 0 && n0 + lanes < N;
      if (lanes == C * 2 * W) {
        strip<M, C, true>(x, K, rows, n0, lanes, is_ahead, acc + n0, acc_stride, accumulate);
      } else {
        strip<M, C, false>(x, K, rows, n0, lanes, is_ahead, acc + n0, acc_stride, accumulate);
      }
    }
    if constexpr (C > 1) {
      if (n0 < N) strips<M, C - 1>(x, K, rows, n0, N, acc, acc_stride, accumulate);
    }
  }

  template <int M, class Rows>
  static void strip_transposed(const float* x, int K, Rows rows, int N, float* acc,
                               std::size_t acc_stride, bool accumulate) {
    for (int n0 = 0; n0 < N; n0 += W) {
      F s[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) s[m] = B::const_f(0x80000000u);
      const int n = N - n0 < W ? N - n0 : W;
      for_transposed(rows + n0, K, n, [&](int k, F w) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          s[m] = B::fma(B::set1(x[static_cast<std::size_t>(m) * K + k]), w, s[m]);
        }
      });
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) put(acc + m * acc_stride + n0, s[m], n, accumulate);
    }
  }

  template <int M, class Rows>
  static void gemv_of(const float* x, int rows_moving, int K, Rows rows, int N, bool transposed,
                      float* acc, std::size_t acc_stride, bool accumulate) {
    if (rows_moving == M) {
      if (transposed) {
        strip_transposed<M>(x, K, rows, N, acc, acc_stride, accumulate);
      } else {
        strips<M, B::chunks_for(M)>(x, K, rows, 0, N, acc, acc_stride, accumulate);
      }
    } else if constexpr (M > 1) {
      gemv_of<M - 1>(x, rows_moving, K, rows, N, transposed, acc, acc_stride, accumulate);
    }
  }

  template <class Rows>
  static void gemv_groups(const float* x, int M, int K, Rows rows, int N, bool transposed,
                          float* acc, std::size_t acc_stride, bool accumulate) {
    constexpr int kMost = 7;
    const int groups = (M + kMost - 1) / kMost;
    for (int g = 0, m = 0; g < groups; ++g) {
      const int count = (M - m + groups - g - 1) / (groups - g);
      gemv_of<kMost>(x + static_cast<std::size_t>(m) * K, count, K, rows, N, transposed,
                     acc + m * acc_stride, acc_stride, accumulate);
      m += count;
    }
  }

  static void gemv(const float* x, int M, int K, TileRows rows, int N, bool transposed, float* acc,
                   std::size_t acc_stride, bool accumulate) {
    if (rows.first != nullptr) {
      gemv_groups(x, M, K, Spaced{rows.first, rows.step_bytes}, N, transposed, acc, acc_stride,
                  accumulate);
    } else {
      gemv_groups(x, M, K, rows.each, N, transposed, acc, acc_stride, accumulate);
    }
  }
};

}  // namespace tapeout::math
