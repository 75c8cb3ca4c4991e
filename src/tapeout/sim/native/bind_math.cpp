// Python bindings of the numerics for tests and benchmarks: submodule `math`, NumPy arrays in, out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <vector>

#include "formats.hpp"
#include "math.hpp"
#include "memory.hpp"

namespace nb = nanobind;
using namespace nb::literals;
namespace tmath = tapeout::math;

namespace {

template <class T>
using In1 = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using In2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Acc = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T>;

template <class T>
Out<T> make(std::initializer_list<std::size_t> shape) {
  std::size_t size = 1;
  for (const std::size_t s : shape) size *= s;
  T* data = new T[size == 0 ? 1 : size];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Out<T>(data, shape.size(), shape.begin(), owner);
}

std::vector<const std::uint16_t*> rows_of(const std::uint16_t* data, std::size_t rows,
                                          std::size_t lanes) {
  std::vector<const std::uint16_t*> pointers(rows);
  for (std::size_t r = 0; r < rows; ++r) pointers[r] = data + r * lanes;
  return pointers;
}

tmath::Function function_of(int f) {
  if (f < 0 || f >= tmath::kFunctionCount) throw std::invalid_argument("no such function");
  return static_cast<tmath::Function>(f);
}

// acc[m, 0:N] = or += one pass; acc may be wider than N.
void matmul(In2<std::uint16_t> x, In2<std::uint16_t> w, Acc acc, bool transposed,
            bool accumulate) {
  const std::size_t K = transposed ? w.shape(1) : w.shape(0);
  const std::size_t N = transposed ? w.shape(0) : w.shape(1);
  if (x.shape(1) != K || acc.shape(0) != x.shape(0) || acc.shape(1) < N) {
    throw std::invalid_argument("matmul takes x[M, K], w[K, N] (or [N, K]) and acc[M, >= N]");
  }
  const auto moving = rows_of(x.data(), x.shape(0), K);
  const auto tile = rows_of(w.data(), w.shape(0), w.shape(1));
  tmath::Stationary stationary;
  stationary.set(tile.data(), static_cast<int>(K), static_cast<int>(N), transposed);
  tmath::matmul(stationary, moving.data(), static_cast<int>(x.shape(0)), acc.data(), acc.shape(1),
             accumulate);
}

Out<float> apply(int f, In1<float> x) {
  auto out = make<float>({x.shape(0)});
  tmath::apply(function_of(f), x.data(), out.data(), x.shape(0));
  return out;
}

// Operands of one lane are scalars for all n lanes; the longest gives n.
Out<float> combine(int op, In1<float> a, In1<float> b, In1<float> c) {
  if (op < 0 || op > 5) throw std::invalid_argument("no such operation");
  const std::size_t n = std::max({a.shape(0), b.shape(0), c.shape(0)});
  auto operand = [n](const In1<float>& v) {
    if (v.shape(0) != n && v.shape(0) != 1) {
      throw std::invalid_argument("operands have n lanes or one");
    }
    return tmath::Operand{v.data(), v.shape(0) != n};
  };
  auto out = make<float>({n});
  tmath::combine(static_cast<tmath::Op>(op), operand(a), operand(b), operand(c), out.data(), n);
  return out;
}

float fold(int kind, In1<float> x) {
  if (kind < 0 || kind > 2) throw std::invalid_argument("no such fold");
  return tmath::fold(static_cast<tmath::Fold>(kind), x.data(), x.shape(0));
}

Out<std::uint16_t> f32_to_bf16(In1<float> x) {
  auto out = make<std::uint16_t>({x.shape(0)});
  tmath::f32_to_bf16(x.data(), out.data(), x.shape(0));
  return out;
}

Out<float> bf16_to_f32(In1<std::uint16_t> x) {
  auto out = make<float>({x.shape(0)});
  tmath::bf16_to_f32(x.data(), out.data(), x.shape(0));
  return out;
}

nb::tuple split_planes(In1<float> x) {
  auto high = make<std::uint16_t>({x.shape(0)}), low = make<std::uint16_t>({x.shape(0)});
  tmath::split_planes(x.data(), high.data(), low.data(), x.shape(0));
  return nb::make_tuple(high, low);
}

Out<float> merge_planes(In1<std::uint16_t> high, In1<std::uint16_t> low) {
  if (high.shape(0) != low.shape(0)) throw std::invalid_argument("planes differ in length");
  auto out = make<float>({high.shape(0)});
  tmath::merge_planes(high.data(), low.data(), out.data(), high.shape(0));
  return out;
}

Out<std::uint16_t> decode_rows(int format, In1<std::uint8_t> raw, std::size_t rows,
                               std::size_t lanes, std::size_t stride) {
  const auto f = static_cast<tmath::Format>(format);
  if (raw.shape(0) < tmath::bytes_for(f, rows, lanes) || stride < lanes) {
    throw std::invalid_argument("decode_rows takes the whole tile and a stride of lanes or more");
  }
  auto out = make<std::uint16_t>({rows, stride});
  std::fill_n(out.data(), rows * stride, std::uint16_t{0xA5A5});
  tmath::decode_rows(f, raw.data(), rows, lanes, out.data(), stride);
  return out;
}

// ---- timing ----------------------------------------------------------------------------------

// Seconds of one call of `work`, the least of `repeats`.
template <class Work>
double best_seconds(int repeats, const Work& work) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
                              .count());
  }
  return best;
}

