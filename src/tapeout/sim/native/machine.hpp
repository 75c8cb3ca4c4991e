// One core with its HBM: loads programs and runs them, functionally and in cycles.
//
// A run is event-driven. Each sequencer issues instructions, ahead of all others, until it needs a
// cycle number nobody knows yet (a token not posted, a line, a transfer); then the earliest memory
// request of all is presented to the HBM model, in order of (arrival cycle, requester), and what it
// completes lets sequencers go on. Cycle numbers travel with tokens and requests, so the result
// does not depend on the order in which sequencers are visited.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checker.hpp"
#include "hbm.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "program.hpp"
#include "queue.hpp"
#include "trace.hpp"

namespace tapeout::sim {

struct Traffic {
  uint64_t spm_read = 0, spm_write = 0, vmem_read = 0, vmem_write = 0, acc_read = 0, acc_write = 0;
  uint64_t macs = 0;
};

struct RunReport {
  uint64_t cycles = 0, instructions = 0;
  std::vector<QueueCounters> queues;
  Traffic traffic;
  Hbm::Counters hbm{};
  uint64_t hbm_read_bytes = 0, hbm_write_bytes = 0;  // of DMA and seq.load
  uint64_t fetch_bytes = 0;
  std::optional<ProgramFault> error;
};

class Machine {
 public:
  Machine(const isa::ChipParams& chip, const HbmParams& hbm, std::vector<std::string> names,
          uint64_t hbm_bytes, bool checks);

  HostMemory& host() { return host_; }
  // The host changed bytes [first, end) of HBM.
  void touched(uint64_t first, uint64_t end) {
    if (!dequantised_.holds(first, end)) return;
    spm_.own_all();
    dequantised_.drop(first, end);
  }

  // Streams as 64-byte words by queue number; `code` are their HBM addresses.
  std::unique_ptr<LoadedProgram> load(const std::vector<std::string>& words,
                                      const std::vector<uint64_t>& code,
                                      const std::vector<std::pair<int, Base>>& bases) const;
  // Stops with ErrorKind::limit where the program takes more cycles than `limit`.
  RunReport run(const LoadedProgram& program, bool functional, Trace* trace, uint64_t limit);

  const isa::ChipParams& chip() const { return chip_; }
  int queue_count() const { return queue_count_; }
  int64_t rows(Space space) const { return checker_.rows(space); }
  Scratchpad& spm() { return spm_; }
  const float* vmem() const { return vmem_.data(); }
  const float* acc() const { return acc_.data(); }
  const Checker& checker() const { return checker_; }
  bool checks() const { return checks_; }

 private:
  // --- run loop (machine.cpp)
  void start(const LoadedProgram& program, uint64_t limit);
  bool loop();  // false where something is left to do behind the horizon
  void fail(Queue& q, ProgramFault fault, uint64_t cycle);
  ProgramFault deadlock() const;
  std::optional<ProgramFault> leftover() const;
  std::string channel_name(const Channel& c) const;

  // --- sequencer (sequencer.cpp)
  void advance(Queue& q);  // issues until blocked
  bool read(Queue& q);
  bool step(Queue& q);
  bool issue(Queue& q, const isa::Instr& ins, uint64_t t, uint32_t posts);
  void next_pc(Queue& q, int64_t to, uint64_t cycle);
  bool holds(const Queue& q, isa::When when) const;
  uint64_t stream_port(const Queue& q, const isa::Instr& ins) const;
  void start_pass(Queue& q, uint64_t t, int64_t occupancy, int64_t rows, int64_t dst);
  void retire(Queue& q, uint64_t earliest, uint32_t posts, uint32_t event);
  void retire_known(Queue& q, uint64_t earliest, uint32_t posts, bool takes_place,
                    const uint64_t* clock, uint32_t event);
  void check_posts(Queue& q, uint32_t posts);
  void deliver(Queue& q, uint32_t posts, uint64_t retire, const uint64_t* clock, uint32_t event);
  void enter_loop(Queue& q, const isa::SeqLoopNow& i, int64_t& following);
  void start_value(Queue& q, const isa::SeqLoadNow& i, uint64_t t, uint32_t posts);
  [[noreturn]] void illegal(const Queue& q) const;

