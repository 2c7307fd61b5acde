// The contrastive loss on the CPU: the structures and functions that module.cpp (bindings), contrastive.cpp (threads,
// merging, choice of the instruction set), contrastive_forward.cpp (the whole loss) and contrastive_kernel.h (one task;
// compiled once per instruction set) share.
//
// Rows are packed and own their results; the stream is walked past them. lse_forward: rows are queries, the stream is
// keys. key_gradient: rows are keys, the stream is queries. Logits are in units of log 2: z_ij = scale * r_i.s_j +
// bias.
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

// One pass over the pairs of rows with a stream. A task has task_rows of the rows and one part of the stream.
struct PairPass {
  Side rows, stream;
  i64 dim;
  float scale;       // log2(e) / temperature
  float image_bias;  // log2(same_image_weight) for pairs of one image and two groups; -inf removes them
  bool has_self;     // pair (row i, stream i + self_offset) is taken out
  i64 self_offset;
  bool running;       // true: row_max follows the row, stream rows of group < 0 are left out; false: row_max is 0
  const float* bias;  // [stream.count], added to every logit of a stream row; or null
  bool weighted;      // also acc
  i64 task_rows;      // rows of one task
  i64 parts;          // of the stream; results of part s are at s * rows.count
  float* row_max;     // [parts, rows], in units of log 2, at most kSlack below the maximum; -inf: nothing eligible
  float* row_sum;     // [parts, rows], sum_j exp2(z_ij - row_max_i)
  float* acc;         // [parts, rows, dim] when weighted, sum_j exp2(z_ij - row_max_i) s_j
  bool* not_finite;   // set when a stream row holds nan or infinity; or null: not looked at
};

// Queries and keys are the same rows, and |z| is bounded so that exp2(z) neither overflows nor vanishes: one
// exponential serves both roles of a pair. Pairs of blocks of rows are scheduled in rounds; a round has no block twice.
struct SelfPairPass {
  Side rows;  // float32
  i64 dim;    // a multiple of kStrip
  float image_bias;
  const float* packed;   // the rows times scale, by pack()
  const float* inverse;  // [count], exp(-lse), 0 for rows left out: acc is wanted; null: row_sum is
  float* row_sum;        // [count], added to: sum_j exp2(z_ij) over eligible j
  float* acc;            // [count, dim], added to: sum_j exp2(z_ij) (inverse_i + inverse_j) x_j
  i64 block_rows;        // a multiple of kStrip
};

// Graded positives: each pair of two groups has a weight, exp2(-scale |a_i - b_j|^2) of the severities a and b; 0 for a
// pair with an id below 0, of a row with itself, and of one image where both sides have image ids.
struct GradedPass {
  Side rows, stream;            // of rows the ids alone are read
  i64 dim, kinds;               // numbers of a vector, of a severity
  const float* row_severities;  // [rows, kinds]
  const float* stream_severities;
  float scale;  // log2(e) / (2 width^2)
  bool has_self;
  i64 self_offset;
  float* sum;     // [rows, dim], added to: sum_j w_ij s_j
  float* weight;  // [rows], sum_j w_ij
};

constexpr i64 kSlab = 96;          // stream rows that stay in a core's caches while the strips of a task pass over them
constexpr i64 kStrip = 64;         // every instruction set's strip of rows divides this
constexpr i64 kMaxTaskRows = 256;  // most rows of one task, or of a block of the same-rows form
constexpr i64 kTable = 4 * kMaxTaskRows;  // places in a set of their ids: at most a quarter full

// One instruction set's code. Scratch is a 64-byte aligned array of scratch_floats floats, one per thread.
struct Kernels {
  const char* name;
  i64 strip_rows;
  i64 (*scratch_floats)(const PairPass&);
  void (*task)(const PairPass&, i64 task_index, i64 part, float* scratch);  // rows task_index * task_rows ...
  void (*pack)(const Side& rows, i64 first, i64 count, i64 dim, float scale, float* packed, float* line);  // one strip
  i64 (*self_scratch_floats)(const SelfPairPass&);
  void (*block_pair)(const SelfPairPass&, i64 first, i64 second, float* scratch);  // first == second: within a block
  i64 (*graded_scratch_floats)(const GradedPass&);
  void (*graded_task)(const GradedPass&, i64 strip, float* scratch);
};

const Kernels* amx_kernels();  // null where the processor is of another kind
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

// --- contrastive.cpp, for module.cpp and contrastive_forward.cpp

// The division of a pass into tasks. It depends on the shape alone, so that results do not depend on the number of
// threads.
struct Division {
  i64 task_rows, parts;
};
Division divide(i64 rows, i64 stream, i64 dim);

// The instruction set at a place in the order from the widest, AMX, to the portable one; null: not on this processor.
constexpr i32 kInstructionSets = 4;
const Kernels* instruction_set(i32 place);

// The instruction set of this name; with an empty name the best of this processor for so many rows, with
// kFloat32Products the best but AMX, whose factors are terms of float32 numbers. Null: not here.
constexpr const char* kFloat32Products = "float32";
const Kernels* kernels(const char* name, i64 rows);

// Sums of each row over its stream; results of run().
struct SoftmaxSums {
  float* row_max;  // [rows], in units of log 2
  float* row_sum;  // [rows]
  float* acc;      // [rows, dim] when weighted
};

// Fills `out`, or adds to it: then it holds sums over other keys. pass.row_max, row_sum and acc have room for
// pass.parts parts; with one part that is not added they may be those of `out`.
void run(PairPass pass, const Kernels& isa, int threads, SoftmaxSums out, bool add);

// The same for pairs of equal groups only, pair by pair: meant for few of them. Fills `out`.
void run_same_group(PairPass pass, int threads, SoftmaxSums out);

// Adds to sum [rows, dim] and count [rows] the stream rows of each row's group (group >= 0), pair (row, row +
// self_offset) left out when has_self. Looks at pass.rows.groups, pass.stream, dim and the pair to leave out.
void add_same_group(const PairPass& pass, int threads, float* sum, i64* count);

// Adds to pass.row_sum or pass.acc. packed: room for rows.count rounded up to kStrip, times dim.
void run_self(SelfPairPass pass, float scale, const Kernels& isa, int threads, float* packed);

void run_graded(const GradedPass& pass, const Kernels& isa, int threads);

// The keys of one origin and which pairs with them count.
struct KeySet {
  Side keys;
  bool has_self;  // pair (i, i + self_offset) is taken out
  i64 self_offset;
  bool same_group;  // only the keys of a row's own group are eligible
  bool check;       // look for nan and infinity (not with same_group)
};

// The whole loss of N queries against several key sets; see docs/loss.md. Results as in qpt/ops/contrastive/op.py.
struct LossProblem {
  Side queries;
  const KeySet* sets;
  i64 set_count, dim;
  double temperature;
  float image_bias;            // as in PairPass
  float* loss;                 // []
  i64* valid_rows;             // []
  float* lse;                  // [N], +inf for rows without a positive
  i64* positives;              // [N], 0 for rows left out
  float* gradient;             // [N, dim], or null: not wanted
  float* positive_similarity;  // []
};

// --- contrastive_forward.cpp, for module.cpp

// Returns -1, or the first of the sets to check that holds nan or infinity (no results then).
i64 forward(const LossProblem& problem, const Kernels& isa, int threads);

}  // namespace contrastive
}  // namespace qpt
