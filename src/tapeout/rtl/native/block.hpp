// A module that is verilated apart from the core it lies in (tapeout.rtl.apart).
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "context.hpp"
#include "svdpi.h"

// A port takes a value as DPI passes it: whether it changes.
inline bool put(CData& port, svBit value) {
  const bool moves = port != value;
  port = value;
  return moves;
}

template <class T>
bool put(T& port, const svBitVecVal* value) {
  if (std::memcmp(&port, value, sizeof(T)) == 0) return false;
  std::memcpy(&port, value, sizeof(T));
  return true;
}

// Words of DPI are wider than ports of up to 16 bits.
inline void get(const CData& port, svBit* value) { *value = port; }
inline void get(const CData& port, svBitVecVal* value) { *value = port; }
inline void get(const SData& port, svBitVecVal* value) { *value = port; }
template <class T>
void get(const T& port, svBitVecVal* value) {
  std::memcpy(value, &port, sizeof(T));
}

// Making and ending a model change the thread's context, which is the core's again when this ends.
struct SameContext {
  VerilatedContext* const context = Verilated::threadContextp();
  ~SameContext() { Verilated::threadContextp(context); }
};

// State is the class with all that the model keeps. outputs copies the model's to words.
template <class Model, class State, void outputs(const Model&, std::vector<uint32_t>&)>
class Block {
  Context context_;

 public:
  Model top{&context_};

  explicit Block(const char* name) : name_(name) {
    top.eval();
    outputs(top, given_);
    for (const uint32_t word : given_)
      if (word != 0) throw std::logic_error(name_ + ": an output is not 0 at first");
  }
  ~Block() {
    Verilated::threadContextp(&context_);
    top.final();
  }
  Block(const Block&) = delete;

  // An edge of the clock, before which an input has moved, or none has. Where the edge before left
  // the whole state as it was, one with the same inputs does, too, and is not run.
  void edge(bool moves) {
    still_ = moves ? 0 : still_ + 1;
    rests_ = rests_ && !moves;
    if (rests_) return;
    const auto* const state = reinterpret_cast<const uint8_t*>(top.rootp->vlSymsp);
    const bool looks = still_ % kLooks == kLooks - 1;
    if (looks) was_.assign(state, state + sizeof(State));
    top.clk = 0;
    top.eval();
    outputs(top, now_);
    if (now_ != given_) throw std::logic_error(name_ + ": an output follows an input at once");
    top.clk = 1;
    top.eval();
    outputs(top, given_);
    rests_ = looks && std::memcmp(was_.data(), state, sizeof(State)) == 0;
  }

 private:
  static constexpr uint64_t kLooks = 8;  // cycles from one look at the state to the next
  const std::string name_;
  std::vector<uint32_t> given_, now_;
  std::vector<uint8_t> was_;
  uint64_t still_ = 0;
  bool rests_ = false;
};
