// Branches, calls, barriers and the scheduler: which warp of which block runs next.
#include <algorithm>

#include "machine.h"

namespace ptx {
namespace {

constexpr u32 kUniform = 1;

// Divergence: the top entry of the stack becomes the place where both sides meet again, and each side is pushed.
void branch(Warp& w, const Instr& i, Mask taken) {
  Entry& top = w.stack.back();
  const Mask passed = top.mask & ~taken;
  if (passed == 0) {
    top.pc = i.target;
    return;
  }
  if (taken == 0) return;
  if (i.flags & kUniform) w.fault("lanes", __builtin_ctz(taken), "a branch marked .uni diverges");
  const i32 next = top.pc, frame = top.frame;
  if (i.join == top.join)
    w.stack.pop_back();  // both sides end where the entry would have
  else
    top.pc = i.join;  // -1: never; its lanes leave by ret or exit
  const Entry sides[2] = {{next, passed, i.join, frame}, {i.target, taken, i.join, frame}};
  const bool swap = w.machine->options.order == 1 || (w.machine->options.order == 2 && w.machine->draw() & 1);
  for (int k = 0; k < 2; ++k)
    if (const Entry& side = sides[k ^ (swap ? 1 : 0)]; side.pc != i.join) w.stack.push_back(side);
}
void branch_uniform(Warp& w, const Instr& i, Mask taken) {
  branch(w, i, taken);
}

// brx.idx: op[0] is the index, op[1] a constant with one pc in each of imm lanes' places.
void branch_indexed(Warp& w, const Instr& i, Mask taken) {
  const Entry top = w.stack.back();
  if (taken != top.mask) w.fault("unsupported", -1, "a predicated brx.idx");
  w.need_defined(i.op[0], taken, "the index of a branch");
  const i32* targets = w.lanes<i32>(i.op[1]);
  w.stack.back().pc = i.join;
  for (Mask left = taken; left;) {
    const u64 index = w.read(i.op[0], __builtin_ctz(left));
    Mask same = 0;
    each_lane(left, [&](int l) { same |= Mask(w.read(i.op[0], l) == index) << l; });
    if (index >= u64(i.imm)) w.fault("bounds", __builtin_ctz(left), "the index of a branch is beyond its table");
    if (targets[index] != i.join) w.stack.push_back({targets[index], same, i.join, top.frame});
    left &= ~same;
  }
}

void call(Warp& w, const Instr& i, Mask m) {
  if (m == 0) return;
  w.stack.push_back({i.target, m, -1, w.stack.back().frame + 1});
}
void leave(Warp& w, Mask m, bool thread_ends) {
  const i32 frame = w.stack.back().frame;
  for (auto e = w.stack.rbegin(); e != w.stack.rend() && (thread_ends || e->frame == frame); ++e) e->mask &= ~m;
  if (thread_ends || frame == 0) w.alive &= ~m;
}
void give_back(Warp& w, const Instr&, Mask m) {
  leave(w, m, false);
}
void end(Warp& w, const Instr&, Mask m) {
  leave(w, m, true);
}
void trap(Warp& w, const Instr&, Mask m) {
  if (m) w.fault("trap", __builtin_ctz(m), "trap");
}

// bar.sync a{, b}; bar.red.op d, a{, b}, p (flags: 1 popc, 2 and, 3 or); bar.arrive a, b (flags 8).
void barrier(Warp& w, const Instr& i, Mask m) {
  if (m == 0) return;
  if (m != w.alive || w.alive != w.present)
    w.fault("barrier", __builtin_ctz(m),
            "a barrier that only " + std::to_string(__builtin_popcount(m)) + " of a warp's " +
                std::to_string(__builtin_popcount(w.present)) + " threads reach");
  const int kind = i.flags & 7, at = kind ? 1 : 0, numbers = i.count - at - (kind ? 1 : 0);
  w.need_defined(i.op[at], m, "the barrier's number");
  w.barrier = w.read(i.op[at], __builtin_ctz(m));
  w.barrier_threads = numbers > 1 ? w.read(i.op[at + 1], __builtin_ctz(m)) : 0;
  w.barrier_pc = w.pc;
  if (kind) {
    w.need_defined(i.op[i.count - 1], m, "the predicate of a barrier");
    w.barrier_predicate = w.bits(i.op[i.count - 1]) & m;
  }
  if (i.flags & 8) w.fault("unsupported", -1, "bar.arrive");
  w.state = State::kWaits;
}

// bar.warp.sync orders the accesses of a warp's lanes.
void warp_barrier(Warp& w, const Instr& i, Mask m) {
  const u32 named = w.read(i.op[0], __builtin_ctz(m));
  if (const Mask missing = named & w.present & ~m)
    w.fault("barrier", __builtin_ctz(missing), "a lane that bar.warp.sync waits for is not here");
  ++w.clock[w.index];
}

void release(Block& b, std::vector<Warp*>& waiting) {
  Clock all(b.warps.size());
  for (Warp* w : waiting)
    for (size_t k = 0; k < all.size(); ++k) all[k] = std::max(all[k], w->clock[k]);
  int count = 0;
  for (Warp* w : waiting) count += __builtin_popcount(w->barrier_predicate);
  for (Warp* w : waiting) {
    w->clock = all;
    ++w->clock[w->index];
    w->state = State::kRuns;
    const Instr& i = w->machine->code[w->barrier_pc];
    const int kind = i.flags & 7;
    if (kind == 1) {
      for (int l = 0; l < kLanes; ++l) w->lanes<u32>(i.op[0])[l] = count;
      w->set_poison(i.op[0], kAll, 0);
    } else if (kind) {
      w->set_bits(i.op[0], kAll, (kind == 2 ? count == b.threads : count > 0) ? kAll : 0, 0);
    }
    w->barrier_predicate = 0;
  }
}

// Lets the warps of every barrier go that all its threads have reached.
bool open_barriers(Block& b) {
  bool opened = false;
  for (Warp& first : b.warps) {
    if (first.state != State::kWaits) continue;
    std::vector<Warp*> waiting;
    u32 threads = 0;
    for (Warp& w : b.warps)
      if (w.state == State::kWaits && w.barrier == first.barrier)
        waiting.push_back(&w), threads += __builtin_popcount(w.present);
    const u32 wanted = first.barrier_threads ? first.barrier_threads : u32(b.threads);
    if (threads < wanted) continue;
    for (Warp* w : waiting)
      if (w->barrier_pc != first.barrier_pc && !first.barrier_threads) {
        Fault f{"barrier", "threads of a block wait at different barriers"};
        f.pc = first.barrier_pc, f.other_pc = w->barrier_pc, f.block = f.other_block = b.index;
        f.thread = first.index * kLanes, f.other_thread = w->index * kLanes;
        throw f;
      }
    release(b, waiting);
    opened = true;
  }
  return opened;
}

void run_warp(Warp& w) {
  Machine& m = *w.machine;
  for (i64 budget = m.options.quantum ? m.options.quantum : INT64_MAX; budget > 0 && w.state == State::kRuns;
       --budget) {
    while (!w.stack.empty() && (w.stack.back().mask == 0 || w.stack.back().pc == w.stack.back().join))
      w.stack.pop_back();
    if (w.stack.empty()) {
      w.state = State::kDone;
      return;
    }
    Entry& top = w.stack.back();
    w.pc = top.pc;
    const Instr& i = m.code[w.pc];
    Mask mask = top.mask;
    if (i.guard) {
      if (w.poison[i.predicate.slot] & mask) w.need_defined(i.predicate, mask, "the predicate");
      const Mask p = w.bits(i.predicate);
      mask &= i.guard == 1 ? p : ~p;
    }
    ++top.pc;
    if (m.options.count) {
      Counts& c = m.counts[w.pc];
      c.runs += 1, c.lanes += __builtin_popcount(mask);
    }
    if (++m.executed > u64(m.options.limit))
      w.fault("limit", -1,
              "the launch did not end within " + std::to_string(m.options.limit) + " instructions of warps");
    const Opcode& opcode = opcodes()[i.handler];
    if (mask || opcode.run == branch || opcode.run == branch_uniform) opcode.run(w, i, mask);
  }
}

void set_special(Warp& w, size_t which, const u32* values) {
  if (which >= w.machine->specials.size() || w.machine->specials[which].slot == 0) return;
  const Operand& o = w.machine->specials[which];
  for (int l = 0; l < kLanes; ++l) w.write(o, l, values[l]);
  w.poison[o.slot] = 0;
}

void start(Machine& m, Block& b, u32 index) {
  b.index = index;
  b.threads = m.shape[0] * m.shape[1] * m.shape[2];
  b.shared_data.resize(m.shared_bytes);
  for (u8& x : b.shared_data) x = u8(m.draw());
  b.shared_valid.assign(m.shared_bytes, 0);
  std::copy(m.static_valid.begin(), m.static_valid.end(), b.shared_valid.begin());
  b.shared.base = 0, b.shared.size = m.shared_bytes, b.shared.writable = true, b.shared.name = "shared memory";
  b.shared.data = b.shared_data.data(), b.shared.valid = b.shared_valid.data();
  b.shared.cells.resize(m.options.races ? m.shared_bytes : 0);
  const u32 warps = (b.threads + kLanes - 1) / kLanes;
  b.warps.resize(warps);
  for (u32 k = 0; k < warps; ++k) {
    Warp& w = b.warps[k];
    w.block = &b, w.index = k, w.machine = &m;
    const int present = std::min(kLanes, b.threads - int(k) * kLanes);
    w.present = w.alive = present == kLanes ? kAll : (Mask(1) << present) - 1;
    w.registers.reset(new u8[m.register_bytes]);
    w.poison.assign(m.slots, kAll);
    w.poison[0] = 0;
    w.local.assign(size_t(m.local_bytes) * kLanes, 0xCD);
    w.local_valid.assign(size_t(m.local_bytes) * kLanes, 0);
    w.clock.assign(warps, 0);
    w.clock[k] = 1;
    w.stack.push_back({i32(m.entry), w.present, -1, 0});
    const u32 block[3] = {index % m.grid[0], index / m.grid[0] % m.grid[1], index / m.grid[0] / m.grid[1]};
    u32 v[kLanes];
    const auto fill = [&](size_t which, auto f) {
      for (int l = 0; l < kLanes; ++l) v[l] = f(u32(w.thread(l)));
      set_special(w, which, v);
    };
    // In the order of SPECIALS in assemble.py.
    fill(0, [&](u32 t) { return t % m.shape[0]; });
    fill(1, [&](u32 t) { return t / m.shape[0] % m.shape[1]; });
    fill(2, [&](u32 t) { return t / m.shape[0] / m.shape[1]; });
    for (int axis = 0; axis < 3; ++axis) {
      fill(3 + axis, [&](u32) { return m.shape[axis]; });
      fill(6 + axis, [&](u32) { return block[axis]; });
      fill(9 + axis, [&](u32) { return m.grid[axis]; });
    }
    fill(12, [](u32 t) { return t % kLanes; });
    fill(13, [&](u32) { return k; });
    fill(14, [&](u32) { return warps; });
    fill(15, [](u32 t) { return (u32(1) << t % kLanes) - 1; });        // lanemask_lt
    fill(16, [](u32 t) { return u32((u64(2) << t % kLanes) - 1); });   // le
    fill(17, [](u32 t) { return u32(1) << t % kLanes; });              // eq
    fill(18, [](u32 t) { return ~u32((u64(2) << t % kLanes) - 1); });  // gt
    fill(19, [](u32 t) { return ~((u32(1) << t % kLanes) - 1); });     // ge
  }
}

void check_end(Block& b) {
  for (const Warp& w : b.warps)
    if (w.state != State::kDone) return;
  b.shared_data.clear(), b.warps.clear();
}

[[noreturn]] void stuck(const std::vector<std::unique_ptr<Block>>& blocks) {
  for (const auto& b : blocks)
    for (const Warp& w : b->warps)
      if (w.state == State::kWaits) {
        int waiting = 0;
        for (const Warp& x : b->warps)
          waiting += x.state == State::kWaits && x.barrier == w.barrier ? __builtin_popcount(x.present) : 0;
        Fault f{"barrier", "a barrier that only " + std::to_string(waiting) + " of a block's " +
                               std::to_string(b->threads) + " threads reach"};
        f.pc = w.barrier_pc, f.block = b->index, f.thread = w.index * kLanes;
        throw f;
      }
  throw Fault{"limit", "nothing can run"};
}

}  // namespace

void Machine::run() {
  random = u64(options.seed) * 2 + 0x9E3779B97F4A7C15u;
  const u64 total = u64(grid[0]) * grid[1] * grid[2];
  std::vector<u32> queue(total);
  for (u64 k = 0; k < total; ++k) queue[k] = k;
  const auto arrange = [&](auto& items) {
    if (options.order == 1) std::reverse(items.begin(), items.end());
    if (options.order == 2)
      for (size_t k = items.size(); k > 1; --k) std::swap(items[k - 1], items[draw() % k]);
  };
  arrange(queue);
  std::vector<std::unique_ptr<Block>> blocks;
  size_t next = 0;
  while (next < queue.size() || !blocks.empty()) {
    while (int(blocks.size()) < options.resident && next < queue.size()) {
      blocks.push_back(std::make_unique<Block>());
      start(*this, *blocks.back(), queue[next++]);
    }
    bool moved = false;
    for (auto& b : blocks) {
      std::vector<Warp*> warps;
      for (Warp& w : b->warps) warps.push_back(&w);
      arrange(warps);
      for (Warp* w : warps)
        if (w->state == State::kRuns) run_warp(*w), moved = true;
      moved |= open_barriers(*b);
      check_end(*b);
    }
    blocks.erase(std::remove_if(blocks.begin(), blocks.end(), [](auto& b) { return b->warps.empty(); }), blocks.end());
    if (!moved && !blocks.empty()) stuck(blocks);
  }
}

void add_control() {
  add("bra", "L", branch);
  add("bra.uni", "L", branch_uniform, kUniform);
  add("brx.idx", "", branch_indexed);
  add("call", "", call);
  add("ret", "", give_back);
  add("exit", "", end);
  add("trap", "", trap);
  for (const std::string name : {"bar", "barrier"})
    for (const std::string tail : {"", ".aligned"}) {
      add(name + ".sync" + tail, "44?", barrier);
      add(name + ".red.popc" + tail + ".u32", "44p", barrier, 1);
      add(name + ".red.and" + tail + ".pred", "p4p", barrier, 2);
      add(name + ".red.or" + tail + ".pred", "p4p", barrier, 3);
    }
  add("bar.warp.sync", "4", warp_barrier);
}

}  // namespace ptx
