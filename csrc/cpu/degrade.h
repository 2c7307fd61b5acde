// CPU backend of degrade: one thread per row, rows shared out by OpenMP. Defined in degrade.cpp, bound in module.cpp.
#pragma once
#include "../chain.h"

namespace qpt {

// Multiple of 64; includes room to align any pointer.
i64 scratch_bytes_per_thread(i32 h, i32 w, bool resized, bool kept);

// scratch: [threads, scratch_bytes], scratch_bytes_per_thread of the batch.
void degrade(const Batch& batch, u8* scratch, i64 scratch_bytes, i32 threads);

}  // namespace qpt
