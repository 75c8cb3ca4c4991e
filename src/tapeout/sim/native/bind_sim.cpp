// Python binding of the machine: `tapeout.sim._native.Machine`, wrapped by tapeout.sim.target.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "machine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace tapeout;
using sim::Machine;
using sim::Space;

HbmParams hbm_params(const isa::ChipParams& chip) {
  const auto& h = chip.hbm;
  const auto& t = h.timing;
  HbmParams p{};
  p.stacks = uint32_t(h.stacks);
  p.pseudo_channels_per_stack = uint32_t(h.pseudo_channels_per_stack);
  p.pin_rate_gbps = h.pin_rate_gbps;
  p.pins_per_pseudo_channel = uint32_t(h.pins_per_pseudo_channel);
  p.burst_bytes = uint32_t(h.burst_bytes);
  p.bank_groups = uint32_t(h.bank_groups);
  p.banks_per_group = uint32_t(h.banks_per_group);
  p.row_bytes = uint32_t(h.row_bytes);
  p.capacity_gib_per_stack = h.capacity_gib_per_stack;
  p.interleave_bytes = uint32_t(h.interleave_bytes);
  p.bank_group_interleave = uint32_t(h.bank_group_interleave);
  p.controller_ns = h.controller_ns;
  p.clock_ghz = chip.clock_ghz;
  p.timing = {t.rcd_ns,   t.rp_ns,   t.ras_ns,   t.cl_ns,    t.cwl_ns,   t.wr_ns,
              t.rtp_ns,   t.ccd_s_ns, t.ccd_l_ns, t.rrd_s_ns, t.rrd_l_ns, t.faw_ns,
              t.wtr_s_ns, t.wtr_l_ns, t.rtw_ns,  t.refi_ns,  t.rfc_pb_ns, t.rrefd_ns};
  return p;
}

Space space_of(const std::string& name) {
  if (name == "spm") return Space::spm;
  if (name == "vmem") return Space::vmem;
  if (name == "acc") return Space::acc;
  throw std::invalid_argument("no memory '" + name + "': spm, vmem, acc");
}

// A NumPy array that owns `values`.
template <class T>
nb::ndarray<nb::numpy, T> to_array(std::vector<T>&& values, size_t columns) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  const size_t count = owned->size() / columns;
  if (columns == 1) return nb::ndarray<nb::numpy, T>(owned->data(), {count}, owner);
  return nb::ndarray<nb::numpy, T>(owned->data(), {count, columns}, owner);
}

nb::object peek(Machine& m, const std::string& name) {
  const Space space = space_of(name);
  const size_t rows = size_t(m.rows(space)), lanes = size_t(m.chip().lanes);
  if (space == Space::spm) {
    std::vector<uint16_t> out(rows * lanes);
    for (size_t r = 0; r < rows; ++r)
      std::memcpy(&out[r * lanes], m.spm().row(int64_t(r)), lanes * 2);
    return nb::cast(to_array(std::move(out), lanes));
  }
  const float* from = space == Space::vmem ? m.vmem() : m.acc();
  return nb::cast(to_array(std::vector<float>(from, from + rows * lanes), lanes));
}

nb::object peek_written(Machine& m, const std::string& name) {
  const Space space = space_of(name);
  const size_t rows = size_t(m.rows(space)), lanes = size_t(m.chip().lanes);
  std::vector<uint8_t> out(rows * lanes, 0);
  m.checker().written(space, out.data());
  return nb::cast(to_array(std::move(out), lanes));
}

nb::dict queue_dict(const sim::QueueCounters& q, int queues) {
  nb::dict out;
  out["issued"] = q.issued;
  out["busy"] = q.busy;
  out["occupied"] = q.occupied;
  out["runs"] = q.runs;
  out["end_cycle"] = q.end_cycle;
  out["fetch"] = q.stalls.fetch;
  out["port"] = q.stalls.port;
  out["drain"] = q.stalls.drain;
  out["memory"] = q.stalls.memory;
  nb::list tokens;
  for (int p = 0; p < queues; ++p) tokens.append(q.stalls.token[p]);
  out["token"] = tokens;
  return out;
}

nb::dict trace_dict(sim::Trace&& trace) {
  std::vector<int32_t> queue, pc, from, to, channel;
  std::vector<uint64_t> issue, retire;
  for (const auto& e : trace.events) {
    queue.push_back(e.queue);
    pc.push_back(e.pc);
    issue.push_back(e.issue);
    retire.push_back(e.retire);
  }
  for (const auto& f : trace.flows) {
    from.push_back(int32_t(f.from));
    to.push_back(int32_t(f.to));
    channel.push_back(f.channel);
  }
  nb::dict out;
  out["queue"] = to_array(std::move(queue), 1);
  out["pc"] = to_array(std::move(pc), 1);
  out["issue"] = to_array(std::move(issue), 1);
  out["retire"] = to_array(std::move(retire), 1);
  out["flow_from"] = to_array(std::move(from), 1);
  out["flow_to"] = to_array(std::move(to), 1);
  out["flow_channel"] = to_array(std::move(channel), 1);
  return out;
}

