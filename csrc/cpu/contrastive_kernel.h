// One task of the contrastive loss's passes over pairs. Included once per instruction set (contrastive_avx512.cpp,
// ...), inside a namespace of its own that has defined
//   Vec, kLanes, kVecs (vectors of a strip), kRows (stream rows at a time: kRows * kVecs accumulators fit the
//   registers), zero, load, store, broadcast, fma, add, subtract, multiply, maximum, minimum, any_greater, sum_lanes,
//   exp2_flushed, widen_row.
// exp2_flushed(x): 2^x, exactly 0 below -126, nan for nan.
//
// A strip of kVecs * kLanes rows lies across vector lanes: packed[d][lane]. Stream rows are read as they lie, one
// element broadcast at a time. The same loop, accumulate(), makes both products:
//   logits   z[k][lane]   = sum_d stream[k][d] packed[d][lane]
//   sums     acc[d][lane] += sum_k stream[k][d] p[k][lane],   p = exp2(z - row_max[lane])
// Logits exist only in registers and, as p, in kSlab x kStripRows floats that stay in the first-level cache.

constexpr int kStripRows = kVecs * kLanes;
// row_max follows the row's maximum only when a logit exceeds it by this much (units of log 2): float32 holds 2^40 * K
// without loss, and rescaling becomes rare.
constexpr float kSlack = 40.0f;
constexpr float kMinusInfinity = -__builtin_inff();

// sum[r][lane] += sum_n a[r a_row + n a_step] b[n b_step + lane], n < count; a strip's lanes are in kVecs vectors.
template <int kCount>
inline void accumulate(Vec (&sum)[kCount][kVecs], const float* a, i64 a_row, i64 a_step, const float* b, i64 b_step,
                       i64 count) {
  for (i64 n = 0; n < count; ++n) {
    Vec right[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) right[v] = load(b + n * b_step + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r) {
      const Vec left = broadcast(a[r * a_row + n * a_step]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
    }
  }
}

// The same with out[r out_row + lane] in place of sum[r][lane].
template <int kCount>
inline void add_product(float* out, i64 out_row, const float* a, i64 a_row, i64 a_step, const float* b, i64 b_step,
                        i64 count) {
  Vec sum[kCount][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sum[r][v] = load(out + r * out_row + v * kLanes);
  accumulate<kCount>(sum, a, a_row, a_step, b, b_step, count);
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(out + r * out_row + v * kLanes, sum[r][v]);
}

// Calls f.run<left>(start), 1 <= left <= kCount: makes the number a template argument.
template <int kCount, class F>
inline void last_run(i64 start, i64 left, F& f) {
  if (left == kCount) return f.template run<kCount>(start);
  if constexpr (kCount > 1) last_run<kCount - 1>(start, left, f);
}

// Calls f.run<R>(start) so that `count` rows are covered by runs of kRows and one shorter run.
template <class F>
inline void in_runs(i64 count, F& f) {
  i64 start = 0;
  for (; start + kRows <= count; start += kRows) f.template run<kRows>(start);
  if (start < count) last_run<kRows - 1>(start, count - start, f);
}

// The image or group ids of up to kMaxTaskRows rows; most stream rows share none, and are then left alone.
struct IdSet {
  i64 place[kTable];

  static i64 hash(i64 id) { return static_cast<i64>((static_cast<u64>(id) * 0x9E3779B97F4A7C15ull) >> 32) % kTable; }
  void fill(const i64* ids, i64 count) {
    for (i64& id : place) id = -1;
    for (i64 i = 0; i < count; ++i) {
      if (ids[i] < 0) continue;
      i64 at = hash(ids[i]);
      while (place[at] >= 0 && place[at] != ids[i]) at = (at + 1) % kTable;
      place[at] = ids[i];
    }
  }
  bool contains(i64 id) const {
    for (i64 at = hash(id); place[at] >= 0; at = (at + 1) % kTable)
      if (place[at] == id) return true;
    return false;
  }
};

inline const float* row_pointer(const Side& side, i64 row) {
  return static_cast<const float*>(side.data) + row * side.stride;
}

// One row as float32; float32 rows are copied.
inline void read_row(const Side& side, i64 row, i64 dim, float* out) {
  if (side.dtype == kFloat32) {
    const float* from = row_pointer(side, row);
    for (i64 d = 0; d < dim; ++d) out[d] = from[d];
  } else {
    widen_row(static_cast<const u16*>(side.data) + row * side.stride, side.dtype, dim, out);
  }
}

// A strip of rows across lanes, multiplied by `scale`; lanes beyond the last row are 0.
void pack_strip(const Side& side, i64 first, i64 rows, i64 dim, float scale, float* packed, float* line) {
  for (int lane = 0; lane < kStripRows; ++lane) {
    if (lane < rows) read_row(side, first + lane, dim, line);
    for (i64 d = 0; d < dim; ++d) packed[d * kStripRows + lane] = lane < rows ? line[d] * scale : 0.0f;
  }
}

// A slab of stream rows, read once before the strips pass over it.
struct Slab {
  const float* rows;  // float32, `stride` from row to row
  i64 stride, first, count;
  i32 dtype;  // that the rows had
  float bias[kSlab];
  bool near[kSlab];  // the stream row shares an image with a row of this task
  bool any_bias;
};

// nan times 0 is nan, and so is infinity times 0.
inline bool all_finite(const Slab& slab, i64 dim) {
  Vec even = zero(), odd = zero();
  float rest = 0.0f;
  for (i64 k = 0; k < slab.count; ++k) {
    const float* const row = slab.rows + k * slab.stride;
    i64 d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      even = fma(load(row + d), zero(), even);
      odd = fma(load(row + d + kLanes), zero(), odd);
    }
    for (; d < dim; ++d) rest += row[d] * 0.0f;
  }
  return sum_lanes(add(even, odd)) + rest == 0.0f;
}

inline void read_slab(const Side& stream, i64 dim, i64 first, i64 count, const float* bias, bool leave_ignored_out,
                      const IdSet* images, float* widened, Slab& slab) {
  slab.first = first;
  slab.count = count;
  slab.dtype = stream.dtype;
  if (stream.dtype == kFloat32) {
    slab.rows = row_pointer(stream, first);
    slab.stride = stream.stride;
  } else {
    for (i64 k = 0; k < count; ++k) read_row(stream, first + k, dim, widened + k * dim);
    slab.rows = widened;
    slab.stride = dim;
  }
  slab.any_bias = false;
  for (i64 k = 0; k < count; ++k) {
    const i64 row = first + k;
    slab.bias[k] = bias ? bias[row] : 0.0f;
    if (leave_ignored_out && stream.groups[row] < 0) slab.bias[k] = kMinusInfinity;
    slab.any_bias |= slab.bias[k] != 0.0f;
    slab.near[k] = images && stream.images[row] >= 0 && images->contains(stream.images[row]);
  }
}

// Products of kCount stream rows with a strip.
template <int kCount>
inline void logits(Vec (&z)[kCount][kVecs], const Slab& slab, i64 start, const float* packed, i64 dim) {
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) z[r][v] = zero();
  accumulate<kCount>(z, slab.rows + start * slab.stride, slab.stride, 1, packed, kStripRows, dim);
}