// bf16 bits of small numbers that look random.
std::vector<std::uint16_t> sample(std::size_t n) {
  std::vector<std::uint16_t> v(n);
  std::uint32_t state = 1;
  for (auto& u : v) {
    state = state * 1664525u + 1013904223u;
    u = static_cast<std::uint16_t>((state >> 16 & 0x807Fu) | 0x3F00u);
  }
  return v;
}

// A product x[M, K] times w[K, N] tile by tile as the simulator runs it: weights lie tile by tile,
// each tile is set once and M rows move past it.
double gemm_seconds(int M, int K, int N, int tile, int repeats) {
  const auto x = sample(static_cast<std::size_t>(M) * K);
  const auto w = sample(static_cast<std::size_t>(K) * N);
  std::vector<float> acc(static_cast<std::size_t>(M) * N);
  std::vector<const std::uint16_t*> moving(M), rows(tile);
  tmath::Stationary stationary;
  nb::gil_scoped_release release;
  return best_seconds(repeats, [&] {
    const tmath::FtzGuard guard;
    const std::uint16_t* next = w.data();
    for (int n0 = 0; n0 < N; n0 += tile) {
      const int n = std::min(tile, N - n0);
      for (int k0 = 0; k0 < K; k0 += tile) {
        const int k = std::min(tile, K - k0);
        for (int i = 0; i < k; ++i, next += n) rows[i] = next;
        for (int m = 0; m < M; ++m) moving[m] = x.data() + static_cast<std::size_t>(m) * K + k0;
        stationary.set(rows.data(), k, n, false);
        tmath::matmul(stationary, moving.data(), M, acc.data() + n0, N, k0 > 0);
      }
    }
  });
}

// M moving rows against `tiles` tiles of K x N bf16 that lie one after another in memory.
double gemv_seconds(int M, int K, int N, std::size_t tiles, bool transposed, int repeats) {
  const auto x = sample(static_cast<std::size_t>(M) * K);
  const std::size_t tile = static_cast<std::size_t>(K) * N;
  const tapeout::sim::ZeroArray<std::uint16_t> w(tiles * tile);  // pages as those of the HBM
  {
    const auto values = sample(tiles * tile);
    std::copy(values.begin(), values.end(), w.data());
  }
  std::vector<float> acc(static_cast<std::size_t>(M) * N);
  const auto moving = rows_of(x.data(), M, K);
  const int lanes = transposed ? K : N;
  tmath::Stationary stationary;
  nb::gil_scoped_release release;
  return best_seconds(repeats, [&] {
    const tmath::FtzGuard guard;
    const std::uint16_t* next = w.data();
    for (std::size_t t = 0; t < tiles; ++t, next += tile) {
      stationary.set_spaced(next, 2 * lanes, K, N, transposed);
      tmath::matmul(stationary, moving.data(), M, acc.data(), N, true);
    }
  });
}

