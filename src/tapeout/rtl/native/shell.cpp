// The bench around a verilated shell: AXI4 memory that answers when it likes, in any order that AXI
// allows, and the host's AXI4-Lite accesses. It checks the rules of the protocol as it goes.
// `ports.inc` is written for that shell by tapeout.rtl.shell.target.
#include <cstdint>
#include <cstring>
#include <deque>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "Vtapeout_top.h"
#include "context.hpp"
#include "macros.hpp"
#include "verilated.h"

namespace {

struct Port {  // of one queue; the last of each kind are null where the queue has no writes
  CData *arvalid, *arready, *arid, *arlen, *arsize, *arburst, *rvalid, *rready, *rid, *rresp, *rlast;
  QData* araddr;
  WData* rdata;
  CData *awvalid = nullptr, *awready, *awid, *awlen, *awsize, *awburst, *wvalid, *wready, *wlast,
        *bvalid, *bready, *bid, *bresp;
  QData* awaddr;
  WData* wdata;
};

// kQueues, kBeatBytes, bind(), strobe(), kMacros
#include "ports.inc"

constexpr int kIds = 4, kPageBytes = 4096, kIncrement = 1, kOkay = 0, kSlaveError = 2;

void require(bool condition, const char* rule) {
  if (!condition) throw std::logic_error(rule);
}

struct Burst {
  uint64_t address;
  int id, beats, beat_bytes, done = 0;
};

struct Beat {
  std::vector<uint8_t> data;
  std::vector<bool> strobes;
  bool last;
};

struct Memory {  // behind one port
  std::deque<Burst> reads[kIds], writes;
  std::deque<Beat> beats;
  std::deque<int> answers;  // of writes that are done
  // What was offered and not taken must stay.
  std::vector<uint64_t> held_ar, held_aw;
  std::vector<uint8_t> held_w;
};

class Bench {
 public:
  std::string wrong;

  Bench() : top_(&context_) { bind(top_, ports_); }
  ~Bench() { Verilated::threadContextp(&context_); }
  Bench(const Bench&) = delete;

  // Resets the shell; `ready` of 256: how often memory is ready. Reads and writes of addresses from
  // `bad` on are answered with an error.
  void attach(uint8_t* memory, uint64_t bytes, uint64_t bad, int ready, uint32_t seed) {
    memory_ = memory, bytes_ = bytes, bad_ = bad, ready_ = ready;
    random_.seed(seed);
    for (Memory& m : memories_) m = {};
    top_.rst = 1;
    step();
    step();
    top_.rst = 0;
  }

  int write(uint32_t address, uint32_t value, int strobes) {
    top_.s_axil_awvalid = top_.s_axil_wvalid = 1;
    top_.s_axil_awaddr = address, top_.s_axil_wdata = value, top_.s_axil_wstrb = strobes;
    top_.s_axil_bready = 1;
    for (int k = 0; k < 100; ++k) {
      top_.eval();
      const bool takes_address = top_.s_axil_awvalid && top_.s_axil_awready;
      const bool takes_data = top_.s_axil_wvalid && top_.s_axil_wready;
      const bool answers = top_.s_axil_bvalid;
      const int answer = top_.s_axil_bresp;
      step();
      if (takes_address) top_.s_axil_awvalid = 0;
      if (takes_data) top_.s_axil_wvalid = 0;
      if (answers) {
        top_.s_axil_bready = 0;
        return answer;
      }
    }
    throw std::logic_error("a register write is never answered");
  }

  int read(uint32_t address, uint32_t* value) {
    top_.s_axil_arvalid = top_.s_axil_rready = 1;
    top_.s_axil_araddr = address;
    for (int k = 0; k < 100; ++k) {
      top_.eval();
      const bool takes = top_.s_axil_arvalid && top_.s_axil_arready;
      const bool answers = top_.s_axil_rvalid;
      const int answer = top_.s_axil_rresp;
      *value = top_.s_axil_rdata;
      step();
      if (takes) top_.s_axil_arvalid = 0;
      if (answers) {
        top_.s_axil_rready = 0;
        return answer;
      }
    }
    throw std::logic_error("a register read is never answered");
  }