  // --- fetch (fetch.cpp)
  void start_fetch(Queue& q);
  int64_t line_of(int64_t pc) const {  // a stream has fewer than 2^32 instructions
    return uint32_t(pc) / uint32_t(line_instructions_);
  }
  // From when on the instruction at the pc may issue.
  uint64_t word_ready(const Queue& q) const {
    return q.fetch.ready[size_t(uint32_t(q.pc) % uint32_t(fetch_lines_ * line_instructions_))];
  }
  void move_window(Queue& q, uint64_t cycle);
  void request_lines(Queue& q, uint64_t cycle);
  uint64_t fetch_arrival(const Queue& q) const;
  void fetch_run(Queue& q);

  // --- memory requests (requests.cpp)
  void data_runs(Queue& q, uint64_t bound);
  void full_loads(Queue& q, uint64_t bound);
  bool next_run(Queue& q);
  bool next_segment(Generator& g);
  void start_transfer(Queue& q, uint64_t t, uint32_t posts, uint32_t event);
  void finish_transfer(Queue& q);
  void value_run(Queue& q);

  // --- execution (exec_*.cpp); each throws ProgramFault
  void exec_load(const isa::MxuLoadNow& i);
  void exec_matmul(const isa::MxuMatmulNow& i, bool first_iteration);
  void exec_unload(const isa::MxuUnloadNow& i);
  void exec_map(const isa::VpuMapNow& i);
  void exec_transfer(Queue& q, const isa::Instr& ins);
  void swap_tiles();
  template <class Now>
  void keep_indices(const Now& i) const;
  template <class Now>
  void transfer(Queue& q, const Now& i, bool store);
  template <class Now, class Address>
  void fill_rows(const Now& i, int64_t row, const Address& address);
  template <class Now, class Address>
  void fill_narrow(const Now& i, math::Format format, int group, int64_t row,
                   const Address& address);
  template <class Now, class Address>
  void drain_rows(const Now& i, int64_t row, const Address& address);
  const Base& base_of(int base) const;
  void require_rows(Space space, int64_t low, int64_t high) const;

  friend class MapExecution;

  // --- the machine
  const isa::ChipParams chip_;
  const int queue_count_;
  const int64_t lanes_;
  const std::vector<std::string> names_;
  const bool checks_;
  HostMemory host_;
  Hbm hbm_;
  Scratchpad spm_;
  ZeroArray<float> vmem_, acc_;
  DequantCache dequantised_;
  Checker checker_;
  uint64_t credits_, request_cycles_, response_cycles_, interleave_bytes_;
  int64_t line_instructions_, fetch_lines_;
  uint64_t retire_entries_;
  uint32_t channel_mask_ = 0;

  // --- the run
  const LoadedProgram* program_ = nullptr;
  bool functional_ = true;
  Trace* trace_ = nullptr;
  std::vector<Queue> queues_;
  std::vector<Channel> channels_;
  std::vector<int> incoming_, outgoing_;  // channel by queue * 24 + bit
  std::vector<uint64_t> keys_;            // by requester: arrival << 7 | id, or kUnknown
  uint64_t others_min_ = kUnknown;        // least key of values and lines
  bool others_changed_ = true;
  uint32_t runnable_ = 0;
  uint64_t horizon_ = 0;  // nothing issues later: the limit, or the cycle of the earliest error
  std::optional<ProgramFault> error_;
  RunReport report_;
  Traffic traffic_;
  std::vector<uint8_t> viewable_;  // by base: read-only and shared with no writable base

  // mxu
  struct Tile {
    math::Stationary weights;
    std::vector<uint16_t> copy;  // of rows that are no views
    int64_t k = 0, n = 0;
    bool loaded = false;
  };
  Tile tiles_[2];
  int active_ = 0;  // the other tile is the shadow
  uint64_t load_free_ = 0, load_done_ = 0, stream_free_ = 0, after_stream_ = 0, vpu_free_ = 0;
  uint64_t settled_ = 0;  // a sum of the last pass's last row may be read
  int64_t last_dst_ = 0;  // of the last pass

  // scratch of executions
  std::vector<float> scratch_, totals_, parts_;
  std::vector<int64_t> best_index_;
  std::vector<uint8_t> marks_;
  std::vector<const uint16_t*> moving_;
  std::vector<int64_t> offsets_;
};

}  // namespace tapeout::sim
