// What csrc/cpu/contrastive.cpp offers to module.cpp.
#pragma once
#include "contrastive.h"

namespace qpt {
namespace contrastive {

// How a problem is divided; depends on its shape alone, so that results do not depend on the number of threads.
struct Plan {
  i64 group_rows, splits;
};
Plan plan(i64 rows, i64 stream, i64 dim);

// The instruction set of this name; with an empty name the best of this processor for so many rows. Null: not here.
const Kernels* kernels(const char* name, i64 rows);

// What a row has summed up over its stream; results of run().
struct Sums {
  float* reference;  // [rows], in units of log 2
  float* total;      // [rows]
  float* sum;        // [rows, dim] when weighted
};

// Fills `out`, or adds to it: then it holds sums over other keys. problem.reference, total and sum have room for
// `splits` parts; with one part that is not added they may be those of `out`.
void run(Problem problem, const Kernels& isa, int threads, Sums out, bool add);

// The same for pairs of equal groups only, pair by pair: meant for few of them. Fills `out`.
void run_same_group(Problem problem, int threads, Sums out);

// Adds to sum [rows, dim] and count [rows] the stream rows of each row's group (group >= 0), pair (row, row +
// self_offset) left out when has_self. Looks at problem.rows.groups, problem.stream, dim and the pair to leave out.
void add_same_group(const Problem& problem, int threads, float* sum, i64* count);

// Adds to problem.total or problem.sum. packed: room for rows.count rounded up to kStrip, times dim.
void run_self(SelfProblem problem, float scale, const Kernels& isa, int threads, float* packed);

// The keys of one origin and which pairs with them count.
struct KeySet {
  Side keys;
  bool has_self;  // pair (i, i + self_offset) is taken out
  i64 self_offset;
  bool same_group;  // only the keys of a row's own group are eligible
  bool check;       // look for nan and infinity (not with same_group)
};

// The whole loss of N queries against several key sets; see docs/loss.md. Results as in qpt/ops/contrastive/op.py.
struct Forward {
  Side queries;
  const KeySet* sets;
  i64 set_count, dim;
  double temperature;
  float image_bias;            // as in Problem
  float* loss;                 // []
  i64* valid_rows;             // []
  float* lse;                  // [N], +inf for rows without a positive
  i64* positives;              // [N], 0 for rows left out
  float* gradient;             // [N, dim], or null: not wanted
  float* positive_similarity;  // []
};

// In contrastive_forward.cpp. Returns -1, or the first of the sets to check that holds nan or infinity (no results
// then).
i64 forward(const Forward& problem, const Kernels& isa, int threads);

}  // namespace contrastive
}  // namespace qpt
