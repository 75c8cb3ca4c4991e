#include "machine.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace tapeout::sim {

namespace {

// Registers that an instruction names, and whether it writes r0.
struct Registers {
  int highest = 0;
  bool writes_zero = false;
};


Registers registers_of(const isa::Instr& ins) {
  Registers found;
  const auto see = [&found](int64_t reg) { found.highest = std::max(found.highest, int(reg)); };
  const auto writes = [&](int64_t dst) {
    see(dst);
    found.writes_zero = dst == 0;
  };
  switch (ins.op) {
    case isa::Op::SeqSet: writes(std::get<isa::SeqSet>(ins.body).dst); break;
    case isa::Op::SeqAlu: {
      const auto& i = std::get<isa::SeqAlu>(ins.body);
      writes(i.dst), see(i.a), see(i.b);
      break;
    }
    case isa::Op::SeqLoad: {
      const auto& i = std::get<isa::SeqLoad>(ins.body);
      writes(i.dst), see(i.src.reg);
      break;
    }
    case isa::Op::SeqLoop: see(std::get<isa::SeqLoop>(ins.body).count.reg); break;
    case isa::Op::MxuLoad: {
      const auto& i = std::get<isa::MxuLoad>(ins.body);
      see(i.src.reg), see(i.k.reg), see(i.n.reg);
      break;
    }
    case isa::Op::MxuMatmul: {
      const auto& i = std::get<isa::MxuMatmul>(ins.body);
      see(i.src.reg), see(i.rows.reg), see(i.dst.reg);
      break;
    }
    case isa::Op::MxuUnload: see(std::get<isa::MxuUnload>(ins.body).dst.reg); break;
    case isa::Op::VpuMap: {
      const auto& i = std::get<isa::VpuMap>(ins.body);
      for (int reg : {i.rows.reg, i.width.reg, i.a.reg, i.b.reg, i.c.reg, i.d.reg, i.dst.reg,
                      i.reduce_dst.reg})
        see(reg);
      see(i.limit_reg);
      break;
    }
    case isa::Op::DmaLoad: {
      const auto& i = std::get<isa::DmaLoad>(ins.body);
      for (int reg : {i.hbm.reg, i.row.reg, i.rows.reg, i.outer.reg, i.index_rows.reg}) see(reg);
      break;
    }
    case isa::Op::DmaStore: {
      const auto& i = std::get<isa::DmaStore>(ins.body);
      for (int reg : {i.hbm.reg, i.row.reg, i.rows.reg, i.outer.reg, i.index_rows.reg}) see(reg);
      break;
    }
    default: break;
  }
  return found;
}

bool runs_on(isa::Op op, int queue) {
  switch (op) {
    case isa::Op::MxuLoad:
    case isa::Op::MxuMatmul:
    case isa::Op::MxuUnload: return queue == 0;
    case isa::Op::VpuMap: return queue == 1;
    case isa::Op::DmaLoad:
    case isa::Op::DmaStore: return queue >= 2;
    default: return true;
  }
}

void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

}  // namespace

Machine::Machine(const isa::ChipParams& chip, const HbmParams& hbm,
                 std::vector<std::string> names, uint64_t hbm_bytes, bool checks)
    : chip_(chip),
      queue_count_(int(names.size())),
      lanes_(chip.lanes),
      names_(names),
      checks_(checks),
      host_(hbm_bytes),
      hbm_(hbm),
      spm_(chip.spm.stripes * chip.spm.banks_per_stripe * chip.spm.rows_per_bank, chip.lanes),
      vmem_(size_t(chip.vmem.rows * chip.lanes)),
      acc_(size_t(chip.acc.stripes * chip.acc.rows_per_stripe * chip.lanes)),
      checker_(chip, int(names.size()), names),
      credits_(uint64_t(chip.dma.credits)),
      request_cycles_(uint64_t(chip.dma.request_cycles)),
      response_cycles_(uint64_t(chip.dma.response_cycles)),
      interleave_bytes_(uint64_t(chip.hbm.interleave_bytes)),
      line_instructions_(chip.seq.fetch_line_instructions),
      fetch_lines_(chip.seq.fetch_lines),
      retire_entries_(uint64_t(chip.seq.retire_entries)) {
  require(queue_count_ <= kMaxQueues, "a core has 26 queues at most: lower dma.queues");
  require(chip.lanes <= 64 * kLaneWords, "lanes must be 256 at most");
  require(chip.seq.loop_depth <= kMaxLoops, "seq.loop_depth must be 16 at most");
  const int pairs = int(chip.tokens.channels_per_pair), q = queue_count_;
  channel_mask_ = uint32_t((uint64_t{1} << ((q - 1) * pairs)) - 1);
  incoming_.assign(size_t(q) * 24, -1);
  outgoing_.assign(size_t(q) * 24, -1);
  const size_t capacity = size_t(chip.tokens.capacity);
  for (int producer = 0; producer < q; ++producer)
    for (int consumer = 0; consumer < q; ++consumer) {
      if (producer == consumer) continue;
      for (int n = 0; n < pairs; ++n) {
        Channel c;
        c.producer = producer, c.consumer = consumer, c.number = n;
        c.tokens.resize(capacity);
        c.clocks.resize(capacity * size_t(q));
        c.waiters.resize(capacity);
        c.mask = std::has_single_bit(capacity) ? capacity - 1 : 0;
        const int at = int(channels_.size());
        const int in_bit = (producer < consumer ? producer : producer - 1) * pairs + n;
        const int out_bit = (consumer < producer ? consumer : consumer - 1) * pairs + n;
        incoming_[size_t(consumer * 24 + in_bit)] = at;
        outgoing_[size_t(producer * 24 + out_bit)] = at;
        channels_.push_back(std::move(c));
      }
    }
  queues_.resize(size_t(q));
}

