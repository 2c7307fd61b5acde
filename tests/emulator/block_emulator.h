// Runs the CUDA source of this project on the CPU: one fibre per CUDA thread, one block after another on one OS thread.
// Included before a .cu file by tests/emulator/degrade.cpp; compiled by g++ or clang for any processor. It supports
// what our kernels use: threadIdx, blockIdx, gridDim, shared memory whose size is given at launch (one array,
// qpt_shared) and __syncthreads. It reports a block whose threads wait at different barriers or that writes beyond its
// shared memory. Fibres switch only at barriers, in an order that the test chooses, so a missing barrier gives wrong
// bytes every time.
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
  std::unique_ptr<char[]> stack;
};

inline constexpr size_t kStackBytes = 256 << 10;
inline constexpr int kSharedBytes = 232448, kSharedGuard = 256;  // as in the assembly above

struct Machine {
  Index block, grid;
  std::vector<Fibre> fibres;
  Fibre* current = nullptr;
  jmp_buf scheduler;
  std::function<void()> kernel;
  int skipped_barrier = -1;  // number of the barrier, counted per thread, that is left out to make a bug
};

inline Machine machine;

inline Index thread_index() {
  return {unsigned(machine.current - machine.fibres.data()), 0, 0};
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

// Runs one fibre until its next barrier or its end.
inline void run_until_barrier(Fibre& fibre) {
  machine.current = &fibre;
  if (_setjmp(machine.scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.resume, 1);
  fibre.started = true;
  getcontext(&fibre.first_entry);
  fibre.first_entry.uc_stack.ss_sp = fibre.stack.get();
  fibre.first_entry.uc_stack.ss_size = kStackBytes;
  fibre.first_entry.uc_link = nullptr;
  makecontext(&fibre.first_entry, fibre_main, 0);
  setcontext(&fibre.first_entry);
}

// Runs a block; returns nullptr, or an error on which a GPU would hang. Between two barriers threads run in the order
// of their numbers, reversed, or shuffled anew.
inline const char* run_block(Order order, std::mt19937& random) {
  std::vector<int> turn(machine.fibres.size());
  std::iota(turn.begin(), turn.end(), 0);
  if (order == Order::kReverse) std::reverse(turn.begin(), turn.end());
  for (;;) {
    if (order == Order::kRandom) std::shuffle(turn.begin(), turn.end(), random);
    for (int thread : turn) run_until_barrier(machine.fibres[thread]);
    const Fibre& first = machine.fibres.front();
    for (Fibre& fibre : machine.fibres) {
      if (fibre.state != first.state || fibre.barriers != first.barriers) {
        return "threads of a block reached different numbers of barriers";
      }
    }
    if (first.state == Fibre::kDone) return nullptr;
    for (Fibre& fibre : machine.fibres) fibre.state = Fibre::kReady;
  }
}

struct Schedule {
  int order;            // an Order
  unsigned seed;        // of the random order
  int skipped_barrier;  // -1: none
  int fill;             // the byte that fills shared memory when a block begins
};

inline bool shared_guards_intact(int shared_bytes, int fill) {
  const auto intact = [=](const unsigned char* begin, const unsigned char* end) {
    return std::all_of(begin, end, [=](unsigned char byte) { return byte == fill; });
  };
  return intact(qpt_shared - kSharedGuard, qpt_shared) &&
         intact(qpt_shared + shared_bytes, qpt_shared + kSharedBytes + kSharedGuard);
}

// Runs kernel<<<blocks, threads, shared_bytes>>>; returns nullptr or the error, and in `barriers` the largest number of
// barriers that a thread reached.
inline const char* launch(int blocks, int threads, int shared_bytes, const Schedule& schedule,
                          std::function<void()> kernel, int* barriers) {
  if (shared_bytes > kSharedBytes) return "more shared memory than a block can have";
  std::mt19937 random(schedule.seed);
  machine.kernel = std::move(kernel);
  machine.skipped_barrier = schedule.skipped_barrier;
  machine.grid = {unsigned(blocks), 1, 1};
  *barriers = 0;
  for (int block = 0; block < blocks; ++block) {
    machine.block = {unsigned(block), 0, 0};
    machine.fibres.clear();
    machine.fibres.resize(threads);
    for (Fibre& fibre : machine.fibres) fibre.stack.reset(new char[kStackBytes]);
    std::memset(qpt_shared - kSharedGuard, schedule.fill, kSharedBytes + 2 * kSharedGuard);
    if (const char* error = run_block(Order(schedule.order), random)) return error;
    if (!shared_guards_intact(shared_bytes, schedule.fill)) return "a byte outside shared memory was written";
    for (const Fibre& fibre : machine.fibres) *barriers = std::max(*barriers, fibre.barriers);
  }
  return nullptr;
}

}  // namespace block_emulator

#define threadIdx (block_emulator::thread_index())
#define blockIdx (block_emulator::machine.block)
#define gridDim (block_emulator::machine.grid)

inline void __syncthreads() {
  block_emulator::barrier();
}
