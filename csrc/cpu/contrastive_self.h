// Queries and keys are the same rows (SimCLR, SupCon): each logit is computed once and serves both roles of its pair.
// Included by contrastive_kernel.h, whose parts it uses. Of a pair of blocks of rows, one lies across lanes, strip by
// strip, the other is the stream. Both are added to, so a block may be in one pair at a time: see run_self.

// Logits of a slab with a strip, and their exponentials, once, for both roles of each pair.
struct SelfExponentials {
  const SelfPairPass& pass;
  const Slab& slab;
  const float* packed;  // the strip
  i64 first, rows;      // of the strip
  bool own_block;       // the stream is the strip's own block: every pair is seen twice, and counts for the lanes only
  bool holes;           // the strip has lanes without an eligible row
  float* p;             // [kSlab][kStripRows]
  float* partial;       // [kStripRows]
  float* inverse;       // [kStripRows], when sums are wanted

  template <int kCount>
  void run(i64 start) {
    Vec z[kCount][kVecs];
    logits<kCount>(z, slab, start, packed, pass.dim);
    float* const out = p + start * kStripRows;
    bool special = holes || own_block || slab.any_bias;
    for (int r = 0; r < kCount; ++r) special |= slab.near[start + r];
    if (special) {
      for (int r = 0; r < kCount; ++r) {
        float* const row = out + r * kStripRows;
        for (int v = 0; v < kVecs; ++v) store(row + v * kLanes, z[r][v]);
        mark_pairs(pass.rows, pass.rows, first, rows, slab.first + start + r, slab.near[start + r], pass.image_bias,
                   own_block, 0, row);
        const bool ignored = slab.bias[start + r] != 0.0f;
        for (int lane = 0; lane < kStripRows; ++lane)
          if (ignored || lane >= rows || pass.rows.groups[first + lane] < 0) row[lane] = kMinusInfinity;
        for (int v = 0; v < kVecs; ++v) z[r][v] = load(row + v * kLanes);
      }
    }
    if (!pass.inverse) {
      Vec sums[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[v] = load(partial + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r) {
        Vec row = zero();
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          const Vec e = exp2_flushed(z[r][v]);
          sums[v] = add(sums[v], e);
          row = add(row, e);
        }
        if (!own_block) pass.row_sum[slab.first + start + r] += sum_lanes(row);
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store(partial + v * kLanes, sums[v]);
      return;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r) {
      const Vec other = broadcast(pass.inverse[slab.first + start + r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v)
        store(out + r * kStripRows + v * kLanes,
              multiply(exp2_flushed(z[r][v]), add(other, load(inverse + v * kLanes))));
    }
  }
};

// sum[k][d] += sum_lane p[k][lane] row[lane][d], kStripRows columns at a time.
struct StreamProduct {
  const SelfPairPass& pass;
  const Slab& slab;
  const float* p;
  i64 first, rows, column;

  template <int kCount>
  void run(i64 start) {
    add_product<kCount>(pass.acc + (slab.first + start) * pass.dim + column, pass.dim, p + start * kStripRows,
                        kStripRows, 1, row_pointer(pass.rows, first) + column, pass.rows.stride, rows);
  }
};

i64 self_scratch_floats(const SelfPairPass& pass) {
  return kSlab * kStripRows + 2 * kStripRows + pass.dim * kStripRows;
}

void block_pair(const SelfPairPass& pass, i64 first_block, i64 second_block, float* scratch) {
  const i64 dim = pass.dim, count = pass.rows.count;
  float* const p = scratch;
  float* const partial = p + kSlab * kStripRows;
  float* const inverse = partial + kStripRows;
  float* const sums = inverse + kStripRows;
  const i64 begin = first_block * pass.block_rows;
  const i64 stop = begin + pass.block_rows < count ? begin + pass.block_rows : count;
  const i64 other = second_block * pass.block_rows;
  const i64 other_stop = other + pass.block_rows < count ? other + pass.block_rows : count;
  IdSet images;
  if (pass.rows.images) images.fill(pass.rows.images + begin, stop - begin);
  for (i64 first = begin; first < stop; first += kStripRows) {
    const i64 rows = stop - first < kStripRows ? stop - first : kStripRows;
    bool holes = rows < kStripRows;
    for (i64 lane = 0; lane < rows; ++lane) holes |= pass.rows.groups[first + lane] < 0;
    for (i64 lane = 0; lane < kStripRows; ++lane) {
      partial[lane] = 0.0f;
      inverse[lane] = pass.inverse && lane < rows ? pass.inverse[first + lane] : 0.0f;
    }
    for (i64 n = 0; pass.inverse && n < dim * kStripRows; ++n) sums[n] = 0.0f;
    Slab slab;
    for (i64 k = other; k < other_stop; k += kSlab) {
      read_slab(pass.rows, dim, k, other_stop - k < kSlab ? other_stop - k : kSlab, nullptr, true,
                pass.rows.images ? &images : nullptr, nullptr, slab);
      SelfExponentials exponentials{
          pass, slab, pass.packed + first * dim, first, rows, first_block == second_block, holes, p, partial, inverse};
      in_runs(slab.count, exponentials);
      if (!pass.inverse) continue;
      SecondProduct product{slab, p, sums};
      in_runs(dim, product);
      if (first_block == second_block) continue;
      for (i64 column = 0; column < dim; column += kStripRows) {
        StreamProduct stream{pass, slab, p, first, rows, column};
        in_runs(slab.count, stream);
      }
    }
    for (i64 lane = 0; lane < rows; ++lane) {
      if (!pass.inverse) pass.row_sum[first + lane] += partial[lane];
      float* const out = pass.acc + (first + lane) * dim;
      for (i64 d = 0; pass.inverse && d < dim; ++d) out[d] += sums[d * kStripRows + lane];
    }
  }
}
