// The kernel qpt_degrade: one launch for a whole batch. Its thread blocks are dealt to `teams` teams in turn, so that
// every block has work although some teams then have one more than others; each team takes rows from a queue. A team of
// one block keeps the row's images between ops in shared memory as far as they fit; else they are in global memory,
// which the L2 cache serves. Launched by qpt/ops/degrade/cuda.py, which chooses the block size (QPT_BLOCK_THREADS), the
// grid, the teams and the bytes of shared memory. The blocks of a team wait for each other, so a launch of more blocks
// than teams must be cooperative: then all its blocks are resident. Compiled by nvcc into the fat binary, by NVRTC at
// first use, and by g++ for the block emulator of tests/emulator.
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
  TeamState* state;  // of the block's team
  i32 team;          // the number of the team
  i32 block;         // the number of the block in it
  i32 blocks;        // of the team
  // What the loop over rows keeps. Here it takes no registers from the ops.
  i32 turn;   // which of the team's two places is the next
  u32 place;  // of the row
  i32 unused[9];
};

}  // namespace qpt

extern __shared__ __align__(64) qpt::u8 qpt_shared[];

namespace qpt {

// The team of the thread blocks whose numbers have the same remainder by the number of teams. It has no members, as
// they would take registers from all ops: what it knows of itself is in shared memory. Every member must reach every
// sync(), and every block every sync_team(), so no op branches around one on a value that differs between them.
struct GridTeam {
  static constexpr bool kSolo = false;
  static QPT_INLINE BlockHead& head() { return *reinterpret_cast<BlockHead*>(qpt_shared); }
  QPT_INLINE i32 block() const { return head().block; }
  QPT_INLINE i32 blocks() const { return head().blocks; }
  QPT_INLINE i32 rank() const { return threadIdx.x; }
  QPT_INLINE i32 size() const { return QPT_BLOCK_THREADS; }
  QPT_INLINE void sync() const { __syncthreads(); }
  QPT_INLINE void sync_team() const {
    __syncthreads();
    if (blocks() > 1) wait_for_blocks();
  }
  template <class Body>
  QPT_INLINE void once(Body body) const {
    if (threadIdx.x == 0) body();
  }

  // Makes the calling block one of `teams` teams, whose counters begin at states[0]. The first call of a kernel.
  static QPT_INLINE void join(TeamState* states, i32 teams) {
    if (threadIdx.x == 0) {
      const i32 team = blockIdx.x % teams, block = blockIdx.x / teams;
      head() = {states + team, team, block, static_cast<i32>((gridDim.x - team + teams - 1) / teams), 0, 0, {}};
    }
    __syncthreads();
  }

 private:
  // As the grid barrier of cooperative groups. The first fence makes visible what the whole block wrote, the last one
  // lets it see what other blocks wrote: __syncthreads() orders both with the other members.
  static QPT_CALLED void wait_for_blocks() {
    if (threadIdx.x == 0) {
      u32* const arrived = &head().state->arrived;
      const u32 blocks = head().blocks;
      __threadfence();
      const u32 before = atomicAdd(arrived, 1u);
      const u32 wanted = before - before % blocks + blocks;
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
                qpt::TeamState* states,   // [1 + teams], zeros; the first counts the rows that were taken
                qpt::u8* scratch,         // [teams, scratch_bytes]
                qpt::i64 scratch_bytes, qpt::i32 teams, qpt::i32 shared_bytes, qpt::i32 rows, qpt::i32 slots,
                qpt::i32 height, qpt::i32 width, qpt::i32 patches, qpt::i32 size, qpt::i32 item_bytes,
                qpt::i32 channels_last) {
  qpt::GridTeam team;
  team.join(states + 1, teams);
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
  const qpt::Memory memory{scratch, qpt_shared + sizeof(qpt::BlockHead), shared_bytes, team.head().team, scratch_bytes};
  for (;;) {
    // The order is by falling cost: a team that ends early takes the costliest row that is left. Its place is written
    // where the one before is not, which slower blocks may still read.
    qpt::BlockHead& head = team.head();
    if (team.block() == 0) team.once([&] { head.state->place[head.turn] = atomicAdd(&states->place[0], 1u); });
    // The place, written by one block, is read by all; all have left the row before, and its last image is complete.
    team.sync_team();
    team.once([&] {
      head.place = head.state->place[head.turn];
      head.turn ^= 1;
    });
    team.sync();  // the place, written by one member, is read by all
    const qpt::u32 taken = head.place;
    if (taken >= static_cast<qpt::u32>(rows)) break;
    qpt::run_batch_row(team, batch, static_cast<qpt::i32>(taken), memory);
  }
}
