#include "memory.hpp"

#include <sys/mman.h>

#include <new>

namespace tapeout::sim {

HostMemory::HostMemory(uint64_t bytes) : bytes_(bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(p, bytes, MADV_HUGEPAGE);
#endif
  data_ = static_cast<uint8_t*>(p);
}

HostMemory::~HostMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void HostMemory::discard(uint64_t first, uint64_t end) {
  constexpr uint64_t kPage = 1 << 21;
  const uint64_t a = (first + kPage - 1) / kPage * kPage, b = end / kPage * kPage;
  if (a < b) madvise(data_ + a, b - a, MADV_DONTNEED);
}

uint16_t* DequantCache::add(const Key& key, uint64_t first, uint64_t end) {
  const uint64_t bytes = uint64_t(key.rows) * uint64_t(key.lanes) * 2;
  if (used_bytes_ + bytes > kLimitBytes) return nullptr;
  constexpr uint64_t kAlignBytes = 64;
  if (chunk_ == nullptr || chunk_used_bytes_ + bytes > chunk_->bytes()) {
    chunk_ = std::make_shared<HostMemory>(std::max(kChunkBytes, bytes));
    chunk_used_bytes_ = 0;
  }
  uint16_t* bits = reinterpret_cast<uint16_t*>(chunk_->data() + chunk_used_bytes_);
  chunk_used_bytes_ += (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
  entries_.insert_or_assign(key, Entry{chunk_, bits, first, end});
  used_bytes_ += bytes;
  if (first < low_) low_ = first;
  if (end > high_) high_ = end;
  return bits;
}

void DequantCache::drop(uint64_t first, uint64_t end) {
  for (auto it = entries_.begin(); it != entries_.end();) {
    const bool hit = it->second.first < end && first < it->second.end;
    if (hit) used_bytes_ -= uint64_t(it->first.rows) * uint64_t(it->first.lanes) * 2;
    it = hit ? entries_.erase(it) : std::next(it);
  }
}

void DequantCache::clear() {
  entries_.clear();
  chunk_.reset();
  chunk_used_bytes_ = 0;
  used_bytes_ = 0;
  low_ = ~uint64_t{0};
  high_ = 0;
}

}  // namespace tapeout::sim
