// The moving parts of a run: sequencers with their instruction fetch, token channels, DMA generators.
// docs/timing.md gives the rules that their cycle numbers follow.
#pragma once

#include <cstdint>
#include <vector>

#include "program.hpp"

namespace tapeout::sim {

constexpr int kMaxLoops = 16;

// Why the cycles between two issues of a queue passed.
struct Stalls {
  uint64_t fetch = 0, port = 0, drain = 0, memory = 0;
  uint64_t token[kMaxQueues] = {};  // by the queue whose token was awaited
};

struct QueueCounters {
  uint64_t issued = 0;     // instructions
  uint64_t busy = 0;       // cycles in which it read, checked or issued one
  uint64_t occupied = 0;   // cycles of engine ports
  uint64_t runs = 0;       // of DMA, to and from HBM
  Stalls stalls;
  uint64_t end_cycle = 0;  // the halt's issue cycle + 1
};

struct LoopFrame {
  int64_t first = 0, end = 0, count = 0, iteration = 0;
};

// Tokens on their way from one queue to another, oldest first.
struct Channel {
  struct Token {
    uint64_t visible = 0;  // cycle from which the consumer may take it
    uint32_t event = 0;    // of the trace
  };
  int producer = 0, consumer = 0, number = 0;
  uint64_t issued_posts = 0;  // posts whose instruction has issued
  uint64_t posts = 0;         // of which the retire cycle is known
  uint64_t waits = 0;
  std::vector<Token> tokens;      // ring of the capacity
  std::vector<uint64_t> clocks;   // the poster's vector clock, by ring slot
  std::vector<uint64_t> waiters;  // ring: consumer's instruction that took token n
  uint64_t mask = 0;              // capacity - 1 where that cuts by bits
  size_t slot_of(uint64_t n) const { return size_t(mask != 0 ? n & mask : n % tokens.size()); }
};

// Instruction lines coming from HBM. Lines [low, low + fetch_lines) are held or on their way.
struct Fetch {
  struct Line {
    int64_t line = 0;
    uint64_t start = 0;       // cycle of its first request
    uint64_t generation = 0;  // of the window it belongs to
  };
  int64_t low = 0, next = 0, lines = 0;
  uint64_t request_free = 0, presented_end = 0, generation = 0;
  std::vector<uint64_t> ready;  // by instruction, modulo the window; kUnknown while on its way
  std::vector<Line> requests;   // lines whose runs are not all presented, from `head` on
  size_t head = 0;
  uint32_t run = 0;             // next run of requests[head]
  uint64_t last_return = 0;     // cycle from which the word that came last may issue
};

// An instruction of a DMA queue that has issued and whose retire cycle is not known yet.
struct PendingRetire {
  uint64_t earliest = 0;  // issue + latency
  uint32_t posts = 0, event = 0;
  bool takes_place = false;
  size_t clock = 0;  // index into Queue::pending_clocks where it posts
};

// Contiguous bytes of HBM that a transfer touches.
struct Segment {
  uint64_t address = 0, bytes = 0;
};

// What the data of a transfer passes in a cycle: docs/timing.md, "Pieces". A segment is a sequence of
// parts (an outer step of touching rows, one row, or one group of a block format), all alike.
struct Pieces {
  uint32_t rows = 1;        // of HBM a piece takes at most
  uint32_t row_bytes = 1;   // of elements, or of codes
  uint32_t scale_bytes = 0;  // before the codes of a group
  uint64_t part_bytes = 1;
  uint64_t part = 1;        // pieces of a whole part
  bool even = false;        // row_bytes is a power of two that divides interleave units; no scales

  bool starts_row(uint64_t at) const { return (at & (row_bytes - 1)) == 0; }  // where `even`