  bool wait(uint64_t limit) {
    for (uint64_t t = 0; t < limit; ++t) {
      if (top_.irq) return true;
      step();
    }
    return false;
  }

  void copy(int memory, uint8_t* data, bool write) {
    copy_macros(context_, kMacros, memory, data, write);
  }

 private:
  bool chance() { return int(random_() & 255) < ready_; }

  void step() {
    for (int q = 0; q < kQueues; ++q) offer(ports_[q], memories_[q]);
    top_.eval();
    for (int q = 0; q < kQueues; ++q) take(ports_[q], memories_[q]);
    top_.clk = 1;
    top_.eval();
    top_.clk = 0;
    top_.eval();
    for (int q = 0; q < kQueues; ++q) {  // answers that were taken leave
      if (r_taken_[q]) *ports_[q].rvalid = 0;
      if (b_taken_[q]) *ports_[q].bvalid = 0;
    }
  }

  // Memory's side of a port, for this cycle. What it offered stays until it is taken.
  void offer(Port& p, Memory& m) {
    *p.arready = chance();
    if (!*p.rvalid && chance()) {
      std::vector<int> ids;
      for (int id = 0; id < kIds; ++id)
        if (!m.reads[id].empty()) ids.push_back(id);
      if (!ids.empty()) answer(p, m.reads[ids[random_() % ids.size()]]);
    }
    if (p.awvalid == nullptr) return;
    *p.awready = chance();
    *p.wready = chance();
    if (!m.writes.empty() && chance()) store(m);
    if (!*p.bvalid && !m.answers.empty() && chance()) {
      *p.bvalid = 1, *p.bid = 0, *p.bresp = m.answers.front();
      m.answers.pop_front();
    }
  }

  void answer(Port& p, std::deque<Burst>& bursts) {
    Burst& b = bursts.front();
    const uint64_t address = b.address + uint64_t(b.done) * b.beat_bytes;
    auto* const to = reinterpret_cast<uint8_t*>(p.rdata);
    for (int k = 0; k < kBeatBytes; ++k) to[k] = uint8_t(random_());  // lanes outside the beat
    std::memcpy(to + address % kBeatBytes, memory_ + address, b.beat_bytes);
    ++b.done;
    *p.rvalid = 1, *p.rid = b.id, *p.rlast = b.done == b.beats;
    *p.rresp = address >= bad_ ? kSlaveError : kOkay;
    if (*p.rlast) bursts.pop_front();
  }

  void store(Memory& m) {
    const Burst b = m.writes.front();
    if (m.beats.size() < size_t(b.beats)) return;
    for (int k = 0; k < b.beats; ++k) {
      const Beat& beat = m.beats.front();
      require(beat.last == (k == b.beats - 1), "WLAST is not with the burst's last beat");
      for (int lane = 0; lane < kBeatBytes; ++lane)
        if (beat.strobes[lane]) memory_[b.address + k * kBeatBytes + lane] = beat.data[lane];
      m.beats.pop_front();
    }
    m.answers.push_back(b.address >= bad_ ? kSlaveError : kOkay);
    m.writes.pop_front();
  }

  Burst burst(uint64_t address, int id, int len, int size, int kind) const {
    const Burst b{address, id, len + 1, 1 << size};
    require(kind == kIncrement, "a burst is not INCR");
    require(b.beat_bytes <= kBeatBytes, "beats are wider than the port");
    require(address % b.beat_bytes == 0, "a burst is not aligned to its beats");
    const uint64_t last = address + uint64_t(b.beats) * b.beat_bytes - 1;
    require(address / kPageBytes == last / kPageBytes, "a burst crosses 4 KiB");
    require(last < bytes_, "a burst ends outside memory");
    return b;
  }