std::unique_ptr<LoadedProgram> Machine::load(
    const std::vector<std::string>& words, const std::vector<uint64_t>& code,
    const std::vector<std::pair<int, Base>>& bases) const {
  auto program = std::make_unique<LoadedProgram>();
  program->streams.resize(size_t(queue_count_));
  for (int q = 0; q < queue_count_; ++q) {
    Stream& s = program->streams[size_t(q)];
    s.code_base = code[size_t(q)];
    const size_t count = words[size_t(q)].size() / isa::kWordBytes;
    s.code.resize(count);
    s.legal.assign(count, 1);
    for (size_t k = 0; k < count; ++k) {
      const auto* word =
          reinterpret_cast<const uint8_t*>(words[size_t(q)].data()) + k * isa::kWordBytes;
      isa::Instr& ins = s.code[k];
      if (!isa::decode(word, ins)) {
        s.legal[k] = 0;
        continue;
      }
      const Registers registers = registers_of(ins);
      if (!runs_on(ins.op, q))
        s.legal[k] = 2;
      else if ((ins.header.waits | ins.header.posts) & ~channel_mask_)
        s.legal[k] = 3;
      else if (registers.highest >= chip_.seq.registers)
        s.legal[k] = 4;
      else if (registers.writes_zero)
        s.legal[k] = 5;
    }
  }
  for (const auto& [number, base] : bases) {
    require(number >= 0 && number < kMaxBases, "a base register is one of 0..15");
    require(base.address + base.bytes <= host_.bytes() && base.address + base.bytes >= base.address,
            "a base's segment must lie in HBM");
    program->bases[number] = base;
    program->bases[number].given = true;
  }
  return program;
}

void Machine::start(const LoadedProgram& program, uint64_t limit) {
  program_ = &program;
  report_ = RunReport{};
  traffic_ = Traffic{};
  error_.reset();
  horizon_ = limit - 1;
  hbm_.reset();
  checker_.reset();
  if (functional_) spm_.reset();
  viewable_.assign(kMaxBases, 0);
  for (int b = 0; b < kMaxBases; ++b) {
    const Base& mine = program.bases[b];
    viewable_[size_t(b)] = mine.given && !mine.writable;
    for (const Base& other : program.bases)
      if (other.given && other.writable && other.address < mine.address + mine.bytes &&
          mine.address < other.address + other.bytes)
        viewable_[size_t(b)] = 0;
  }
  for (Channel& c : channels_) c.issued_posts = c.posts = c.waits = 0;
  for (Tile& tile : tiles_) {
    tile.loaded = false;
    tile.k = tile.n = 0;
  }
  active_ = 0;
  load_free_ = load_done_ = stream_free_ = after_stream_ = vpu_free_ = settled_ = 0;
  last_dst_ = 0;
  keys_.assign(size_t(3 * queue_count_), kUnknown);
  others_changed_ = true;
  runnable_ = 0;
  for (int id = 0; id < queue_count_; ++id) {
    Queue fresh;
    fresh.id = id;
    fresh.stream = &program.streams[size_t(id)];
    fresh.generator.credit_free.assign(size_t(credits_), 0);
    fresh.post_retires.assign(size_t(retire_entries_), 0);
    queues_[size_t(id)] = std::move(fresh);
    Queue& q = queues_[size_t(id)];
    if (q.stream->code.empty()) {
      q.blocked = Blocked::halted;
      continue;
    }
    start_fetch(q);
    runnable_ |= 1u << id;
  }
}

bool Machine::loop() {
  const int q = queue_count_;
  for (;;) {
    while (runnable_ != 0) {
      const int id = std::countr_zero(runnable_);
      runnable_ &= runnable_ - 1;
      advance(queues_[size_t(id)]);
    }
    if (others_changed_) {
      others_changed_ = false;
      others_min_ = kUnknown;
      for (int k = q; k < 3 * q; ++k) others_min_ = std::min(others_min_, keys_[size_t(k)]);
    }
    uint64_t best = kUnknown, bound = others_min_;
    int at = -1;
    for (int k = 2; k < q; ++k) {
      const uint64_t key = keys_[size_t(k)];
      if (key < best) {
        bound = std::min(bound, best);
        best = key;
        at = k;
      } else {
        bound = std::min(bound, key);
      }
    }
    const uint64_t least = std::min(best, others_min_);
    if (least == kUnknown) return true;
    if (least >> 7 > horizon_) return false;
    if (best < others_min_) {
      data_runs(queues_[size_t(at)], bound);
      continue;
    }
    const int id = int(others_min_ & 127);
    if (id < 2 * q)
      value_run(queues_[size_t(id - q)]);
    else
      fetch_run(queues_[size_t(id - 2 * q)]);
  }
}

