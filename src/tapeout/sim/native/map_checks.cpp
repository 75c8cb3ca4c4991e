// Vector unit: legality, bounds and model errors of vpu.map.
#include "map_execution.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

namespace tapeout::sim {

namespace {

using isa::Combine;
using isa::Combine2;
using isa::Fault;
using isa::Kind;
using isa::Mask;
using isa::Reduce;

constexpr int64_t kCountMax = 65535;
constexpr int kStripeWords = 16;  // 1024 stripes

struct StripeSet {
  uint64_t word[kStripeWords] = {};
};

// Whether the last stage of the chain leaves canonical values.
bool ends_canonical(const isa::VpuMapNow& i) {
  if (Combine2(i.combine2) != Combine2::U || isa::Function(i.function) != isa::Function::NONE)
    return true;
  const auto op = Combine(i.combine);
  return op != Combine::A && op != Combine::SELECT;
}

}  // namespace

MapExecution::MapExecution(Machine& machine, const isa::VpuMapNow& i)
    : machine_(machine),
      i_(i),
      lanes_(machine.lanes_),
      begin_(i.lane_begin),
      end_(i.lane_end != 0 ? i.lane_end : machine.lanes_),
      permutes_(i.roll != 0 || i.xor_ != 0),
      canonical_(ends_canonical(i)) {
  constexpr size_t kRow = 256 + 16;
  std::vector<float>& scratch = machine.scratch_;
  if (scratch.empty()) scratch.resize(6 * kRow);
  buffer_a_ = scratch.data();
  buffer_p_ = buffer_a_ + kRow;
  buffer_b_ = buffer_p_ + kRow;
  buffer_c_ = buffer_b_ + kRow;
  buffer_d_ = buffer_c_ + kRow;
  buffer_out_ = buffer_d_ + kRow;
  if (i.reduce != 0 && i.rows >= 1 && i.rows <= kCountMax &&
      machine.totals_.size() < size_t(i.rows)) {
    machine.totals_.resize(size_t(i.rows));
    machine.parts_.resize(size_t(i.rows));
  }
  totals_ = machine.totals_.data();
  parts_ = machine.parts_.data();
}

bool MapExecution::is_rows(const Ref& o) {
  const Kind kind = Kind(o.kind);
  return kind != Kind::NONE && kind != Kind::IMMEDIATE;
}

MapExecution::Rows MapExecution::rows_of(const Ref& o) const {
  switch (Kind(o.kind)) {
    case Kind::SPM_BF16: return {Space::spm, o.imm, o.tile_stride, o.row_stride, 1, false};
    case Kind::SPM_FP32: return {Space::spm, o.imm, o.tile_stride, o.row_stride, 1, true};
    case Kind::ACC: return {Space::acc, o.imm, o.tile_stride, o.row_stride, 1, false};
    case Kind::ROW_SCALAR: return {Space::vmem, o.imm, o.tile_stride, 1, lanes_, false};
    default: return {Space::vmem, o.imm, o.tile_stride, o.row_stride, 1, false};
  }
}

MapExecution::Rows MapExecution::mask_rows() const {
  return {Space::vmem, i_.limit, 0, 1, lanes_, false};
}

MapExecution::Rows MapExecution::reduce_rows() const {
  return {Space::vmem, i_.reduce_dst, 0, 1, lanes_, false};
}

void MapExecution::require_legal() const {
  const auto require = [](bool holds, const char* rule) {
    if (!holds) [[unlikely]]
      stop(Fault::ILLEGAL_OPERAND, std::string("vpu.map: ") + rule);
  };
  const Kind a = Kind(i_.a.kind), dst = Kind(i_.dst.kind);
  require(i_.tiles >= 1, "tiles must be 1 or more, not 0");
  if (i_.rows < 1 || i_.rows > kCountMax)
    stop(Fault::ILLEGAL_OPERAND,
         "vpu.map: rows = " + std::to_string(i_.rows) + " must lie in 1..65535");
  if (i_.width < 0)
    stop(Fault::ILLEGAL_OPERAND,
         "vpu.map: width = " + std::to_string(i_.width) + " must be zero or more");
  require(a != Kind::NONE && a != Kind::ROW_SCALAR, "operand a must be a row or an immediate");
  require(dst != Kind::ROW_SCALAR && dst != Kind::IMMEDIATE, "dst must be a row");
  require(Reduce(i_.reduce) != Reduce::ARGMAX || !i_.reduce_accumulate,
          "reduce argmax cannot accumulate");
  require(dst != Kind::NONE || Reduce(i_.reduce) != Reduce::NONE,
          "a chain must store or reduce");
  require(Mask(i_.mask) == Mask::NONE || a != Kind::IMMEDIATE, "an immediate cannot be masked");
  require(i_.roll < lanes_ && i_.xor_ < lanes_, "roll and xor must be less than lanes");
  require(i_.lane_begin <= lanes_ && i_.lane_end <= lanes_,
          "lane_begin and lane_end must not exceed lanes");
  const auto op = Combine(i_.combine);
  const bool needs_c = op == Combine::FMA || op == Combine::FMS || op == Combine::SELECT;
  require((Kind(i_.b.kind) != Kind::NONE) == (op != Combine::A),
          "operand b must be given exactly when used");
  require((Kind(i_.c.kind) != Kind::NONE) == needs_c, "operand c must be given exactly when used");
  require((Kind(i_.d.kind) != Kind::NONE) == (Combine2(i_.combine2) != Combine2::U),
          "operand d must be given exactly when used");
  for (const Ref* o : {&i_.a, &i_.b, &i_.c, &i_.d, &i_.dst})
    require(Kind(o->kind) != Kind::SPM_FP32 ||
                (o->imm % 2 == 0 && o->tile_stride % 2 == 0 && o->row_stride % 2 == 0),
            "addresses and strides of spm_fp32 must be even");
}

void MapExecution::require_bounds() const {
  const auto inside = [this](const Rows& r) {
    machine_.require_rows(r.space, r.imm, r.high(i_.tiles, i_.rows));
  };
  if (Mask(i_.mask) == Mask::NOT_INDEX) inside(mask_rows());
  for (const Ref* o : {&i_.a, &i_.b, &i_.c, &i_.d, &i_.dst})
    if (is_rows(*o)) inside(rows_of(*o));
  if (Reduce(i_.reduce) != Reduce::NONE) inside(reduce_rows());
}

void MapExecution::count_traffic() const {
  Traffic& traffic = machine_.traffic_;
  int64_t across = 0;
  if (i_.width == 0)
    across = i_.tiles * std::max<int64_t>(end_ - begin_, 0);
  else
    for (int64_t t = 0; t < i_.tiles; ++t) across += std::max<int64_t>(valid_end(t) - begin_, 0);
  const uint64_t elements = uint64_t(across * i_.rows);
  for (const Ref* o : {&i_.a, &i_.b, &i_.c, &i_.d}) switch (Kind(o->kind)) {
      case Kind::SPM_BF16: traffic.spm_read += 2 * elements; break;
      case Kind::SPM_FP32: traffic.spm_read += 4 * elements; break;
      case Kind::VMEM: traffic.vmem_read += 4 * elements; break;
      case Kind::ACC: traffic.acc_read += 4 * elements; break;
      case Kind::ROW_SCALAR: traffic.vmem_read += 4 * uint64_t(i_.rows * i_.tiles); break;
      default: break;
    }
  switch (Kind(i_.dst.kind)) {
    case Kind::SPM_BF16: traffic.spm_write += 2 * elements; break;
    case Kind::SPM_FP32: traffic.spm_write += 4 * elements; break;
    case Kind::VMEM: traffic.vmem_write += 4 * elements; break;
    case Kind::ACC: traffic.acc_write += 4 * elements; break;
    default: break;
  }
  if (Reduce(i_.reduce) != Reduce::NONE) traffic.vmem_write += 4 * uint64_t(i_.rows);
  if (i_.reduce_accumulate || Mask(i_.mask) == Mask::NOT_INDEX)
    traffic.vmem_read += 4 * uint64_t(i_.rows);
}

// visit(span of rows, tile) for spans in which all rows have the valid lanes of that tile.
template <class Visit>
void MapExecution::each_span(const Rows& r, Visit&& visit) const {
  const auto span = [&](int64_t first, int64_t count, int64_t stride, int64_t tile) {
    if (r.pair && stride == 2) {
      visit(RowSpan{first, 2 * count, 1}, tile);
      return;
    }
    visit(RowSpan{first, count, stride}, tile);
    if (r.pair) visit(RowSpan{first + 1, count, stride}, tile);
  };
  const int64_t full = i_.width == 0 ? i_.tiles : std::min(i_.tiles, i_.width / lanes_);
  int64_t t = 0;
  if (full > 1 && i_.rows == 1) {
    span(r.imm, full, r.tile_stride, 0);
    t = full;
  } else if (full > 1 && r.row_stride != 0 && r.tile_stride == i_.rows * r.row_stride) {
    span(r.imm, full * i_.rows, r.row_stride, 0);
    t = full;
  }
  for (; t < i_.tiles; ++t) span(r.at(t, 0), i_.rows, r.row_stride, t);
}

LaneMask MapExecution::permuted(const LaneMask& kept) const {
  if (!permutes_) return kept;
  LaneMask out;
  for (int64_t l = 0; l < lanes_; ++l)
    if (kept.word[l >> 6] >> (l & 63) & 1) out.set(((l + i_.roll) & (lanes_ - 1)) ^ i_.xor_);
  return out;
}

void MapExecution::check_operand_a() const {
  const Rows r = rows_of(i_.a);
  const auto mask = Mask(i_.mask);
  Checker& checker = machine_.checker_;
  if (mask == Mask::NONE) {
    each_span(r, [&](RowSpan span, int64_t t) {
      checker.read(r.space, span, permuted(valid_mask(t)));
    });
    return;
  }
  for (int64_t t = 0; t < i_.tiles; ++t)
    for (int64_t m = 0; m < i_.rows; ++m) {
      LaneMask kept = LaneMask::range(begin_, kept_end(t, m));
      const int64_t dropped = dropped_lane(t, m);
      if (dropped >= 0) kept.word[dropped >> 6] &= ~(uint64_t{1} << (dropped & 63));
      checker.read(r.space, {r.at(t, m), r.pair ? 2 : 1, 1}, permuted(kept));
    }
}

void MapExecution::check_accesses() const {
  Checker& checker = machine_.checker_;
  const auto packed = [&](int64_t first, bool write) {
    for (int64_t m = 0; m < i_.rows; m += lanes_) {
      const LaneMask lanes = LaneMask::range(0, std::min(lanes_, i_.rows - m));
      if (write)
        checker.write(Space::vmem, {first + m / lanes_, 1, 1}, lanes);
      else
        checker.read(Space::vmem, {first + m / lanes_, 1, 1}, lanes);
    }
  };
  if (Mask(i_.mask) == Mask::NOT_INDEX) packed(i_.limit, false);
  if (is_rows(i_.a)) check_operand_a();
  for (const Ref* o : {&i_.b, &i_.c, &i_.d}) {
    if (!is_rows(*o)) continue;
    if (Kind(o->kind) == Kind::ROW_SCALAR) {
      for (int64_t t = 0; t < i_.tiles; ++t) packed(o->imm + t * o->tile_stride, false);
      continue;
    }
    const Rows r = rows_of(*o);
    each_span(r, [&](RowSpan span, int64_t t) {
      checker.read(r.space, span, valid_mask(t));
    });
  }
  const bool reduces = Reduce(i_.reduce) != Reduce::NONE;
  if (reduces && i_.reduce_accumulate) packed(i_.reduce_dst, false);
  if (is_rows(i_.dst)) {
    const Rows r = rows_of(i_.dst);
    each_span(r, [&](RowSpan span, int64_t t) {
      checker.write(r.space, span, valid_mask(t));
    });
  }
  if (reduces) packed(i_.reduce_dst, true);
}

// --- overlap within one instruction ------------------------------------------------------------

void MapExecution::collide(const Rows& other, const Rows& result, bool other_is_result) const {
  const int64_t tiles = i_.tiles, rows = i_.rows;
  if (other.space != result.space || other.space == Space::spm) return;
  const int64_t low = std::max(other.imm, result.imm);
  const int64_t high = std::min(other.high(tiles, rows), result.high(tiles, rows));
  if (low > high) return;
  const bool packed = other.group != 1 || result.group != 1;
  const bool same = other.imm == result.imm && other.tile_stride == result.tile_stride &&
                    other.row_stride == result.row_stride;
  if (same && !packed && !other_is_result) return;
  std::vector<uint8_t>& marks = machine_.marks_;
  marks.assign(size_t(result.high(tiles, rows) - result.imm + 1), 0);
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t m = 0; m < rows; m += result.group) marks[size_t(result.at(t, m) - result.imm)] = 1;
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t m = 0; m < rows; m += other.group) {
      const int64_t row = other.at(t, m), at = row - result.imm;
      if (at < 0 || at >= int64_t(marks.size()) || !marks[size_t(at)]) continue;
      if (!packed && !other_is_result && row == result.at(t, m)) continue;
      stop_used_twice(result.space == Space::acc ? "acc" : "vmem", row);
    }
}

