// Timing of high-bandwidth memory by runs, linked by the simulator and by the RTL test bench.
//
// A run is at most `interleave_bytes` within one pseudo-channel. `Hbm::access` takes runs in
// nondecreasing order of arrival and answers at once with the core cycle of completion: it reserves
// the banks, the activate window and the data bus of the run's pseudo-channel (busy-until times and
// a few remembered gaps of the bus), never walking bursts or cycles. Time is an integer number of
// ticks of 2^-20 core cycle, so results are exact and the same on every host. docs/hbm.md describes
// the model, its address mapping and its sources.
#pragma once

#include <cstdint>
#include <vector>

namespace tapeout {

// Fields of `tapeout.chip.HbmTiming`, same names and units.
struct HbmTimingParams {
  double rcd_ns, rp_ns, ras_ns, cl_ns, cwl_ns, wr_ns, rtp_ns, ccd_s_ns, ccd_l_ns, rrd_s_ns, rrd_l_ns,
      faw_ns, wtr_s_ns, wtr_l_ns, rtw_ns, refi_ns, rfc_pb_ns, rrefd_ns;
};

// Fields of `tapeout.chip.Hbm`, same names and units, and the core clock.
struct HbmParams {
  uint32_t stacks, pseudo_channels_per_stack;
  double pin_rate_gbps;
  uint32_t pins_per_pseudo_channel, burst_bytes, bank_groups, banks_per_group, row_bytes;
  double capacity_gib_per_stack;
  uint32_t interleave_bytes, bank_group_interleave;
  double controller_ns;
  double clock_ghz;
  HbmTimingParams timing;
};

class Hbm {
 public:
  // Of all runs since reset. A hit finds its row open, a conflict another one; the others find
  // their banks closed. Writes count when they are drained from the write buffer.
  struct Counters {
    uint64_t reads, writes, read_bytes, write_bytes, bursts;
    uint64_t row_hits, row_conflicts, activates, refreshes, turnarounds;
  };
  // Where an address lies. `set` names the `bank_group_interleave` banks a run uses together.
  struct Location {
    uint32_t pseudo_channel, set, row;
  };

  // Throws std::invalid_argument with the rule, the value and the way out.
  explicit Hbm(const HbmParams& params);

  void reset();

  // Core cycle at which the last data of a read is at the controller's output, or at which a write
  // is in the controller's write buffer (from where reads of any queue see it). Throws
  // std::logic_error for an arrival earlier than the last one, an empty run, one that crosses
  // `interleave_bytes` or one outside the memory.
  uint64_t access(uint64_t arrival_cycle, uint64_t address, uint32_t bytes, bool write) {
    // One compare finds an empty run and one that leaves its interleave unit.
    if (arrival_cycle < last_arrival_ ||
        bytes - 1 > run_mask_ - (static_cast<uint32_t>(address) & run_mask_)) [[unlikely]]
      reject(arrival_cycle, address, bytes);
    const Location at = locate_next(arrival_cycle, address, bytes);
    const uint32_t offset = static_cast<uint32_t>(address) & burst_mask_;
    const uint32_t bursts = ((offset + bytes - 1) >> burst_shift_) + 1;
    if (write) return buffer_write(at, bursts, bytes, (arrival_cycle << kTickBits) + kEpoch);
    ++counters_.reads;
    counters_.read_bytes += bytes;
    counters_.bursts += bursts;
    return to_cycle(read_at(at, costs_[bursts], arrival_cycle));
  }

  // The same for the read of one whole interleave unit, without its share of the counters: the
  // caller adds that for all of its units with `count_units`.
  [[gnu::always_inline]] uint64_t read_unit(uint64_t arrival_cycle, uint64_t address) {
    if (arrival_cycle < last_arrival_) [[unlikely]]
      reject(arrival_cycle, address, run_mask_ + 1);
    return to_cycle(read_at(locate_next(arrival_cycle, address, run_mask_ + 1), unit_,
                            arrival_cycle));
  }
  void count_units(uint64_t units) {
    counters_.reads += units;
    counters_.read_bytes += units << run_shift_;
    counters_.bursts += units * unit_.bursts;
  }

