// The kernel qpt_degrade: one launch for a whole batch. gridDim.x thread blocks are the team of one row at a time, and
// gridDim.y teams take rows from a queue. A team of one block keeps the row's images between ops in shared memory as
// far as they fit; else they are in global memory, which the L2 cache serves. Launched by qpt/ops/degrade/cuda.py,
// which chooses the block size (QPT_BLOCK_THREADS), the grid and the bytes of shared memory. The blocks of a team wait
// for each other, so a launch with gridDim.x > 1 must be cooperative: then all its blocks are resident. Compiled by
// nvcc into the fat binary, by NVRTC at first use, and by g++ for the block emulator of tests/emulator.
#include "../chain.h"

namespace qpt {

// Counters in global memory, zero before a launch: one for all teams, then each team's.
struct TeamState {
  u32 arrived;     // blocks that reached a barrier of the team, over all barriers
  u32 place[2];    // of the team's row in the order, two in turn; of the first state, the next place to be taken
  u32 unused[29];  // a cache line of its own
};

// What shared memory begins with; the images follow.
struct BlockHead {
  TeamState* team;
  u64 unused[7];
};

}  // namespace qpt

extern __shared__ __align__(64) qpt::u8 qpt_shared[];

namespace qpt {

// The team of the thread blocks with the same blockIdx.y. It has no members, as they would take registers from all ops:
// member 0 of a block reads the place of the counters from shared memory. Every member must reach every sync(), and
// every block every sync_team(), so no op branches around one on a value that differs between them.
struct GridTeam {
  static constexpr bool kSolo = false;
  QPT_INLINE i32 block() const { return blockIdx.x; }
  QPT_INLINE i32 blocks() const { return gridDim.x; }
  QPT_INLINE i32 rank() const { return threadIdx.x; }
  QPT_INLINE i32 size() const { return QPT_BLOCK_THREADS; }
  QPT_INLINE void sync() const { __syncthreads(); }
  QPT_INLINE void sync_team() const {
    __syncthreads();
    if (gridDim.x > 1) wait_for_blocks();
  }
  template <class Body>
  QPT_INLINE void once(Body body) const {
    if (threadIdx.x == 0) body();
  }

 private:
  // As the grid barrier of cooperative groups. The first fence makes visible what the whole block wrote, the last one
  // lets it see what other blocks wrote: __syncthreads() orders both with the other members.
  static QPT_CALLED void wait_for_blocks() {
    if (threadIdx.x == 0) {
      u32* const arrived = &reinterpret_cast<const BlockHead*>(qpt_shared)->team->arrived;
      __threadfence();
      const u32 before = atomicAdd(arrived, 1u);
      const u32 wanted = before - before % gridDim.x + gridDim.x;
      while (static_cast<i32>(*static_cast<volatile u32*>(arrived) - wanted) < 0) __nanosleep(20);
      __threadfence();
    }
    __syncthreads();
  }
};

}  // namespace qpt

// out is [rows, height, width, 3], or the patches if there are boxes. See Batch in chain.h.
extern "C" __global__ void __launch_bounds__(QPT_BLOCK_THREADS, 1)
    qpt_degrade(const qpt::u8* images,  // [B, height, width, 3]
                void* out,
                const qpt::i16* ops,      // [rows, slots], -1: none
                const float* params,      // [rows, slots, 4]
                const qpt::i64* seeds,    // [rows]
                const qpt::i32* source,   // [rows], index into images
                const qpt::i32* order,    // [rows], a permutation
                const qpt::i32* windows,  // [rows, 5]
                const qpt::i32* boxes,    // [rows, patches, 2] or null
                const void* lut,          // [3, 256]
                qpt::TeamState* states,   // [1 + gridDim.y], zeros; the first counts the rows that were taken
                qpt::u8* scratch,         // [gridDim.y, scratch_bytes]
                qpt::i64 scratch_bytes, qpt::i32 shared_bytes, qpt::i32 rows, qpt::i32 slots, qpt::i32 height,
                qpt::i32 width, qpt::i32 patches, qpt::i32 size, qpt::i32 item_bytes, qpt::i32 channels_last) {
  qpt::GridTeam team;
  team.once([&] { reinterpret_cast<qpt::BlockHead*>(qpt_shared)->team = states + 1 + blockIdx.y; });
  const qpt::Batch batch{images,
                         out,
                         height,
                         width,
                         rows,
                         slots,
                         ops,
                         params,
                         seeds,
                         source,
                         order,
                         windows,
                         {boxes, patches, size, lut, nullptr, item_bytes, channels_last != 0}};
  const qpt::Memory memory{scratch, qpt_shared + sizeof(qpt::BlockHead), shared_bytes,
                           static_cast<qpt::i32>(blockIdx.y), scratch_bytes};
  for (qpt::i32 turn = 0;; turn ^= 1) {
    // The order is by falling cost: a team that ends early takes the costliest row that is left. Its place is written
    // where the one before is not, which slower members may still read.
    // opaque: computed before the loop, the address would take registers from all ops.
    qpt::u32* const place = &states[1 + qpt::opaque(blockIdx.y)].place[turn];
    if (blockIdx.x == 0) team.once([&] { *place = atomicAdd(&states->place[0], 1u); });
    team.sync_team();  // the place, written by one member, is read by all; all have left the row before
    const qpt::u32 taken = *place;
    if (taken >= static_cast<qpt::u32>(rows)) break;
    qpt::run_batch_row(team, batch, static_cast<qpt::i32>(taken), memory);
  }
}