  static void stays(bool valid, bool ready, std::vector<uint64_t>& held,
                    std::vector<uint64_t> now, const char* rule) {
    require(held.empty() || (valid && held == now), rule);
    held = valid && !ready ? std::move(now) : std::vector<uint64_t>{};
  }

  // The shell's side of a port in this cycle.
  void take(Port& p, Memory& m) {
    const int q = int(&p - ports_);
    r_taken_[q] = b_taken_[q] = false;
    if (top_.rst) return;
    stays(*p.arvalid, *p.arready, m.held_ar, {*p.araddr, *p.arid, *p.arlen, *p.arsize, *p.arburst},
          "AR changes before it is taken");
    if (*p.arvalid && *p.arready)
      m.reads[*p.arid].push_back(burst(*p.araddr, *p.arid, *p.arlen, *p.arsize, *p.arburst));
    r_taken_[q] = *p.rvalid && *p.rready;
    if (p.awvalid == nullptr) return;
    stays(*p.awvalid, *p.awready, m.held_aw, {*p.awaddr, *p.awid, *p.awlen, *p.awsize, *p.awburst},
          "AW changes before it is taken");
    if (*p.awvalid && *p.awready)
      m.writes.push_back(burst(*p.awaddr, *p.awid, *p.awlen, *p.awsize, *p.awburst));
    take_beat(p, m, q);
    b_taken_[q] = *p.bvalid && *p.bready;
  }

  void take_beat(Port& p, Memory& m, int q) {
    const auto* const from = reinterpret_cast<const uint8_t*>(p.wdata);
    Beat beat{{from, from + kBeatBytes}, {}, *p.wlast != 0};
    for (int lane = 0; lane < kBeatBytes; ++lane) beat.strobes.push_back(strobe(top_, q, lane));
    std::vector<uint8_t> now = beat.data;
    now.insert(now.end(), beat.strobes.begin(), beat.strobes.end());
    now.push_back(beat.last);
    require(m.held_w.empty() || (*p.wvalid && m.held_w == now), "W changes before it is taken");
    m.held_w = *p.wvalid && !*p.wready ? now : std::vector<uint8_t>{};
    if (*p.wvalid && *p.wready) m.beats.push_back(std::move(beat));
  }

  uint8_t* memory_ = nullptr;
  uint64_t bytes_ = 0, bad_ = 0;
  int ready_ = 256;
  bool r_taken_[kQueues] = {}, b_taken_[kQueues] = {};
  std::mt19937 random_;
  Context context_;
  Vtapeout_top top_;
  Port ports_[kQueues];
  Memory memories_[kQueues];
};

template <class Call>
int guarded(Bench* bench, Call call) {
  try {
    return call();
  } catch (const std::logic_error& error) {
    bench->wrong = error.what();
    return -1;
  }
}

}  // namespace

// Every call gives -1 where a rule of the protocol was broken, which `shell_wrong` names.
extern "C" {
Bench* shell_create() { return new Bench; }
void shell_destroy(Bench* bench) { delete bench; }
int shell_attach(Bench* bench, uint8_t* memory, uint64_t bytes, uint64_t bad, int ready,
                 uint32_t seed) {
  return guarded(bench, [&] { return bench->attach(memory, bytes, bad, ready, seed), 0; });
}
int shell_write(Bench* bench, uint32_t address, uint32_t value, int strobes) {
  return guarded(bench, [&] { return bench->write(address, value, strobes); });
}
int shell_read(Bench* bench, uint32_t address, uint32_t* value) {
  return guarded(bench, [&] { return bench->read(address, value); });
}
int shell_wait(Bench* bench, uint64_t limit) {
  return guarded(bench, [&] { return int(bench->wait(limit)); });
}
const char* shell_wrong(const Bench* bench) { return bench->wrong.c_str(); }
void shell_copy(Bench* bench, int memory, uint8_t* data, int write) {
  bench->copy(memory, data, write != 0);
}
}