  Location locate(uint64_t address) const {
    const uint64_t run = address >> run_shift_;
    uint64_t upper, low;
    if (channels_power_of_two_) {
      upper = run >> channel_shift_;
      low = (run ^ channel_hash(upper)) & channel_mask_;
    } else {
      upper = run / channel_count_;
      low = (run + channel_hash(upper)) % channel_count_;
    }
    const uint64_t page = upper >> page_shift_;
    const uint64_t row = page >> set_shift_;
    return {static_cast<uint32_t>(low), static_cast<uint32_t>((page ^ set_hash(row)) & set_mask_),
            static_cast<uint32_t>(row)};
  }

  // Runs accepted into write buffers and not yet drained stay uncounted in `writes`.
  const Counters& counters() const { return counters_; }
  uint64_t peak_bytes_per_kilocycle() const { return peak_bytes_per_kilocycle_; }
  uint32_t interleave_bytes() const { return 1u << run_shift_; }
  uint32_t pseudo_channels() const { return channel_count_; }

 private:
  using Tick = uint64_t;
  static constexpr int kTickBits = 20;
  static constexpr Tick kEpoch = Tick{1} << 40;  // cycle 0: an empty history lies far before it
  static constexpr uint32_t kClosed = ~0u;
  static constexpr int kGaps = 16;          // idle stretches of the bus remembered per channel
  static constexpr uint32_t kPostpone = 8;  // refreshes a bank may owe before it must stop
  static constexpr uint32_t kWriteEntries = 64;
  static constexpr uint32_t kWriteBursts = 128;  // size of a channel's write buffer
  static constexpr uint32_t kDrainBursts = 96;   // filled so far, the buffer is drained
  static constexpr uint32_t kDrainEntries = 48;
  static constexpr uint32_t kKeepPart = 4;  // a batch may leave a quarter for the next one

  struct Span {
    Tick start, end;
  };
  struct Bank {
    uint32_t row = kClosed;
    uint32_t previous_row = kClosed;
    Tick column_ready = 0;   // first column command of the open row
    Tick ready = 0;          // first precharge of the open row, or first activate when closed
    Tick previous_until = 0;  // when the row before was closed
    Tick refresh_due = 0;
  };
  struct Write {
    Tick accepted;
    Location at;
    uint32_t bursts, bytes;
  };
  struct Release {
    Tick time;
    uint32_t bursts;
  };
  // A channel's write buffer: runs that wait, then runs under way to the banks.
  struct WriteBuffer {
    Tick drained = 0;  // end of the last batch, had no read been in its way
    uint32_t held_bursts = 0, pending_count = 0, release_head = 0, release_count = 0;
    Write pending[kWriteEntries];
    Release releases[kWriteEntries];
  };
  struct alignas(64) Channel {
    Tick bus_free = kEpoch;  // end of the last data on the bus
    Tick gap_limit = 0;  // no gap ends later
    Tick activate_free = 0;
    Tick last_read = 0;  // its arrival
    Tick turned = 0;     // last change of direction: rows are opened for one direction at a time
    uint32_t pending_bursts = 0;
    uint32_t last_set = 0;        // of the last run on the bus
    uint32_t last_activated = 0;  // its set
    uint32_t gap_next = 0;
    bool writing = false;
  };
  struct Gaps {
    Span at[kGaps] = {};
  };
  // What a run of some number of bursts takes.
  struct Cost {
    Tick length;    // on the bus
    Tick activate;  // of the rate of activates
    Tick spread;    // from the first bank's activate to the last bank's
    Tick open;      // from the last activate to the first column command
    uint32_t bursts, banks;
  };

  // The core cycle by which what ends at `t` has passed the controller.
  uint64_t to_cycle(Tick t) const { return (t + to_cycle_) >> kTickBits; }

