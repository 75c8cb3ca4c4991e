// Conversion of rows: fp32 to and from bf16 and planes, and HBM storage formats to bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math.hpp"

namespace tapeout::math {

// Nearest even, subnormals to zero with sign, NaN to 0x7FC0.
void f32_to_bf16(const float* x, std::uint16_t* out, std::size_t n);
// A shift of the bits.
void bf16_to_f32(const std::uint16_t* x, float* out, std::size_t n);
// fp32 as its high and low 16 bits: the spm rows 2m and 2m + 1.
void split_planes(const float* x, std::uint16_t* high, std::uint16_t* low, std::size_t n);
void merge_planes(const std::uint16_t* high, const std::uint16_t* low, float* out, std::size_t n);

// Rows that share scales: 32 in block formats, 1 in the others.
int group_rows(Format format);
// Bytes of a tile of rows x lanes with its scales. Throws std::invalid_argument where the format
// cannot hold that shape (block formats: rows % 32; 4-bit formats: odd lanes).
std::size_t bytes_for(Format format, std::size_t rows, std::size_t lanes);

// A tile of rows x lanes, lanes <= kMaxLanes, at `source` to bf16 rows dst_stride elements apart.
// Layouts: see tapeout.numerics.formats. Throws std::invalid_argument for fp32 and int32 (copied as
// planes, they have no bf16 rows) and for shapes bytes_for refuses.
void decode_rows(Format format, const std::uint8_t* source, std::size_t rows, std::size_t lanes,
                 std::uint16_t* dst, std::size_t dst_stride);

}  // namespace tapeout::math
