// Instruction fetch: a window of consecutive lines per queue, requested in order.
#include "machine.hpp"

namespace tapeout::sim {

namespace {

// Runs that a line of `bytes` at `address` is cut into.
uint32_t line_runs(uint64_t address, uint64_t bytes, uint64_t interleave) {
  return static_cast<uint32_t>((address + bytes - 1) / interleave - address / interleave + 1);
}

}  // namespace

void Machine::start_fetch(Queue& q) {
  Fetch& f = q.fetch;
  const int64_t count = int64_t(q.stream->code.size());
  f.lines = (count + line_instructions_ - 1) / line_instructions_;
  f.low = f.next = 0;
  f.request_free = f.presented_end = 0;
  f.generation = 0;
  f.ready.assign(size_t(fetch_lines_ * line_instructions_), kUnknown);
  f.last_return = 0;
  f.requests.clear();
  f.head = 0;
  f.run = 0;
  request_lines(q, 0);
  q.lines_from = 0;
  q.lines_to = line_instructions_;
}

uint64_t Machine::fetch_arrival(const Queue& q) const {
  const Fetch& f = q.fetch;
  if (f.head == f.requests.size()) return kUnknown;
  return f.requests[f.head].start + f.run + request_cycles_;
}

void Machine::request_lines(Queue& q, uint64_t cycle) {
  Fetch& f = q.fetch;
  const uint64_t bytes = uint64_t(line_instructions_) * isa::kWordBytes;
  const int64_t end = std::min(f.low + fetch_lines_, f.lines);
  for (; f.next < end; ++f.next) {
    const uint64_t start = std::max(f.request_free, cycle);
    f.requests.push_back({f.next, start, f.generation});
    std::fill_n(&f.ready[size_t(f.next % fetch_lines_ * line_instructions_)], line_instructions_,
                kUnknown);
    f.request_free =
        start + line_runs(q.stream->code_base + uint64_t(f.next) * bytes, bytes, interleave_bytes_);
  }
  const uint64_t arrival = fetch_arrival(q);
  const int id = 2 * queue_count_ + q.id;
  keys_[size_t(id)] = arrival == kUnknown ? kUnknown : arrival << 7 | uint64_t(id);
  others_changed_ = true;
}

void Machine::fetch_run(Queue& q) {
  Fetch& f = q.fetch;
  const Fetch::Line& line = f.requests[f.head];
  const uint64_t bytes = uint64_t(line_instructions_) * isa::kWordBytes;
  const uint64_t first = q.stream->code_base + uint64_t(line.line) * bytes;
  const uint64_t at =
      f.run == 0 ? first : (first / interleave_bytes_ + f.run) * interleave_bytes_;
  const uint64_t end = std::min(first + bytes, (at / interleave_bytes_ + 1) * interleave_bytes_);
  const uint64_t done = hbm_.access(fetch_arrival(q), at, uint32_t(end - at), false);
  report_.fetch_bytes += end - at;
  // Words come in order, one a cycle.
  const uint64_t words = (end - at) / isa::kWordBytes;
  f.last_return = std::max(f.last_return + words, done + response_cycles_);
  if (line.generation == f.generation && line.line >= f.low) {
    uint64_t* const ready = &f.ready[size_t(line.line % fetch_lines_ * line_instructions_)];
    const uint64_t word = (at - first) / isa::kWordBytes;
    for (uint64_t k = 0; k < words; ++k) ready[word + k] = f.last_return - (words - 1 - k);
    if (q.blocked == Blocked::fetch && word_ready(q) != kUnknown) {
      q.blocked = Blocked::no;
      runnable_ |= 1u << q.id;
    }
  }
  ++f.run;
  if (end == first + bytes) {
    f.presented_end = line.start + f.run;
    f.run = 0;
    if (++f.head == f.requests.size()) {
      f.requests.clear();
      f.head = 0;
    }
  }
  const uint64_t arrival = fetch_arrival(q);
  const int id = 2 * queue_count_ + q.id;
  keys_[size_t(id)] = arrival == kUnknown ? kUnknown : arrival << 7 | uint64_t(id);
  others_changed_ = true;
}

// The pc has moved at `cycle`: releases lines, or starts the window anew where the pc left it.
void Machine::move_window(Queue& q, uint64_t cycle) {
  Fetch& f = q.fetch;
  const int64_t line = line_of(q.pc);
  q.lines_from = line * line_instructions_;
  q.lines_to = q.lines_from + line_instructions_;
  if (line >= f.lines) return;  // past the stream: the next step reports it
  int64_t low = line;
  for (int d = 0; d < q.depth; ++d) {
    const int64_t first = line_of(q.loops[d].first);
    if (line_of(q.loops[d].end - 1) - first < fetch_lines_) {
      low = std::min(low, first);
      break;
    }
  }
  if (low >= f.low && low < f.low + fetch_lines_) {
    if (low == f.low) return;
    f.low = low;
    request_lines(q, cycle);
    return;
  }
  // Requests that have started are finished, and dropped when they come.
  size_t kept = f.head;
  while (kept < f.requests.size() && f.requests[kept].start < cycle) ++kept;
  f.requests.resize(kept);
  f.request_free = f.presented_end;
  if (kept > f.head) {
    const Fetch::Line& last = f.requests.back();
    const uint64_t bytes = uint64_t(line_instructions_) * isa::kWordBytes;
    f.request_free = last.start + line_runs(q.stream->code_base + uint64_t(last.line) * bytes,
                                            bytes, interleave_bytes_);
  }
  ++f.generation;
  f.low = f.next = low;
  std::fill(f.ready.begin(), f.ready.end(), kUnknown);
  request_lines(q, cycle);
}

}  // namespace tapeout::sim