  uint64_t channel_hash(uint64_t u) const {
    const uint64_t x = u ^ (u >> 3) ^ (u >> 7) ^ (u >> 12) ^ (u >> 17);
    return x ^ (x << 1) ^ (x << 3);
  }
  uint64_t set_hash(uint64_t row) const {
    const uint64_t x = row ^ (row >> 3) ^ (row >> 6) ^ (row >> 9) ^ (row >> 12) ^ (row >> 15);
    return x ^ (x << 1);
  }

  Bank& bank_of(const Location& at) {
    return banks_[uint64_t{at.set} * channel_count_ + at.pseudo_channel];
  }

  // Where the run that arrives lies; most lie in the stripe of the run before.
  [[gnu::always_inline]] Location locate_next(uint64_t arrival_cycle, uint64_t address,
                                              uint32_t bytes) {
    const uint64_t run = address >> run_shift_;
    if (run >> channel_shift_ != stripe_) [[unlikely]]
      enter_stripe(arrival_cycle, address, bytes);
    last_arrival_ = arrival_cycle;
    if (!channels_power_of_two_) [[unlikely]]
      return locate(address);
    return {static_cast<uint32_t>((run ^ stripe_hash_) & channel_mask_), stripe_set_, stripe_row_};
  }

  // Remembers where a stripe (one run in each pseudo-channel) lies, for the runs that follow.
  void enter_stripe(uint64_t arrival_cycle, uint64_t address, uint32_t bytes) {
    if (address >= capacity_bytes_) [[unlikely]]
      reject(arrival_cycle, address, bytes);
    stripe_ = address >> (run_shift_ + channel_shift_);
    stripe_hash_ = channel_hash(stripe_);
    const Location at = locate(address);
    stripe_set_ = at.set;
    stripe_row_ = at.row;
  }

  [[gnu::always_inline]] Tick read_at(const Location& at, const Cost& cost,
                                      uint64_t arrival_cycle) {
    const Tick t = (arrival_cycle << kTickBits) + kEpoch;
    Channel& channel = channels_[at.pseudo_channel];
    if (channel.pending_bursts != 0 && t > idle_from(channel)) [[unlikely]]
      drain_idle(at.pseudo_channel, t);
    channel.last_read = t;
    return place<false>(channel, at, cost, t);
  }

  // Before this an idle channel does not turn to its writes.
  Tick idle_from(const Channel& channel) const {
    return channel.bus_free + (channel.writing ? 0 : idle_after_read_);
  }

  // Reserves banks, activates and bus for one run known from `t` on: the tick after its last data.
  template <bool kWrite>
  [[gnu::always_inline]] Tick place(Channel& channel, const Location& at, const Cost& cost,
                                    Tick t) {
    Bank& bank = bank_of(at);
    if (channel.writing != kWrite) [[unlikely]]
      turn(channel, kWrite, at.set);
    if (channel.turned > t) t = channel.turned;
    if (t >= bank.refresh_due) [[unlikely]]
      refresh(bank, t);
    if (bank.row == at.row) {
      ++counters_.row_hits;
      if (bank.column_ready > t) t = bank.column_ready;
    } else if (bank.previous_row == at.row && t < bank.previous_until) [[unlikely]] {
      return hit_before<kWrite>(channel, bank, at.set, cost, t);
    } else {
      // Activates are granted in order of arrival at the rate of rrd and faw; a run whose banks
      // are busy for longer keeps nobody waiting.
      Tick granted = channel.activate_free > t ? channel.activate_free : t;
      channel.activate_free = granted + cost.activate;
      granted += (at.set ^ channel.last_activated) & group_set_mask_ ? 0 : rrd_more_;
      channel.last_activated = at.set;
      if (bank.ready > t) t = bank.ready;
      bank.previous_until = t;
      bank.previous_row = bank.row;
      if (bank.row != kClosed) [[likely]] {
        ++counters_.row_conflicts;
        t += rp_;
      }
      if (granted > t) t = granted;
      t += cost.spread;  // the last bank's activate
      counters_.activates += cost.banks;
      bank.row = at.row;
      bank.ready = t + ras_;
      t += cost.open;  // the others' bursts go ahead
      bank.column_ready = t;
    }
    const Tick end = transfer(channel, at.set, cost, t + (kWrite ? cwl_ : cl_));
    const Tick free = kWrite ? end + wr_ : end - read_to_precharge_;
    if (free > bank.ready) bank.ready = free;
    return end;
  }

