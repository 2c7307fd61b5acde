// The contrastive loss's passes over pairs on the CPU: division into tasks, threads, partial results merged in order.
// One task's work is in contrastive_kernel.h. Called by module.cpp and contrastive_forward.cpp. Results do not depend
// on the number of threads: the division depends on the shape alone, and partial results are merged in the order of the
// stream.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "contrastive.h"
#include "contrastive_half.h"

namespace qpt {
namespace contrastive {
namespace {

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Scratch = std::unique_ptr<float, Free>;

Scratch scratch(i64 floats) {
  const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + 63) / 64 * 64;
  return Scratch(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

// Parts in the order of the stream, after what `out` holds when `add`, each rescaled to the highest row_max.
void merge_row(const PairPass& pass, i64 row, SoftmaxSums out, bool add) {
  const i64 n = pass.rows.count, dim = pass.dim;
  float row_max = add ? out.row_max[row] : -INFINITY;
  for (i64 s = 0; s < pass.parts; ++s) row_max = std::max(row_max, pass.row_max[s * n + row]);
  const float shift = row_max == -INFINITY ? 0.0f : row_max;
  const float rescale = add ? std::exp2(out.row_max[row] - shift) : 0.0f;
  double row_sum = add ? static_cast<double>(out.row_sum[row]) * rescale : 0.0;
  float* const acc = pass.weighted ? out.acc + row * dim : nullptr;
  for (i64 d = 0; add && acc && d < dim; ++d) acc[d] *= rescale;
  for (i64 s = 0; s < pass.parts; ++s) {
    const float rescale_part = std::exp2(pass.row_max[s * n + row] - shift);
    row_sum += static_cast<double>(pass.row_sum[s * n + row]) * rescale_part;
    if (!acc) continue;
    const float* part = pass.acc + (s * n + row) * dim;
    if (s == 0 && !add)
      for (i64 d = 0; d < dim; ++d) acc[d] = part[d] * rescale_part;
    else
      for (i64 d = 0; d < dim; ++d) acc[d] += part[d] * rescale_part;
  }
  out.row_max[row] = row_max;
  out.row_sum[row] = static_cast<float>(row_sum);
}

}  // namespace

const Kernels* instruction_set(i32 place) {
  switch (place) {
    case 0:
      return amx_kernels();
    case 1:
      return avx512_kernels();
    case 2:
      return avx2_kernels();
    default:
      return portable_kernels();
  }
}

const Kernels* kernels(const char* name, i64 rows) {
  const bool float32 = std::strcmp(name, kFloat32Products) == 0, best = !*name || float32;
  // Few rows would leave most of a wide strip empty.
  const Kernels* const narrow = avx2_kernels();
  if (best && narrow && rows <= 2 * narrow->strip_rows) return narrow;
  for (i32 place = float32 ? 1 : 0; place < kInstructionSets; ++place) {
    const Kernels* const found = instruction_set(place);
    if (found && (best || std::strcmp(found->name, name) == 0)) return found;
  }
  return nullptr;
}

Division divide(i64 rows, i64 stream, i64 dim) {
  // Tasks enough for many cores, but each with a long stream, and partial results of at most 4 MiB.
  constexpr i64 kTasks = 32, kLeastStream = 1024, kPartialFloats = 1 << 20;
  const i64 task_rows = std::min(kMaxTaskRows, std::max<i64>(1, rows));
  const i64 row_tasks = std::max<i64>(1, (rows + task_rows - 1) / task_rows);
  i64 parts = (kTasks + row_tasks - 1) / row_tasks;
  parts = std::min({parts, stream / kLeastStream, kPartialFloats / std::max<i64>(1, rows * dim)});
  return {task_rows, std::max<i64>(1, parts)};
}

void run(PairPass pass, const Kernels& isa, int threads, SoftmaxSums out, bool add) {
  const i64 n = pass.rows.count, row_tasks = (n + pass.task_rows - 1) / pass.task_rows;
#pragma omp parallel num_threads(threads)
  {
    const Scratch own = scratch(isa.scratch_floats(pass));
#pragma omp for schedule(dynamic, 1)
    for (i64 job = 0; job < row_tasks * pass.parts; ++job)
      isa.task(pass, job / pass.parts, job % pass.parts, own.get());
#pragma omp for schedule(static)
    for (i64 row = 0; row < n; ++row) merge_row(pass, row, out, add);
  }
}

void run_same_group(PairPass pass, int threads, SoftmaxSums out) {
  // Stream rows ordered by group: a row's own are neighbours, in the order of the stream.
  std::vector<i64> order(static_cast<std::size_t>(pass.stream.count));
  std::iota(order.begin(), order.end(), i64{0});
  const i64* const groups = pass.stream.groups;
  std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) { return groups[a] < groups[b]; });
  const i64 dim = pass.dim;
#pragma omp parallel for schedule(static) num_threads(threads) if (pass.rows.count > 256)
  for (i64 row = 0; row < pass.rows.count; ++row) {
    const i64 group = pass.rows.groups[row];
    auto at = std::lower_bound(order.begin(), order.end(), group, [&](i64 k, i64 id) { return groups[k] < id; });
    float row_max = pass.running ? -INFINITY : 0.0f;
    double row_sum = 0;
    float* const acc = pass.weighted ? out.acc + row * dim : nullptr;
    for (i64 d = 0; acc && d < dim; ++d) acc[d] = 0.0f;
    for (; at != order.end() && groups[*at] == group && group >= 0; ++at) {
      if (pass.has_self && *at == row + pass.self_offset) continue;
      double dot = 0;
      for (i64 d = 0; d < dim; ++d)
        dot += static_cast<double>(element(pass.rows, row, d)) * element(pass.stream, *at, d);
      float z = static_cast<float>(dot * pass.scale);
      if (pass.bias) z += pass.bias[*at];
      if (!pass.running) z = std::min(z, 0.0f);
      if (pass.running && z > row_max) {
        const float rescale = std::exp2(row_max - z);
        row_sum *= rescale;
        for (i64 d = 0; acc && d < dim; ++d) acc[d] *= rescale;
        row_max = z;
      }
      const float e = std::exp2(z - row_max);
      row_sum += e;
      for (i64 d = 0; acc && d < dim; ++d) acc[d] += e * element(pass.stream, *at, d);
    }
    out.row_max[row] = row_max;
    out.row_sum[row] = static_cast<float>(row_sum);
  }
}

void add_same_group(const PairPass& pass, int threads, float* sum, i64* count) {
  const i64 n = pass.rows.count, dim = pass.dim, keys = pass.stream.count;
  // The distinct groups of the rows; a slot each.
  std::vector<i64> groups(pass.rows.groups, pass.rows.groups + n);
  std::sort(groups.begin(), groups.end());
  groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
  i64 places = 64;
  while (places < 4 * n) places *= 2;
  const auto hash = [places](i64 id) {
    return static_cast<i64>((static_cast<u64>(id) * 0x9E3779B97F4A7C15ull) >> 32) & (places - 1);
  };
  std::vector<i32> slot_at(static_cast<std::size_t>(places), -1);
  for (std::size_t slot = 0; slot < groups.size(); ++slot) {
    i64 place = hash(groups[slot]);
    while (slot_at[place] >= 0) place = (place + 1) & (places - 1);
    slot_at[place] = static_cast<i32>(slot);
  }
  const auto slot_of = [&](i64 id) {
    for (i64 place = hash(id); slot_at[place] >= 0; place = (place + 1) & (places - 1))
      if (groups[slot_at[place]] == id) return slot_at[place];
    return i32{-1};
  };
  // Few keys are of a row's group: found in parallel, added in the order of the stream.
  constexpr i64 kChunk = 16384;
  const i64 chunks = (keys + kChunk - 1) / kChunk;
  std::vector<std::vector<i64>> found(static_cast<std::size_t>(chunks));
#pragma omp parallel for schedule(static) num_threads(threads) if (chunks > 1)
  for (i64 chunk = 0; chunk < chunks; ++chunk)
    for (i64 k = chunk * kChunk; k < std::min(keys, (chunk + 1) * kChunk); ++k)
      if (pass.stream.groups[k] >= 0 && slot_of(pass.stream.groups[k]) >= 0) found[chunk].push_back(k);
  std::vector<float> sums;
  std::vector<i64> counts;
  for (const std::vector<i64>& chunk_keys : found) {
    if (!chunk_keys.empty() && counts.empty()) {
      sums.assign(groups.size() * static_cast<std::size_t>(dim), 0.0f);
      counts.assign(groups.size(), 0);
    }
    for (const i64 k : chunk_keys) {
      const i32 slot = slot_of(pass.stream.groups[k]);
      counts[slot] += 1;
      for (i64 d = 0; d < dim; ++d) sums[slot * dim + d] += element(pass.stream, k, d);
    }
  }
  if (counts.empty()) return;
#pragma omp parallel for schedule(static) num_threads(threads) if (n * dim > 65536)
  for (i64 row = 0; row < n; ++row) {
    const i64 group = pass.rows.groups[row];
    const i32 slot = group < 0 ? -1 : slot_of(group);
    if (slot < 0 || counts[slot] == 0) continue;
    const i64 own = row + pass.self_offset;
    const bool left_out = pass.has_self && own >= 0 && own < keys && pass.stream.groups[own] == group;
    count[row] += counts[slot] - left_out;
    for (i64 d = 0; d < dim; ++d)
      sum[row * dim + d] += sums[slot * dim + d] - (left_out ? element(pass.stream, own, d) : 0.0f);
  }
}

void run_self(SelfPairPass pass, float scale, const Kernels& isa, int threads, float* packed) {
  const i64 n = pass.rows.count, dim = pass.dim;
  const i64 strips = (n + isa.strip_rows - 1) / isa.strip_rows;
  const i64 blocks = (n + pass.block_rows - 1) / pass.block_rows;
  const i64 entries = blocks + blocks % 2;  // an odd number of blocks gets an empty entry
  pass.packed = packed;
#pragma omp parallel num_threads(threads)
  {
    const Scratch own = scratch(std::max(isa.self_scratch_floats(pass), dim));
#pragma omp for schedule(static)
    for (i64 s = 0; s < strips; ++s)
      isa.pack(pass.rows, s * isa.strip_rows, std::min(isa.strip_rows, n - s * isa.strip_rows), dim, scale,
               packed + s * isa.strip_rows * dim, own.get());
#pragma omp for schedule(dynamic, 1)
    for (i64 block = 0; block < blocks; ++block) isa.block_pair(pass, block, block, own.get());
    // Every pair of blocks once, in rounds that hold each block once (round-robin schedule by the circle method): entry
    // 0 stays, the others move on by one each round. So a block's sums are added to by one thread at a time.
    for (i64 round = 0; round < entries - 1; ++round) {
#pragma omp for schedule(dynamic, 1)
      for (i64 pair = 0; pair < entries / 2; ++pair) {
        const i64 left = pair == 0 ? 0 : (pair - 1 + round) % (entries - 1) + 1;
        const i64 right = (entries - 2 - pair + round) % (entries - 1) + 1;
        if (left < blocks && right < blocks)
          isa.block_pair(pass, std::min(left, right), std::max(left, right), own.get());
      }
    }
  }
}

void run_graded(const GradedPass& pass, const Kernels& isa, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Scratch own = scratch(isa.graded_scratch_floats(pass));
#pragma omp for schedule(dynamic, 1)
    for (i64 strip = 0; strip < (pass.rows.count + isa.strip_rows - 1) / isa.strip_rows; ++strip)
      isa.graded_task(pass, strip, own.get());
  }
}

}  // namespace contrastive
}  // namespace qpt
