// A loaded program: decoded streams, base registers and the errors that stop a run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "isa_tables.inc"

namespace tapeout::sim {

constexpr int kMaxBases = 16;
constexpr int kMaxQueues = 26;    // 24 wait bits name at most 24 peers, and the queue itself
constexpr int kMaxRegisters = 32;  // 5-bit register fields
constexpr uint64_t kUnknown = ~uint64_t{0};

enum class ErrorKind { fault, race, bank, uninitialized, limit };

// Stops a run. `cycle` decides between errors of several queues: the earliest is reported.
struct ProgramFault {
  ErrorKind kind = ErrorKind::fault;
  isa::Fault fault = isa::Fault::NONE;
  std::string rule;
  int queue = -1;
  int64_t pc = -1;
  uint64_t cycle = 0;
};

[[noreturn]] inline void stop(isa::Fault fault, std::string rule) {
  throw ProgramFault{ErrorKind::fault, fault, std::move(rule)};
}
[[noreturn]] inline void stop(ErrorKind kind, std::string rule) {
  throw ProgramFault{kind, isa::Fault::NONE, std::move(rule)};
}

[[noreturn]] inline void stop_used_twice(const char* memory, int64_t row) {
  stop(ErrorKind::race, std::string(memory) + " row " + std::to_string(row) +
                            " is used twice by one instruction, not as operand and result of the "
                            "same position: place the result elsewhere");
}

// One base register: bytes [address, address + bytes) of HBM.
struct Base {
  uint64_t address = 0, bytes = 0;
  bool writable = false, given = false;
};

struct Stream {
  std::vector<isa::Instr> code;
  std::vector<uint8_t> legal;  // 0: the word is not an instruction of this queue
  uint64_t code_base = 0;      // HBM address of the first word
};

struct LoadedProgram {
  std::vector<Stream> streams;  // by queue number
  Base bases[kMaxBases];
};

}  // namespace tapeout::sim