  // First-ready: the row before is still open when this run comes, so its hit goes first and the
  // row that follows is used later.
  template <bool kWrite>
  [[gnu::noinline]] Tick hit_before(Channel& channel, Bank& bank, uint32_t set, const Cost& cost,
                                    Tick t) {
    ++counters_.row_hits;
    bank.column_ready += cost.length;
    bank.ready += cost.length;
    return transfer(channel, set, cost, t + (kWrite ? cwl_ : cl_));
  }

  [[gnu::always_inline]] Tick transfer(Channel& channel, uint32_t set, const Cost& cost,
                                       Tick ready) {
    channel.last_set = set;
    if (ready < channel.bus_free) {
      if (ready < channel.gap_limit) [[unlikely]]
        return fill_gaps(channel, cost.bursts, ready);
      return channel.bus_free += cost.length;
    }
    if (ready >= channel.bus_free + burst_) {
      gaps_of(channel)[channel.gap_next % kGaps] = {channel.bus_free, ready};
      ++channel.gap_next;
      channel.gap_limit = ready;
    }
    return channel.bus_free = ready + cost.length;
  }

  Span* gaps_of(const Channel& channel) {
    return gaps_[static_cast<uint64_t>(&channel - channels_.data())].at;
  }

  Tick fill_gaps(Channel& channel, uint32_t bursts, Tick ready);
  void turn(Channel& channel, bool write, uint32_t set);
  void refresh(Bank& bank, Tick t);
  uint64_t buffer_write(const Location& at, uint32_t bursts, uint32_t bytes, Tick t);
  void drain_idle(uint32_t pseudo_channel, Tick t);
  void drain_all(uint32_t pseudo_channel, Tick t);
  void drain_one(uint32_t pseudo_channel, const Write& write, Tick t);
  [[noreturn]] void reject(uint64_t arrival_cycle, uint64_t address, uint32_t bytes) const;

  std::vector<Channel> channels_;
  std::vector<Gaps> gaps_;   // by channel
  std::vector<Cost> costs_;  // by bursts
  Cost unit_{};              // of a whole interleave unit
  std::vector<Bank> banks_;  // set major, then pseudo-channel: a stripe's lie together
  std::vector<WriteBuffer> buffers_;
  uint64_t capacity_bytes_ = 0, last_arrival_ = 0, channel_mask_ = 0, set_mask_ = 0;
  uint64_t stripe_ = ~uint64_t{0}, stripe_hash_ = 0;
  uint32_t stripe_set_ = 0, stripe_row_ = 0;
  uint32_t run_mask_ = 0, burst_mask_ = 0, channel_count_ = 0, sets_ = 0;
  uint32_t group_interleave_ = 1, group_set_mask_ = 0;
  uint32_t write_bursts_ = 0, drain_bursts_ = 0;
  int run_shift_ = 0, burst_shift_ = 0, channel_shift_ = 0, page_shift_ = 0, set_shift_ = 0;
  bool channels_power_of_two_ = true;
  Tick rcd_ = 0, rp_ = 0, ras_ = 0, cl_ = 0, cwl_ = 0, wr_ = 0, rrd_s_ = 0, rrd_more_ = 0;
  Tick wtr_s_ = 0, wtr_l_ = 0, read_to_write_ = 0, refi_ = 0, refresh_ = 0;
  Tick refresh_next_ = 0, burst_ = 0;
  Tick activate_ = 0, read_to_precharge_ = 0, idle_ = 0, idle_after_read_ = 0, to_cycle_ = 0;
  uint64_t peak_bytes_per_kilocycle_ = 0;
  Counters counters_{};
};

}  // namespace tapeout
