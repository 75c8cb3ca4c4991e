// Requests to HBM by DMA transfers and scalar loads.
#include "machine.hpp"

#include <bit>

namespace tapeout::sim {

namespace {

// The piece the grid or the list is at; false when all have been taken.
bool peek(const Generator& g, Segment& piece) {
  if (!g.list.empty()) {
    if (g.list_at == g.list.size()) return false;
    piece = g.list[g.list_at];
    return true;
  }
  if (g.outer == 0) return false;
  piece = {g.grid_address + uint64_t(g.inner_at * g.inner_step), g.grid_bytes};
  return true;
}

void take(Generator& g) {
  if (!g.list.empty()) {
    ++g.list_at;
    return;
  }
  if (++g.inner_at == g.inner) {
    g.inner_at = 0;
    --g.outer;
    g.grid_address += uint64_t(g.outer_step);
  }
}

}  // namespace

// Joins consecutive pieces that touch, unless they are indexed; false when the transfer has no more.
bool Machine::next_segment(Generator& g) {
  Segment piece;
  if (!peek(g, piece)) return false;
  take(g);
  g.at = piece.address;
  g.end = piece.address + piece.bytes;
  g.in_part = 0;
  if (!g.list.empty()) return true;
  while (peek(g, piece) && piece.address == g.end) {
    g.end += piece.bytes;
    take(g);
  }
  return true;
}

// Finds the next run and its arrival; false at the end of the transfer.
inline bool Machine::next_run(Queue& q) {
  Generator& g = q.generator;
  if (g.at == g.end && !next_segment(g)) return false;
  const uint64_t room = interleave_bytes_ - (g.at & (interleave_bytes_ - 1));
  const uint64_t bytes = std::min(room, g.end - g.at);
  g.bytes = uint32_t(bytes);
  g.cycles = g.pieces.run(g.in_part, bytes);
  const uint64_t earliest = g.first ? g.issue + g.take_up : g.last_generated + 1;
  g.first = false;
  g.last_generated = std::max(earliest, g.credit_free[g.slot]);
  if (g.store) {
    g.last_sent = std::max(g.last_sent, g.last_generated) + g.cycles;
    g.arrival = g.last_sent + request_cycles_;
  } else {
    g.arrival = g.last_generated + request_cycles_;
  }
  return true;
}

// Presents runs of one queue while they come before `bound`, a key.
void Machine::data_runs(Queue& q, uint64_t bound) {
  Generator& g = q.generator;
  for (;;) {
    const uint64_t done = hbm_.access(g.arrival, g.at, g.bytes, g.store);
    const uint64_t back = done + response_cycles_;
    g.last_return = std::max(g.last_return, back) + (g.store ? 1 : g.cycles);
    (g.store ? report_.hbm_write_bytes : report_.hbm_read_bytes) += g.bytes;
    ++q.counters.runs;
    g.credit_free[g.slot] = g.last_return + 1;
    g.slot = g.slot + 1 == credits_ ? 0 : g.slot + 1;
    g.at += g.bytes;
    if (!next_run(q)) {
      finish_transfer(q);
      return;
    }
    const uint64_t key = g.arrival << 7 | uint64_t(q.id);
    if (key >= bound) {
      keys_[size_t(q.id)] = key;
      return;
    }
    // No other requester comes in between, so far: the next ones may go together.
    if (!g.store && g.bytes == interleave_bytes_) full_loads(q, bound);
  }
}

// The same for whole interleave units of one segment, all but the last that may be presented now:
// most of a run's time goes here. The run at the head is left as next_run() leaves it.
void Machine::full_loads(Queue& q, uint64_t bound) {
  Generator& g = q.generator;
  const uint64_t bytes = interleave_bytes_;
  // The last arrival whose key is below `bound`.
  const uint64_t last = (bound - 1 - uint64_t(q.id)) >> 7;
  const uint64_t start = g.at;
  // Values will be read from there soon: the host's own fetch goes ahead beside this loop's work.
  const bool ask = functional_ && g.copies;
  const int shift = std::countr_zero(bytes);
  uint64_t left = ((g.end - g.at) >> shift) - 1;
  const Pieces pieces = g.pieces;
  uint64_t cycles = g.cycles, in_part = g.in_part;
  // Every unit takes the same cycles where rows divide it and all lie in one part.
  const bool alike = pieces.even && in_part >= bytes && pieces.starts_row(in_part) &&
                     in_part + (g.end - g.at) - bytes <= pieces.part_bytes;
  uint64_t at = start, arrival = g.arrival, generated = g.last_generated, back = g.last_return;
  uint64_t* const ring = g.credit_free.data();
  size_t slot = g.slot;
  for (; left != 0; --left) {
    const size_t next = slot + 1 == credits_ ? 0 : slot + 1;
    // Its return is not known yet: with one credit, the next run waits for this one.
    if (next == slot) break;
    const uint64_t following = std::max(generated + 1, ring[next]);
    if (following + request_cycles_ > last) break;
    if (ask) __builtin_prefetch(host_.data() + at, 0, 2);
    back = std::max(back, hbm_.read_unit(arrival, at) + response_cycles_) + cycles;
    if (!alike) cycles = pieces.run(in_part, bytes);
    ring[slot] = back + 1;
    slot = next;
    at += bytes;
    generated = following;
    arrival = generated + request_cycles_;
  }
  g.at = at;
  g.arrival = arrival;
  g.last_generated = generated;
  g.last_return = back;
  g.slot = slot;
  g.cycles = cycles;
  g.in_part = alike ? in_part + (at - start) : in_part;
  if (g.in_part == pieces.part_bytes) g.in_part = 0;
  const uint64_t units = (at - start) >> shift;
  hbm_.count_units(units);
  report_.hbm_read_bytes += at - start;
  q.counters.runs += units;
}

void Machine::start_transfer(Queue& q, uint64_t t, uint32_t posts, uint32_t event) {
  Generator& g = q.generator;
  g.issue = t;
  g.first = true;
  g.at = g.end = 0;
  if (!next_run(q)) {  // nothing moves
    g.list.clear();
    retire(q, t + 1, posts, event);
    return;
  }
  g.active = true;
  retire(q, 0, posts, event);  // pending[0], until the last run has returned
  keys_[size_t(q.id)] = g.arrival << 7 | uint64_t(q.id);
}

void Machine::finish_transfer(Queue& q) {
  Generator& g = q.generator;
  keys_[size_t(q.id)] = kUnknown;
  g.active = false;
  g.list.clear();
  g.free = g.store ? g.last_sent : g.last_generated;
  q.pending[0].earliest = g.last_return + 1;
  for (const PendingRetire& p : q.pending)
    retire_known(q, p.earliest, p.posts, p.takes_place, q.pending_clocks.data() + p.clock,
                 p.event);
  q.pending.clear();
  q.pending_clocks.clear();
  if (q.blocked == Blocked::retire || q.blocked == Blocked::generator) {
    q.blocked = Blocked::no;
    runnable_ |= 1u << q.id;
  }
}

// --- seq.load ----------------------------------------------------------------------------------

void Machine::start_value(Queue& q, const isa::SeqLoadNow& i, uint64_t t, uint32_t posts) {
  const int64_t offset = i.src.offset;
  if (offset % 4 != 0)
    stop(isa::Fault::ILLEGAL_OPERAND,
         "seq.load takes an address that is a multiple of 4, not b" + std::to_string(i.src.base) +
             "[" + std::to_string(offset) + "]");
  const Base& base = base_of(i.src.base);
  if (offset < 0 || uint64_t(offset) + 4 > base.bytes)
    stop(isa::Fault::HBM_BOUNDS, "bytes " + std::to_string(offset) + ".." +
                                     std::to_string(offset + 4) + " are outside the " +
                                     std::to_string(base.bytes) + " bytes of base b" +
                                     std::to_string(i.src.base));
  const uint64_t address = base.address + uint64_t(offset);
  if (checks_) checker_.hbm(address, address + 4, false);
  int32_t value;
  std::memcpy(&value, host_.data() + address, 4);
  check_posts(q, posts);
  q.value = value;
  q.value_register = int(i.dst);
  q.value_address = address;
  q.value_posts = posts;
  q.value_issue = t;
  q.value_arrival = t + request_cycles_;
  q.blocked = Blocked::value;
  const int id = queue_count_ + q.id;
  keys_[size_t(id)] = q.value_arrival << 7 | uint64_t(id);
  others_changed_ = true;
}

void Machine::value_run(Queue& q) {
  keys_[size_t(queue_count_ + q.id)] = kUnknown;
  others_changed_ = true;
  const uint64_t back =
      hbm_.access(q.value_arrival, q.value_address, 4, false) + response_cycles_;
  report_.hbm_read_bytes += 4;
  q.registers[q.value_register] = q.value;
  q.counters.stalls.memory += back - (q.value_issue + 1);
  q.next_read = q.next_issue = back;
  q.blocked = Blocked::no;
  runnable_ |= 1u << q.id;
  retire(q, back, q.value_posts, q.event);
  next_pc(q, q.pc + 1, back);
}

}  // namespace tapeout::sim
