// Runs a program on the CPU. A thread runs a row from its first op to its last, so that the image stays in the thread's
// cache. Threads take rows one at a time, by falling cost (Batch::order), because the costs of rows differ widely.
// Called by module.cpp.
#include "degrade.h"

#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace qpt {

i64 scratch_bytes_per_thread(i32 h, i32 w, bool resizes, bool for_patches) {
  return scratch_bytes(h, w, resizes, for_patches, kSoloBlocks) + 64;
}

void degrade(const Batch& batch, u8* scratch, i64 scratch_bytes, i32 threads) {
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    const auto unaligned = reinterpret_cast<std::uintptr_t>(scratch + thread * scratch_bytes);
    const Memory memory{reinterpret_cast<void*>((unaligned + 63) / 64 * 64)};
    Solo team;
#pragma omp for schedule(dynamic, 1)
    for (i32 place = 0; place < batch.rows; ++place) run_batch_row(team, batch, place, memory);
  }
}

}  // namespace qpt
