// What a traced run remembers of each issued instruction, and which tokens went between them.
#pragma once

#include <cstdint>
#include <vector>

namespace tapeout::sim {

struct Trace {
  struct Event {
    int32_t queue;
    int32_t pc;
    uint64_t issue, retire;
  };
  struct Flow {
    uint32_t from, to;  // events
    int32_t channel;    // number within its pair of queues
  };
  std::vector<Event> events;
  std::vector<Flow> flows;

  uint32_t issue(int queue, int64_t pc, uint64_t cycle) {
    events.push_back({queue, static_cast<int32_t>(pc), cycle, cycle});
    return static_cast<uint32_t>(events.size() - 1);
  }
};

}  // namespace tapeout::sim
