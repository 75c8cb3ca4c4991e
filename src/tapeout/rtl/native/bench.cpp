// The bench around a verilated core: memory with the simulator's HBM model, and a record of what
// issued and retired. Compiled with the core it runs; `ports.inc` is written for that core by
// tapeout.rtl.build.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "Vcore.h"
#include "context.hpp"
#include "hbm.hpp"
#include "macros.hpp"
#include "verilated.h"
#if VM_TRACE_SAIF
#include "verilated_saif_c.h"
#endif

namespace {

struct Port {  // of one queue; see tapeout.rtl.core
  QData *code_base, *request_address, *load_address;
  IData *count, *pc, *value, *retire_cycle, *occupies;
  SData* request_words;
  CData *request, *comes, *load_request, *value_comes, *issues, *retires, *stall;
  WData* comes_word;
  // Of DMA queues; see tapeout.rtl.dma.
  QData* run_address = nullptr;
  SData *run_bytes, *send_bytes, *data_take;
  CData *run_request, *run_is_store, *sends, *data_comes, *data_ends;
  WData *send_data, *data;
};

// kQueues, kStalls, kRequestCycles, kRequestStages (of those, in the core), kResponseCycles, kResponseStages,
// kDataBytes, hbm_params(), bind(), kMacros
#include "ports.inc"

constexpr uint64_t kWordBytes = 64;

struct Event {
  int32_t queue, pc;
  uint64_t issue, retire;
};

// What a queue's cycles went to; `stalls` by tapeout.rtl.sequencer.Stall.
struct Counts {
  uint64_t stalls[kStalls], occupied, runs;
};

struct Bytes {  // that moved between HBM and the core
  uint64_t read, written, fetched;
};

struct Base {
  uint64_t address, bytes, is_writable, is_given;
};

struct Word {
  uint64_t cycle, address;  // presented in this cycle
};

struct Request {
  uint64_t arrival, address, bytes;
  bool is_store = false;
  std::vector<uint8_t> data = {};  // of a store
};

struct Run {
  uint64_t cycle;  // from which it is there
  std::vector<uint8_t> data;
  size_t taken = 0;
};

struct Requests {  // of one queue
  std::deque<Request> runs, values, lines;  // on their way to HBM
  std::vector<uint8_t> sent;                // of the store that is not requested yet
  std::deque<Run> back;                     // of DMA, oldest first
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
  std::string wrong;  // what the core did in the last run

  Bench() : top_(&context_), hbm_(hbm_params()) {
    bind(top_, ports_);
#if VM_TRACE_SAIF
    context_.traceEverOn(true);
    top_.trace(&saif_, 99);
#endif
  }
  // A model's end erases its names in the thread's context, whichever bench made that last.
  ~Bench() {
    Verilated::threadContextp(&context_);
    top_.final();
  }
  Bench(const Bench&) = delete;

  // Runs the program in memory until the core is done: false where `limit` cycles pass before.
  // Throws std::logic_error where the core does what no program may make it do.
  bool run(uint8_t* memory, uint64_t bytes, const Base* bases, const uint64_t* code,
           uint64_t limit) {
    memory_bytes_ = bytes;
    events_.clear();
    counts_.assign(kQueues, {});
    bytes_ = {};
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
      if (ports_[q].run_address != nullptr) *ports_[q].data_comes = 0;
    }
    top_.rst = 1;
    low();
    high();
    top_.rst = 0;
    top_.run = 1;
    low();
    high();
    top_.run = 0;
    const Trace trace(*this);
    for (uint64_t t = 0; t < limit; ++t) {
      for (Requests& r : requests) run_arrives(r, memory, t);
      for (Requests& r : requests) value_arrives(r, t);
      for (Requests& r : requests) line_arrives(r, t);
      for (int q = 0; q < kQueues; ++q) answer(ports_[q], requests[q], memory, t);
      low();
      if (top_.is_done) return true;
      for (int q = 0; q < kQueues; ++q) {
        const Port& port = ports_[q];
        Requests& r = requests[q];
        if (port.run_address != nullptr) move_data(port, r, t);
        if (*port.load_request) r.values.push_back({t + kRequestCycles, *port.load_address, 4});
        if (*port.request)
          r.lines.push_back(
              {t + kRequestCycles, *port.request_address, *port.request_words * kWordBytes});
      }
      for (int q = 0; q < kQueues; ++q) {
        ++counts_[q].stalls[*ports_[q].stall];
        counts_[q].occupied += *ports_[q].occupies;
        if (ports_[q].run_address != nullptr) counts_[q].runs += *ports_[q].run_request;
        if (*ports_[q].issues) {
          unretired[q].push_back(events_.size());
          events_.push_back({q, int32_t(*ports_[q].pc), t, 0});
        }
        if (*ports_[q].retires) {
          if (retired[q] == unretired[q].size()) throw std::logic_error("a retirement of nothing");
          events_[unretired[q][retired[q]++]].retire = *ports_[q].retire_cycle;
        }
      }
      high();
    }
    return false;
  }

