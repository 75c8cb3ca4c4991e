// The seldom-taken parts of the HBM model: construction, write buffers, refresh, bus gaps.
#include "hbm.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>

namespace tapeout {

namespace {

void require(bool condition, const std::string& rule) {
  if (!condition) throw std::invalid_argument(rule);
}

int shift_of(uint32_t value, const char* name) {
  require(std::has_single_bit(value), std::string("hbm.") + name +
                                          " must be a power of two (addresses are cut by bits), not " +
                                          std::to_string(value));
  return std::countr_zero(value);
}

}  // namespace

Hbm::Hbm(const HbmParams& p) {
  require(p.clock_ghz > 0, "clock_ghz must be positive, not " + std::to_string(p.clock_ghz));
  require(p.pin_rate_gbps > 0 && p.pins_per_pseudo_channel > 0,
          "hbm.pin_rate_gbps and hbm.pins_per_pseudo_channel must be positive");
  channel_count_ = p.stacks * p.pseudo_channels_per_stack;
  require(channel_count_ > 0, "hbm.stacks and hbm.pseudo_channels_per_stack must be positive");
  run_shift_ = shift_of(p.interleave_bytes, "interleave_bytes");
  burst_shift_ = shift_of(p.burst_bytes, "burst_bytes");
  run_mask_ = p.interleave_bytes - 1;
  burst_mask_ = p.burst_bytes - 1;
  const int row_shift = shift_of(p.row_bytes, "row_bytes");
  const int group_shift = shift_of(p.bank_groups, "bank_groups");
  const int bank_shift = shift_of(p.banks_per_group, "banks_per_group");
  const int together_shift = shift_of(p.bank_group_interleave, "bank_group_interleave");
  require(together_shift <= group_shift, "hbm.bank_group_interleave cannot exceed hbm.bank_groups");
  require(run_shift_ <= row_shift + together_shift,
          "hbm.interleave_bytes = " + std::to_string(p.interleave_bytes) +
              " must not exceed hbm.row_bytes x hbm.bank_group_interleave = " +
              std::to_string(uint64_t{p.row_bytes} * p.bank_group_interleave) +
              ": a run opens one row in each of its banks. Lower interleave_bytes");
  require(run_shift_ >= burst_shift_ + together_shift,
          "hbm.interleave_bytes must hold a burst for each bank group of a run");

  channels_power_of_two_ = std::has_single_bit(channel_count_);
  channel_shift_ = std::bit_width(channel_count_) - 1;
  channel_mask_ = channel_count_ - 1;
  group_interleave_ = p.bank_group_interleave;
  set_shift_ = group_shift - together_shift + bank_shift;
  sets_ = 1u << set_shift_;
  set_mask_ = sets_ - 1;
  group_set_mask_ = (1u << (group_shift - together_shift)) - 1;
  page_shift_ = row_shift + together_shift - run_shift_;
  const uint64_t stripe = uint64_t{p.interleave_bytes} * channel_count_
                          << (channels_power_of_two_ ? 0 : channel_shift_);
  const double gib = static_cast<double>(p.stacks) * p.capacity_gib_per_stack;
  capacity_bytes_ = static_cast<uint64_t>(gib * 1073741824.0) / stripe * stripe;

  const auto ticks = [&](double ns) {
    return static_cast<Tick>(std::ceil(ns * p.clock_ghz * (1 << kTickBits) - 1e-6));
  };
  const HbmTimingParams& t = p.timing;
  rcd_ = ticks(t.rcd_ns);
  rp_ = ticks(t.rp_ns);
  ras_ = ticks(t.ras_ns);
  cl_ = ticks(t.cl_ns);
  cwl_ = ticks(t.cwl_ns);
  wr_ = ticks(t.wr_ns);
  rrd_s_ = ticks(t.rrd_s_ns);
  rrd_more_ = ticks(std::max(t.rrd_l_ns, t.rrd_s_ns)) - rrd_s_;
  // Four activates a window: the window is kept by its mean rate.
  activate_ = std::max(rrd_s_, (ticks(t.faw_ns) + 3) / 4);
  wtr_s_ = ticks(t.wtr_s_ns);
  wtr_l_ = ticks(t.wtr_l_ns);
  refi_ = ticks(t.refi_ns);
  to_cycle_ = ticks(p.controller_ns) + ((Tick{1} << kTickBits) - 1) - kEpoch;  // rounds up
  // Bursts of a run alternate over its bank groups: each group sees one in `bank_group_interleave`.
  const double pin_ns = p.burst_bytes * 8.0 / (p.pins_per_pseudo_channel * p.pin_rate_gbps);
  const double burst_ns = std::max({pin_ns, t.ccd_s_ns, t.ccd_l_ns / p.bank_group_interleave});
  burst_ = ticks(burst_ns);
  // Read commands to the bus: the last one leaves cl + one burst before the end of its data.
  const Tick last_read = cl_ + burst_;
  const Tick write_data = ticks(t.rtw_ns) + cwl_;  // after the last read command
  read_to_write_ = write_data > last_read ? write_data - last_read : 0;
  const Tick rtp = ticks(t.rtp_ns);
  require(rtp <= last_read, "hbm.timing.rtp_ns must not exceed cl_ns plus one burst");
  read_to_precharge_ = last_read - rtp;
  refresh_ = ticks(t.rfc_pb_ns);
  refresh_next_ = std::max<Tick>(1, ticks(t.rrefd_ns));
  require(refi_ > 2 * (refresh_ + rp_ + (group_interleave_ - 1) * refresh_next_),
          "hbm.timing.refi_ns must exceed twice the refresh of the " +
              std::to_string(group_interleave_) +
              " banks of a run (rfc_pb_ns, then rrefd_ns for each further bank) plus rp_ns");
  idle_ = ras_ + rp_;
  idle_after_read_ = idle_ - cl_ - burst_;
  const uint32_t run_bursts = p.interleave_bytes / p.burst_bytes;
  for (uint32_t bursts = 0; bursts <= run_bursts; ++bursts) {
    const uint32_t banks = std::clamp(bursts, 1u, group_interleave_);
    costs_.push_back({bursts * burst_, banks * activate_, (banks - 1) * rrd_s_,
                      rcd_ - (banks - 1) * burst_, bursts, banks});
  }
  unit_ = costs_.back();
  write_bursts_ = std::max(kWriteBursts, 2 * run_bursts);
  drain_bursts_ = std::max(kDrainBursts, run_bursts + run_bursts / 2);
  peak_bytes_per_kilocycle_ = static_cast<uint64_t>(
      channel_count_ * (p.pins_per_pseudo_channel * p.pin_rate_gbps / 8.0) * 1000.0 / p.clock_ghz);
  reset();
}

void Hbm::reset() {
  counters_ = {};
  last_arrival_ = 0;
  stripe_ = ~uint64_t{0};
  banks_.assign(size_t{channel_count_} * sets_, Bank{});
  channels_.assign(channel_count_, Channel{});
  gaps_.assign(channel_count_, Gaps{});
  buffers_.assign(channel_count_, WriteBuffer{});
  // Refreshes are spread over the sets of a channel. All channels refresh in step: queues take their
  // data in order, and one wait for all costs them less than one wait after the other.
  for (uint64_t i = 0; i < banks_.size(); ++i)
    banks_[i].refresh_due = kEpoch + refi_ * (i / channel_count_ + 1) / sets_;
}

void Hbm::reject(uint64_t arrival_cycle, uint64_t address, uint32_t bytes) const {
  if (arrival_cycle < last_arrival_)
    throw std::logic_error("hbm: a run arrives at cycle " + std::to_string(arrival_cycle) +
                           " after one of cycle " + std::to_string(last_arrival_) +
                           ": call in order of arrival");
  const std::string what =
      "hbm: the run of " + std::to_string(bytes) + " bytes at address " + std::to_string(address);
  if (bytes == 0) throw std::logic_error(what + " is empty: leave it out");
  if (address + bytes > capacity_bytes_ || address + bytes < address)
    throw std::logic_error(what + " ends beyond the memory of " + std::to_string(capacity_bytes_) +
                           " bytes");
  throw std::logic_error(what + " crosses a boundary of interleave_bytes = " +
                         std::to_string(interleave_bytes()) + ": cut it there");
}

Hbm::Tick Hbm::fill_gaps(Channel& channel, uint32_t bursts, Tick ready) {
  // Gaps lie in the ring about in order of time; what a run leaves before and after it stays free.
  Span* const gaps = gaps_of(channel);
  Tick end = ready;
  for (uint32_t i = 0; i < kGaps && bursts != 0; ++i) {
    Span& gap = gaps[(channel.gap_next + i) % kGaps];
    const Tick start = std::max(ready, gap.start);
    if (start + burst_ > gap.end) continue;
    const uint32_t used = static_cast<uint32_t>(std::min<Tick>(bursts, (gap.end - start) / burst_));
    const Span before = {gap.start, start};
    end = ready = start + used * burst_;
    bursts -= used;
    gap.start = end;
    if (before.end < before.start + burst_) continue;
    Span& shortest = *std::min_element(
        gaps, gaps + kGaps,
        [](const Span& a, const Span& b) { return a.end - a.start < b.end - b.start; });
    if (shortest.end - shortest.start < before.end - before.start) shortest = before;
  }
  if (bursts == 0) return end;
  return channel.bus_free += bursts * burst_;
}

void Hbm::turn(Channel& channel, bool write, uint32_t set) {
  channel.turned = channel.bus_free - burst_ - (write ? cl_ : cwl_);  // its last column command
  if (write)
    channel.bus_free += read_to_write_;
  else
    channel.bus_free +=
        cl_ + ((set ^ channel.last_set) & group_set_mask_ ? wtr_s_ : wtr_l_);
  channel.writing = write;
  channel.gap_limit = 0;
  std::fill_n(gaps_of(channel), kGaps, Span{});
  ++counters_.turnarounds;
}

void Hbm::refresh(Bank& bank, Tick t) {
  // Refreshes start when due and the banks are idle. While older runs keep the banks busy, and
  // when a run comes before the refresh itself, they are postponed, at most kPostpone of them.
  while (bank.refresh_due <= t) {
    const Tick start = std::max(bank.refresh_due, bank.ready) + (bank.row == kClosed ? 0 : rp_);
    if (start > t && t - bank.refresh_due < kPostpone * refi_) return;
    // The banks of the set follow each other; those not begun when the run comes wait for later.
    Tick last_begun = start;
    for (uint32_t i = 1; i < group_interleave_ && t >= last_begun + refresh_next_; ++i)
      last_begun += refresh_next_;
    bank.ready = last_begun + refresh_;
    bank.row = bank.previous_row = kClosed;
    uint64_t done = 1;
    if (t > start + 2 * refi_) done = (t - bank.refresh_due) / refi_;  // a long idle stretch
    bank.refresh_due += done * refi_;
    counters_.refreshes += done * group_interleave_;
  }
}

uint64_t Hbm::buffer_write(const Location& at, uint32_t bursts, uint32_t bytes, Tick t) {
  const uint32_t pc = at.pseudo_channel;
  Channel& channel = channels_[pc];
  WriteBuffer& buffer = buffers_[pc];
  if (channel.pending_bursts != 0) drain_idle(pc, t);
  const auto release = [&] {
    const Release& oldest = buffer.releases[buffer.release_head];
    buffer.held_bursts -= oldest.bursts;
    buffer.release_head = (buffer.release_head + 1) % kWriteEntries;
    --buffer.release_count;
    return oldest.time;
  };
  while (buffer.release_count != 0 && buffer.releases[buffer.release_head].time <= t) release();
  Tick accepted = t;
  while (buffer.held_bursts + bursts > write_bursts_ ||
         buffer.pending_count + buffer.release_count == kWriteEntries) {
    if (buffer.release_count == 0) drain_all(pc, accepted);
    accepted = std::max(accepted, release());
  }
  buffer.pending[buffer.pending_count++] = {accepted, at, bursts, bytes};
  channel.pending_bursts += bursts;
  buffer.held_bursts += bursts;
  // A full buffer starts a batch; while one is under way and reads are rare, writes join it.
  if (channel.pending_bursts >= drain_bursts_ || buffer.pending_count >= kDrainEntries ||
      (channel.writing && channel.bus_free > accepted && accepted > channel.last_read + 4 * idle_))
    drain_all(pc, accepted);
  return to_cycle(accepted);
}

void Hbm::drain_idle(uint32_t pseudo_channel, Tick t) {
  // A row cycle after its last read command the controller turns to its writes, one by one. A read
  // that comes before the write command goes first.
  const Channel& channel = channels_[pseudo_channel];
  WriteBuffer& buffer = buffers_[pseudo_channel];
  uint32_t drained = 0;
  for (; drained < buffer.pending_count; ++drained) {
    const Write& write = buffer.pending[drained];
    const Bank& bank = bank_of(write.at);
    const Tick start = std::max(idle_from(channel), write.accepted);
    const Tick open = bank.row == write.at.row ? 0 : rcd_ + (bank.row == kClosed ? 0 : rp_);
    if (start + open >= t) break;
    buffer.drained = std::max(buffer.drained, start + open + cwl_);
    drain_one(pseudo_channel, write, start);
  }
  if (drained == 0) return;
  std::copy(buffer.pending + drained, buffer.pending + buffer.pending_count, buffer.pending);
  buffer.pending_count -= drained;
}

void Hbm::drain_all(uint32_t pseudo_channel, Tick t) {
  // First-ready within the batch: runs of one row go together, and a second row of banks used
  // before waits for the next batch as long as little waits.
  WriteBuffer& buffer = buffers_[pseudo_channel];
  enum : uint8_t { kWaits, kDone, kKept };
  uint8_t state[kWriteEntries] = {};
  uint64_t used_sets = 0;
  uint32_t kept_bursts = 0, kept = 0;
  const uint32_t keep_bursts = channels_[pseudo_channel].pending_bursts / kKeepPart;
  // A batch goes before the reads that wait. Those have their answer already, so the batch is put
  // behind them on the bus, where later reads pay for it, but its places come free as if it went
  // at once.
  buffer.drained = std::max(buffer.drained, t + rp_ + rcd_ + cwl_);
  for (uint32_t i = 0; i < buffer.pending_count; ++i) {
    if (state[i] != kWaits) continue;
    const Location first = buffer.pending[i].at;
    const uint64_t bit = uint64_t{1} << (first.set % 64);
    const bool keep = (used_sets & bit) != 0 &&
                      kept_bursts + buffer.pending[i].bursts <= keep_bursts;
    used_sets |= bit;
    for (uint32_t j = i; j < buffer.pending_count; ++j) {
      const Write& write = buffer.pending[j];
      if (state[j] != kWaits || write.at.set != first.set || write.at.row != first.row) continue;
      state[j] = keep ? kKept : kDone;
      if (keep)
        kept_bursts += write.bursts;
      else
        drain_one(pseudo_channel, write, t);
    }
  }
  for (uint32_t i = 0; i < buffer.pending_count; ++i)
    if (state[i] == kKept) buffer.pending[kept++] = buffer.pending[i];
  buffer.pending_count = kept;
}

void Hbm::drain_one(uint32_t pseudo_channel, const Write& write, Tick t) {
  // Places of the buffer come free in order of time, which is not the order of the batch.
  WriteBuffer& buffer = buffers_[pseudo_channel];
  Tick end = place<true>(channels_[pseudo_channel], write.at, costs_[write.bursts], t);
  buffer.drained += write.bursts * burst_;
  if (channels_[pseudo_channel].last_read + 4 * idle_ > t) end = std::min(end, buffer.drained);
  const auto slot = [&](uint32_t i) -> Release& {
    return buffer.releases[(buffer.release_head + i) % kWriteEntries];
  };
  uint32_t i = buffer.release_count++;
  for (; i > 0 && slot(i - 1).time > end; --i) slot(i) = slot(i - 1);
  slot(i) = {end, write.bursts};
  channels_[pseudo_channel].pending_bursts -= write.bursts;
  ++counters_.writes;
  counters_.write_bytes += write.bytes;
  counters_.bursts += write.bursts;
}

}  // namespace tapeout
