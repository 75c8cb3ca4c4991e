// DMA transfers: what they move, at issue, and the pieces of HBM whose runs are timed later.
#include <bit>

#include "formats.hpp"
#include "machine.hpp"

namespace tapeout::sim {

namespace {

using isa::Fault;
using isa::HbmFormat;

constexpr int64_t kCountMax = 65535, kBlockRows = 32;
constexpr int64_t kAheadRows = 16;  // measured: about a memory latency of copying

struct Shape {
  math::Format format;
  int64_t group_rows;   // rows of a unit
  int64_t unit_bytes, scale_bytes;
  bool block, spm, pairs;
  int64_t units;        // of an outer step
  int64_t unit_step;    // bytes from unit to unit
};

bool is_block(HbmFormat f) {
  return f == HbmFormat::Q8_0 || f == HbmFormat::Q4_1 || f == HbmFormat::MXFP8_E4M3 ||
         f == HbmFormat::MXFP8_E5M2 || f == HbmFormat::MXFP4;
}

// 4-byte formats and fp16 scales: addresses are multiples of what an element takes.
int64_t alignment(HbmFormat f) {
  if (f == HbmFormat::FP32) return 4;
  return f == HbmFormat::BF16 || f == HbmFormat::Q8_0 || f == HbmFormat::Q4_1 ? 2 : 1;
}

bool is_nibbles(HbmFormat f) { return f == HbmFormat::Q4_1 || f == HbmFormat::MXFP4; }

template <class Now>
Shape shape_of(const Now& i, int64_t lanes, int64_t formats, const char* name) {
  const auto f = HbmFormat(i.format);
  const bool words = f == HbmFormat::BF16 || f == HbmFormat::FP32;
  const auto refuse = [&](const std::string& rule) {
    stop(Fault::ILLEGAL_OPERAND, std::string(name) + ": " + rule);
  };
  Shape s;
  s.block = is_block(f);
  s.spm = i.memory == int64_t(isa::Memory::SPM);
  s.pairs = s.spm && f == HbmFormat::FP32;
  if ((formats >> i.format & 1) == 0) refuse("the chip has no such format: dma.formats");
  if (i.lanes < 1 || i.lane + i.lanes > lanes)
    refuse("lane " + std::to_string(i.lane) + " + lanes " + std::to_string(i.lanes) +
           " must lie in the " + std::to_string(lanes) + " lanes of a row");
  if (i.rows < 0 || i.rows > kCountMax || i.outer < 0 || i.outer > kCountMax)
    refuse("rows = " + std::to_string(i.rows) + " and outer = " + std::to_string(i.outer) +
           " must lie in 0..65535");
  if (s.block && i.rows % kBlockRows != 0)
    refuse("rows = " + std::to_string(i.rows) + " must be a multiple of 32 for this format");
  if (s.block && i.indexed) refuse("block formats cannot be indexed");
  if (is_nibbles(f) && i.lanes % 2 != 0)
    refuse("lanes = " + std::to_string(i.lanes) + " must be even for 4-bit formats");
  if (!s.spm && !words) refuse("vmem takes bf16 or fp32");
  if (s.pairs && (i.row % 2 != 0 || i.row_stride % 2 != 0 || i.outer_rows % 2 != 0))
    refuse("row = " + std::to_string(i.row) + " and the strides " + std::to_string(i.row_stride) +
           " and " + std::to_string(i.outer_rows) + " must be even for fp32 in spm");
  if (const int64_t unit = alignment(f);
      ((i.hbm.offset | (s.block ? 0 : i.row_bytes) | i.outer_bytes) & (unit - 1)) != 0)
    refuse("address " + std::to_string(i.hbm.offset) + ", row_bytes = " +
           std::to_string(i.row_bytes) + " and outer_bytes = " + std::to_string(i.outer_bytes) +
           " must be multiples of " + std::to_string(unit) + " for this format");
  s.format = math::Format(i.format);
  s.group_rows = s.block ? kBlockRows : 1;
  s.unit_bytes = int64_t(math::bytes_for(s.format, size_t(s.group_rows), size_t(i.lanes)));
  s.scale_bytes =
      s.block ? s.unit_bytes - kBlockRows * i.lanes / (is_nibbles(f) ? 2 : 1) : 0;
  s.units = s.block ? i.rows / kBlockRows : i.rows;
  s.unit_step = s.block ? s.unit_bytes : i.row_bytes;
  return s;
}

// What of the transfer a cycle takes; rows as in tapeout.isa.dma.rows_per_cycle.
template <class Now>
Pieces pieces_of(const isa::ChipParams& chip, int64_t lanes, uint64_t interleave_bytes,
                 const Now& i, const Shape& s) {
  const int64_t bytes = chip.dma.bytes_per_cycle, banks = chip.spm.banks_per_stripe;
  const int64_t row_bits = (s.unit_bytes - s.scale_bytes) * 8 / s.group_rows;
  const int64_t element_bits = row_bits / i.lanes;
  int64_t rows;
  if (!s.spm) {
    rows = i.row_stride == 0 ? 1 : bytes / (4 * lanes);
  } else {
    rows = bytes * 8 / (element_bits * lanes);
    if (element_bits < 16) rows = std::min(rows, chip.dma.dequant_elements_per_cycle / lanes);
    const int64_t stride = i.row_stride | banks;
    rows = std::min({rows, s.pairs ? banks / 2 : banks, banks / (stride & -stride)});
  }
  Pieces p;
  p.rows = uint32_t(rows);
  p.row_bytes = uint32_t(row_bits / 8);
  p.scale_bytes = uint32_t(s.scale_bytes);
  const bool touch = s.unit_step == s.unit_bytes && !s.block && !i.indexed;
  p.part_bytes = uint64_t(touch ? s.units * s.unit_bytes : s.unit_bytes);
  p.part = p.within(0, p.part_bytes);
  p.even = !s.block && std::has_single_bit(p.row_bytes) && p.row_bytes <= interleave_bytes;
  return p;
}

}  // namespace

// A gather must not write over its own indices.
template <class Now>
void Machine::keep_indices(const Now& i) const {
  const int64_t end = i.index_rows + (i.rows + lanes_ - 1) / lanes_;
  for (int64_t o = 0; o < i.outer; ++o)
    for (int64_t r = 0; r < i.rows; ++r) {
      const int64_t row = i.row + o * i.outer_rows + r * i.row_stride;
      if (row >= i.index_rows && row < end) stop_used_twice("vmem", row);
    }
}

template <class Now>
void Machine::transfer(Queue& q, const Now& i, bool store) {
  if (store && i.format != int64_t(HbmFormat::BF16) && i.format != int64_t(HbmFormat::FP32))
    stop(Fault::ILLEGAL_OPERAND, "dma.store writes bf16 or fp32, not narrower formats");
  const Shape s = shape_of(i, lanes_, chip_.dma.format_mask, store ? "dma.store" : "dma.load");
  Generator& g = q.generator;
  g.store = store;
  g.outer = 0;
  g.list.clear();
  g.list_at = 0;
  g.take_up = i.indexed ? isa::kIndexedTakeUpCycles : isa::kTakeUpCycles;
  g.copies = i.format == int64_t(HbmFormat::BF16) || i.format == int64_t(HbmFormat::FP32);
  if (i.rows == 0 || i.outer == 0) return;

  const Base& base = base_of(i.hbm.base);
  const uint64_t start = base.address;
  const auto inside = [&](int64_t low, int64_t high) {
    if (low >= 0 && uint64_t(high) <= base.bytes) [[likely]]
      return;
    stop(Fault::HBM_BOUNDS, "bytes " + std::to_string(low) + ".." + std::to_string(high) +
                                " are outside the " + std::to_string(base.bytes) +
                                " bytes of base b" + std::to_string(i.hbm.base));
  };
  if (i.indexed) {
    const int64_t index_rows = (i.rows + lanes_ - 1) / lanes_;
    require_rows(Space::vmem, i.index_rows, i.index_rows + index_rows - 1);
    if (checks_)
      for (int64_t k = 0; k < index_rows; ++k)
        checker_.read(Space::vmem, {i.index_rows + k, 1, 1},
                      LaneMask::range(0, std::min(lanes_, i.rows - k * lanes_)));
    traffic_.vmem_read += uint64_t(i.rows) * 4;
    offsets_.resize(size_t(i.rows));
    const float* table = vmem_.data() + i.index_rows * lanes_;
    for (int64_t r = 0; r < i.rows; ++r) {
      int32_t index;
      std::memcpy(&index, table + r, 4);
      offsets_[size_t(r)] = int64_t(index) * i.row_bytes;
    }
  } else {
    const int64_t end = i.hbm.offset + (i.outer - 1) * i.outer_bytes +
                        (s.units - 1) * s.unit_step + s.unit_bytes;
    if (i.hbm.offset < 0 || uint64_t(end) > base.bytes) [[unlikely]]
      for (int64_t o = 0; o < i.outer; ++o)  // names the first piece outside
        for (int64_t k = 0; k < s.units; ++k) {
          const int64_t at = i.hbm.offset + o * i.outer_bytes + k * s.unit_step;
          inside(at, at + s.unit_bytes);
        }
    g.grid_address = start + uint64_t(i.hbm.offset);
    g.grid_bytes = uint64_t(s.unit_bytes);
    g.inner = s.units;
    g.inner_step = s.unit_step;
    g.outer = i.outer;
    g.outer_step = i.outer_bytes;
    g.inner_at = 0;
    if (g.inner_step == s.unit_bytes || g.inner == 1) {  // one piece an outer step
      g.grid_bytes *= uint64_t(g.inner);
      g.inner = 1;
      g.inner_step = 0;
      if (g.outer_step == int64_t(g.grid_bytes)) {
        g.grid_bytes *= uint64_t(g.outer);
        g.outer = 1;
      }
    }
  }
  if (store && !base.writable)
    stop(Fault::HBM_PROTECTION, "base b" + std::to_string(i.hbm.base) +
                                    " is read-only: bind a writable segment to store to");
  g.pieces = pieces_of(chip_, lanes_, interleave_bytes_, i, s);

  const Space space = s.spm ? Space::spm : Space::vmem;
  const int64_t last = i.row + (i.outer - 1) * i.outer_rows + (i.rows - 1) * i.row_stride;
  require_rows(space, i.row, last + (s.pairs ? 1 : 0));
  if (i.indexed)  // what an index says is judged last: hardware reads it when the transfer runs
    for (int64_t o = 0; o < i.outer; ++o)
      for (int64_t r = 0; r < i.rows; ++r) {
        const int64_t at = i.hbm.offset + o * i.outer_bytes + offsets_[size_t(r)];
        inside(at, at + s.unit_bytes);
        g.list.push_back({start + uint64_t(at), uint64_t(s.unit_bytes)});
      }
  const uint64_t moved = uint64_t(i.rows * i.outer * i.lanes) * (s.spm && !s.pairs ? 2 : 4);
  (s.spm ? (store ? traffic_.spm_read : traffic_.spm_write)
         : (store ? traffic_.vmem_read : traffic_.vmem_write)) += moved;

  if (checks_) {
    const LaneMask lanes = LaneMask::range(i.lane, i.lane + i.lanes);
    const auto visit = [&](RowSpan span) {
      if (store)
        checker_.read(space, span, lanes);
      else
        checker_.write(space, span, lanes);
    };
    const bool whole = i.outer_rows == i.rows * i.row_stride || i.outer == 1;
    if (!store && i.indexed && !s.spm) keep_indices(i);
    for (int64_t o = 0; o < (whole ? 1 : i.outer); ++o) {
      const int64_t first = i.row + o * i.outer_rows, count = whole ? i.rows * i.outer : i.rows;
      if (s.pairs && i.row_stride == 2) {
        visit({first, 2 * count, 1});
      } else {
        visit({first, count, i.row_stride});
        if (s.pairs) visit({first + 1, count, i.row_stride});
      }
    }
    if (!viewable_[size_t(i.hbm.base)]) {
      if (i.indexed) {
        for (const Segment& piece : g.list)
          checker_.hbm(piece.address, piece.address + piece.bytes, store);
      } else {
        for (int64_t o = 0; o < g.outer; ++o)
          for (int64_t k = 0; k < g.inner; ++k) {
            const uint64_t at = g.grid_address + uint64_t(o * g.outer_step + k * g.inner_step);
            checker_.hbm(at, at + g.grid_bytes, store);
          }
      }
    }
  }

  if (!functional_ && (s.spm || store)) return;
  for (int64_t o = 0; o < i.outer; ++o) {
    const int64_t row = i.row + o * i.outer_rows;
    const uint64_t piece = start + uint64_t(i.hbm.offset + o * i.outer_bytes);
    const auto address = [&](int64_t r) {
      return piece + uint64_t(i.indexed ? offsets_[size_t(r)] : r * s.unit_step);
    };
    if (store)
      drain_rows(i, row, address);
    else if (s.spm && i.format != int64_t(HbmFormat::BF16) && !s.pairs)
      fill_narrow(i, s.format, int(s.group_rows), row, address);
    else
      fill_rows(i, row, address);
  }
}

template <class Now, class Address>
void Machine::fill_rows(const Now& i, int64_t row, const Address& address) {
  const bool words = i.format == int64_t(HbmFormat::FP32);
  const bool spm = i.memory == int64_t(isa::Memory::SPM);
  const size_t n = size_t(i.lanes);
  const bool left = spm && !words && viewable_[size_t(i.hbm.base)] && i.lane == 0 &&
                    ((address(0) | uint64_t(i.row_bytes)) & 1) == 0;
  const bool view = left && i.lanes == lanes_;
  int64_t viewed = 0;
  if (left && !i.indexed && i.row_stride == 1) {
    const uint8_t* source = host_.data() + address(0);
    if (view) {
      spm_.view_rows(row, i.rows, source, i.row_bytes);
      return;
    }
    viewed = spm_.view_lanes(row, i.rows, i.lanes, source, i.row_bytes);
    row += viewed;
  }
  // Asks the host for what the loop will touch some rows later.
  const auto ask = [&](int64_t r) {
    constexpr size_t kLineBytes = 64;
    const auto* source = host_.data() + address(r);
    for (size_t b = 0; b < size_t(i.lanes) * 2; b += kLineBytes) __builtin_prefetch(source + b);
    if (spm) spm_.expect_write(row + kAheadRows * i.row_stride);
  };
  for (int64_t r = viewed; r < i.rows; ++r, row += i.row_stride) {
    const uint8_t* from = host_.data() + address(r);
    if (!view && r + kAheadRows < i.rows) ask(r + kAheadRows);
    if (view) {
      spm_.view(row, reinterpret_cast<const uint16_t*>(from));
    } else if (!spm) {
      float* to = vmem_.data() + row * lanes_ + i.lane;
      if (words)
        std::memcpy(to, from, n * 4);
      else
        math::bf16_to_f32(reinterpret_cast<const uint16_t*>(from), to, n);
    } else if (words) {
      math::split_planes(reinterpret_cast<const float*>(from),
                         spm_.writable(row, i.lane, i.lanes) + i.lane,
                         spm_.writable(row + 1, i.lane, i.lanes) + i.lane, n);
    } else {
      std::memcpy(spm_.writable(row, i.lane, i.lanes) + i.lane, from, n * 2);
    }
  }
}

// Formats that become bf16 on the way in; from read-only HBM they are dequantised once.
template <class Now, class Address>
void Machine::fill_narrow(const Now& i, math::Format format, int group, int64_t row,
                          const Address& address) {
  const int64_t units = i.rows / group;
  const size_t n = size_t(i.lanes);
  const uint16_t* bits = nullptr;
  if (viewable_[size_t(i.hbm.base)] && !i.indexed) {
    const DequantCache::Key key{address(0), i.format, i.rows, i.lanes,
                                group == 1 ? i.row_bytes : 0};
    bits = dequantised_.find(key);
    if (bits == nullptr) {
      const uint64_t end = address(units - 1) + math::bytes_for(format, size_t(group), n);
      if (uint16_t* fresh = dequantised_.add(key, address(0), end)) {
        for (int64_t u = 0; u < units; ++u)
          math::decode_rows(format, host_.data() + address(u), size_t(group), n,
                            fresh + u * group * i.lanes, n);
        bits = fresh;
      }
    }
  }
  if (bits != nullptr) {
    if (i.lanes == lanes_ && i.row_stride == 1) {
      spm_.view_rows(row, i.rows, reinterpret_cast<const uint8_t*>(bits), i.lanes * 2);
      return;
    }
    int64_t viewed = 0;
    if (i.lane == 0 && i.row_stride == 1)
      viewed = spm_.view_lanes(row, i.rows, i.lanes, reinterpret_cast<const uint8_t*>(bits),
                               i.lanes * 2);
    row += viewed;
    bits += viewed * i.lanes;
    for (int64_t r = viewed; r < i.rows; ++r, row += i.row_stride, bits += n)
      if (i.lanes == lanes_)
        spm_.view(row, bits);
      else
        std::memcpy(spm_.writable(row, i.lane, i.lanes) + i.lane, bits, n * 2);
    return;
  }
  uint16_t rows[kBlockRows * 64 * kLaneWords];
  for (int64_t u = 0; u < units; ++u) {
    math::decode_rows(format, host_.data() + address(u), size_t(group), n, rows, n);
    for (int r = 0; r < group; ++r, row += i.row_stride)
      std::memcpy(spm_.writable(row, i.lane, i.lanes) + i.lane, rows + size_t(r) * n, n * 2);
  }
}

template <class Now, class Address>
void Machine::drain_rows(const Now& i, int64_t row, const Address& address) {
  const bool words = i.format == int64_t(HbmFormat::FP32);
  const size_t n = size_t(i.lanes);
  for (int64_t r = 0; r < i.rows; ++r, row += i.row_stride) {
    uint8_t* to = host_.data() + address(r);
    if (i.memory != int64_t(isa::Memory::SPM)) {
      const float* from = vmem_.data() + row * lanes_ + i.lane;
      if (words)
        std::memcpy(to, from, n * 4);
      else
        math::f32_to_bf16(from, reinterpret_cast<uint16_t*>(to), n);
    } else if (words) {
      math::merge_planes(spm_.row(row) + i.lane, spm_.row(row + 1) + i.lane,
                         reinterpret_cast<float*>(to), n);
    } else {
      std::memcpy(to, spm_.row(row) + i.lane, n * 2);
    }
  }
}

void Machine::exec_transfer(Queue& q, const isa::Instr& ins) {
  if (ins.op == isa::Op::DmaLoad)
    transfer(q, resolve(*std::get_if<isa::DmaLoad>(&ins.body), q.registers), false);
  else
    transfer(q, resolve(*std::get_if<isa::DmaStore>(&ins.body), q.registers), true);
}

}  // namespace tapeout::sim