  // Copies rows of one of the core's memories to `data`, or from there.
  void copy(int memory, uint8_t* data, bool write) {
    copy_macros(context_, kMacros, memory, data, write);
  }

#if VM_TRACE_SAIF  // a core whose nets are watched; see tapeout.physical.activity
  void watch(const char* path) { watched_ = path; }
#endif

#ifdef MUTANTS  // a core with faults to select; see tapeout.rtl.verification.mutants
  void select(int mutant) { top_.mutant = mutant; }
#endif

  int fault() const { return top_.fault; }
  int fault_queue() const { return top_.fault_queue; }
  uint64_t fault_pc() const { return top_.fault_pc; }
  const std::vector<Event>& events() const { return events_; }
  const Counts* counts() const { return counts_.data(); }
  const Bytes& bytes() const { return bytes_; }
  tapeout::Hbm::Counters hbm() const { return hbm_.counters(); }

 private:
  // The first half of a cycle, in which inputs arrive; its end, an edge of the clock.
  void low() {
    top_.clk = 0;
    top_.eval();
  }
  void high() {
    top_.clk = 1;
    top_.eval();
    watch_cycle();
  }

#if VM_TRACE_SAIF
  // What the nets do from here on to the end of the run, in one file.
  struct Trace {
    explicit Trace(Bench& of) : bench(of) {
      if (of.watched_.empty()) return;
      of.saif_.open(of.watched_.c_str());
      of.time_ = 0;
    }
    ~Trace() {
      if (bench.saif_.isOpen()) bench.saif_.close();
    }
    Bench& bench;
  };
  // Both halves, before new inputs arrive.
  void watch_cycle() {
    if (!saif_.isOpen()) return;
    saif_.dump(time_++);
    low();
    saif_.dump(time_++);
  }
  std::string watched_;
  VerilatedSaifC saif_;
  uint64_t time_ = 0;  // half cycles
#else
  struct Trace {
    explicit Trace(Bench&) {}
  };
  static void watch_cycle() {}
#endif

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
    if (port.run_address == nullptr) return;
    *port.data_comes = !r.back.empty() && r.back.front().cycle <= t;
    if (*port.data_comes) {
      const Run& run = r.back.front();
      const size_t bytes = std::min(run.data.size() - run.taken, kDataBytes);
      std::memcpy(port.data, run.data.data() + run.taken, bytes);
    }
  }

  // What the engine takes of the run that has come, sends, and requests in this cycle.
  static void move_data(const Port& port, Requests& r, uint64_t t) {
    if (*port.data_comes) {
      r.back.front().taken += *port.data_take;
      if (r.back.front().taken > r.back.front().data.size())
        throw std::logic_error("more data taken than came");
      if (*port.data_ends) r.back.pop_front();
    }
    if (*port.run_request) {
      Request run{t + kRequestCycles - kRequestStages, *port.run_address, *port.run_bytes,
                  *port.run_is_store != 0};
      if (run.is_store) std::swap(run.data, r.sent);
      r.runs.push_back(std::move(run));
    }
    if (*port.sends) {
      const auto* const from = reinterpret_cast<const uint8_t*>(port.send_data);
      r.sent.insert(r.sent.end(), from, from + *port.send_bytes);
    }
  }

  void require_inside(uint64_t address, uint64_t bytes) const {
    if (address > memory_bytes_ || bytes > memory_bytes_ - address)
      throw std::logic_error("a request outside HBM");
  }

  void run_arrives(Requests& r, uint8_t* memory, uint64_t t) {
    if (r.runs.empty() || r.runs.front().arrival != t) return;
    const Request& run = r.runs.front();
    require_inside(run.address, run.bytes);
    const uint64_t done = hbm_.access(t, run.address, uint32_t(run.bytes), run.is_store);
    (run.is_store ? bytes_.written : bytes_.read) += run.bytes;
    Run back{done + kResponseCycles - kResponseStages, {}};
    if (run.is_store) {
      if (run.data.size() != run.bytes) throw std::logic_error("a store of too much or too little");
      std::memcpy(memory + run.address, run.data.data(), run.bytes);
    } else {
      back.data.assign(memory + run.address, memory + run.address + run.bytes);
    }
    r.back.push_back(std::move(back));
    r.runs.pop_front();
  }

  void value_arrives(Requests& r, uint64_t t) {
    if (r.values.empty() || r.values.front().arrival != t) return;
    r.waits_for_value = true;
    require_inside(r.values.front().address, 4);
    bytes_.read += 4;
    r.value_address = r.values.front().address;
    r.value_cycle = hbm_.access(t, r.value_address, 4, false) + kResponseCycles - 1;
    r.values.pop_front();
  }

  void line_arrives(Requests& r, uint64_t t) {
    if (r.lines.empty() || r.lines.front().arrival != t) return;
    const auto [arrival, address, bytes, is_store, data] = r.lines.front();
    require_inside(address, bytes);
    bytes_.fetched += bytes;
    const uint64_t words = bytes / kWordBytes;
    const uint64_t done = hbm_.access(t, address, uint32_t(bytes), false);
    r.last_return = std::max(r.last_return + words, done + kResponseCycles);
    for (uint64_t k = 0; k < words; ++k)
      r.words.push_back({r.last_return - (words - k), address + k * kWordBytes});
    r.lines.pop_front();
  }

  uint64_t memory_bytes_ = 0;
  Context context_;
  Vcore top_;
  tapeout::Hbm hbm_;
  Port ports_[kQueues];
  std::vector<Event> events_;
  std::vector<Counts> counts_;
  Bytes bytes_ = {};
};

}  // namespace