  // Pieces of bytes [from, to) of a part.
  uint64_t within(uint64_t from, uint64_t to) const {
    const uint64_t scales = scale_bytes;
    return (from < scales ? 1 : 0) +
           (to > scales ? of_rows(from > scales ? from - scales : 0, to - scales) : 0);
  }
  // The same of a part without scales.
  uint64_t of_rows(uint64_t from, uint64_t to) const {
    return ((to + row_bytes - 1) / row_bytes - from / row_bytes + rows - 1) / rows;
  }
  // Pieces of a run of `bytes` from byte `at` of a part on; `at` moves to the run's end.
  uint64_t run(uint64_t& at, uint64_t bytes) const {
    const uint64_t left = part_bytes - at;
    if (bytes < left) {
      const uint64_t from = at;
      at += bytes;
      return within(from, at);
    }
    uint64_t pieces = at == 0 ? part : within(at, part_bytes);
    bytes -= left;
    if (bytes >= part_bytes) {
      pieces += bytes / part_bytes * part;
      bytes %= part_bytes;
    }
    at = bytes;
    return bytes == 0 ? pieces : pieces + within(0, bytes);
  }
};

// The transfer whose runs are being requested.
struct Generator {
  bool active = false, store = false;
  // Segments: a regular grid of `outer` x `inner`, or a list.
  std::vector<Segment> list;
  size_t list_at = 0;
  uint64_t grid_address = 0, grid_bytes = 0;
  int64_t inner = 0, outer = 0, inner_step = 0, outer_step = 0, inner_at = 0;
  uint64_t at = 0, end = 0;  // of the current segment
  uint64_t issue = 0;
  bool first = false;
  Pieces pieces;
  uint64_t in_part = 0;      // byte of the current part at which the run after the head begins
  uint64_t take_up = 1;      // cycles from issue to the first request
  bool copies = false;       // values come from HBM as they are
  // The run at the head: [at, at + bytes).
  uint32_t bytes = 0;
  uint64_t cycles = 1, generated = 0, arrival = 0;
  // State that outlives the transfer.
  uint64_t last_generated = 0, free = 0, last_sent = 0, last_return = 0;
  std::vector<uint64_t> credit_free;  // ring of `credits`: cycle after the run's return
  size_t slot = 0;
};

enum class Blocked { no, fetch, token, retire, generator, value, halted, failed };

// The instruction that issues next: it is read, or checked, or waits. The pc is behind it already,
// unless it is one of the sequencer's own.
struct Next {
  const isa::Instr* ins = nullptr;  // none has been read
  int64_t pc = 0;
  uint64_t read = 0, ready = 0;  // cycles: of its read, and from which on it may issue
  uint32_t waits = 0, posts = 0;  // channels, in this iteration
  bool first_iteration = false;   // of the innermost loop
};

struct Queue {
  int id = 0;
  const Stream* stream = nullptr;
  int64_t pc = 0, lines_from = 0, lines_to = 0;  // instructions of the current line
  uint64_t next_read = 0, next_issue = 0, last_retire = 0, index = 0;
  Next next;
  int64_t registers[kMaxRegisters] = {};
  LoopFrame loops[kMaxLoops];
  int depth = 0;
  uint64_t clock[kMaxQueues] = {};
  Blocked blocked = Blocked::no;
  uint32_t awaited = 0;  // wait mask while blocked on a token
  Fetch fetch;
  Generator generator;
  // Retire cycles of the posting instructions and transfers that came last: seq.retire_entries.
  std::vector<uint64_t> post_retires;
  uint64_t posting = 0, posted = 0;  // of instructions that take a place: issued, retire known
  bool takes_place = false;          // the instruction that issued last
  std::vector<PendingRetire> pending;
  std::vector<uint64_t> pending_clocks;
  // seq.load on its way
  int value_register = 0;
  int64_t value = 0;
  uint64_t value_arrival = kUnknown, value_address = 0, value_issue = 0;
  uint32_t value_posts = 0, event = 0;
  QueueCounters counters;
};

}  // namespace tapeout::sim
