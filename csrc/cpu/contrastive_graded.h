// Graded positives: weights of pairs by the distance of their severities, and the sums of the stream's vectors with
// these weights. Included by contrastive_kernel.h, whose parts it uses. A task owns one strip of rows and walks the
// whole stream, so that no partial results are merged.

// Weights of stream row k with the rows of a strip; 0 where the pair does not count.
struct GradedWeights {
  const GradedPass& pass;
  const float* severities;  // [kinds][kStripRows] of the strip
  i64 first, rows;          // of the strip
  const IdSet& groups;      // of the strip
  const IdSet* images;      // the same; null: pairs of one image count

  void row(i64 k, float* out) const {
    const i64 group = pass.stream.groups[k];
    if (group < 0) {
      for (int lane = 0; lane < kStripRows; ++lane) out[lane] = 0.0f;
      return;
    }
    const float* const other = pass.stream_severities + k * pass.kinds;
    Vec distance[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) distance[v] = zero();
    for (i64 n = 0; n < pass.kinds; ++n) {
      const Vec theirs = broadcast(other[n]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const Vec difference = subtract(load(severities + n * kStripRows + v * kLanes), theirs);
        distance[v] = fma(difference, difference, distance[v]);
      }
    }
    const Vec factor = broadcast(-pass.scale);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(out + v * kLanes, exp2_flushed(multiply(distance[v], factor)));
    const bool near = images && pass.stream.images[k] >= 0 && images->contains(pass.stream.images[k]);
    if (groups.contains(group) || near)
      for (i64 lane = 0; lane < rows; ++lane) {
        const bool one_image = near && pass.rows.images[first + lane] == pass.stream.images[k];
        if (pass.rows.groups[first + lane] == group || one_image) out[lane] = 0.0f;
      }
    const i64 own = k - pass.self_offset - first;
    if (pass.has_self && own >= 0 && own < rows) out[own] = 0.0f;
  }
};

// Per thread: p, acc, packed severities, a widened slab, a line.
i64 graded_scratch_floats(const GradedPass& pass) {
  return (kSlab + pass.dim + pass.kinds) * kStripRows + round_up(kSlab * pass.dim, 16) + round_up(pass.kinds, 16);
}

// Rows strip * kStripRows ... of the pass with the whole stream.
void graded_task(const GradedPass& pass, i64 strip, float* scratch) {
  const i64 dim = pass.dim, first = strip * kStripRows;
  const i64 rows = pass.rows.count - first < kStripRows ? pass.rows.count - first : kStripRows;
  float* const p = scratch;
  float* const acc = p + kSlab * kStripRows;
  float* const severities = acc + dim * kStripRows;
  float* const widened = severities + pass.kinds * kStripRows;
  const Side sides = {pass.row_severities, pass.kinds, pass.rows.count, kFloat32, nullptr, nullptr};
  pack_strip(sides, first, rows, pass.kinds, 1.0f, severities, widened + round_up(kSlab * dim, 16));
  IdSet groups, images;
  groups.fill(pass.rows.groups + first, rows);
  const bool with_images = pass.rows.images && pass.stream.images;
  if (with_images) images.fill(pass.rows.images + first, rows);
  const GradedWeights weights{pass, severities, first, rows, groups, with_images ? &images : nullptr};
  double sums[kStripRows] = {};
  for (i64 n = 0; n < dim * kStripRows; ++n) acc[n] = 0.0f;
  Slab slab;
  for (i64 k = 0; k < pass.stream.count; k += kSlab) {
    const i64 count = pass.stream.count - k < kSlab ? pass.stream.count - k : kSlab;
    read_slab(pass.stream, dim, k, count, nullptr, false, nullptr, widened, slab);
    float slab_sum[kStripRows] = {};  // few terms, so float32 is enough
    for (i64 n = 0; n < count; ++n) {
      weights.row(k + n, p + n * kStripRows);
      for (int lane = 0; lane < kStripRows; ++lane) slab_sum[lane] += p[n * kStripRows + lane];
    }
    for (int lane = 0; lane < kStripRows; ++lane) sums[lane] += slab_sum[lane];
    SecondProduct product{slab, p, acc};
    in_runs(dim, product);
  }
  for (i64 lane = 0; lane < rows; ++lane) {
    const bool counts = pass.rows.groups[first + lane] >= 0;
    pass.weight[first + lane] = counts ? static_cast<float>(sums[lane]) : 0.0f;
    for (i64 d = 0; counts && d < dim; ++d) pass.sum[(first + lane) * dim + d] += acc[d * kStripRows + lane];
  }
}
