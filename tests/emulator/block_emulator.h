// Runs the CUDA source of this project on the CPU: one fibre per CUDA thread, all blocks of a launch in turn on one OS
// thread. Included before a .cu file by tests/emulator/degrade.cpp; compiled by g++ or clang for any processor. It
// supports what our kernels use: threadIdx, blockIdx, gridDim, shared memory whose size is given at launch (one array,
// qpt_shared), __syncthreads, atomicAdd, and waiting for another block with __nanosleep. It reports a block whose
// threads wait at different barriers, blocks that wait for each other for ever, and writes beyond shared memory. Fibres
// switch only at barriers and in __nanosleep, in an order that the test chooses, so a missing barrier gives wrong bytes
// every time. Memory is that of one processor: what a missing fence does is for tests/ptx to find.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

// The largest shared memory of a GPU's block between guards, in assembly, so that the guards lie beside it.
asm(".bss\n"
    ".balign 64\n"
    "qpt_shared_guard: .zero 256\n"
    ".globl qpt_shared\n"
    "qpt_shared: .zero 232448 + 256\n"
    ".text\n");
extern unsigned char qpt_shared[];

namespace block_emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

enum class Order : int { kForward, kReverse, kRandom };

struct Fibre {
  enum State { kReady, kAtBarrier, kDone } state = kReady;
  bool started = false;
  int barriers = 0;        // number of barriers reached
  ucontext_t first_entry;  // used once; later switches are _longjmp, which makes no system call
  jmp_buf resume;
  char* stack = nullptr;
};

inline constexpr size_t kStackBytes = 256 << 10;
inline constexpr int kSharedBytes = 232448, kSharedGuard = 256;  // as in the assembly above

struct Block {
  Index index;
  std::vector<Fibre> fibres;
  std::vector<unsigned char> shared;  // between its guards, while another block runs
  bool done = false;
};

struct Machine {
  Index grid;
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<char[]>> stacks;  // kept from launch to launch
  Block* block = nullptr;
  Fibre* current = nullptr;
  jmp_buf scheduler;
  std::function<void()> kernel;
  int skipped_barrier = -1;  // number of the barrier, counted per thread, that is left out to make a bug
};

inline Machine machine;

inline Index thread_index() {
  return {unsigned(machine.current - machine.block->fibres.data()), 0, 0};
}

inline void to_scheduler() {
  if (_setjmp(machine.current->resume) == 0) _longjmp(machine.scheduler, 1);
}

inline void barrier() {
  Fibre& self = *machine.current;
  if (self.barriers++ == machine.skipped_barrier) return;
  self.state = Fibre::kAtBarrier;
  to_scheduler();
}

inline void fibre_main() {
  machine.kernel();
  machine.current->state = Fibre::kDone;
  _longjmp(machine.scheduler, 1);
}

