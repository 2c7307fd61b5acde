// The whole contrastive loss on the CPU in one call: sums over every key set, positives, the mean over rows and the
// queries' gradient. Called by module.cpp. It is one call because a small batch would pay more for calls than
// for arithmetic. The same formulas in torch, for every other backend: qpt/ops/contrastive/loss.py.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "contrastive.h"
#include "contrastive_half.h"

namespace qpt {
namespace contrastive {
namespace {

constexpr double kLn2 = 0.6931471805599453;

Problem pass_over(const Forward& f, const KeySet& set) {
  Problem problem = {};
  problem.rows = f.queries;
  problem.stream = set.keys;
  problem.dim = f.dim;
  problem.scale = static_cast<float>(1 / (f.temperature * kLn2));
  problem.image_bias = f.image_bias;
  problem.has_self = set.has_self;
  problem.self_offset = set.self_offset;
  problem.running = true;
  problem.weighted = f.gradient != nullptr;
  const Division division = divide(f.queries.count, set.keys.count, f.dim);
  problem.group_rows = division.group_rows;
  problem.splits = division.splits;
  return problem;
}

// Adds the keys of one set to `sums` (`first`: it holds nothing yet); false when a key is nan or infinite.
bool add_keys(const Forward& f, const KeySet& set, const Kernels& isa, int threads, SoftmaxSums sums, bool first) {
  Problem problem = pass_over(f, set);
  if (set.same_group) {  // the batch's own keys only: the first set
    run_same_group(problem, threads, sums);
    return true;
  }
  bool not_finite = false;
  problem.not_finite = set.check ? &not_finite : nullptr;
  const i64 rows = problem.splits * f.queries.count;
  std::unique_ptr<float[]> partial;
  if (first && problem.splits == 1) {
    problem.row_max = sums.row_max;
    problem.row_sum = sums.row_sum;
    problem.acc = sums.acc;
  } else {
    partial.reset(new float[rows * (2 + (problem.weighted ? f.dim : 0))]);  // not initialised: all of it is written
    problem.row_max = partial.get();
    problem.row_sum = partial.get() + rows;
    problem.acc = partial.get() + 2 * rows;
  }
  run(problem, isa, threads, sums, !first);
  return !not_finite;
}

double dot(const Side& side, i64 row, const float* other, i64 dim) {
  double sum = 0;
  for (i64 d = 0; d < dim; ++d) sum += static_cast<double>(element(side, row, d)) * other[d];
  return sum;
}

}  // namespace

i64 forward(const Forward& f, const Kernels& isa, int threads) {
  const i64 n = f.queries.count, dim = f.dim;
  std::vector<float> row_max(n, -INFINITY), row_sum(n, 0.0f), positive_mean(n * dim, 0.0f);
  const SoftmaxSums sums = {row_max.data(), row_sum.data(), f.gradient};
  std::fill(f.positives, f.positives + n, i64{0});
  bool first = true;
  for (i64 s = 0; s < f.set_count && n; ++s) {
    const KeySet& set = f.sets[s];
    if (!set.keys.count) continue;
    add_same_group(pass_over(f, set), threads, positive_mean.data(), f.positives);
    if (!add_keys(f, set, isa, threads, sums, first)) return s;
    first = false;
  }
  i64 valid_rows = 0;
  for (i64 row = 0; row < n; ++row) {
    if (f.queries.groups[row] < 0) f.positives[row] = 0;
    valid_rows += f.positives[row] > 0;
  }
  const double counted = static_cast<double>(std::max<i64>(1, valid_rows));
  const float scale = static_cast<float>(1 / (counted * f.temperature));
  std::vector<double> losses(n, 0.0), similarities(n, 0.0);
#pragma omp parallel for schedule(static) num_threads(threads) if (n * dim > 65536)
  for (i64 row = 0; row < n; ++row) {
    float* const gradient = f.gradient ? f.gradient + row * dim : nullptr;
    if (!f.positives[row]) {  // its softmax is exactly 0
      f.lse[row] = INFINITY;
      if (gradient) std::fill(gradient, gradient + dim, 0.0f);
      continue;
    }
    float* const mean = positive_mean.data() + row * dim;
    for (i64 d = 0; d < dim; ++d) mean[d] /= static_cast<float>(f.positives[row]);
    similarities[row] = dot(f.queries, row, mean, dim);
    const double lse = row_max[row] * kLn2 + std::log(static_cast<double>(row_sum[row]));
    f.lse[row] = static_cast<float>(lse);
    losses[row] = lse - similarities[row] / f.temperature;
    const float softmax = 1 / row_sum[row];  // exp(row_max - lse)
    for (i64 d = 0; gradient && d < dim; ++d) gradient[d] = (gradient[d] * softmax - mean[d]) * scale;
  }
  double loss = 0, similarity = 0;  // in the order of the rows, whatever the threads
  for (i64 row = 0; row < n; ++row) {
    loss += losses[row];
    similarity += similarities[row];
  }
  *f.loss = static_cast<float>(loss / counted);
  *f.positive_similarity = static_cast<float>(similarity / counted);
  *f.valid_rows = valid_rows;
  return -1;
}

}  // namespace contrastive
}  // namespace qpt
