// Sizes of HBM tiles, and the checks around their conversion.
#include "formats.hpp"

#include <stdexcept>
#include <string>

#include "math_kernels.hpp"

namespace tapeout::math {
namespace {

struct Layout {
  int bits;         // of an element
  int scale_bytes;  // a lane and group; zero in plain formats
};

Layout layout_of(Format format) {
  switch (format) {
    case Format::BF16: return {16, 0};
    case Format::FP32:
    case Format::INT32: return {32, 0};
    case Format::FP8_E4M3:
    case Format::FP8_E5M2:
    case Format::INT8: return {8, 0};
    case Format::Q8_0: return {8, 2};
    case Format::Q4_1: return {4, 4};
    case Format::MXFP8_E4M3:
    case Format::MXFP8_E5M2: return {8, 1};
    case Format::MXFP4: return {4, 1};
  }
  throw std::invalid_argument("storage format " + std::to_string(static_cast<int>(format)) +
                              " does not exist: see enum Format");
}

}  // namespace

int group_rows(Format format) { return layout_of(format).scale_bytes ? 32 : 1; }

std::size_t bytes_for(Format format, std::size_t rows, std::size_t lanes) {
  const Layout layout = layout_of(format);
  const std::size_t group = static_cast<std::size_t>(group_rows(format));
  if (rows % group != 0) {
    throw std::invalid_argument("block formats store groups of 32 rows, and " +
                                std::to_string(rows) + " rows do not divide into them");
  }
  if (layout.bits == 4 && lanes % 2 != 0) {
    throw std::invalid_argument("4-bit formats store two lanes a byte, and " +
                                std::to_string(lanes) + " lanes is odd");
  }
  return rows * lanes * layout.bits / 8 + rows / group * lanes * layout.scale_bytes;
}

void decode_rows(Format format, const std::uint8_t* source, std::size_t rows, std::size_t lanes,
                 std::uint16_t* dst, std::size_t dst_stride) {
  bytes_for(format, rows, lanes);
  if (format == Format::FP32 || format == Format::INT32) {
    throw std::invalid_argument(
        "fp32 and int32 are copied as two planes and have no bf16 rows: use split_planes");
  }
  if (lanes > kMaxLanes) {
    throw std::invalid_argument("a decoded row has at most " + std::to_string(kMaxLanes) +
                                " lanes, not " + std::to_string(lanes));
  }
  const FtzGuard guard;
  kernels().decode_rows(format, source, rows, lanes, dst, dst_stride);
}

}  // namespace tapeout::math