// Runs one fibre until its next barrier, its next wait for another block or its end.
inline void run_fibre(Fibre& fibre) {
  machine.current = &fibre;
  if (_setjmp(machine.scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.resume, 1);
  fibre.started = true;
  getcontext(&fibre.first_entry);
  fibre.first_entry.uc_stack.ss_sp = fibre.stack;
  fibre.first_entry.uc_stack.ss_size = kStackBytes;
  fibre.first_entry.uc_link = nullptr;
  makecontext(&fibre.first_entry, fibre_main, 0);
  setcontext(&fibre.first_entry);
}

// In the order of numbers, reversed, or shuffled anew.
inline std::vector<int> turns(size_t count, Order order, std::mt19937& random) {
  std::vector<int> turn(count);
  std::iota(turn.begin(), turn.end(), 0);
  if (order == Order::kReverse) std::reverse(turn.begin(), turn.end());
  if (order == Order::kRandom) std::shuffle(turn.begin(), turn.end(), random);
  return turn;
}

// Runs the fibres of a block that can run. Returns nullptr, or an error on which a GPU would hang; in `progress`
// whether any did more than wait for another block.
inline const char* run_block(Block& block, Order order, std::mt19937& random, bool* progress) {
  machine.block = &block;
  for (int thread : turns(block.fibres.size(), order, random)) {
    Fibre& fibre = block.fibres[thread];
    if (fibre.state != Fibre::kReady) continue;
    run_fibre(fibre);
    *progress |= fibre.state != Fibre::kReady;
  }
  const Fibre& first = block.fibres.front();
  for (const Fibre& fibre : block.fibres)
    if (fibre.state == Fibre::kReady) return nullptr;
  for (const Fibre& fibre : block.fibres)
    if (fibre.state != first.state || fibre.barriers != first.barriers)
      return "threads of a block reached different numbers of barriers";
  block.done = first.state == Fibre::kDone;
  if (!block.done)
    for (Fibre& fibre : block.fibres) fibre.state = Fibre::kReady;
  return nullptr;
}

struct Schedule {
  int order;            // an Order, of blocks and of threads
  unsigned seed;        // of the random order
  int skipped_barrier;  // -1: none
  int fill;             // the byte that fills shared memory when a block begins
};

inline bool filled(const unsigned char* begin, const unsigned char* end, int fill) {
  return std::all_of(begin, end, [=](unsigned char byte) { return byte == fill; });
}

// Runs kernel<<<blocks, threads, shared_bytes>>>; returns nullptr or the error, and in `barriers` the largest
// number of barriers that a thread reached.
inline const char* launch(int blocks, int threads, int shared_bytes, const Schedule& schedule,
                          std::function<void()> kernel, int* barriers) {
  if (shared_bytes > kSharedBytes) return "more shared memory than a block can have";
  std::mt19937 random(schedule.seed);
  const Order order = Order(schedule.order);
  machine.kernel = std::move(kernel);
  machine.skipped_barrier = schedule.skipped_barrier;
  machine.grid = {unsigned(blocks), 1, 1};
  machine.blocks.clear();
  machine.blocks.resize(size_t(blocks));
  while (machine.stacks.size() < machine.blocks.size() * threads) machine.stacks.emplace_back(new char[kStackBytes]);
  const size_t window = size_t(shared_bytes) + 2 * kSharedGuard;
  for (size_t b = 0; b < machine.blocks.size(); ++b) {
    Block& block = machine.blocks[b];
    block.index = {unsigned(b), 0, 0};
    block.shared.assign(window, static_cast<unsigned char>(schedule.fill));
    block.fibres.resize(threads);
    for (int thread = 0; thread < threads; ++thread)
      block.fibres[thread].stack = machine.stacks[b * threads + thread].get();
  }
  *barriers = 0;
  unsigned char* const shared = qpt_shared - kSharedGuard;
  std::memset(shared, schedule.fill, kSharedBytes + 2 * kSharedGuard);
  for (int idle = 0; idle < 3;) {
    bool progress = false, done = true;
    for (int b : turns(machine.blocks.size(), order, random)) {
      Block& block = machine.blocks[b];
      if (block.done) continue;
      std::memcpy(shared, block.shared.data(), window);
      if (const char* error = run_block(block, order, random, &progress)) return error;
      std::memcpy(block.shared.data(), shared, window);
      done &= block.done;
    }
    if (done) break;
    idle = progress ? 0 : idle + 1;
    if (idle == 3) return "blocks wait for each other for ever";
  }
  const bool intact = filled(shared + window, shared + kSharedBytes + 2 * kSharedGuard, schedule.fill);
  for (const Block& block : machine.blocks) {
    const unsigned char *begin = block.shared.data(), *end = begin + window;
    if (!intact || !filled(begin, begin + kSharedGuard, schedule.fill) ||
        !filled(end - kSharedGuard, end, schedule.fill))
      return "a byte outside shared memory was written";
    for (const Fibre& fibre : block.fibres) *barriers = std::max(*barriers, fibre.barriers);
  }
  return nullptr;
}

}  // namespace block_emulator

#define threadIdx (block_emulator::thread_index())
#define blockIdx (block_emulator::machine.block->index)
#define gridDim (block_emulator::machine.grid)

inline void __syncthreads() {
  block_emulator::barrier();
}
inline void __threadfence() {}
inline void __nanosleep(unsigned) {
  block_emulator::to_scheduler();
}
inline unsigned atomicAdd(unsigned* address, unsigned more) {
  const unsigned before = *address;
  *address += more;
  return before;
}
