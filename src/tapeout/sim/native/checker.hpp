// The model errors: unordered accesses to a row (race) or to a stripe of banks (bank), and reads of
// lanes that nothing wrote (uninitialized), by vector clocks. Same rules as tapeout.isa.checker.
//
// Rows are kept in blocks of 64 with one record while all rows of the block have had the same
// accesses, so that moving a tile costs a few records whatever its size. A record holds the last
// write and each queue's last read since: earlier accesses are ordered before that write, or the
// run would have stopped.
#pragma once

#include <cstdint>
#include <map>
#include <memory_resource>
#include <vector>

#include "memory.hpp"
#include "program.hpp"

namespace tapeout::sim {

constexpr int kLaneWords = 4;  // 256 lanes

struct LaneMask {
  uint64_t word[kLaneWords] = {};
  static LaneMask range(int64_t first, int64_t end) {
    LaneMask m;
    for (int w = 0; w < kLaneWords; ++w) {
      const int64_t a = first - 64 * w, b = end - 64 * w;
      if (b <= 0 || a >= 64) continue;
      const uint64_t high = b >= 64 ? ~uint64_t{0} : (uint64_t{1} << b) - 1;
      m.word[w] = a <= 0 ? high : high & ~((uint64_t{1} << a) - 1);
    }
    return m;
  }
  void set(int64_t lane) { word[lane >> 6] |= uint64_t{1} << (lane & 63); }
  bool operator==(const LaneMask&) const = default;
};

enum class Space : int { spm = 0, vmem = 1, acc = 2, hbm = 3 };
enum class Port : int { none, load, transposed, stream };  // of the mxu into spm
constexpr int kPorts = 4;

struct RowSpan {
  int64_t first = 0, count = 0, stride = 1;
  int64_t at(int64_t k) const { return first + k * stride; }
};

class Checker {
 public:
  Checker(const isa::ChipParams& chip, int queues, std::vector<std::string> names);

  void reset();
  // The instruction whose accesses follow: number `index` of `queue`, issued at `pc`.
  void begin(int queue, uint64_t index, int64_t pc, const uint64_t* clock) {
    queue_ = queue;
    index_ = index;
    clock_ = clock;
    for (int q = 0; q < queues_; ++q) known_[q] = int64_t(clock[q]);
    known_[queue] = INT64_MAX;
    pcs_[queue * kPcs + (index & (kPcs - 1))] = {index, pc};
  }
  void read(Space space, RowSpan rows, const LaneMask& lanes, Port port = Port::none) {
    visit<Mode::read>(space, rows, lanes);
    stripes(space, rows, false, port);
  }
  void write(Space space, RowSpan rows, const LaneMask& lanes) {
    visit<Mode::write>(space, rows, lanes);
    stripes(space, rows, true, Port::none);
  }
  // Reads and writes the same rows; on the mxu safe after its own undrained writes.
  void accumulate(Space space, RowSpan rows, const LaneMask& lanes) {
    visit<Mode::accumulate>(space, rows, lanes);
    stripes(space, rows, true, Port::none);
  }
  void hbm(uint64_t first, uint64_t end, bool write);

  // Lanes written since reset; rows x lanes bytes of 0 or 1.
  void written(Space space, uint8_t* out) const;
  // The first read of unwritten lanes, kept until the run is over: a race may explain it.
  const ProgramFault* unwritten() const { return has_unwritten_ ? &unwritten_ : nullptr; }
  bool take_new_unwritten() {
    const bool is_new = new_unwritten_;
    new_unwritten_ = false;
    return is_new;
  }
  void place_unwritten(uint64_t cycle) {
    unwritten_.queue = queue_;
    unwritten_.pc = pc_of(queue_, index_);
    unwritten_.cycle = cycle;
  }
  int64_t stripe_rows(Space space) const { return tables_[int(space)].stripe_rows; }
  int64_t rows(Space space) const { return tables_[int(space)].rows; }

 private:
  enum class Mode { read, write, accumulate };
  static constexpr int64_t kBlock = 64;
  static constexpr uint64_t kPcs = 1 << 14;  // instructions back for which messages know the pc

  // A record: index of the last write, its queue, each queue's last read since, lanes written.
  struct Table {
    int64_t rows = 0, stripe_rows = 0, stripes = 0;
    ZeroArray<uint64_t> row_records;
    std::vector<uint64_t> block_records;
    std::vector<uint8_t> mixed;             // by block: the rows have records of their own
    std::vector<uint64_t> used, written;    // by stripe and queue: last access, last write
    std::vector<uint64_t> ports[kPorts];    // by stripe: last access by each port of the mxu
  };
  struct Issued {
    uint64_t index = 0;
    int64_t pc = -1;
  };
  struct ByteRecord {
    uint64_t end, write_index;
    int write_queue;
    uint64_t reads[kMaxQueues];  // by queue: the last since that write
  };

  using ByteRecords = std::pmr::map<uint64_t, ByteRecord>;  // by first byte

  template <Mode mode>
  void visit(Space space, RowSpan span, const LaneMask& lanes);
  template <Mode mode>
  void apply(uint64_t* record, Space space, int64_t row, const LaneMask& lanes);
  // Whether each queue's last access is one the instruction knows of or one of its own queue.
  // Without branches: vector operations do it.
  bool knows(const uint64_t* last) const {
    int64_t least = 0;
    for (int q = 0; q < queues_; ++q) least |= known_[q] - int64_t(last[q]);
    return least >= 0;
  }
  void expand(Table& table, int64_t block);
  void collapse(Table& table, int64_t block);
  void stripes(Space space, RowSpan span, bool write, Port port);
  void stripe(Space space, Table& table, int64_t at, bool write, Port port);
  void apply_bytes(ByteRecord& record, uint64_t at, bool write);
  ByteRecords::iterator cut(uint64_t at);
  [[noreturn]] void race(const char* place, uint64_t where, bool writes, bool wrote, int queue,
                         uint64_t index) const;
  [[noreturn]] void bank(Space space, int64_t stripe, bool writes, int queue,
                         uint64_t index) const;
  void note_unwritten(Space space, int64_t row, const LaneMask& have, const LaneMask& want);
  std::string way_out(int queue) const;
  std::string earlier(int queue, uint64_t index) const;
  int64_t pc_of(int queue, uint64_t index) const {
    const Issued& issued = pcs_[queue * kPcs + (index & (kPcs - 1))];
    return issued.index == index ? issued.pc : -1;
  }

  int queues_, words_, record_;  // lane words, words of a record
  int64_t lanes_;
  std::vector<std::string> names_;
  Table tables_[3];
  std::pmr::unsynchronized_pool_resource byte_records_;
  ByteRecords bytes_{&byte_records_};
  std::vector<Issued> pcs_;
  int queue_ = 0;
  uint64_t index_ = 0;
  const uint64_t* clock_ = nullptr;
  int64_t known_[kMaxQueues] = {};  // the clock, and all of the instruction's own queue
  bool has_unwritten_ = false, new_unwritten_ = false;
  ProgramFault unwritten_;
};

}  // namespace tapeout::sim
