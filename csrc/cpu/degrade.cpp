// Runs a program on the CPU: each thread owns a row of the program from its first op to its last, so that the image
// stays in its cache. Rows are taken one at a time, because their costs differ widely. Called by module.cpp.
#include "degrade.h"

#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "../chain.h"

namespace qpt {

i64 scratch_bytes_per_thread(i32 h, i32 w, bool resized) {
  return scratch_bytes(h, w, resized) + 64;
}

void degrade(const Batch& batch) {
  const i64 image_bytes = static_cast<i64>(batch.h) * batch.w * 3;
  const i64 stride = scratch_bytes_per_thread(batch.h, batch.w, batch.resized);
#pragma omp parallel num_threads(batch.threads)
  {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    const auto unaligned = reinterpret_cast<std::uintptr_t>(batch.scratch + thread * stride);
    void* scratch = reinterpret_cast<void*>((unaligned + 63) / 64 * 64);
    Solo team;
#pragma omp for schedule(dynamic, 1)
    for (i32 row = 0; row < batch.rows; ++row) {
      const i64 first = static_cast<i64>(row) * batch.slots;
      run_row(team, batch.images + batch.source[row] * image_bytes, batch.out + row * image_bytes, batch.h, batch.w,
              batch.ops + first, batch.params + 4 * first, batch.slots, static_cast<u64>(batch.seeds[row]), scratch);
    }
  }
}

}  // namespace qpt