// Pairs whose logit is not the plain product: one image, or a row with itself. z: the strip's logits for stream row k.
inline void mark_pairs(const Side& rows, const Side& stream, i64 strip_first, i64 strip_rows, i64 k, bool near,
                       float image_bias, bool has_self, i64 self_offset, float* z) {
  if (near) {
    const i64 image = stream.images[k], group = stream.groups[k];
    for (i64 lane = 0; lane < strip_rows; ++lane) {
      const i64 row = strip_first + lane;
      if (rows.images[row] == image && rows.groups[row] != group) z[lane] += image_bias;
    }
  }
  const i64 own = k - self_offset - strip_first;
  if (has_self && own >= 0 && own < strip_rows) z[own] = kMinusInfinity;
}

// The running state of one strip.
struct Strip {
  i64 first, rows;
  float* packed;    // what Products::pack wrote
  float* acc;       // [dim][kStripRows], or null
  float* row_max;   // [kStripRows], -inf before anything eligible
  float* shift;     // the same with 0 for -inf
  float* slab_sum;  // [kStripRows], of the current slab: few terms, so float32 is enough
  double* row_sum;  // [kStripRows], of the slabs before
};

// The exponentials p of one slab with one strip; the strip's row_max and slab_sum follow. Where Products::kInMemory, p
// holds the logits before.
template <class Products>
struct Exponentials {
  const PairPass& pass;
  const Slab& slab;
  Strip& strip;
  float* p;  // [kSlab][kStripRows]

  // Lanes whose logits exceed their row_max by kSlack: a new row_max, and everything summed so far on its scale.
  __attribute__((noinline)) void raise_row_max(i64 start, const float* tile_max) {
    for (int lane = 0; lane < kStripRows; ++lane) {
      const float before = strip.row_max[lane];
      if (!(tile_max[lane] > before + kSlack)) continue;
      const float factor = before == kMinusInfinity ? 0.0f : __builtin_exp2f(before - tile_max[lane]);
      strip.row_max[lane] = strip.shift[lane] = tile_max[lane];
      strip.slab_sum[lane] *= factor;
      strip.row_sum[lane] *= factor;
      for (i64 k = 0; k < start; ++k) p[k * kStripRows + lane] *= factor;
      for (i64 d = 0; strip.acc && d < pass.dim; ++d) strip.acc[d * kStripRows + lane] *= factor;
    }
  }

