// CPU backend of degrade: one thread per row, rows shared out by OpenMP. Defined in degrade.cpp, bound in module.cpp.
#pragma once
#include "../team.h"

namespace qpt {

struct Batch {
  const u8* images;  // [n, h, w, 3]
  u8* out;           // [rows, h, w, 3]
  i32 h, w, rows, slots;
  const i16* ops;       // [rows, slots]
  const float* params;  // [rows, slots, 4]
  const i64* seeds;     // [rows]
  const i32* source;    // [rows] index into images
  u8* scratch;          // [threads, scratch_bytes_per_thread(h, w, resized)]
  i32 threads;          // >= 1
  bool resized;         // some row holds resize_to
};

// Multiple of 64; includes room to align any pointer.
i64 scratch_bytes_per_thread(i32 h, i32 w, bool resized);

void degrade(const Batch& batch);

}  // namespace qpt