extern "C" {
Bench* bench_create() { return new Bench; }
void bench_destroy(Bench* bench) { delete bench; }
// 1: the core is done, 0: not yet, -1: it did what `bench_wrong` says.
int bench_run(Bench* bench, uint8_t* memory, uint64_t bytes, const uint64_t* bases,
              const uint64_t* code, uint64_t limit) {
  try {
    return bench->run(memory, bytes, reinterpret_cast<const Base*>(bases), code, limit);
  } catch (const std::logic_error& error) {
    bench->wrong = error.what();
    return -1;
  }
}
const char* bench_wrong(const Bench* bench) { return bench->wrong.c_str(); }
void bench_copy(Bench* bench, int memory, uint8_t* data, int write) {
  bench->copy(memory, data, write != 0);
}
int bench_fault(const Bench* bench) { return bench->fault(); }
int bench_fault_queue(const Bench* bench) { return bench->fault_queue(); }
uint64_t bench_fault_pc(const Bench* bench) { return bench->fault_pc(); }
uint64_t bench_event_count(const Bench* bench) { return bench->events().size(); }
// [queues][kStalls + 2]; read, written and fetched bytes; the HBM model's counters.
const uint64_t* bench_counts(const Bench* bench) { return bench->counts()->stalls; }
void bench_traffic(const Bench* bench, Bytes* bytes, tapeout::Hbm::Counters* hbm) {
  *bytes = bench->bytes();
  *hbm = bench->hbm();
}
#if VM_TRACE_SAIF
void bench_watch(Bench* bench, const char* path) { bench->watch(path); }
#endif
#ifdef MUTANTS
void bench_select(Bench* bench, int mutant) { bench->select(mutant); }
const char* bench_mutants() { return MUTANTS; }
#endif
const Event* bench_events(const Bench* bench) { return bench->events().data(); }
}
