// csrc/cuda/degrade.cu as a shared library for the block emulator, which tests/test_emulator.py loads with ctypes. The
// small kernels at the end show that the emulator reports mistakes.
#include "block_emulator.h"
// The source itself, unchanged.
#include "../../csrc/cuda/degrade.cu"

extern "C" const char* emulate_degrade(const block_emulator::Schedule* schedule, int blocks, int* barriers,
                                       const qpt::u8* images, void* out, const qpt::i16* ops, const float* params,
                                       const qpt::i64* seeds, const qpt::i32* source, const qpt::i32* order,
                                       const qpt::i32* windows, const qpt::i32* boxes, const void* lut,
                                       qpt::TeamState* states, qpt::u8* scratch, qpt::i64 scratch_bytes, qpt::i32 teams,
                                       qpt::i32 shared_bytes, qpt::i32 rows, qpt::i32 slots, qpt::i32 height,
                                       qpt::i32 width, qpt::i32 patches, qpt::i32 size, qpt::i32 item_bytes,
                                       qpt::i32 channels_last) {
  return block_emulator::launch(
      blocks, QPT_BLOCK_THREADS, shared_bytes + int(sizeof(qpt::BlockHead)), *schedule,
      [=] {
        qpt_degrade(images, out, ops, params, seeds, source, order, windows, boxes, lut, states, scratch, scratch_bytes,
                    teams, shared_bytes, rows, slots, height, width, patches, size, item_bytes, channels_last);
      },
      barriers);
}

extern "C" qpt::i64 emulate_scratch_bytes(qpt::i32 height, qpt::i32 width, bool resizes, bool for_patches,
                                          qpt::i32 blocks) {
  return qpt::scratch_bytes(height, width, resizes, for_patches, blocks);
}

// Writes to out[i] the number of the mirrored thread, passed through shared memory; correct only with the barrier.
static void mirror(int* out) {
  const int thread = threadIdx.x;
  int* shared = reinterpret_cast<int*>(qpt_shared);
  shared[thread] = thread;
  __syncthreads();
  out[thread] = shared[QPT_BLOCK_THREADS - 1 - thread];
}

static void half_of_the_block_waits() {
  if (threadIdx.x < QPT_BLOCK_THREADS / 2) __syncthreads();
}

extern "C" const char* emulate_mirror(const block_emulator::Schedule* schedule, int shared_bytes, int* out) {
  int barriers = 0;
  return block_emulator::launch(1, QPT_BLOCK_THREADS, shared_bytes, *schedule, [=] { mirror(out); }, &barriers);
}

extern "C" const char* emulate_divergent_barrier(const block_emulator::Schedule* schedule) {
  int barriers = 0;
  return block_emulator::launch(1, QPT_BLOCK_THREADS, 0, *schedule, [] { half_of_the_block_waits(); }, &barriers);
}

// Blocks of which only `arriving` of `blocks` come to the team's barrier.
extern "C" const char* emulate_absent_block(const block_emulator::Schedule* schedule, int blocks, int arriving) {
  qpt::TeamState state{};
  int barriers = 0;
  return block_emulator::launch(
      blocks, QPT_BLOCK_THREADS, sizeof(qpt::BlockHead), *schedule,
      [=, state = &state] {
        const qpt::GridTeam team;
        team.join(state, 1);
        if (team.block() < arriving) team.sync_team();
      },
      &barriers);
}
