// The machine: instructions, warps, blocks and the table of opcodes. Included by every file of the executor.
//
// A register is 32 lanes side by side (pred: one bit a lane) with a mask of the lanes that hold poison. A handler
// executes one instruction for the lanes of a mask. What a program does wrong is thrown as a Fault; api.cpp hands it to
// Python.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ptx {

using i8 = int8_t;
using u8 = uint8_t;
using i16 = int16_t;
using u16 = uint16_t;
using i32 = int32_t;
using u32 = uint32_t;
using i64 = int64_t;
using u64 = uint64_t;
using Mask = u32;  // a bit for each lane

constexpr int kLanes = 32;
constexpr Mask kAll = ~Mask(0);
constexpr int kOperands = 16;
// Generic addresses of shared and local memory; global memory is at its own addresses, far below.
constexpr u64 kSharedWindow = u64(1) << 60, kLocalWindow = u64(1) << 61, kWindow = u64(1) << 32;

struct Fault {
  std::string kind, text;
  i64 pc = -1, other_pc = -1;
  i64 block = -1, thread = -1, other_block = -1, other_thread = -1;
};

// The layouts of Operand and Instr are mirrored by assemble.py.
struct Operand {
  u32 at;    // byte offset of the lanes in the register file, or in the pool of constants
  u32 slot;  // index of the poison mask; 0 is never poisoned
  u8 width;  // bytes of a lane; 0: predicate
  u8 is_constant;
  u16 unused;
};

struct Instr {
  i32 handler;
  u8 guard;  // 0: none, 1: where the predicate is true, 2: where it is false
  u8 count;  // operands
  u16 unused;
  Operand predicate;
  u32 flags;
  i32 target;  // of a branch or call: pc
  i32 join;    // of a branch: pc of the immediate post-dominator, -1: none
  i32 unused2;
  i64 imm;  // offset of an address, or an immediate number
  Operand op[kOperands];
};
static_assert(sizeof(Operand) == 12 && sizeof(Instr) == 40 + 8 + 12 * kOperands);

struct Counts {
  u64 runs, lanes;
  u64 requests[3], bytes[3], sectors[3];  // to global, shared and local memory; sectors: of 32 bytes
  u64 passes, conflicts;                  // of shared memory's banks; conflicts: passes beyond the fewest possible
};

struct Warp;
struct Block;
struct Machine;
using Run = void (*)(Warp&, const Instr&, Mask);

// Opcode table. signature: a character per operand: p predicate, 2 4 8 register of so many bytes, * register of any
// width, m address, i immediate number; A trailing ? marks the operand before it as one that may be left out.
struct Opcode {
  std::string name, signature;
  Run run;
  u32 flags;
};
std::vector<Opcode>& opcodes();
void add(const std::string& name, const std::string& signature, Run run, u32 flags = 0);
void add_integer();
void add_compare();
void add_float();
void add_convert();
void add_memory();
void add_warp();
void add_matrix();
void add_control();

// One access, as race detection remembers it: block (16 bits), thread (10), clock (17), strong (1), pc (20). 0: none.
using Access = u64;
struct Cell {
  Access write = 0, strong_write = 0;  // the last of each kind; strong: atomic, volatile, relaxed, acquire, release
  Access read = 0, other_read = 0;     // of two threads of the warp that read last, at one time of its clock
  std::unique_ptr<std::vector<Access>> readers;  // of other warps or times, unless ordered before a later read
};
using Clock = std::vector<u32>;                 // of each warp of a block
using Clocks = std::unordered_map<u32, Clock>;  // of each block

struct Region {
  u64 base, size;
  u8 *data, *valid;  // valid: per byte 1 written, 0 poison, 2 not allocated
  bool writable;
  std::string name;
  std::vector<Cell> cells;
};

struct Options {
  i32 order;  // of warps and blocks: 0 forward, 1 reverse, 2 random
  i32 seed;
  i32 resident;  // blocks that run at the same time
  i32 quantum;   // instructions a warp runs before another does; 0: until it waits
  i32 races, count;
  i32 approximation;   // error of approximate instructions: 0 none, 1 upwards, 2 downwards, 3 by a hash
  i32 truncate;        // tensor cores: 1 aligned and truncated sums, 0 one rounding
  i32 strict, unused;  // strict: loading poison is a fault, not only using it
  i64 limit;           // warp instructions of the launch
};

struct Entry {  // of the reconvergence stack
  i32 pc;
  Mask mask;
  i32 join;
  i32 frame;
};

struct Copy {  // of cp.async
  u64 to;      // shared address
  u32 size;
  i32 pc;
  u8 data[16], valid[16];
};

enum class State { kRuns, kWaits, kDone };

