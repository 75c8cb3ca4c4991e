// Python binding of the HBM model: `tapeout.sim._native.Hbm`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <ctime>
#include <stdexcept>
#include <string>
#include <vector>

#include "hbm.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using tapeout::Hbm;
using tapeout::HbmParams;
using Cycles = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Sizes = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, uint64_t, nb::ndim<1>>;

Result to_array(std::vector<uint64_t>&& values) {
  auto* owned = new std::vector<uint64_t>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<uint64_t>*>(p); });
  return Result(owned->data(), {owned->size()}, owner);
}

template <typename T>
T number(nb::dict values, const char* table, const char* name) {
  if (!values.contains(name))
    throw nb::key_error((std::string(table) + " lacks the key '" + name +
                         "': give every field of tapeout.chip." +
                         (std::string(table) == "hbm" ? "Hbm" : "HbmTiming"))
                            .c_str());
  return nb::cast<T>(values[name]);
}

HbmParams params_from(nb::dict hbm, double clock_ghz) {
  HbmParams p{};
  const auto count = [&](const char* name) { return number<uint32_t>(hbm, "hbm", name); };
  const auto real = [&](const char* name) { return number<double>(hbm, "hbm", name); };
  p.stacks = count("stacks");
  p.pseudo_channels_per_stack = count("pseudo_channels_per_stack");
  p.pin_rate_gbps = real("pin_rate_gbps");
  p.pins_per_pseudo_channel = count("pins_per_pseudo_channel");
  p.burst_bytes = count("burst_bytes");
  p.bank_groups = count("bank_groups");
  p.banks_per_group = count("banks_per_group");
  p.row_bytes = count("row_bytes");
  p.capacity_gib_per_stack = real("capacity_gib_per_stack");
  p.interleave_bytes = count("interleave_bytes");
  p.bank_group_interleave = count("bank_group_interleave");
  p.controller_ns = real("controller_ns");
  p.clock_ghz = clock_ghz;
  const nb::dict timing = number<nb::dict>(hbm, "hbm", "timing");
  const auto ns = [&](const char* name) { return number<double>(timing, "hbm.timing", name); };
  p.timing = {ns("rcd_ns"),   ns("rp_ns"),    ns("ras_ns"),   ns("cl_ns"),    ns("cwl_ns"),
              ns("wr_ns"),    ns("rtp_ns"),   ns("ccd_s_ns"), ns("ccd_l_ns"), ns("rrd_s_ns"),
              ns("rrd_l_ns"), ns("faw_ns"),   ns("wtr_s_ns"), ns("wtr_l_ns"), ns("rtw_ns"),
              ns("refi_ns"),  ns("rfc_pb_ns"), ns("rrefd_ns")};
  return p;
}

nb::dict counters_of(const Hbm& hbm) {
  const Hbm::Counters& c = hbm.counters();
  nb::dict out;
  out["reads"] = c.reads;
  out["writes"] = c.writes;
  out["read_bytes"] = c.read_bytes;
  out["write_bytes"] = c.write_bytes;
  out["bursts"] = c.bursts;
  out["row_hits"] = c.row_hits;
  out["row_misses"] = c.reads + c.writes - c.row_hits - c.row_conflicts;
  out["row_conflicts"] = c.row_conflicts;
  out["activates"] = c.activates;
  out["refreshes"] = c.refreshes;
  out["turnarounds"] = c.turnarounds;
  return out;
}

void require_lengths(size_t expected, size_t given, const char* name) {
  if (given != expected)
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(given) +
                                " elements and the addresses " + std::to_string(expected) +
                                ": give one for each run");
}

Result run_trace(Hbm& hbm, Cycles arrival, Cycles address, Sizes bytes, Flags write) {
  const size_t n = address.shape(0);
  require_lengths(n, arrival.shape(0), "arrival");
  require_lengths(n, bytes.shape(0), "bytes");
  require_lengths(n, write.shape(0), "write");
  std::vector<uint64_t> out(n);
  const uint64_t* at = arrival.data();
  const uint64_t* where = address.data();
  for (size_t i = 0; i < n; ++i)
    out[i] = hbm.access(at[i], where[i], bytes.data()[i], write.data()[i]);
  return to_array(std::move(out));
}

