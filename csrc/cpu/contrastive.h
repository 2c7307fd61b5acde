// The contrastive loss's passes over pairs on the CPU: what contrastive.cpp (threads, merging, choice of the
// instruction set) and contrastive_kernel.h (one task; compiled once per instruction set) agree on. Called by
// module.cpp.
//
// Rows are packed and own their results; the stream is walked past them. attend: rows are queries, the stream is keys.
// key gradient: rows are keys, the stream is queries. Logits are in units of log 2: z_ij = scale * r_i.s_j + bias.
#pragma once
#include "../team.h"

namespace qpt {
namespace contrastive {

enum DType : i32 { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct Side {
  const void* data;  // [count, dim], unit stride along dim
  i64 stride;        // elements from row to row
  i64 count;
  i32 dtype;          // DType
  const i64* groups;  // [count]
  const i64* images;  // [count], or null: no same-image pairs
};

struct Problem {
  Side rows, stream;
  i64 dim;
  float scale;       // log2(e) / temperature
  float image_bias;  // log2(same_image_weight) for pairs of one image and two groups; -inf removes them
  bool has_self;     // pair (row i, stream i + self_offset) is taken out
  i64 self_offset;
  bool running;       // true: a running reference per row, stream rows of group < 0 are left out; false: reference 0
  const float* bias;  // [stream.count], added to every logit of a stream row; or null
  bool weighted;      // also sum exp2(z) * stream row
  i64 group_rows;     // rows of one task
  i64 splits;         // parts of the stream; results of part s are at s * rows.count
  float* reference;   // [splits, rows], in units of log 2; -inf where nothing is eligible
  float* total;       // [splits, rows]
  float* sum;         // [splits, rows, dim] when weighted
  bool* not_finite;   // set when a stream row holds nan or infinity; or null: not looked at
};

// Queries and keys are the same rows, and |z| is bounded so that exp2(z) neither overflows nor vanishes: one
// exponential serves both roles of a pair. Blocks of rows meet in rounds; in a round no block is in two meetings.
struct SelfProblem {
  Side rows;  // float32
  i64 dim;    // a multiple of kStrip
  float image_bias;
  const float* packed;   // the rows times scale, by pack()
  const float* inverse;  // [count], exp(-lse), 0 for rows left out: sums are wanted; null: totals are
  float* total;          // [count], added to: sum_j exp2(z_ij) over eligible j
  float* sum;            // [count, dim], added to: sum_j exp2(z_ij) (inverse_i + inverse_j) x_j
  i64 block_rows;        // a multiple of kStrip
};

constexpr i64 kSlab = 96;        // stream rows that stay in a core's caches while a group of rows passes over them
constexpr i64 kStrip = 64;       // every instruction set's strip of rows divides this
constexpr i64 kGroupRows = 256;  // most rows of one task, or of a block of the same-rows form
constexpr i64 kTable = 4 * kGroupRows;  // places in the set of their image ids: at most a quarter full

// One instruction set's code. Scratch is a 64-byte aligned array of scratch_floats floats, one per thread.
struct Kernels {
  const char* name;
  i64 strip_rows;
  i64 (*scratch_floats)(const Problem&);
  void (*task)(const Problem&, i64 group, i64 split, float* scratch);
  void (*pack)(const Side& rows, i64 first, i64 count, i64 dim, float scale, float* packed, float* line);  // one strip
  i64 (*self_scratch_floats)(const SelfProblem&);
  void (*meet)(const SelfProblem&, i64 first, i64 second, float* scratch);  // two blocks of rows, or one with itself
};

const Kernels* avx512_kernels();  // null where the processor is of another kind
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace contrastive
}  // namespace qpt