struct Warp {
  Block* block;
  int index;
  Mask present, alive;
  State state = State::kRuns;
  u32 barrier = 0, barrier_threads = 0;
  i32 barrier_pc = -1;
  Mask barrier_predicate = 0;
  std::vector<Entry> stack;
  std::unique_ptr<u8[]> registers;  // not initialised: most of a large kernel's are never touched
  std::vector<u32> poison;
  std::vector<u8> local, local_valid;  // [lane][local_bytes]
  Clock clock, fenced;                 // fenced: the clock at the last fence; empty: none
  std::vector<Copy> open[kLanes];
  std::deque<std::vector<Copy>> groups[kLanes];
  i32 pc = 0;                           // of the instruction that runs
  Mask carry = 0, carry_poison = kAll;  // CC.CF
  Machine* machine;

  template <class T>
  T* lanes(const Operand& o);
  Mask& bits(const Operand& o) { return *lanes<Mask>(o); }
  u8* lane(const Operand& o, int l) { return lanes<u8>(o) + l * o.width; }
  Mask poisoned(const Operand& o) const { return poison[o.slot]; }
  void set_poison(const Operand& o, Mask mask, Mask bad) { poison[o.slot] = (poison[o.slot] & ~mask) | (bad & mask); }
  void set_bits(const Operand& o, Mask mask, Mask value, Mask bad) {
    bits(o) = (bits(o) & ~mask) | (value & mask);
    set_poison(o, mask, bad);
  }
  u64 read(const Operand& o, int l) {  // zero-extended
    u64 value = 0;
    std::memcpy(&value, lane(o, l), o.width);
    return value;
  }
  void write(const Operand& o, int l, u64 value) { std::memcpy(lane(o, l), &value, o.width); }
  int thread(int l) const { return index * kLanes + l; }
  [[noreturn]] void fault(const std::string& kind, int lane, const std::string& text, Access other = 0) const;
  void need_defined(const Operand& o, Mask mask, const char* what) const;
  void deliver(int lane, size_t groups_left, bool all);
};

struct Block {
  u32 index;
  std::vector<Warp> warps;
  Region shared;
  std::vector<u8> shared_data, shared_valid;
  Clocks acquired;  // of other blocks
  int threads;
};

struct Machine {
  std::vector<Instr> code;
  std::vector<Counts> counts;
  std::vector<u8> constants;
  std::map<u64, std::unique_ptr<Region>> regions;  // by base
  Region* last = nullptr;
  Options options{};
  u32 grid[3], shape[3];
  u32 register_bytes = 0, slots = 0, local_bytes = 0, static_shared = 0, shared_bytes = 0, entry = 0;
  std::vector<u8> static_valid;  // of statically allocated shared memory: 0 or 2
  std::vector<Operand> specials;
  std::unordered_map<u64, Clocks> published;  // by the address of a strong write
  u64 executed = 0, random = 1;

  Region* find(u64 address);
  void run();
  u64 draw() {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    return random;
  }
};

template <class T>
inline T* Warp::lanes(const Operand& o) {
  return reinterpret_cast<T*>((o.is_constant ? machine->constants.data() : registers.get()) + o.at);
}

// f(l) for every lane of the mask.
template <class F>
inline void each_lane(Mask mask, F f) {
  for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

template <class D, class... S, class F, size_t... k>
inline __attribute__((always_inline)) void map_lanes(Warp& w, const Instr& i, Mask mask, F f,
                                                     std::index_sequence<k...>) {
  D* d = w.lanes<D>(i.op[0]);
  const std::tuple<const S*...> s{w.lanes<S>(i.op[k + 1])...};
  if (mask == kAll) {
    D out[kLanes];
    for (int l = 0; l < kLanes; ++l) out[l] = f(std::get<k>(s)[l]...);
    std::memcpy(d, out, sizeof out);
  } else {
    each_lane(mask, [&](int l) { d[l] = f(std::get<k>(s)[l]...); });
  }
  w.set_poison(i.op[0], mask, (w.poisoned(i.op[k + 1]) | ... | 0));
}

// op[0] = f(op[1], ...) in every lane; poison in, poison out.
template <class D, class... S, class F>
inline __attribute__((always_inline)) void map(Warp& w, const Instr& i, Mask mask, F f) {
  map_lanes<D, S...>(w, i, mask, f, std::index_sequence_for<S...>{});
}

// The bits of 32 truth values.
template <class F>
inline __attribute__((always_inline)) Mask pack(F f) {
  u8 truth[kLanes];
  for (int l = 0; l < kLanes; ++l) truth[l] = f(l) ? 1 : 0;
  Mask bits = 0;
  for (int byte = 0; byte < 4; ++byte) {
    u64 eight;
    std::memcpy(&eight, truth + 8 * byte, 8);
    bits |= Mask((eight * 0x0102040810204080u) >> 56) << (8 * byte);
  }
  return bits;
}

}  // namespace ptx
