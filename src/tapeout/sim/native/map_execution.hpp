// One vpu.map: its rules, its accesses, its rows.
#pragma once

#include "formats.hpp"
#include "machine.hpp"

namespace tapeout::sim {

class MapExecution {
 public:
  MapExecution(Machine& machine, const isa::VpuMapNow& i);

  void require_legal() const;
  void require_bounds() const;
  void count_traffic() const;
  void check_within() const;    // overlap and stripes of this one instruction
  void check_accesses() const;  // against the other instructions
  void run();

 private:
  using Ref = isa::OperandRef;
  struct Rows {  // what an operand or a result addresses
    Space space;
    int64_t imm, tile_stride, row_stride;
    int64_t group;  // moving rows that share a row: 1, or the lanes of a packed row
    bool pair;      // an fp32 row in spm: two rows
    int64_t at(int64_t t, int64_t m) const { return imm + t * tile_stride + m / group * row_stride; }
    int64_t high(int64_t tiles, int64_t rows) const {
      return at(tiles - 1, rows - 1) + (pair ? 1 : 0);
    }
  };

  static bool is_rows(const Ref& o);
  Rows rows_of(const Ref& o) const;
  Rows mask_rows() const;
  Rows reduce_rows() const;
  // Valid lanes of tile t are [begin_, valid_end(t)), none where that is empty.
  int64_t valid_end(int64_t t) const {
    return i_.width == 0 ? end_ : std::min(end_, i_.width - t * lanes_);
  }
  LaneMask valid_mask(int64_t t) const { return LaneMask::range(begin_, valid_end(t)); }
  // End of the valid lanes that Mask::BELOW keeps.
  int64_t kept_end(int64_t t, int64_t m) const {
    const int64_t end = valid_end(t);
    if (isa::Mask(i_.mask) != isa::Mask::BELOW) return end;
    return std::min(end, i_.limit + i_.limit_step * m - t * lanes_);
  }
  int64_t dropped_lane(int64_t t, int64_t m) const;  // of Mask::NOT_INDEX; -1: none in this tile
  LaneMask permuted(const LaneMask& kept) const;
  template <class Visit>
  void each_span(const Rows& rows, Visit&& visit) const;
  void check_operand_a() const;
  void collide(const Rows& other, const Rows& result, bool other_is_result) const;

  // Pointers to lane `first` of a row (t, m), of which n lanes are wanted.
  const float* load(const Ref& o, int64_t t, int64_t m, int64_t first, int64_t n,
                    float* buffer) const;
  const float* load_a(int64_t t, int64_t m, int64_t n, float* buffer, float* permuted) const;
  math::Operand operand(const Ref& o, int64_t t, int64_t m, int64_t n, float* buffer) const;
  math::Operand combined(math::Operand a, int64_t t, int64_t m, int64_t n, float* out);
  void store(const float* value, int64_t t, int64_t m, int64_t n) const;
  float* target(int64_t t, int64_t m) const;
  void start_reduce();
  void reduce_row(const float* value, int64_t t, int64_t m, int64_t n);
  void join_tile(int64_t t);
  void finish_reduce();

  Machine& machine_;
  const isa::VpuMapNow& i_;
  const int64_t lanes_, begin_, end_;
  const bool permutes_;
  // The last stage leaves canonical NaN and no subnormals.
  const bool canonical_;
  float *buffer_a_, *buffer_p_, *buffer_b_, *buffer_c_, *buffer_d_, *buffer_out_, *totals_, *parts_;
  int64_t* best_ = nullptr;
};

}  // namespace tapeout::sim