  template <int kCount>
  void run(i64 start) {
    // 1. Logits of kCount stream rows with the strip, in registers.
    Vec z[kCount][kVecs];
    float* const out = p + start * kStripRows;
    if constexpr (Products::kInMemory) {
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) z[r][v] = load(out + r * kStripRows + v * kLanes);
    } else {
      logits<kCount>(z, slab, start, strip.packed, pass.dim);
    }
    if (slab.any_bias) {
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r) {
        // A row left out stays out even where its products overflowed: inf - inf would be nan.
        const Vec bias = broadcast(slab.bias[start + r]);
        const bool out = slab.bias[start + r] == kMinusInfinity;
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) z[r][v] = out ? bias : add(z[r][v], bias);
      }
    }
    if (special(start, kCount)) {
      for (int r = 0; r < kCount; ++r) {
        float* const row = out + r * kStripRows;
        for (int v = 0; v < kVecs; ++v) store(row + v * kLanes, z[r][v]);
        mark_pairs(pass.rows, pass.stream, strip.first, strip.rows, slab.first + start + r, slab.near[start + r],
                   pass.image_bias, pass.has_self, pass.self_offset, row);
        for (int v = 0; v < kVecs; ++v) z[r][v] = load(row + v * kLanes);
      }
    }
    // 2. row_max, where a logit has outgrown it.
    if (pass.running) {
      bool outgrown = false;
      Vec tile_max[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        tile_max[v] = z[0][v];
#pragma GCC unroll 16
        for (int r = 1; r < kCount; ++r) tile_max[v] = maximum(tile_max[v], z[r][v]);
        outgrown |= any_greater(tile_max[v], add(load(strip.row_max + v * kLanes), broadcast(kSlack)));
      }
      if (outgrown) {
        alignas(64) float values[kStripRows];
        for (int v = 0; v < kVecs; ++v) store(values + v * kLanes, tile_max[v]);
        raise_row_max(start, values);
      }
    }
    // 3. Exponentials of the accumulators; their sum, and what the second product reads.
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const Vec shift = load(strip.shift + v * kLanes);
      Vec sum = load(strip.slab_sum + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r) {
        Vec x = subtract(z[r][v], shift);
        // z - lse is never above 0 but for rounding, which counts when logits are huge.
        if (!pass.running) x = minimum(x, zero());
        const Vec e = exp2_flushed(x);
        sum = add(sum, e);
        store(out + r * kStripRows + v * kLanes, e);
      }
      store(strip.slab_sum + v * kLanes, sum);
    }
  }

  bool special(i64 start, int count) const {
    bool found = false;
    for (int r = 0; r < count; ++r) found |= slab.near[start + r];
    const i64 own = slab.first + start - pass.self_offset - strip.first;
    return found || (pass.has_self && own > -count && own < strip.rows);
  }
};

// acc[d][lane] += sum_k stream[k][d] p[k][lane].
struct SecondProduct {
  const Slab& slab;
  const float* p;
  float* acc;

  template <int kCount>
  void run(i64 d) {
    add_product<kCount>(acc + d * kStripRows, kStripRows, slab.rows + d, 1, slab.stride, p, kStripRows, slab.count);
  }
};

inline i64 round_up(i64 n, i64 unit) {
  return (n + unit - 1) / unit * unit;
}

// Both products of a task in vectors. The other way to make them, TileProducts, has the same members.
struct VectorProducts {
  static constexpr bool kInMemory = false;  // whether logits() leaves the logits in memory
  i64 dim;

  static i64 packed_floats(i64 dim) { return dim * kStripRows; }  // of a strip, and of acc
  static i64 acc_floats(i64 dim) { return dim * kStripRows; }
  static i64 own_floats(i64) { return 0; }  // of a thread

  VectorProducts(i64 dim, float*) : dim(dim) {}
  void pack(const Side& side, i64 first, i64 rows, float scale, float* packed, float*, float* line) const {
    pack_strip(side, first, rows, dim, scale, packed, line);
  }
  void read(const Slab&, bool) const {}
  void logits(const Slab&, const float*, float*) const {}
  void sums(const Slab& slab, const float* p, float* acc) const {
    SecondProduct product{slab, p, acc};
    in_runs(dim, product);
  }
};

// Per strip: packed, acc, row_max, shift, slab_sum, row_sum (double). Per thread: p, a widened slab, a line, and what
// the products need.
template <class Products>
inline i64 strip_floats(const PairPass& pass) {
  return Products::packed_floats(pass.dim) + (pass.weighted ? Products::acc_floats(pass.dim) : 0) + 5 * kStripRows;
}
template <class Products>
i64 scratch_floats(const PairPass& pass) {
  const i64 strips = (pass.task_rows + kStripRows - 1) / kStripRows;
  return strips * strip_floats<Products>(pass) + kSlab * kStripRows + round_up(kSlab * pass.dim, 16) +
         round_up(pass.dim, 16) + Products::own_floats(pass.dim);
}

