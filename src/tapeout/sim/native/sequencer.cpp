// Sequencers: waits, posts, loops, scalar instructions, and the issue rules of the engines.
#include "machine.hpp"

#include <bit>

namespace tapeout::sim {

namespace {

using isa::Fault;
using isa::Op;

constexpr int kRegisterBits = 48;

int64_t wrap_register(uint64_t value) {
  return int64_t(value << (64 - kRegisterBits)) >> (64 - kRegisterBits);
}

// Products and sums are modulo 2^48, so unsigned 64-bit arithmetic is exact enough.
int64_t alu(isa::Alu op, int64_t x, int64_t y) {
  const uint64_t a = uint64_t(x), b = uint64_t(y);
  switch (op) {
    case isa::Alu::ADD: return wrap_register(a + b);
    case isa::Alu::SUB: return wrap_register(a - b);
    case isa::Alu::MUL: return wrap_register(a * b);
    case isa::Alu::SHL: return wrap_register(a << (y & 63));
    case isa::Alu::SHR: return wrap_register(uint64_t(x >> (y & 63)));
    case isa::Alu::AND: return wrap_register(a & b);
    case isa::Alu::MIN: return wrap_register(uint64_t(std::min(x, y)));
    case isa::Alu::MAX: return wrap_register(uint64_t(std::max(x, y)));
    case isa::Alu::WRAP: return wrap_register(x < y ? a : a - b);
  }
  return 0;
}

// Asks for the cache lines of the instruction that likely comes next: streams are long.
void prefetch(const isa::Instr* next) {
  const char* const at = reinterpret_cast<const char*>(next);
  __builtin_prefetch(at);
  __builtin_prefetch(at + sizeof(isa::Instr) / 2);
  __builtin_prefetch(at + sizeof(isa::Instr) - 1);
}

}  // namespace

bool Machine::holds(const Queue& q, isa::When when) const {
  if (when == isa::When::ALWAYS) return true;
  if (q.depth == 0) return when != isa::When::NOT_FIRST;
  const LoopFrame& top = q.loops[q.depth - 1];
  if (when == isa::When::LAST) return top.iteration == top.count - 1;
  return (top.iteration == 0) == (when == isa::When::FIRST);
}

void Machine::advance(Queue& q) {
  while (q.blocked == Blocked::no && step(q)) {
  }
}

void Machine::illegal(const Queue& q) const {
  if (q.pc >= int64_t(q.stream->code.size()))
    stop(Fault::ILLEGAL_INSTRUCTION, "the stream ended without seq.halt: end it with one");
  const isa::Instr& ins = q.stream->code[size_t(q.pc)];
  const std::string name = names_[size_t(q.id)];
  switch (q.stream->legal[size_t(q.pc)]) {
    case 0:
      stop(Fault::ILLEGAL_INSTRUCTION,
           "the word is not an instruction: unknown opcode, reserved bits set or a field outside "
           "its enumeration");
    case 2:
      stop(Fault::ILLEGAL_INSTRUCTION,
           std::string(isa::mnemonic(ins.op)) + " cannot run on queue " + name);
    case 3:
      stop(Fault::ILLEGAL_OPERAND,
           "wait and post masks have " + std::to_string(std::popcount(channel_mask_)) +
               " channels on this chip: clear the bits above");
    case 4:
      stop(Fault::ILLEGAL_OPERAND, "a register is not one of r0..r" +
                                       std::to_string(chip_.seq.registers - 1) + " of this chip");
    default:
      stop(Fault::ILLEGAL_OPERAND,
           std::string(isa::mnemonic(ins.op)) + " cannot write r0: it is always zero");
  }
}

// From when on a pass may issue as far as the array goes.
uint64_t Machine::stream_port(const Queue& q, const isa::Instr& ins) const {
  const uint64_t port = std::max(stream_free_, tiles_[active_ ^ 1].loaded ? load_done_ : 0);
  const auto* const pass = std::get_if<isa::MxuMatmul>(&ins.body);
  if (pass == nullptr || isa::Accumulate(pass->accumulate) == isa::Accumulate::WRITE) return port;
  if (isa::Accumulate(pass->accumulate) == isa::Accumulate::ADD_NOT_FIRST &&
      q.next.first_iteration)
    return port;
  // Rows in step with the last pass's, or behind them, come when their sums are there.
  const bool ahead = pass->dst.imm + q.registers[pass->dst.reg] > last_dst_;
  return ahead ? std::max(port, settled_) : port;
}

void Machine::start_pass(Queue& q, uint64_t t, int64_t occupancy, int64_t rows, int64_t dst) {
  stream_free_ = t + uint64_t(occupancy);
  after_stream_ = t + 1;
  settled_ = t + uint64_t(rows + chip_.mxu.accumulate_cycles - 1);
  last_dst_ = dst;
  q.counters.occupied += uint64_t(occupancy);
}

// Reads and checks the instruction at the pc, and moves the pc on unless it is for the sequencer
// itself; false when the word is still on its way, or illegal.
bool Machine::read(Queue& q) {
  const bool is_past = q.pc >= int64_t(q.stream->code.size());
  const uint64_t fetched = is_past ? 0 : word_ready(q);
  if (fetched == kUnknown) {
    q.blocked = Blocked::fetch;
    return false;
  }
  Next& next = q.next;
  next.pc = q.pc;
  next.read = std::max(q.next_read, fetched);
  if (is_past || q.stream->legal[size_t(q.pc)] != 1) {
    try {
      illegal(q);
    } catch (ProgramFault& fault) {
      fail(q, std::move(fault), std::max(next.read + 2, q.next_issue));
      return false;
    }
  }
  const isa::Instr& ins = q.stream->code[size_t(q.pc)];
  prefetch(&ins + 1);
  next.ins = &ins;
  next.ready = std::max(next.read + 1 + isa::check_cycles(ins.op), q.next_issue);
  next.waits = holds(q, ins.header.wait_when) ? ins.header.waits : 0;
  next.posts = holds(q, ins.header.post_when) ? ins.header.posts : 0;
  next.first_iteration = holds(q, isa::When::FIRST);
  if (!isa::is_scalar(ins.op)) {
    next_pc(q, q.pc + 1, next.ready);
    q.next_read = next.ready;
  }
  return true;
}

// Issues the next instruction; false when the queue has to wait for what nobody knows yet.
bool Machine::step(Queue& q) {
  if (q.next.ins == nullptr && !read(q)) return false;
  const isa::Instr& ins = *q.next.ins;
  const uint32_t waits = q.next.waits, posts = q.next.posts;
  for (uint32_t rest = waits; rest != 0; rest &= rest - 1) {
    const Channel& c = channels_[size_t(incoming_[size_t(q.id * 24 + std::countr_zero(rest))])];
    if (c.posts == c.waits) {
      q.blocked = Blocked::token;
      q.awaited = waits;
      return false;
    }
  }
  const bool drains = ins.header.drain || ins.op == Op::SeqHalt;
  if (drains && !q.pending.empty()) {
    q.blocked = Blocked::retire;
    return false;
  }
  uint64_t port = 0;
  switch (ins.op) {
    case Op::MxuLoad: port = std::max(load_free_, after_stream_); break;
    case Op::MxuMatmul:
    case Op::MxuUnload:
      port = stream_port(q, ins);
      break;
    case Op::VpuMap: port = vpu_free_; break;
    case Op::DmaLoad:
    case Op::DmaStore:
      if (q.generator.active) {
        q.blocked = Blocked::generator;
        return false;
      }
      port = q.generator.free;
      break;
    default: break;
  }
  const bool takes_place = posts != 0 || ins.op == Op::DmaLoad || ins.op == Op::DmaStore;
  if (takes_place && q.posting >= retire_entries_) {  // its entry of the ring must have retired
    if (q.posting - retire_entries_ >= q.posted) {
      q.blocked = Blocked::retire;
      return false;
    }
    port = std::max(port, q.post_retires[size_t(q.posting % retire_entries_)] + 1);
  }

  // All is known: the issue cycle, and what the queue waited for since it could issue.
  Stalls& stalls = q.counters.stalls;
  uint64_t t = q.next_issue;
  const auto until = [&t](uint64_t cycle, uint64_t& cause) {
    if (cycle <= t) return;
    cause += cycle - t;
    t = cycle;
  };
  until(q.next.read, stalls.fetch);
  until(q.next.ready, q.counters.busy);
  for (uint32_t rest = waits; rest != 0; rest &= rest - 1) {
    const Channel& c = channels_[size_t(incoming_[size_t(q.id * 24 + std::countr_zero(rest))])];
    until(c.tokens[c.slot_of(c.waits)].visible, stalls.token[c.producer]);
  }
  if (drains) until(q.last_retire, stalls.drain);
  until(port, stalls.port);
  if (t > horizon_) {  // an error stops the chip before this
    q.blocked = Blocked::failed;
    return false;
  }

  ++q.index;
  ++q.counters.issued;
  ++q.counters.busy;
  uint32_t event = 0;
  if (trace_ != nullptr) event = trace_->issue(q.id, q.next.pc, t);
  for (uint32_t rest = waits; rest != 0; rest &= rest - 1) {
    Channel& c = channels_[size_t(incoming_[size_t(q.id * 24 + std::countr_zero(rest))])];
    const size_t slot = c.slot_of(c.waits);
    const uint64_t* clock = &c.clocks[slot * size_t(queue_count_)];
    for (int p = 0; p < queue_count_; ++p) q.clock[p] = std::max(q.clock[p], clock[p]);
    c.waiters[slot] = q.index;
    if (trace_ != nullptr) trace_->flows.push_back({c.tokens[slot].event, event, c.number});
    ++c.waits;
  }
  if (drains) q.clock[q.id] = q.index - 1;
  if (checks_) checker_.begin(q.id, q.index, q.next.pc, q.clock);

  q.next_issue = t + 1;
  q.next.ins = nullptr;
  q.event = event;
  q.takes_place = takes_place;
  if (takes_place) ++q.posting;
  try {
    if (!issue(q, ins, t, posts)) return false;
  } catch (ProgramFault& fault) {
    fail(q, std::move(fault), t);
    return false;
  }
  if (checks_ && checker_.take_new_unwritten()) checker_.place_unwritten(t);
  return true;
}

// Runs one instruction at cycle t; false when the queue stops for now.
bool Machine::issue(Queue& q, const isa::Instr& ins, uint64_t t, uint32_t posts) {
  const int64_t* r = q.registers;
  int64_t following = q.pc + 1;
  uint64_t done = t + 1;
  switch (ins.op) {
    case Op::SeqNop: break;
    case Op::SeqSet: {
      const auto& i = *std::get_if<isa::SeqSet>(&ins.body);
      q.registers[i.dst] = i.value;
      break;
    }
    case Op::SeqAlu: {
      const auto& i = *std::get_if<isa::SeqAlu>(&ins.body);
      q.registers[i.dst] = alu(isa::Alu(i.op), r[i.a], r[i.b] + i.imm);
      break;
    }
    case Op::SeqLoad:
      start_value(q, resolve(*std::get_if<isa::SeqLoad>(&ins.body), r), t, posts);
      return false;
    case Op::SeqLoop:
      enter_loop(q, resolve(*std::get_if<isa::SeqLoop>(&ins.body), r), following);
      break;
    case Op::SeqTrap:
      stop(Fault::TRAP, "seq.trap with code " +
                            std::to_string(std::get_if<isa::SeqTrap>(&ins.body)->code));
    case Op::SeqHalt:
      check_posts(q, posts);
      retire(q, done, posts, q.event);
      q.blocked = Blocked::halted;
      q.counters.end_cycle = t + 1;
      return false;
    case Op::MxuLoad: {
      const auto i = resolve(*std::get_if<isa::MxuLoad>(&ins.body), r);
      exec_load(i);
      const int64_t occupancy = isa::occupancy(chip_, i);
      load_free_ = load_done_ = t + uint64_t(occupancy);
      q.counters.occupied += uint64_t(occupancy);
      done = t + uint64_t(isa::latency(chip_, i, occupancy));
      break;
    }
    case Op::MxuMatmul: {
      const auto i = resolve(*std::get_if<isa::MxuMatmul>(&ins.body), r);
      exec_matmul(i, q.next.first_iteration);
      const int64_t occupancy = isa::occupancy(chip_, i);
      start_pass(q, t, occupancy, i.outer * i.rows, i.dst);
      done = t + uint64_t(isa::latency(chip_, i, occupancy));
      break;
    }
    case Op::MxuUnload: {
      const auto i = resolve(*std::get_if<isa::MxuUnload>(&ins.body), r);
      exec_unload(i);
      const int64_t occupancy = isa::occupancy(chip_, i);
      start_pass(q, t, occupancy, chip_.mxu.rows, i.dst);
      done = t + uint64_t(isa::latency(chip_, i, occupancy));
      break;
    }
    case Op::VpuMap: {
      const auto i = resolve(*std::get_if<isa::VpuMap>(&ins.body), r);
      exec_map(i);
      const int64_t occupancy = isa::occupancy(chip_, i);
      vpu_free_ = t + uint64_t(occupancy);
      q.counters.occupied += uint64_t(occupancy);
      done = t + uint64_t(isa::latency(chip_, i, occupancy));
      break;
    }
    case Op::DmaLoad:
    case Op::DmaStore: {
      exec_transfer(q, ins);
      check_posts(q, posts);
      start_transfer(q, t, posts, q.event);
      return true;
    }
  }
  check_posts(q, posts);
  retire(q, done, posts, q.event);
  if (isa::is_scalar(ins.op)) {
    next_pc(q, following, q.next_issue);
    q.next_read = q.next_issue;
  }
  return true;
}

void Machine::enter_loop(Queue& q, const isa::SeqLoopNow& i, int64_t& following) {
  const int64_t first = q.pc + 1, end = first + i.length;
  const int64_t outer =
      q.depth != 0 ? q.loops[q.depth - 1].end : int64_t(q.stream->code.size());
  if (i.length < 1 || end > outer)
    stop(Fault::ILLEGAL_OPERAND,
         "seq.loop: a body of " + std::to_string(i.length) +
             " instructions must hold one at least and fit the " + std::to_string(outer - first) +
             " left in the " + (q.depth != 0 ? "enclosing body" : "stream"));
  if (i.count <= 0) {
    following = end;
    return;
  }
  if (q.depth == chip_.seq.loop_depth)
    stop(Fault::LOOP_DEPTH, "loops nest " + std::to_string(chip_.seq.loop_depth) +
                                " deep at most (seq.loop_depth): unroll one");
  q.loops[q.depth++] = {first, end, i.count, 0};
}

// Moves the pc at `cycle`, back to the start of every loop whose body has ended and has runs left.
void Machine::next_pc(Queue& q, int64_t to, uint64_t cycle) {
  bool left_loop = false;
  while (q.depth != 0 && to == q.loops[q.depth - 1].end) {
    LoopFrame& top = q.loops[q.depth - 1];
    if (++top.iteration < top.count) {
      to = top.first;
      break;
    }
    --q.depth;
    left_loop = true;
  }
  q.pc = to;
  if (left_loop || to < q.lines_from || to >= q.lines_to) move_window(q, cycle);
}

// --- tokens ------------------------------------------------------------------------------------

// Counts the posts of the instruction that issues, whose tokens come later.
void Machine::check_posts(Queue& q, uint32_t posts) {
  for (uint32_t rest = posts; rest != 0; rest &= rest - 1) {
    Channel& c = channels_[size_t(outgoing_[size_t(q.id * 24 + std::countr_zero(rest))])];
    const uint64_t capacity = c.tokens.size();
    if (c.issued_posts >= capacity) {
      const uint64_t gone = c.issued_posts - capacity;  // the token that must have been taken
      if (c.waits <= gone || c.waiters[c.slot_of(gone)] > q.clock[c.consumer])
        stop(Fault::TOKEN_OVERFLOW,
             "channel " + channel_name(c) + " holds " + std::to_string(capacity) +
                 " tokens (tokens.capacity): before posting token " +
                 std::to_string(c.issued_posts) + ", " + names_[size_t(q.id)] +
                 " must know that token " + std::to_string(gone) +
                 " was taken: wait for a token back");
    }
    ++c.issued_posts;
  }
}

void Machine::retire(Queue& q, uint64_t earliest, uint32_t posts, uint32_t event) {
  if (q.generator.active) {
    PendingRetire p{earliest, posts, event, q.takes_place, q.pending_clocks.size()};
    if (posts != 0) {
      q.pending_clocks.insert(q.pending_clocks.end(), q.clock, q.clock + queue_count_);
      q.pending_clocks[p.clock + size_t(q.id)] = q.index;
    }
    q.pending.push_back(p);
    return;
  }
  const uint64_t own = q.clock[q.id];
  q.clock[q.id] = q.index;
  retire_known(q, earliest, posts, q.takes_place, q.clock, event);
  q.clock[q.id] = own;
}

// In order, one instruction a cycle; `clock` is what a post tells.
void Machine::retire_known(Queue& q, uint64_t earliest, uint32_t posts, bool takes_place,
                           const uint64_t* clock, uint32_t event) {
  q.last_retire = std::max(q.last_retire + 1, earliest);
  if (trace_ != nullptr) trace_->events[event].retire = q.last_retire;
  if (takes_place) q.post_retires[size_t(q.posted++ % retire_entries_)] = q.last_retire;
  if (posts == 0) return;
  deliver(q, posts, q.last_retire, clock, event);
}

void Machine::deliver(Queue& q, uint32_t posts, uint64_t retired, const uint64_t* clock,
                      uint32_t event) {
  const uint64_t visible = retired + uint64_t(chip_.tokens.latency_cycles);
  for (uint32_t rest = posts; rest != 0; rest &= rest - 1) {
    Channel& c = channels_[size_t(outgoing_[size_t(q.id * 24 + std::countr_zero(rest))])];
    const size_t slot = c.slot_of(c.posts);
    c.tokens[slot] = {visible, event};
    std::copy(clock, clock + queue_count_, &c.clocks[slot * size_t(queue_count_)]);
    ++c.posts;
    Queue& consumer = queues_[size_t(c.consumer)];
    if (consumer.blocked == Blocked::token) {
      consumer.blocked = Blocked::no;
      runnable_ |= 1u << consumer.id;
    }
  }
}

}  // namespace tapeout::sim
