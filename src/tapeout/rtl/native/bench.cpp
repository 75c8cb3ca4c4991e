// The bench around a verilated core: memory with the simulator's HBM model, and a record of what
// issued and retired. Compiled with the core it runs; `ports.inc` is written for that core by
// tapeout.rtl.build.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "Vcore.h"
#include "Vcore___024root.h"
#include "hbm.hpp"
#include "verilated.h"

namespace {

struct Port {  // of one queue; see tapeout.rtl.core
  QData *code_base, *request_address, *load_address;
  IData *count, *pc, *value, *retire_cycle;
  SData* request_words;
  CData *request, *comes, *load_request, *value_comes, *issues, *retires;
  WData* comes_word;
};

#include "ports.inc"  // kQueues, kRequestCycles, kResponseCycles, hbm_params(), bind(), visit_rams()

constexpr uint64_t kWordBytes = 64;

struct Event {
  int32_t queue, pc;
  uint64_t issue, retire;
};

struct Base {
  uint64_t address, bytes, is_writable, is_given;
};

struct Word {
  uint64_t cycle, address;  // presented in this cycle
};

struct Requests {  // of one queue
  std::deque<Word> words;
  uint64_t last_return = 0;
  uint64_t value_cycle = 0, value_address = 0;
  bool waits_for_value = false;
};

void put(WData* to, int bit, uint64_t value, int width) {
  for (int k = 0; k < width; ++k, ++bit) {
    const WData mask = WData{1} << (bit & 31);
    to[bit >> 5] = (value >> k & 1) ? to[bit >> 5] | mask : to[bit >> 5] & ~mask;
  }
}

class Bench {
 public:
  Bench() : top_(&context_), hbm_(hbm_params()) { bind(top_, ports_); }

  // Runs the program in memory until the core is done: false where `limit` cycles pass before.
  bool run(uint8_t* memory, const Base* bases, const uint64_t* code, uint64_t limit) {
    events_.clear();
    hbm_.reset();
    Requests requests[kQueues] = {};
    std::vector<size_t> unretired[kQueues];
    size_t retired[kQueues] = {};
    for (int b = 0; b < 16; ++b) {
      const int at = b * kBaseBits;
      put(&top_.bases[0], at, bases[b].address, kAddressBits);
      put(&top_.bases[0], at + kAddressBits, bases[b].bytes, kAddressBits);
      put(&top_.bases[0], at + 2 * kAddressBits, bases[b].is_writable, 1);
      put(&top_.bases[0], at + 2 * kAddressBits + 1, bases[b].is_given, 1);
    }
    for (int q = 0; q < kQueues; ++q) {
      *ports_[q].code_base = code[2 * q];
      *ports_[q].count = IData(code[2 * q + 1]);
      *ports_[q].comes = *ports_[q].value_comes = 0;
    }
    top_.rst = 1;
    tick();
    top_.rst = 0;
    top_.run = 1;
    tick();
    top_.run = 0;
    for (uint64_t t = 0; t < limit; ++t) {
      for (int q = 0; q < kQueues; ++q) answer(ports_[q], requests[q], memory, t);
      top_.eval();
      if (top_.is_done) return true;
      for (int q = 0; q < kQueues; ++q) load(ports_[q], requests[q], t);
      for (int q = 0; q < kQueues; ++q) fetch(ports_[q], requests[q], t);
      for (int q = 0; q < kQueues; ++q) {
        if (*ports_[q].issues) {
          unretired[q].push_back(events_.size());
          events_.push_back({q, int32_t(*ports_[q].pc), t, 0});
        }
        if (*ports_[q].retires)
          events_[unretired[q][retired[q]++]].retire = *ports_[q].retire_cycle;
      }
      tick();
    }
    return false;
  }

  // Copies rows of one of the core's memories to `data`, or from there.
  void copy(int memory, uint8_t* data, bool write) {
    visit_rams(top_, memory, [&](size_t first, size_t step, auto& rows, size_t row_bytes) {
      for (size_t k = 0; k < std::size(rows.m_storage); ++k) {
        uint8_t* const at = data + (first + k * step) * row_bytes;
        if (write)
          std::memcpy(&rows.m_storage[k], at, row_bytes);
        else
          std::memcpy(at, &rows.m_storage[k], row_bytes);
      }
    });
  }

  int fault() const { return top_.fault; }
  int fault_queue() const { return top_.fault_queue; }
  uint64_t fault_pc() const { return top_.fault_pc; }
  const std::vector<Event>& events() const { return events_; }

 private:
  void tick() {
    top_.clk = 1;
    top_.eval();
    top_.clk = 0;
    top_.eval();
  }

  static void answer(Port& port, Requests& r, const uint8_t* memory, uint64_t t) {
    *port.comes = !r.words.empty() && r.words.front().cycle == t;
    if (*port.comes) {
      std::memcpy(port.comes_word, memory + r.words.front().address, kWordBytes);
      r.words.pop_front();
    }
    *port.value_comes = r.waits_for_value && r.value_cycle == t;
    if (*port.value_comes) {
      std::memcpy(port.value, memory + r.value_address, 4);
      r.waits_for_value = false;
    }
  }

  void load(Port& port, Requests& r, uint64_t t) {
    if (!*port.load_request) return;
    r.waits_for_value = true;
    r.value_address = *port.load_address;
    r.value_cycle =
        hbm_.access(t + kRequestCycles, r.value_address, 4, false) + kResponseCycles - 1;
  }

  void fetch(Port& port, Requests& r, uint64_t t) {
    if (!*port.request) return;
    const uint64_t words = *port.request_words, address = *port.request_address;
    const uint64_t done =
        hbm_.access(t + kRequestCycles, address, uint32_t(words * kWordBytes), false);
    r.last_return = std::max(r.last_return + words, done + kResponseCycles);
    for (uint64_t k = 0; k < words; ++k)
      r.words.push_back({r.last_return - (words - k), address + k * kWordBytes});
  }

  VerilatedContext context_;
  Vcore top_;
  tapeout::Hbm hbm_;
  Port ports_[kQueues];
  std::vector<Event> events_;
};

}  // namespace

extern "C" {
Bench* bench_create() { return new Bench; }
void bench_destroy(Bench* bench) { delete bench; }
int bench_run(Bench* bench, uint8_t* memory, const uint64_t* bases, const uint64_t* code,
              uint64_t limit) {
  return bench->run(memory, reinterpret_cast<const Base*>(bases), code, limit);
}
void bench_copy(Bench* bench, int memory, uint8_t* data, int write) {
  bench->copy(memory, data, write != 0);
}
int bench_fault(const Bench* bench) { return bench->fault(); }
int bench_fault_queue(const Bench* bench) { return bench->fault_queue(); }
uint64_t bench_fault_pc(const Bench* bench) { return bench->fault_pc(); }
uint64_t bench_event_count(const Bench* bench) { return bench->events().size(); }
const Event* bench_events(const Bench* bench) { return bench->events().data(); }
}
