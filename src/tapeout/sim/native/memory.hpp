// Memories of one core on the host: HBM as reserved address space, spm rows behind pointers so that
// a load from read-only HBM is a view, vmem and acc as plain fp32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace tapeout::sim {

// HBM: pages are taken from the host when they are first touched.
class HostMemory {
 public:
  explicit HostMemory(uint64_t bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  void discard(uint64_t first, uint64_t end);  // gives whole pages back; they read as zero

 private:
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// Memory that is zero and untouched until used.
template <class T>
class ZeroArray {
 public:
  ZeroArray() = default;
  explicit ZeroArray(size_t count) : memory_(std::make_unique<HostMemory>(count * sizeof(T) + 64)) {}
  T* data() const { return reinterpret_cast<T*>(memory_->data()); }
  T& operator[](size_t i) const { return data()[i]; }

 private:
  std::unique_ptr<HostMemory> memory_;
};

// Rows of `lanes` bf16. A row is its own storage or a view of `lanes` bf16 elsewhere. Blocks of
// rows that view evenly spaced data are noted as one, so that weights that stream through cost the
// host no pointer a row. Such a block may view the first lanes only: the others are what `at_` says,
// and who asks for a whole row turns the block into copies.
class Scratchpad {
 public:
  Scratchpad(int64_t rows, int64_t lanes)
      : rows_(rows),
        lanes_(lanes),
        own_(rows * lanes),
        at_(rows),
        blocks_((rows + kBlockRows - 1) / kBlockRows) {
    reset();
  }
  void reset() {
    for (int64_t r = 0; r < rows_; ++r) at_[r] = own(r);
    for (Block& block : blocks_) block = {};
  }
  const uint16_t* row(int64_t r) {
    const Block& block = blocks_[r / kBlockRows];
    if (block.lanes != lanes_ && block.source != nullptr) [[unlikely]]
      settle(r);
    return block.source != nullptr ? block.row(r % kBlockRows) : at_[r];
  }
  bool is_view(int64_t r) { return row(r) != own(r); }
  void view(int64_t r, const uint16_t* source) {
    settle(r);
    at_[r] = source;
  }
  // Rows r, r + 1, ... as views of rows `step_bytes` apart.
  void view_rows(int64_t r, int64_t count, const uint8_t* source, int64_t step_bytes) {
    for (const int64_t end = r + count; r < end;) {
      if (r % kBlockRows == 0 && end - r >= kBlockRows) {
        blocks_[r / kBlockRows] = {source, step_bytes, lanes_};
        r += kBlockRows;
        source += kBlockRows * step_bytes;
      } else {
        view(r++, reinterpret_cast<const uint16_t*>(source));
        source += step_bytes;
      }
    }
  }
  // The same for the first `lanes` of those of the rows that make whole blocks from the start: how
  // many.
  int64_t view_lanes(int64_t r, int64_t count, int64_t lanes, const uint8_t* source,
                     int64_t step_bytes) {
    if (r % kBlockRows != 0) return 0;
    const int64_t whole = count / kBlockRows;
    for (int64_t b = 0; b < whole; ++b, source += kBlockRows * step_bytes) {
      Block& block = blocks_[r / kBlockRows + b];
      if (block.source != nullptr && (block.lanes == lanes_ || block.lanes > lanes))
        settle(r + b * kBlockRows);
      block = {source, step_bytes, lanes};
    }
    return whole * kBlockRows;
  }
  // The first of rows r, r + 1, ... where blocks view `lanes` lanes of them all, evenly; else null.
  const uint16_t* spaced(int64_t r, int64_t count, int64_t lanes, int64_t* step_bytes) const {
    const Block* block = &blocks_[r / kBlockRows];
    if (block->source == nullptr || block->lanes < lanes) return nullptr;
    const uint8_t* next = block->source + kBlockRows * block->step_bytes;
    for (int64_t left = count - (kBlockRows - r % kBlockRows); left > 0; left -= kBlockRows) {
      ++block;
      if (block->source != next || block->step_bytes != block[-1].step_bytes ||
          block->lanes < lanes)
        return nullptr;
      next += kBlockRows * block->step_bytes;
    }
    *step_bytes = block->step_bytes;
    return blocks_[r / kBlockRows].row(r % kBlockRows);
  }
  // Rows r, r + 1, ... where all of them are views; false where one is not.
  bool views(int64_t r, int64_t count, const uint16_t** to) {
    const uintptr_t mine = reinterpret_cast<uintptr_t>(own_.data());
    const uintptr_t bytes = uintptr_t(rows_ * lanes_) * 2;
    bool owned = false;
    for (const int64_t end = r + count; r < end;) {
      const Block& block = blocks_[r / kBlockRows];
      const int64_t first = r % kBlockRows, n = std::min(end - r, kBlockRows - first);
      if (block.lanes != lanes_) settle(r);
      if (block.source != nullptr) {
        for (int64_t k = 0; k < n; ++k) to[k] = block.row(first + k);
      } else {
        for (int64_t k = 0; k < n; ++k) {
          to[k] = at_[r + k];
          owned |= reinterpret_cast<uintptr_t>(to[k]) - mine < bytes;
        }
      }
      r += n;
      to += n;
    }
    return !owned;
  }
  // Turns every view into a copy, before what they show goes away.
  void own_all() {
    for (int64_t r = 0; r < rows_; ++r)
      if (is_view(r)) writable(r, 0, 0);
  }
  // Asks the host for the lines that writable(r, ...) and the write after it will touch.
  void expect_write(int64_t r) const {
    constexpr int64_t kLineLanes = 32;
    const Block& block = blocks_[r / kBlockRows];
    const uint16_t *mine = own(r),
                   *now = block.source != nullptr ? block.row(r % kBlockRows) : at_[r];
    for (int64_t l = 0; l < lanes_; l += kLineLanes) {
      __builtin_prefetch(mine + l, 1);
      if (now != mine) __builtin_prefetch(now + l);
    }
  }
  // For a write of lanes [first, first + count); the others keep their values.
  uint16_t* writable(int64_t r, int64_t first, int64_t count) {
    uint16_t* mine = own(r);
    settle(r);
    if (at_[r] != mine) {
      const int64_t end = first + count;
      std::copy(at_[r], at_[r] + first, mine);
      std::copy(at_[r] + end, at_[r] + lanes_, mine + end);
      at_[r] = mine;
    }
    return mine;
  }

 private:
  static constexpr int64_t kBlockRows = 64;
  struct Block {
    const uint8_t* source = nullptr;  // of its first row; null where `at_` has its rows
    int64_t step_bytes = 0;
    int64_t lanes = 0;  // from the first on that are views
    const uint16_t* row(int64_t k) const {
      return reinterpret_cast<const uint16_t*>(source + k * step_bytes);
    }
  };
  // Gives the rows around r their pointers, before one of them changes.
  void settle(int64_t r) {
    Block& block = blocks_[r / kBlockRows];
    if (block.source == nullptr) return;
    const int64_t first = r / kBlockRows * kBlockRows;
    for (int64_t k = 0; k < kBlockRows; ++k) {
      const uint16_t*& at = at_[first + k];
      if (block.lanes == lanes_) {
        at = block.row(k);
        continue;
      }
      uint16_t* mine = own(first + k);
      std::copy(block.row(k), block.row(k) + block.lanes, mine);
      if (at != mine) std::copy(at + block.lanes, at + lanes_, mine + block.lanes);
      at = mine;
    }
    block = {};
  }
  uint16_t* own(int64_t r) const { return own_.data() + r * lanes_; }
  int64_t rows_, lanes_;
  ZeroArray<uint16_t> own_;
  std::vector<const uint16_t*> at_;
  std::vector<Block> blocks_;
};

// bf16 rows of read-only HBM data in narrow formats, dequantised once. They lie one after another in
// chunks of host memory, whose large pages stream faster than the heap's; a chunk goes when its last
// entry does.
class DequantCache {
 public:
  struct Key {
    uint64_t address;
    int64_t format, rows, lanes, row_bytes;
    bool operator==(const Key&) const = default;
  };
  struct Entry {
    std::shared_ptr<HostMemory> chunk;
    uint16_t* bits;       // in it
    uint64_t first, end;  // HBM bytes it came from
  };
  const uint16_t* find(const Key& key) const {
    const auto it = entries_.find(key);
    return it == entries_.end() ? nullptr : it->second.bits;
  }
  // Storage for rows x lanes, or null when the cache has had its share of host memory.
  uint16_t* add(const Key& key, uint64_t first, uint64_t end);
  // Entries that HBM bytes [first, end) went into.
  bool holds(uint64_t first, uint64_t end) const { return end > low_ && first < high_; }
  void drop(uint64_t first, uint64_t end);
  void clear();

 private:
  struct Hash {
    size_t operator()(const Key& k) const {
      uint64_t h = k.address * 0x9E3779B97F4A7C15ull;
      h ^= (uint64_t(k.rows) << 40) ^ (uint64_t(k.lanes) << 20) ^ (uint64_t(k.format) << 8);
      return (h ^ uint64_t(k.row_bytes) * 0xC2B2AE3D27D4EB4Full) * 0xFF51AFD7ED558CCDull;
    }
  };
  static constexpr uint64_t kLimitBytes = uint64_t{6} << 30, kChunkBytes = uint64_t{32} << 20;
  std::shared_ptr<HostMemory> chunk_;  // that entries are added to
  uint64_t chunk_used_bytes_ = 0;
  std::unordered_map<Key, Entry, Hash> entries_;
  uint64_t used_bytes_ = 0, low_ = ~uint64_t{0}, high_ = 0;
};

}  // namespace tapeout::sim