// The machine's own figure beside it: sums of 64-bit words over as many bytes.
double read_seconds(std::size_t bytes, int repeats) {
  const tapeout::sim::ZeroArray<std::uint64_t> v(bytes / 8);
  std::fill_n(v.data(), bytes / 8, 1);
  volatile std::uint64_t sink = 0;
  nb::gil_scoped_release release;
  return best_seconds(repeats, [&] {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < bytes / 8; ++i) sum += v[i];
    sink = sum;
  });
}

double decode_seconds(int format, std::size_t rows, std::size_t lanes, int repeats) {
  const auto f = static_cast<tmath::Format>(format);
  std::vector<std::uint8_t> raw(tmath::bytes_for(f, rows, lanes), 0x31);
  std::vector<std::uint16_t> out(rows * lanes);
  nb::gil_scoped_release release;
  return best_seconds(repeats,
                      [&] { tmath::decode_rows(f, raw.data(), rows, lanes, out.data(), lanes); });
}

double apply_seconds(int f, std::size_t n, int repeats) {
  const auto function = function_of(f);
  std::vector<float> x(n), out(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = 0.001f * static_cast<float>(i % 5000) + 0.1f;
  nb::gil_scoped_release release;
  return best_seconds(repeats, [&] { tmath::apply(function, x.data(), out.data(), n); });
}

}  // namespace

void bind_math(nb::module_& module) {
  nb::module_ m = module.def_submodule("math", "Bit-exact numerics, as tapeout.numerics");
  m.def("isa_level", &tmath::isa_level);
  m.def("isa_levels", &tmath::isa_levels);
  m.def("set_isa_level", &tmath::set_isa_level, "level"_a);
  m.def("matmul", &matmul, "x"_a, "w"_a, "acc"_a, "transposed"_a = false, "accumulate"_a = false);
  m.def("apply", &apply, "function"_a, "x"_a);
  m.def("combine", &combine, "op"_a, "a"_a, "b"_a, "c"_a);
  m.def("fold", &fold, "kind"_a, "x"_a);
  m.def("f32_to_bf16", &f32_to_bf16, "x"_a);
  m.def("bf16_to_f32", &bf16_to_f32, "x"_a);
  m.def("split_planes", &split_planes, "x"_a);
  m.def("merge_planes", &merge_planes, "high"_a, "low"_a);
  m.def("bytes_for", [](int f, std::size_t rows, std::size_t lanes) {
    return tmath::bytes_for(static_cast<tmath::Format>(f), rows, lanes);
  });
  m.def("decode_rows", &decode_rows, "format"_a, "raw"_a, "rows"_a, "lanes"_a, "stride"_a);
  m.def("gemm_seconds", &gemm_seconds, "M"_a, "K"_a, "N"_a, "tile"_a = 128, "repeats"_a = 3);
  m.def("gemv_seconds", &gemv_seconds, "M"_a, "K"_a, "N"_a, "tiles"_a, "transposed"_a = false,
        "repeats"_a = 3);
  m.def("read_seconds", &read_seconds, "size_bytes"_a, "repeats"_a = 3);
  m.def("decode_seconds", &decode_seconds, "format"_a, "rows"_a, "lanes"_a, "repeats"_a = 5);
  m.def("apply_seconds", &apply_seconds, "function"_a, "n"_a, "repeats"_a = 5);
}
