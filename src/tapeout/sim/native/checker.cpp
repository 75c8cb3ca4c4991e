#include "checker.hpp"

#include <algorithm>
#include <cstring>

namespace tapeout::sim {

namespace {

constexpr int kWriteIndex = 0, kWriteQueue = 1, kReads = 2;  // words of a record, then the lanes

const char* space_name(Space space) {
  static const char* const names[] = {"spm", "vmem", "acc", "HBM"};
  return names[int(space)];
}

}  // namespace

Checker::Checker(const isa::ChipParams& chip, int queues, std::vector<std::string> names)
    : queues_(queues),
      words_(int((chip.lanes + 63) / 64)),
      record_(kReads + queues + words_),
      lanes_(chip.lanes),
      names_(std::move(names)),
      pcs_(size_t(queues) * kPcs) {
  const int64_t rows[] = {chip.spm.stripes * chip.spm.banks_per_stripe * chip.spm.rows_per_bank,
                          chip.vmem.rows, chip.acc.stripes * chip.acc.rows_per_stripe};
  const int64_t stripe_rows[] = {chip.spm.banks_per_stripe * chip.spm.rows_per_bank, 0,
                                 chip.acc.rows_per_stripe};
  for (int s = 0; s < 3; ++s) {
    Table& t = tables_[s];
    t.rows = rows[s];
    t.stripe_rows = stripe_rows[s];
    t.stripes = stripe_rows[s] ? rows[s] / stripe_rows[s] : 0;
    const int64_t blocks = (rows[s] + kBlock - 1) / kBlock;
    t.row_records = ZeroArray<uint64_t>(size_t(blocks * kBlock * record_));
    t.block_records.resize(size_t(blocks * record_));
    t.mixed.resize(size_t(blocks));
    t.used.resize(size_t(t.stripes * queues));
    t.written.resize(size_t(t.stripes * queues));
    for (auto& port : t.ports) port.resize(size_t(t.stripes));
  }
}

void Checker::reset() {
  for (Table& t : tables_) {
    for (auto* v : {&t.block_records, &t.used, &t.written})
      std::fill(v->begin(), v->end(), 0);
    for (auto& port : t.ports) std::fill(port.begin(), port.end(), 0);
    std::fill(t.mixed.begin(), t.mixed.end(), 0);
  }
  bytes_.clear();
  has_unwritten_ = new_unwritten_ = false;
}

template <Checker::Mode mode>
inline void Checker::apply(uint64_t* record, Space space, int64_t row, const LaneMask& lanes) {
  const uint64_t write_index = record[kWriteIndex];
  const int write_queue = int(record[kWriteQueue]);
  if (write_index > clock_[write_queue]) [[unlikely]] {
    const bool lands_in_order =
        mode == Mode::write && !(queue_ == 1 && space == Space::vmem);
    const bool chain = write_queue == queue_ &&
                       (lands_in_order || (mode == Mode::accumulate && queue_ == 0));
    const bool own = write_queue == queue_ && write_index == index_;
    if (!chain && !own)
      race(space_name(space), uint64_t(row), mode != Mode::read, true, write_queue, write_index);
  }
  uint64_t* reads = record + kReads;
  uint64_t* have = reads + queues_;
  if constexpr (mode != Mode::write) {
    uint64_t missing = 0;
    for (int w = 0; w < words_; ++w) missing |= lanes.word[w] & ~have[w];
    if (missing != 0) [[unlikely]] {
      LaneMask mask;
      std::copy(have, have + words_, mask.word);
      note_unwritten(space, row, mask, lanes);
    }
  }
  if constexpr (mode == Mode::read) {
    reads[queue_] = index_;
    return;
  }
  if (!knows(reads)) [[unlikely]]
    for (int q = 0; q < queues_; ++q)
      if (reads[q] > clock_[q] && q != queue_)
        race(space_name(space), uint64_t(row), true, false, q, reads[q]);
  std::fill(reads, reads + queues_, 0);
  record[kWriteIndex] = index_;
  record[kWriteQueue] = uint64_t(queue_);
  for (int w = 0; w < words_; ++w) have[w] |= lanes.word[w];
}

void Checker::expand(Table& table, int64_t block) {
  const uint64_t* from = &table.block_records[size_t(block * record_)];
  uint64_t* to = table.row_records.data() + block * kBlock * record_;
  for (int64_t r = 0; r < kBlock; ++r)
    std::memcpy(to + r * record_, from, size_t(record_) * sizeof(uint64_t));
  table.mixed[size_t(block)] = 1;
}

void Checker::collapse(Table& table, int64_t block) {
  const uint64_t* rows = table.row_records.data() + block * kBlock * record_;
  for (int64_t r = 1; r < kBlock; ++r)
    if (std::memcmp(rows, rows + r * record_, size_t(record_) * sizeof(uint64_t)) != 0) return;
  std::memcpy(&table.block_records[size_t(block * record_)], rows,
              size_t(record_) * sizeof(uint64_t));
  table.mixed[size_t(block)] = 0;
}

template <Checker::Mode mode>
void Checker::visit(Space space, RowSpan span, const LaneMask& lanes) {
  Table& t = tables_[int(space)];
  if (span.stride == 0 && span.count > 1) span.count = 1;
  int64_t k = 0;
  while (k < span.count) {
    const int64_t row = span.at(k), block = row / kBlock;
    const int64_t in_block = row - block * kBlock;
    if (span.stride == 1) {
      const int64_t many = std::min(kBlock - in_block, span.count - k);
      if (many == kBlock && !t.mixed[size_t(block)]) {
        apply<mode>(&t.block_records[size_t(block * record_)], space, row, lanes);
      } else {
        if (!t.mixed[size_t(block)]) expand(t, block);
        uint64_t* records = t.row_records.data() + row * record_;
        for (int64_t r = 0; r < many; ++r)
          apply<mode>(records + r * record_, space, row + r, lanes);
        if (many == kBlock && mode != Mode::read) collapse(t, block);
      }
      k += many;
    } else {
      if (!t.mixed[size_t(block)]) expand(t, block);
      apply<mode>(t.row_records.data() + row * record_, space, row, lanes);
      ++k;
    }
  }
}

template void Checker::visit<Checker::Mode::read>(Space, RowSpan, const LaneMask&);
template void Checker::visit<Checker::Mode::write>(Space, RowSpan, const LaneMask&);
template void Checker::visit<Checker::Mode::accumulate>(Space, RowSpan, const LaneMask&);

void Checker::stripe(Space space, Table& t, int64_t at, bool write, Port port) {
  uint64_t* used = &t.used[size_t(at * queues_)];
  uint64_t* written = &t.written[size_t(at * queues_)];
  if (!knows(used)) [[unlikely]]
    for (int q = 0; q < queues_; ++q)
      if (used[q] > clock_[q] && q != queue_) bank(space, at, write, q, used[q]);
  if (port != Port::none) {
    for (int other = 1; other < kPorts; ++other)
      if (other != int(port) && t.ports[other][size_t(at)] > clock_[queue_]) [[unlikely]]
        bank(space, at, write, queue_, t.ports[other][size_t(at)]);
    t.ports[int(port)][size_t(at)] = index_;
  } else if (!write && queue_ != 0 && written[queue_] > clock_[queue_] &&
             written[queue_] != index_) [[unlikely]] {
    bank(space, at, write, queue_, written[queue_]);
  }
  used[queue_] = index_;
  if (write) written[queue_] = index_;
}

void Checker::stripes(Space space, RowSpan span, bool write, Port port) {
  Table& t = tables_[int(space)];
  if (t.stripe_rows == 0 || span.count == 0) return;
  const int64_t low = std::min(span.first, span.at(span.count - 1));
  const int64_t high = std::max(span.first, span.at(span.count - 1));
  const int64_t a = low / t.stripe_rows;
  const int64_t b = high < (a + 1) * t.stripe_rows ? a : high / t.stripe_rows;
  if (std::abs(span.stride) <= t.stripe_rows) {
    for (int64_t s = a; s <= b; ++s) stripe(space, t, s, write, port);
    return;
  }
  for (int64_t k = 0; k < span.count; ++k)
    stripe(space, t, span.at(k) / t.stripe_rows, write, port);
}

// --- HBM: records of touched byte ranges that do not overlap -----------------------------------

Checker::ByteRecords::iterator Checker::cut(uint64_t at) {
  auto it = bytes_.lower_bound(at);
  if (it != bytes_.end() && it->first == at) return it;
  if (it == bytes_.begin()) return it;
  auto before = std::prev(it);
  if (before->second.end <= at) return it;
  ByteRecord right = before->second;
  before->second.end = at;
  return bytes_.emplace_hint(it, at, right);
}

void Checker::apply_bytes(ByteRecord& r, uint64_t at, bool write) {
  const bool own = r.write_queue == queue_ && (write || r.write_index == index_);
  if (r.write_index > clock_[r.write_queue] && !own) [[unlikely]]
    race("HBM", at, write, true, r.write_queue, r.write_index);
  if (!write) {
    r.reads[queue_] = index_;
    return;
  }
  if (!knows(r.reads)) [[unlikely]]
    for (int q = 0; q < queues_; ++q)
      if (r.reads[q] > clock_[q] && q != queue_) race("HBM", at, true, false, q, r.reads[q]);
  std::fill(r.reads, r.reads + queues_, 0);
  r.write_index = index_;
  r.write_queue = queue_;
}

void Checker::hbm(uint64_t first, uint64_t end, bool write) {
  auto it = cut(first);
  uint64_t at = first;
  while (at < end) {
    if (it != bytes_.end() && it->first == at) {
      if (it->second.end > end) cut(end);
      apply_bytes(it->second, at, write);
      at = it->second.end;
      ++it;
      continue;
    }
    const uint64_t stop_at = it == bytes_.end() ? end : std::min(end, it->first);
    ByteRecord fresh{stop_at, 0, 0, {}};
    apply_bytes(fresh, at, write);
    bytes_.emplace_hint(it, at, fresh);
    at = stop_at;
  }
}

// --- reports -----------------------------------------------------------------------------------

std::string Checker::earlier(int queue, uint64_t index) const {
  std::string text = "instruction " + std::to_string(index) + " of " + names_[size_t(queue)];
  const int64_t pc = pc_of(queue, index);
  if (pc >= 0) text += " (pc " + std::to_string(pc) + ")";
  return text;
}

std::string Checker::way_out(int queue) const {
  if (queue == queue_) return "nothing says that one has retired: set `drain`";
  return "no token orders the two: let one post and the other wait";
}

void Checker::race(const char* place, uint64_t where, bool writes, bool wrote, int queue,
                   uint64_t index) const {
  stop(ErrorKind::race, std::string(place) + (place[0] == 'H' ? " byte " : " row ") +
                            std::to_string(where) + " is " + (writes ? "written" : "read") +
                            " here and " + (wrote ? "written" : "read") + " by " +
                            earlier(queue, index) + ", and " + way_out(queue));
}

void Checker::bank(Space space, int64_t at, bool writes, int queue, uint64_t index) const {
  stop(ErrorKind::bank,
       std::string(space_name(space)) + " stripe " + std::to_string(at) + " (rows from " +
           std::to_string(at * tables_[int(space)].stripe_rows) + ") is " +
           (writes ? "written" : "read") + " here while " + earlier(queue, index) +
           " may use it, and " + way_out(queue));
}

void Checker::note_unwritten(Space space, int64_t row, const LaneMask& have,
                             const LaneMask& want) {
  if (has_unwritten_) return;
  int64_t lane = 0;
  while (lane < lanes_ - 1 &&
         !((want.word[lane >> 6] & ~have.word[lane >> 6]) >> (lane & 63) & 1))
    ++lane;
  unwritten_ = {ErrorKind::uninitialized, isa::Fault::NONE,
                std::string(space_name(space)) + " row " + std::to_string(row) + " lane " +
                    std::to_string(lane) +
                    " is read, and nothing has written it in this launch: load or compute it first",
                queue_, -1, 0};
  has_unwritten_ = new_unwritten_ = true;
}

void Checker::written(Space space, uint8_t* out) const {
  const Table& t = tables_[int(space)];
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t block = r / kBlock;
    const uint64_t* record = t.mixed[size_t(block)] ? t.row_records.data() + r * record_
                                                    : &t.block_records[size_t(block * record_)];
    const uint64_t* have = record + kReads + queues_;
    for (int64_t l = 0; l < lanes_; ++l)
      out[r * lanes_ + l] = uint8_t(have[l >> 6] >> (l & 63) & 1);
  }
}

}  // namespace tapeout::sim
