// Matrix unit: stationary tiles, passes, one-hot unloads.
#include "machine.hpp"

namespace tapeout::sim {

using isa::Fault;

void Machine::exec_load(const isa::MxuLoadNow& i) {
  if (i.k < 1 || i.k > chip_.mxu.rows || i.n < 1 || i.n > chip_.mxu.cols || i.stride < 1)
    stop(Fault::ILLEGAL_OPERAND,
         "mxu.load takes 1 <= k <= " + std::to_string(chip_.mxu.rows) + ", 1 <= n <= " +
             std::to_string(chip_.mxu.cols) + " and stride >= 1, not k = " + std::to_string(i.k) +
             ", n = " + std::to_string(i.n) + ", stride = " + std::to_string(i.stride));
  const int64_t banks = chip_.spm.banks_per_stripe;
  if (!i.transposed && (i.stride != 1 || i.src % banks != 0))
    stop(Fault::ILLEGAL_OPERAND,
         "a straight mxu.load takes consecutive rows from a multiple of " + std::to_string(banks) +
             " (spm.banks_per_stripe) on, not stride = " + std::to_string(i.stride) +
             ", src = " + std::to_string(i.src));
  const int64_t count = i.transposed ? i.n : i.k, lanes = i.transposed ? i.k : i.n;
  require_rows(Space::spm, i.src, i.src + (count - 1) * i.stride);
  if (checks_)
    checker_.read(Space::spm, {i.src, count, i.stride}, LaneMask::range(0, lanes),
                  i.transposed ? Port::transposed : Port::load);
  traffic_.spm_read += uint64_t(count * lanes) * 2;
  Tile& tile = tiles_[active_ ^ 1];
  tile.loaded = true;
  tile.k = i.k;
  tile.n = i.n;
  if (!functional_) return;
  int64_t step_bytes = 0;
  if (i.stride == 1)
    if (const uint16_t* first = spm_.spaced(i.src, count, lanes, &step_bytes)) {
      tile.weights.set_spaced(first, step_bytes, int(i.k), int(i.n), i.transposed != 0);
      return;
    }
  const uint16_t* rows[math::kMaxTile];
  if (i.stride == 1 && spm_.views(i.src, count, rows)) {
    tile.weights.set(rows, int(i.k), int(i.n), i.transposed != 0);
    return;
  }
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = i.src + r * i.stride;
    rows[r] = spm_.row(row);
    if (spm_.is_view(row)) continue;
    // spm may change between the load and the passes; views never do.
    tile.copy.resize(size_t(math::kMaxTile * math::kMaxTile));
    uint16_t* mine = tile.copy.data() + r * lanes_;
    std::memcpy(mine, rows[r], size_t(lanes) * 2);
    rows[r] = mine;
  }
  tile.weights.set(rows, int(i.k), int(i.n), i.transposed != 0);
}

void Machine::swap_tiles() {
  if (!tiles_[active_ ^ 1].loaded) return;
  tiles_[active_].loaded = false;
  active_ ^= 1;
  tiles_[active_].loaded = false;  // as a shadow; k > 0 tells that there are weights
}

void Machine::exec_matmul(const isa::MxuMatmulNow& i, bool first_iteration) {
  swap_tiles();
  Tile& tile = tiles_[active_];
  constexpr int64_t kCountMax = 65535;
  const int64_t total = i.rows <= kCountMax ? i.outer * i.rows : kCountMax + 1;
  if (i.rows < 1 || i.outer < 1 || total > kCountMax || tile.k == 0)
    stop(Fault::ILLEGAL_OPERAND,
         "mxu.matmul takes 1 to " + std::to_string(kCountMax) +
             " rows after an mxu.load, not outer x rows = " + std::to_string(i.outer) + " x " +
             std::to_string(i.rows) + (tile.k != 0 ? "" : " with no weights loaded"));
  require_rows(Space::spm, i.src,
               i.src + (i.outer - 1) * i.outer_stride + (i.rows - 1) * i.stride);
  require_rows(Space::acc, i.dst, i.dst + total - 1);
  const auto how = isa::Accumulate(i.accumulate);
  const bool add = how == isa::Accumulate::ADD ||
                   (how == isa::Accumulate::ADD_NOT_FIRST && !first_iteration);
  if (checks_) {
    const LaneMask k = LaneMask::range(0, tile.k), n = LaneMask::range(0, tile.n);
    for (int64_t o = 0; o < i.outer; ++o)
      checker_.read(Space::spm, {i.src + o * i.outer_stride, i.rows, i.stride}, k, Port::stream);
    if (add)
      checker_.accumulate(Space::acc, {i.dst, total, 1}, n);
    else
      checker_.write(Space::acc, {i.dst, total, 1}, n);
  }
  traffic_.macs += uint64_t(tile.k * tile.n * total);
  traffic_.spm_read += uint64_t(total * tile.k) * 2;
  traffic_.acc_write += uint64_t(total * tile.n) * 4;
  if (add) traffic_.acc_read += uint64_t(total * tile.n) * 4;
  if (!functional_) return;
  float* acc = acc_.data() + i.dst * lanes_;
  moving_.resize(size_t(total));
  for (int64_t o = 0, m = 0; o < i.outer; ++o)
    for (int64_t r = 0; r < i.rows; ++r, ++m)
      moving_[size_t(m)] = spm_.row(i.src + o * i.outer_stride + r * i.stride);
  math::matmul(tile.weights, moving_.data(), int(total), acc, size_t(lanes_), add);
}

void Machine::exec_unload(const isa::MxuUnloadNow& i) {
  swap_tiles();
  Tile& tile = tiles_[active_];
  if (tile.k == 0)
    stop(Fault::ILLEGAL_OPERAND,
         "mxu.unload needs an mxu.load before it: no weights loaded");
  require_rows(Space::acc, i.dst, i.dst + tile.k - 1);
  if (checks_)
    checker_.write(Space::acc, {i.dst, tile.k, 1}, LaneMask::range(0, tile.n));
  traffic_.acc_write += uint64_t(tile.k * tile.n) * 4;
  if (!functional_) return;
  const uint16_t* const* rows = tile.weights.rows();
  for (int64_t k = 0; k < tile.k; ++k)
    for (int64_t n = 0; n < tile.n; ++n) {
      uint32_t bits = uint32_t(tile.weights.is_transposed() ? rows[n][k] : rows[k][n]) << 16;
      if ((bits & 0x7F800000u) == 0) bits &= 0x80000000u;
      if ((bits & 0x7FFFFFFFu) > 0x7F800000u) bits = 0x7FC00000u;
      std::memcpy(acc_.data() + (i.dst + k) * lanes_ + n, &bits, 4);
    }
}

}  // namespace tapeout::sim
