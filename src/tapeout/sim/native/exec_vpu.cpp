// Vector unit: the values of vpu.map, row by row through the chain.
#include "map_execution.hpp"

namespace tapeout::sim {

namespace {

using isa::Combine;
using isa::Combine2;
using isa::Fault;
using isa::Kind;
using isa::Mask;
using isa::Reduce;

static_assert(int(isa::Function::EXP2) == int(math::Function::EXP2) + 1 &&
                  int(isa::Function::GELU_TANH) == int(math::Function::GELU_TANH) + 1 &&
                  int(isa::Function::FLOOR) == int(math::Function::FLOOR) + 1,
              "isa.Function is NONE, then the functions of numerics in order");

uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

uint32_t flush_bits(uint32_t u) { return (u & 0x7F800000u) == 0 ? u & 0x80000000u : u; }

uint32_t canonical_bits(uint32_t u) {
  u = flush_bits(u);
  return (u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC00000u : u;
}

bool is_nan(float x) { return (bits_of(x) & 0x7FFFFFFFu) > 0x7F800000u; }

const float kMinusInfinity = from_bits(0xFF800000u);

// f(k) for each lane, with operands that are lanes or one scalar.
template <class F>
void lanewise(math::Operand a, math::Operand b, float* out, int64_t n, F f) {
  for (int64_t l = 0; l < n; ++l)
    out[l] = f(from_bits(flush_bits(bits_of(a.data[a.is_scalar ? 0 : l]))),
               from_bits(flush_bits(bits_of(b.data[b.is_scalar ? 0 : l]))));
}

}  // namespace

const float* MapExecution::load(const Ref& o, int64_t t, int64_t m, int64_t first, int64_t n,
                                float* buffer) const {
  const int64_t row = o.imm + t * o.tile_stride + m * o.row_stride;
  switch (Kind(o.kind)) {
    case Kind::SPM_BF16:
      math::bf16_to_f32(machine_.spm_.row(row) + first, buffer, size_t(n));
      return buffer;
    case Kind::SPM_FP32:
      math::merge_planes(machine_.spm_.row(row) + first, machine_.spm_.row(row + 1) + first, buffer,
                         size_t(n));
      return buffer;
    case Kind::VMEM: return machine_.vmem_.data() + row * lanes_ + first;
    case Kind::ACC: return machine_.acc_.data() + row * lanes_ + first;
    case Kind::ROW_SCALAR:
      return machine_.vmem_.data() + (o.imm + t * o.tile_stride + m / lanes_) * lanes_ +
             m % lanes_;
    default: return &o.value;
  }
}

math::Operand MapExecution::operand(const Ref& o, int64_t t, int64_t m, int64_t n,
                                    float* buffer) const {
  const Kind kind = Kind(o.kind);
  return {load(o, t, m, begin_, n, buffer),
          kind == Kind::IMMEDIATE || kind == Kind::ROW_SCALAR};
}

const float* MapExecution::load_a(int64_t t, int64_t m, int64_t n, float* buffer,
                                  float* permuted) const {
  const float* a = nullptr;
  if (permutes_) {
    const float* row = load(i_.a, t, m, 0, lanes_, buffer);
    for (int64_t l = 0; l < n; ++l)
      permuted[l] = row[((begin_ + l + i_.roll) & (lanes_ - 1)) ^ i_.xor_];
    a = permuted;
  } else {
    a = load(i_.a, t, m, begin_, n, buffer);
  }
  const int64_t kept = std::max<int64_t>(kept_end(t, m) - begin_, 0);
  const int64_t dropped = dropped_lane(t, m) - begin_;
  if (kept >= n && (dropped < 0 || dropped >= n)) return a;
  if (a != permuted) std::memcpy(permuted, a, size_t(n) * 4);
  for (int64_t l = kept; l < n; ++l) permuted[l] = kMinusInfinity;
  if (dropped >= 0 && dropped < n) permuted[dropped] = kMinusInfinity;
  return permuted;
}

int64_t MapExecution::dropped_lane(int64_t t, int64_t m) const {
  if (Mask(i_.mask) != Mask::NOT_INDEX) return -1;
  int32_t index;
  std::memcpy(&index, machine_.vmem_.data() + (i_.limit + m / lanes_) * lanes_ + m % lanes_, 4);
  const int64_t lane = int64_t(index) - t * lanes_;
  return lane >= 0 && lane < lanes_ ? lane : -1;
}

math::Operand MapExecution::combined(math::Operand a, int64_t t, int64_t m, int64_t n,
                                     float* out) {
  const auto op = Combine(i_.combine);
  if (op == Combine::A) return a;
  const math::Operand b = operand(i_.b, t, m, n, buffer_b_);
  const size_t count = size_t(n);
  switch (op) {
    case Combine::ADD: math::combine(math::Op::add, a, b, a, out, count); break;
    case Combine::SUB: math::combine(math::Op::sub, a, b, a, out, count); break;
    case Combine::RSUB: math::combine(math::Op::sub, b, a, a, out, count); break;
    case Combine::MUL: math::combine(math::Op::mul, a, b, a, out, count); break;
    case Combine::MAX: math::combine(math::Op::max, a, b, a, out, count); break;
    case Combine::MIN: math::combine(math::Op::min, a, b, a, out, count); break;
    case Combine::FMA: {
      const math::Operand c = operand(i_.c, t, m, n, buffer_c_);
      math::combine(math::Op::fma, a, b, c, out, count);
      break;
    }
    case Combine::FMS: {
      const math::Operand c = operand(i_.c, t, m, n, buffer_c_);
      const int64_t terms = c.is_scalar ? 1 : n;
      for (int64_t l = 0; l < terms; ++l)
        buffer_c_[l] = from_bits(bits_of(c.data[l]) ^ 0x80000000u);
      math::combine(math::Op::fma, a, b, {buffer_c_, c.is_scalar}, out, count);
      break;
    }
    case Combine::SELECT: {
      const math::Operand c = operand(i_.c, t, m, n, buffer_c_);
      for (int64_t l = 0; l < n; ++l) {
        const bool first =
            (flush_bits(bits_of(c.data[c.is_scalar ? 0 : l])) & 0x7FFFFFFFu) != 0;
        out[l] = first ? a.data[a.is_scalar ? 0 : l] : b.data[b.is_scalar ? 0 : l];
      }
      break;
    }
    case Combine::GE:
      lanewise(a, b, out, n, [](float x, float y) { return x >= y ? 1.0f : 0.0f; });
      break;
    case Combine::GT:
      lanewise(a, b, out, n, [](float x, float y) { return x > y ? 1.0f : 0.0f; });
      break;
    case Combine::EQ:
      lanewise(a, b, out, n, [](float x, float y) { return x == y ? 1.0f : 0.0f; });
      break;
    case Combine::A: break;
  }
  return {out, false};
}

// Where the last stage may write its lanes directly, or null.
float* MapExecution::target(int64_t t, int64_t m) const {
  const Kind kind = Kind(i_.dst.kind);
  if (!canonical_ || (kind != Kind::VMEM && kind != Kind::ACC)) return nullptr;
  const int64_t row = i_.dst.imm + t * i_.dst.tile_stride + m * i_.dst.row_stride;
  return (kind == Kind::VMEM ? machine_.vmem_ : machine_.acc_).data() + row * lanes_ + begin_;
}

void MapExecution::store(const float* value, int64_t t, int64_t m, int64_t n) const {
  const int64_t row = i_.dst.imm + t * i_.dst.tile_stride + m * i_.dst.row_stride;
  const Kind kind = Kind(i_.dst.kind);
  if (kind == Kind::SPM_BF16) {
    math::f32_to_bf16(value, machine_.spm_.writable(row, begin_, n) + begin_, size_t(n));
    return;
  }
  float* to = buffer_b_;
  if (kind == Kind::VMEM) to = machine_.vmem_.data() + row * lanes_ + begin_;
  if (kind == Kind::ACC) to = machine_.acc_.data() + row * lanes_ + begin_;
  if (canonical_)
    std::memcpy(to, value, size_t(n) * 4);
  else
    for (int64_t l = 0; l < n; ++l) to[l] = from_bits(canonical_bits(bits_of(value[l])));
  if (kind == Kind::SPM_FP32)
    math::split_planes(to, machine_.spm_.writable(row, begin_, n) + begin_,
                       machine_.spm_.writable(row + 1, begin_, n) + begin_, size_t(n));
}

void MapExecution::run() {
  const bool stores = Kind(i_.dst.kind) != Kind::NONE;
  const bool reduces = Reduce(i_.reduce) != Reduce::NONE;
  const auto function = isa::Function(i_.function);
  const auto second = Combine2(i_.combine2);
  if (reduces) start_reduce();
  for (int64_t t = 0; t < i_.tiles; ++t) {
    const int64_t n = valid_end(t) - begin_;
    for (int64_t m = 0; m < i_.rows && n > 0; ++m) {
      const bool constant = Kind(i_.a.kind) == Kind::IMMEDIATE;
      const math::Operand a = {
          constant ? &i_.a.value : load_a(t, m, n, buffer_a_, buffer_p_), constant};
      float* const direct = stores ? target(t, m) : nullptr;
      float* const last = direct != nullptr ? direct : buffer_out_;
      // d may be the result's own row: nothing goes there before d has been read.
      float* const out = second != Combine2::U ? buffer_out_ : last;
      math::Operand u = combined(a, t, m, n, out);
      if (u.is_scalar) {
        std::fill(buffer_a_, buffer_a_ + n, u.data[0]);
        u = {buffer_a_, false};
      }
      if (function != isa::Function::NONE) {
        math::apply(math::Function(int(function) - 1), u.data, out, size_t(n));
        u.data = out;
      }
      if (second != Combine2::U) {
        const math::Operand d = operand(i_.d, t, m, n, buffer_d_);
        static constexpr math::Op kOps[] = {math::Op::add, math::Op::add, math::Op::sub,
                                            math::Op::sub, math::Op::mul, math::Op::max,
                                            math::Op::min};
        const bool swap = second == Combine2::RSUB;
        math::combine(kOps[int(second)], swap ? d : u, swap ? u : d, u, last, size_t(n));
        u.data = last;
      }
      if (stores && u.data != direct) store(u.data, t, m, n);
      if (reduces) reduce_row(u.data, t, m, n);
    }
    if (reduces) join_tile(t);
  }
  if (reduces) finish_reduce();
}

// --- reduction over lanes and tiles ------------------------------------------------------------

void MapExecution::start_reduce() {
  const float* packed = machine_.vmem_.data() + i_.reduce_dst * lanes_;
  if (i_.reduce_accumulate) std::memcpy(totals_, packed, size_t(i_.rows) * 4);
  if (Reduce(i_.reduce) != Reduce::ARGMAX) return;
  machine_.best_index_.assign(size_t(i_.rows), -1);
  best_ = machine_.best_index_.data();
}

void MapExecution::reduce_row(const float* value, int64_t t, int64_t m, int64_t n) {
  const auto how = Reduce(i_.reduce);
  if (how != Reduce::ARGMAX) {
    const math::Fold fold = how == Reduce::SUM     ? math::Fold::sum
                            : how == Reduce::SUMSQ ? math::Fold::sumsq
                                                   : math::Fold::max;
    if (begin_ != 0) {  // lanes fold at their places, after lanes that change nothing
      std::fill(buffer_c_, buffer_c_ + begin_, how == Reduce::MAX ? kMinusInfinity : -0.0f);
      std::memcpy(buffer_c_ + begin_, value, size_t(n) * 4);
      value = buffer_c_;
    }
    parts_[m] = math::fold(fold, value, size_t(begin_ + n));
    return;
  }
  const float top = math::fold(math::Fold::max, value, size_t(n));
  float& best = totals_[m];
  if (best_[m] >= 0 && (is_nan(best) || (!is_nan(top) && top <= best))) return;
  int64_t lane = 0;
  while (lane < n - 1 &&
         !(is_nan(top) ? is_nan(value[lane])
                       : from_bits(flush_bits(bits_of(value[lane]))) == top))
    ++lane;
  best = top;
  best_[m] = t * lanes_ + begin_ + lane;
}

void MapExecution::join_tile(int64_t t) {
  const auto how = Reduce(i_.reduce);
  if (how == Reduce::ARGMAX) return;
  if (valid_end(t) <= begin_)
    std::fill(parts_, parts_ + i_.rows, how == Reduce::MAX ? kMinusInfinity : -0.0f);
  if (t == 0 && !i_.reduce_accumulate) {
    std::memcpy(totals_, parts_, size_t(i_.rows) * 4);
    return;
  }
  const math::Operand x{totals_, false}, y{parts_, false};
  math::combine(how == Reduce::MAX ? math::Op::max : math::Op::add, x, y, x, totals_,
                size_t(i_.rows));
}

void MapExecution::finish_reduce() {
  float* packed = machine_.vmem_.data() + i_.reduce_dst * lanes_;
  if (Reduce(i_.reduce) != Reduce::ARGMAX) {
    std::memcpy(packed, totals_, size_t(i_.rows) * 4);
    return;
  }
  for (int64_t m = 0; m < i_.rows; ++m) {
    const int32_t index = int32_t(std::max<int64_t>(best_[m], 0));
    std::memcpy(packed + m, &index, 4);
  }
}

void Machine::exec_map(const isa::VpuMapNow& i) {
  MapExecution map(*this, i);
  map.require_legal();
  map.require_bounds();
  if (checks_) {
    map.check_within();
    map.check_accesses();
  }
  map.count_traffic();
  if (functional_) map.run();
}

}  // namespace tapeout::sim