// One queue of the closed loop: it sends its next run when a credit is free, one run every
// `interval` cycles at most; credits come back in order, as those of a DMA queue do.
struct Queue {
  Cycles address;
  Sizes bytes;
  Flags write;
  size_t next = 0;
  uint64_t ready = 0;    // earliest cycle of the next send
  uint64_t retired = 0;  // in order
  std::vector<uint64_t> sent, done, returns;
};

nb::dict stream(Hbm& hbm, nb::list queues, uint32_t credits, uint64_t interval_cycles,
                uint64_t request_cycles, uint64_t response_cycles) {
  if (credits == 0) throw std::invalid_argument("credits must be positive, not 0");
  std::vector<Queue> all;
  for (nb::handle item : queues) {
    const nb::tuple runs = nb::cast<nb::tuple>(item);
    Queue q{nb::cast<Cycles>(runs[0]), nb::cast<Sizes>(runs[1]), nb::cast<Flags>(runs[2]),
            0, 0, 0, {}, {}, {}};
    require_lengths(q.address.shape(0), q.bytes.shape(0), "bytes");
    require_lengths(q.address.shape(0), q.write.shape(0), "write");
    q.sent.reserve(q.address.shape(0));
    q.done.reserve(q.address.shape(0));
    q.returns.assign(credits, 0);
    all.push_back(std::move(q));
  }
  const std::clock_t start = std::clock();
  for (;;) {
    Queue* first = nullptr;  // smallest (cycle, queue id)
    for (Queue& q : all)
      if (q.next < q.address.shape(0) && (!first || q.ready < first->ready)) first = &q;
    if (!first) break;
    Queue& q = *first;
    const size_t i = q.next++;
    const uint64_t sent = q.ready;
    const uint64_t done =
        hbm.access(sent + request_cycles, q.address.data()[i], q.bytes.data()[i],
                   q.write.data()[i]) +
        response_cycles;
    q.retired = std::max(q.retired, done);
    q.returns[i % credits] = q.retired;
    q.sent.push_back(sent);
    q.done.push_back(done);
    q.ready = std::max(sent + interval_cycles, q.returns[(i + 1) % credits]);
  }
  const double host_s = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  nb::list sent, done;
  for (Queue& q : all) {
    sent.append(to_array(std::move(q.sent)));
    done.append(to_array(std::move(q.done)));
  }
  nb::dict out;
  out["sent"] = sent;
  out["done"] = done;
  out["host_s"] = host_s;
  return out;
}

}  // namespace

void bind_hbm(nb::module_& m) {
  nb::class_<Hbm>(m, "Hbm",
                  "Timing of a chip's HBM by runs; see docs/hbm.md.\n\n"
                  "Hbm(hbm, clock_ghz): `hbm` is `dataclasses.asdict(chip.hbm)`.")
      .def(
          "__init__",
          [](Hbm* self, nb::dict hbm, double clock_ghz) {
            new (self) Hbm(params_from(hbm, clock_ghz));
          },
          "hbm"_a, "clock_ghz"_a)
      .def("reset", &Hbm::reset, "Empty banks and buffers, time and counters zero.")
      .def("access", &Hbm::access, "arrival_cycle"_a, "address"_a, "bytes"_a, "write"_a,
           "Core cycle at which a run completes; calls in order of arrival.")
      .def("run_trace", &run_trace, "arrival"_a, "address"_a, "bytes"_a, "write"_a,
           "Completion cycles (uint64) of runs given as arrays: uint64 arrival cycles and\n"
           "addresses, uint32 bytes, bool write.")
      .def("stream", &stream, "queues"_a, "credits"_a, "interval_cycles"_a = 1,
           "request_cycles"_a = 0, "response_cycles"_a = 0,
           "Closed loop: each queue is (addresses uint64, bytes uint32, write bool), sends a run\n"
           "every `interval_cycles` while it has credits, gets them back in order. Returns the\n"
           "cycles `sent` and `done` of each queue's runs and the processor time `host_s`.")
      .def(
          "locate",
          [](const Hbm& hbm, uint64_t address) {
            const Hbm::Location at = hbm.locate(address);
            return nb::make_tuple(at.pseudo_channel, at.set, at.row);
          },
          "address"_a, "(pseudo-channel, bank set, row) of an address.")
      .def_prop_ro("counters", &counters_of)
      .def_prop_ro("interleave_bytes", &Hbm::interleave_bytes)
      .def_prop_ro("pseudo_channels", &Hbm::pseudo_channels)
      .def_prop_ro("peak_bytes_per_kilocycle", &Hbm::peak_bytes_per_kilocycle);
}