void MapExecution::check_within() const {
  const int64_t tiles = i_.tiles, rows = i_.rows;
  const bool stores = is_rows(i_.dst), reduces = Reduce(i_.reduce) != Reduce::NONE;
  Rows reads[5];
  int count = 0;
  if (Mask(i_.mask) == Mask::NOT_INDEX) reads[count++] = mask_rows();
  for (const Ref* o : {&i_.a, &i_.b, &i_.c, &i_.d})
    if (is_rows(*o)) reads[count++] = rows_of(*o);
  if (stores) {
    const Rows dst = rows_of(i_.dst);
    const int64_t ts = dst.tile_stride, rs = dst.row_stride, g = std::gcd(ts, rs);
    const bool repeats = (rows > 1 && rs == 0) || (tiles > 1 && ts == 0) ||
                         (g != 0 && rs / g < tiles && ts / g < rows && rs != 0 && ts != 0);
    if (repeats)
      stop(ErrorKind::race,
           "the result writes a row more than once: give it strides that keep its rows apart");
    for (int k = 0; k < count; ++k) collide(reads[k], dst, false);
    if (reduces) collide(dst, reduce_rows(), true);
  }
  if (reduces)
    for (int k = 0; k < count; ++k) collide(reads[k], reduce_rows(), false);

  StripeSet spm, acc;
  const auto claim = [&](const Rows& r, StripeSet& set) {
    StripeSet mine;
    const int64_t size = machine_.checker_.stripe_rows(r.space);
    each_span(r, [&](RowSpan span, int64_t) {
      const int64_t step = span.stride > size ? 1 : std::max<int64_t>(span.count - 1, 1);
      int64_t from = span.first / size;
      for (int64_t k = 0; k < span.count; k += step) {
        const int64_t to = span.at(k) / size;
        if (span.stride > size) from = to;
        for (int64_t s = from; s <= to; ++s)
          if (s < 64 * kStripeWords) mine.word[s >> 6] |= uint64_t{1} << (s & 63);
      }
    });
    for (int w = 0; w < kStripeWords; ++w) {
      if (mine.word[w] & set.word[w])
        stop(ErrorKind::bank,
             std::string("two operands of one vpu.map use ") +
                 (r.space == Space::acc ? "acc" : "spm") + " stripe " +
                 std::to_string(64 * w + std::countr_zero(mine.word[w] & set.word[w])) +
                 ": place them in stripes of their own");
      set.word[w] |= mine.word[w];
    }
  };
  for (int k = 0; k < count; ++k) {
    if (reads[k].space == Space::spm) claim(reads[k], spm);
    if (reads[k].space == Space::acc) claim(reads[k], acc);
  }
  if (stores && rows_of(i_.dst).space == Space::spm) claim(rows_of(i_.dst), spm);
}

}  // namespace tapeout::sim
