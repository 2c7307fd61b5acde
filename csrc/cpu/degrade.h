// The CPU engine of degrade: each row runs on one thread, and OpenMP distributes the rows. Defined in degrade.cpp,
// bound in module.cpp.
#pragma once
#include "../chain.h"

namespace qpt {

// Returns a multiple of 64 that includes the bytes to align any pointer.
i64 scratch_bytes_per_thread(i32 h, i32 w, bool resizes, bool for_patches);

// Runs a batch. scratch: [threads, scratch_bytes], where scratch_bytes is scratch_bytes_per_thread of the batch.
void degrade(const Batch& batch, u8* scratch, i64 scratch_bytes, i32 threads);

}  // namespace qpt
