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

PairPass pass_over(const LossProblem& problem, const KeySet& set) {
  PairPass pass = {};
  pass.rows = problem.queries;
  pass.stream = set.keys;
  pass.dim = problem.dim;
  pass.scale = static_cast<float>(1 / (problem.temperature * kLn2));
  pass.image_bias = problem.image_bias;
  pass.has_self = set.has_self;
  pass.self_offset = set.self_offset;
  pass.running = true;
  pass.weighted = problem.gradient != nullptr;
  const Division division = divide(problem.queries.count, set.keys.count, problem.dim);
  pass.task_rows = division.task_rows;
  pass.parts = division.parts;
  return pass;
}

// Adds the keys of one set to `sums` (`first`: it holds nothing yet); false when a key is nan or infinite.
bool add_keys(const LossProblem& problem, const KeySet& set, const Kernels& isa, int threads, SoftmaxSums sums,
              bool first) {
  PairPass pass = pass_over(problem, set);
  if (set.same_group) {  // the batch's own keys only: the first set
    run_same_group(pass, threads, sums);
    return true;
  }
  bool not_finite = false;
  pass.not_finite = set.check ? &not_finite : nullptr;
  const i64 rows = pass.parts * problem.queries.count;
  std::unique_ptr<float[]> partial;
  if (first && pass.parts == 1) {
    pass.row_max = sums.row_max;
    pass.row_sum = sums.row_sum;
    pass.acc = sums.acc;
  } else {
    partial.reset(new float[rows * (2 + (pass.weighted ? problem.dim : 0))]);  // not initialised: all of it is written
    pass.row_max = partial.get();
    pass.row_sum = partial.get() + rows;
    pass.acc = partial.get() + 2 * rows;
  }
  run(pass, isa, threads, sums, !first);
  return !not_finite;
}

double dot(const Side& side, i64 row, const float* other, i64 dim) {
  double sum = 0;
  for (i64 d = 0; d < dim; ++d) sum += static_cast<double>(element(side, row, d)) * other[d];
  return sum;
}

}  // namespace

i64 forward(const LossProblem& problem, const Kernels& isa, int threads) {
  const i64 n = problem.queries.count, dim = problem.dim;
  std::vector<float> row_max(n, -INFINITY), row_sum(n, 0.0f), positive_mean(n * dim, 0.0f);
  const SoftmaxSums sums = {row_max.data(), row_sum.data(), problem.gradient};
  std::fill(problem.positives, problem.positives + n, i64{0});
  bool first = true;
  for (i64 s = 0; s < problem.set_count && n; ++s) {
    const KeySet& set = problem.sets[s];
    if (!set.keys.count) continue;
    add_same_group(pass_over(problem, set), threads, positive_mean.data(), problem.positives);
    if (!add_keys(problem, set, isa, threads, sums, first)) return s;
    first = false;
  }
  i64 valid_rows = 0;
  for (i64 row = 0; row < n; ++row) {
    if (problem.queries.groups[row] < 0) problem.positives[row] = 0;
    valid_rows += problem.positives[row] > 0;
  }
  const double counted = static_cast<double>(std::max<i64>(1, valid_rows));
  const float scale = static_cast<float>(1 / (counted * problem.temperature));
  std::vector<double> losses(n, 0.0), similarities(n, 0.0);
#pragma omp parallel for schedule(static) num_threads(threads) if (n * dim > 65536)
  for (i64 row = 0; row < n; ++row) {
    float* const gradient = problem.gradient ? problem.gradient + row * dim : nullptr;
    if (!problem.positives[row]) {  // its softmax is exactly 0
      problem.lse[row] = INFINITY;
      if (gradient) std::fill(gradient, gradient + dim, 0.0f);
      continue;
    }
    float* const mean = positive_mean.data() + row * dim;
    for (i64 d = 0; d < dim; ++d) mean[d] /= static_cast<float>(problem.positives[row]);
    similarities[row] = dot(problem.queries, row, mean, dim);
    const double lse = row_max[row] * kLn2 + std::log(static_cast<double>(row_sum[row]));
    problem.lse[row] = static_cast<float>(lse);
    losses[row] = lse - similarities[row] / problem.temperature;
    const float softmax = 1 / row_sum[row];  // exp(row_max - lse)
    for (i64 d = 0; gradient && d < dim; ++d) gradient[d] = (gradient[d] * softmax - mean[d]) * scale;
  }
  double loss = 0, similarity = 0;  // in the order of the rows, whatever the threads
  for (i64 row = 0; row < n; ++row) {
    loss += losses[row];
    similarity += similarities[row];
  }
  *problem.loss = static_cast<float>(loss / counted);
  *problem.positive_similarity = static_cast<float>(similarity / counted);
  *problem.valid_rows = valid_rows;
  return -1;
}

}  // namespace contrastive
}  // namespace qpt
