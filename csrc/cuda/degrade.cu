// The kernel qpt_degrade: one launch for a whole batch. A thread block is the team of one row at a time; the row's
// images between ops are in shared memory as far as they fit, else in global scratch. Launched by
// qpt/ops/degrade/cuda.py, which chooses the block size (QPT_BLOCK_THREADS), the grid and the bytes of shared memory.
// Compiled by nvcc into the fat binary, by NVRTC at first use, and by g++ for the block emulator of tests/emulator.
#include "../chain.h"

namespace qpt {

// The team of one thread block. Every member must reach every sync(), so no op branches around one on a value that
// differs between members.
struct BlockTeam {
  static constexpr bool kSolo = false;
  QPT_INLINE i32 rank() const { return threadIdx.x; }
  QPT_INLINE i32 size() const { return QPT_BLOCK_THREADS; }
  QPT_INLINE void sync() const { __syncthreads(); }
  template <class Body>
  QPT_INLINE void once(Body body) const {
    if (threadIdx.x == 0) body();
  }
};

}  // namespace qpt

extern __shared__ qpt::u8 qpt_shared[];

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
                qpt::u8* scratch,         // [gridDim.x, scratch_bytes]
                qpt::i64 scratch_bytes, qpt::i32 shared_bytes, qpt::i32 rows, qpt::i32 slots, qpt::i32 height,
                qpt::i32 width, qpt::i32 patches, qpt::i32 size, qpt::i32 item_bytes, qpt::i32 channels_last) {
  qpt::BlockTeam team;
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
  const qpt::Memory memory{scratch + blockIdx.x * scratch_bytes, qpt_shared, shared_bytes};
  // A grid smaller than the batch takes the order in steps of its own size, so that the scratch depends on the grid and
  // not on the batch. Every second step goes backwards: the block that had the costliest row of one step has the
  // cheapest of the next.
  for (qpt::i32 step = 0; qpt::i64(step) * gridDim.x < rows; ++step) {
    const qpt::i64 place = qpt::i64(step) * gridDim.x + (step & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (place < rows) qpt::run_batch_row(team, batch, qpt::i32(place), memory);
    team.sync();  // the next row overwrites memory that slower members may still read
  }
}