void Machine::fail(Queue& q, ProgramFault fault, uint64_t cycle) {
  q.blocked = Blocked::failed;
  fault.queue = q.id;
  fault.pc = q.next.pc;
  fault.cycle = cycle;
  const bool earlier = !error_ || cycle < error_->cycle ||
                       (cycle == error_->cycle && q.id < error_->queue);
  if (earlier) error_ = std::move(fault);
  horizon_ = error_->cycle;
}

std::string Machine::channel_name(const Channel& c) const {
  return names_[size_t(c.consumer)] + " <- " + names_[size_t(c.producer)] + "." +
         std::to_string(c.number);
}

ProgramFault Machine::deadlock() const {
  std::string lines;
  const Queue* first = nullptr;
  for (const Queue& q : queues_) {
    if (q.blocked != Blocked::token) continue;
    if (first == nullptr) first = &q;
    lines += (lines.empty() ? "pc " : "; pc ") + std::to_string(q.next.pc) + ": ";
    bool more = false;
    for (uint32_t rest = q.awaited; rest != 0; rest &= rest - 1) {
      const Channel& c = channels_[size_t(incoming_[size_t(q.id * 24 + std::countr_zero(rest))])];
      if (c.posts != c.waits) continue;
      lines += (more ? ", " : "") + channel_name(c);
      more = true;
    }
  }
  return {ErrorKind::fault, isa::Fault::DEADLOCK,
          "every queue that has not halted waits for a token nobody will post: " + lines,
          first != nullptr ? first->id : 0, first != nullptr ? first->next.pc : 0, kUnknown};
}

std::optional<ProgramFault> Machine::leftover() const {
  for (const Channel& c : channels_)
    if (c.posts != c.waits)
      return ProgramFault{ErrorKind::fault, isa::Fault::TOKEN_LEFTOVER,
                          "all queues halted and " + std::to_string(c.posts - c.waits) +
                              " tokens are left in channel " + channel_name(c) +
                              ": add a wait or drop a post",
                          c.producer, -1, kUnknown};
  return std::nullopt;
}

RunReport Machine::run(const LoadedProgram& program, bool functional, Trace* trace,
                       uint64_t limit) {
  functional_ = functional;
  trace_ = trace;
  const math::FtzGuard flush;
  start(program, limit);
  const bool is_whole = loop();
  const auto are = [this](Blocked how) {
    return std::count_if(queues_.begin(), queues_.end(),
                         [how](const Queue& q) { return q.blocked == how; });
  };
  if (!error_) {
    if (are(Blocked::halted) == queue_count_)
      error_ = leftover();
    else if (!is_whole || are(Blocked::failed) != 0)
      error_ = {ErrorKind::limit, isa::Fault::NONE, "", -1, -1, limit};
    else
      error_ = deadlock();
  }
  // A race explains a read of unwritten lanes; what came after such a read explains nothing.
  if (checks_ && checker_.unwritten() != nullptr) {
    const ProgramFault& unwritten = *checker_.unwritten();
    if (!error_ || (error_->kind != ErrorKind::race && unwritten.cycle <= error_->cycle))
      error_ = unwritten;
  }
  report_.error = std::move(error_);
  report_.hbm = hbm_.counters();
  report_.traffic = traffic_;
  for (const Queue& q : queues_) {
    report_.cycles = std::max(report_.cycles, q.counters.end_cycle);
    report_.instructions += q.counters.issued;
    report_.queues.push_back(q.counters);
  }
  trace_ = nullptr;
  program_ = nullptr;
  return std::move(report_);
}

const Base& Machine::base_of(int base) const {
  const Base& b = program_->bases[base];
  if (!b.given)
    stop(isa::Fault::HBM_BOUNDS,
         "base b" + std::to_string(base) + " has no segment: bind one when loading");
  return b;
}

void Machine::require_rows(Space space, int64_t low, int64_t high) const {
  const int64_t rows = checker_.rows(space);
  if (low >= 0 && high < rows) [[likely]]
    return;
  static const char* const names[] = {"spm", "vmem", "acc"};
  static const isa::Fault faults[] = {isa::Fault::SPM_BOUNDS, isa::Fault::VMEM_BOUNDS,
                                      isa::Fault::ACC_BOUNDS};
  const std::string name = names[int(space)];
  stop(faults[int(space)], name + " row " + std::to_string(low < 0 ? low : high) +
                               " is outside its rows 0.." + std::to_string(rows - 1) +
                               ": keep addresses inside the memory");
}

}  // namespace tapeout::sim