// Rows task_index * task_rows ... of the pass with one part of the stream; results go to that part's place.
template <class Products>
void task(const PairPass& pass, i64 task_index, i64 part, float* scratch) {
  const i64 dim = pass.dim, first_row = task_index * pass.task_rows;
  const i64 rows = pass.rows.count - first_row < pass.task_rows ? pass.rows.count - first_row : pass.task_rows;
  const i64 strips = (rows + kStripRows - 1) / kStripRows;
  float* const p = scratch + (pass.task_rows + kStripRows - 1) / kStripRows * strip_floats<Products>(pass);
  float* const widened = p + kSlab * kStripRows;
  float* const line = widened + round_up(kSlab * dim, 16);
  Products products(dim, line + round_up(dim, 16));

  auto strip_at = [&](i64 s) {
    float* at = scratch + s * strip_floats<Products>(pass);
    Strip strip;
    strip.first = first_row + s * kStripRows;
    strip.rows = rows - s * kStripRows < kStripRows ? rows - s * kStripRows : kStripRows;
    strip.row_sum = reinterpret_cast<double*>(at);
    strip.row_max = at + 2 * kStripRows;
    strip.shift = at + 3 * kStripRows;
    strip.slab_sum = at + 4 * kStripRows;
    strip.packed = at + 5 * kStripRows;
    strip.acc = pass.weighted ? strip.packed + Products::packed_floats(dim) : nullptr;
    return strip;
  };
  for (i64 s = 0; s < strips; ++s) {
    Strip strip = strip_at(s);
    products.pack(pass.rows, strip.first, strip.rows, pass.scale, strip.packed, widened, line);
    for (int lane = 0; lane < kStripRows; ++lane) {
      strip.row_sum[lane] = 0;
      strip.row_max[lane] = pass.running ? kMinusInfinity : 0.0f;
      strip.shift[lane] = 0.0f;
    }
    for (i64 n = 0; strip.acc && n < Products::acc_floats(dim); ++n) strip.acc[n] = 0.0f;
  }

  // A slab of the stream stays in cache while all strips of the task pass over it. Parts are whole slabs.
  const i64 slabs = (pass.stream.count + kSlab - 1) / kSlab;
  const i64 begin = slabs * part / pass.parts * kSlab;
  const i64 end_slab = slabs * (part + 1) / pass.parts * kSlab;
  const i64 end = end_slab < pass.stream.count ? end_slab : pass.stream.count;
  const bool with_images = pass.rows.images && pass.stream.images;
  IdSet images;
  if (with_images) images.fill(pass.rows.images + first_row, rows);
  Slab slab;
  for (i64 k = begin; k < end; k += kSlab) {
    read_slab(pass.stream, dim, k, end - k < kSlab ? end - k : kSlab, pass.bias, pass.running,
              with_images ? &images : nullptr, widened, slab);
    if (pass.not_finite && task_index == 0 && !all_finite(slab, dim))
      __atomic_store_n(pass.not_finite, true, __ATOMIC_RELAXED);
    products.read(slab, pass.weighted);
    for (i64 s = 0; s < strips; ++s) {
      Strip strip = strip_at(s);
      for (int lane = 0; lane < kStripRows; ++lane) strip.slab_sum[lane] = 0.0f;
      products.logits(slab, strip.packed, p);
      Exponentials<Products> exponentials{pass, slab, strip, p};
      in_runs(slab.count, exponentials);
      for (int lane = 0; lane < kStripRows; ++lane) strip.row_sum[lane] += strip.slab_sum[lane];
      if (strip.acc) products.sums(slab, p, strip.acc);
    }
  }

  for (i64 s = 0; s < strips; ++s) {
    const Strip strip = strip_at(s);
    for (i64 lane = 0; lane < strip.rows; ++lane) {
      const i64 place = part * pass.rows.count + strip.first + lane;
      pass.row_max[place] = strip.row_max[lane];
      pass.row_sum[place] = static_cast<float>(strip.row_sum[lane]);
      for (i64 d = 0; strip.acc && d < dim; ++d) pass.acc[place * dim + d] = strip.acc[d * kStripRows + lane];
    }
  }
}

#include "contrastive_self.h"
#include "contrastive_graded.h"

template <class Products>
constexpr Kernels kernels_of() {
  return {kName,
          kStripRows,
          &scratch_floats<Products>,
          &task<Products>,
          &pack_strip,
          &self_scratch_floats,
          &block_pair,
          &graded_scratch_floats,
          &graded_task};
}