nb::dict run(Machine& m, const sim::LoadedProgram& program, bool functional, bool traced,
             uint64_t limit) {
  sim::Trace trace;
  sim::RunReport report;
  {
    nb::gil_scoped_release release;
    report = m.run(program, functional, traced ? &trace : nullptr, limit);
  }
  nb::dict out;
  out["cycles"] = report.cycles;
  out["instructions"] = report.instructions;
  nb::list queues;
  for (const auto& q : report.queues) queues.append(queue_dict(q, m.queue_count()));
  out["queues"] = queues;
  const sim::Traffic& t = report.traffic;
  out["macs"] = t.macs;
  nb::dict bytes;
  bytes["hbm_read"] = report.hbm_read_bytes;
  bytes["hbm_write"] = report.hbm_write_bytes;
  bytes["hbm_fetch"] = report.fetch_bytes;
  bytes["spm_read"] = t.spm_read;
  bytes["spm_write"] = t.spm_write;
  bytes["vmem_read"] = t.vmem_read;
  bytes["vmem_write"] = t.vmem_write;
  bytes["acc_read"] = t.acc_read;
  bytes["acc_write"] = t.acc_write;
  out["bytes"] = bytes;
  const Hbm::Counters& c = report.hbm;
  nb::dict hbm;
  hbm["reads"] = c.reads;
  hbm["writes"] = c.writes;
  hbm["row_hits"] = c.row_hits;
  hbm["row_conflicts"] = c.row_conflicts;
  hbm["row_misses"] = c.reads + c.writes - c.row_hits - c.row_conflicts;
  hbm["activates"] = c.activates;
  hbm["refreshes"] = c.refreshes;
  hbm["turnarounds"] = c.turnarounds;
  out["hbm"] = hbm;
  if (report.error) {
    const sim::ProgramFault& e = *report.error;
    out["error"] = nb::make_tuple(int(e.kind), int64_t(e.fault), e.rule, e.queue, e.pc, e.cycle);
  } else {
    out["error"] = nb::none();
  }
  if (traced) out["trace"] = trace_dict(std::move(trace));
  return out;
}

using BaseTuple = std::tuple<int, uint64_t, uint64_t, bool>;

}  // namespace

void bind_sim(nb::module_& m) {
  nb::class_<sim::LoadedProgram>(m, "LoadedProgram",
                                 "A program decoded for one machine; made by Machine.load.");
  nb::class_<Machine>(m, "Machine", "One core with its HBM: see tapeout.sim.target.Sim.")
      .def(
          "__init__",
          [](Machine* self, nb::dict chip, std::vector<std::string> names, uint64_t hbm_bytes,
             bool checks) {
            const auto params = isa::chip_params([&chip](const char* key) {
              if (!chip.contains(key))
                throw nb::key_error((std::string("the chip lacks ") + key).c_str());
              return nb::cast<double>(nb::float_(chip[key]));
            });
            new (self) Machine(params, hbm_params(params), std::move(names), hbm_bytes, checks);
          },
          "chip"_a, "names"_a, "hbm_bytes"_a, "checks"_a,
          "`chip` is tapeout.isa.native.flatten(chip), `names` its queue names.")
      .def(
          "hbm_view",
          [](Machine& self) {
            return nb::ndarray<nb::numpy, uint8_t>(self.host().data(), {self.host().bytes()},
                                                   nb::find(self));
          },
          "uint8 [hbm_bytes] without a copy; call `touched` after writing to it.")
      .def("touched", &Machine::touched, "first"_a, "end"_a,
           "Tells that the host changed HBM bytes [first, end).")
      .def(
          "discard",
          [](Machine& self, uint64_t first, uint64_t end) {
            self.touched(first, end);
            self.spm().reset();
            self.host().discard(first, end);
          },
          "first"_a, "end"_a, "Gives whole pages of HBM bytes [first, end) back to the host.")
      .def(
          "load",
          [](Machine& self, const std::vector<nb::bytes>& words, const std::vector<uint64_t>& code,
             const std::vector<BaseTuple>& bases) {
            std::vector<std::string> streams;
            for (const nb::bytes& w : words) streams.emplace_back(w.c_str(), w.size());
            std::vector<std::pair<int, sim::Base>> given;
            for (const auto& [number, address, bytes, writable] : bases)
              given.push_back({number, {address, bytes, writable, true}});
            return self.load(streams, code, given);
          },
          "words"_a, "code"_a, "bases"_a, nb::keep_alive<0, 1>())
      .def("run", &run, "program"_a, "functional"_a, "traced"_a, "limit"_a)
      .def("peek", &peek, "memory"_a)
      .def("peek_written", &peek_written, "memory"_a);
}
