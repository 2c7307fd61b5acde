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

// Fills reference [rows] (natural units), total [rows] and, when weighted, sum [rows, dim]. problem.reference, total
// and sum have room for `splits` parts; with one part they may be the results' own places.
void run(Problem problem, const Kernels& isa, int threads, float* reference, float* total, float* sum);

// The same for pairs of equal groups only, pair by pair: meant for few of them.
void run_same_group(Problem problem, int threads, float* reference, float* total, float* sum);

// Adds to sum [rows, dim] and count [rows] the stream rows of each row's group (group >= 0), pair (row, row +
// self_offset) left out when has_self. Looks at problem.rows.groups, problem.stream, dim and the pair to leave out.
void add_same_group(const Problem& problem, int threads, float* sum, i64* count);

// Adds to problem.total or problem.sum. packed: room for rows.count rounded up to kStrip, times dim.
void run_self(SelfProblem problem, float scale, const Kernels& isa, int threads, float* packed);

}  // namespace contrastive
}  // namespace qpt
