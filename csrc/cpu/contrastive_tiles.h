// Both products of a task in AMX tiles, which multiply bfloat16 numbers and add float32. Included by
// contrastive_amx.cpp after contrastive_kernel.h, with the vectors of contrastive_avx512.h and the tile operations of
// contrastive_amx.cpp.
//
// A float32 is the sum of three bfloat16 terms, each below 2^-7 of the one before. Logits are the products of term i
// with term j, i + j < 3 (six for a float32 stream): what is left out is below float32's own rounding. The sums of
// stream rows take all products of two terms of each factor: their error is at most 2^-16 of a product, and averages
// out. A bfloat16 stream has one term, a float16 one two, both exact. Products of terms are added from the smallest to
// the largest.
//
// The first factor of a tile product lies row by row, the second in pairs of rows: element n of rows 2m and 2m + 1 are
// neighbours.
//   logits   z[k][lane] = sum_d stream[k][d] packed[d][lane]
//            rows [term][k][d], pairs [term][d / 2][lane][2]
//   sums     acc[d][lane] += sum_k stream[k][d] p[k][lane]
//            columns [term][d][k], pairs [term][k / 2][lane][2]

constexpr i64 kTileSide = 16;          // rows of a tile, and float32 numbers of a row
constexpr i64 kTileDepth = 32;         // bfloat16 numbers of a row
constexpr i64 kBlock = 2 * kTileSide;  // rows and lanes of a block: four tiles of results
constexpr int kTerms = 3, kSumTerms = 2;
static_assert(kStripRows % kBlock == 0 && kSlab % kBlock == 0 && kSlab % kTileDepth == 0);

inline Vec leading_bits(__m512i bits) {
  return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<i32>(0xFFFF0000u))));
}

inline Vec rounded_bits(Vec x) {  // not of nan: its bits may wrap
  return leading_bits(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)));
}

// x as a sum of kCount bfloat16 terms, each a float32 whose lower half is 0. Of three, which hold all of x, the first
// is cut off, so that no finite number becomes infinite; of two it is rounded, which halves the error.
template <int kCount>
inline void split(Vec x, Vec (&term)[kCount]) {
  const Vec cut = leading_bits(_mm512_castps_si512(x));
  if constexpr (kCount == kTerms)
    term[0] = cut;
  else
    term[0] = _mm512_mask_mov_ps(cut, _mm512_cmp_ps_mask(x, x, _CMP_EQ_OQ), rounded_bits(x));
#pragma GCC unroll 2
  for (int t = 1; t < kCount; ++t) {
    x = subtract(x, term[t - 1]);
    term[t] = rounded_bits(x);
  }
}

// Pairs of bfloat16 numbers: one of `first`, then one of `second`.
inline __m512i pairs_of(Vec first, Vec second) {
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second));
}

// Writes rows of kStripRows numbers as pairs of rows: out[term][row / 2][lane]. Rows from `rows` to `padded` are 0.
template <int kCount>
inline void write_pairs(const float* from, i64 rows, i64 padded, u32* out) {
  for (i64 row = 0; row < padded; row += 2) {
    for (int v = 0; v < kVecs; ++v) {
      const float* const at = from + row * kStripRows + v * kLanes;
      Vec first[kCount], second[kCount];
      split(row < rows ? load(at) : zero(), first);
      split(row + 1 < rows ? load(at + kStripRows) : zero(), second);
#pragma GCC unroll 3
      for (int t = 0; t < kCount; ++t)
        _mm512_storeu_si512(out + (t * padded + row) / 2 * kStripRows + v * kLanes, pairs_of(first[t], second[t]));
    }
  }
}

inline Vec load_at_most(const float* from, i64 count) {
  if (count >= kLanes) return load(from);
  return count <= 0 ? zero() : _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}

// Transposes 16 x 16 numbers of 32 bits.
inline void transpose(__m512i (&row)[16]) {
  __m512i next[16];
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    next[r] = _mm512_unpacklo_epi32(row[r], row[r + 1]);
    next[r + 1] = _mm512_unpackhi_epi32(row[r], row[r + 1]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4) {  // row[r + c]: column 4 q + c of rows r to r + 3, in quarter q
    row[r] = _mm512_unpacklo_epi64(next[r], next[r + 2]);
    row[r + 1] = _mm512_unpackhi_epi64(next[r], next[r + 2]);
    row[r + 2] = _mm512_unpacklo_epi64(next[r + 1], next[r + 3]);
    row[r + 3] = _mm512_unpackhi_epi64(next[r + 1], next[r + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(row[c], row[4 + c], 0x44),
                  high = _mm512_shuffle_i32x4(row[c], row[4 + c], 0xEE);
    const __m512i low2 = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0x44),
                  high2 = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0xEE);
    next[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
    next[4 + c] = _mm512_shuffle_i32x4(low, low2, 0xDD);
    next[8 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
    next[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xDD);
  }
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) row[r] = next[r];
}

// Adds the products of two tiles of rows, one below the other, with two of pairs, side by side, to tiles 0 to 3: a
// block of results. stride: bfloat16 numbers from row to row; kStripRows pairs lie in a row.
inline void add_block(const u16* rows, i64 stride, const u32* pairs) {
  load_tile<4>(rows, 2 * stride);
  load_tile<5>(rows + kTileSide * stride, 2 * stride);
  load_tile<6>(pairs, 4 * kStripRows);
  load_tile<7>(pairs + kTileSide, 4 * kStripRows);
  multiply_tiles<0, 4, 6>();
  multiply_tiles<1, 4, 7>();
  multiply_tiles<2, 5, 6>();
  multiply_tiles<3, 5, 7>();
}

// out: a block of rows of kStripRows numbers.
inline void load_block(const float* out) {
  load_tile<0>(out, 4 * kStripRows);
  load_tile<1>(out + kTileSide, 4 * kStripRows);
  load_tile<2>(out + kTileSide * kStripRows, 4 * kStripRows);
  load_tile<3>(out + kTileSide * kStripRows + kTileSide, 4 * kStripRows);
}
inline void store_block(float* out) {
  store_tile<0>(out, 4 * kStripRows);
  store_tile<1>(out + kTileSide, 4 * kStripRows);
  store_tile<2>(out + kTileSide * kStripRows, 4 * kStripRows);
  store_tile<3>(out + kTileSide * kStripRows + kTileSide, 4 * kStripRows);
}

class TileProducts {
 public:
  static constexpr bool kInMemory = true;

  // See VectorProducts. Three terms of 16 bits take 3 / 2 of a float32.
  static i64 packed_floats(i64 dim) { return kTerms * depth(dim) * kStripRows / 2; }
  static i64 acc_floats(i64 dim) { return depth(dim) * kStripRows; }
  static i64 own_floats(i64 dim) {
    return (kTerms + kSumTerms) * kSlab * depth(dim) / 2 + kSumTerms * kSlab * kStripRows / 2;
  }

  TileProducts(i64 dim, float* own)
      : dim_(dim),
        depth_(depth(dim)),
        rows_(reinterpret_cast<u16*>(own)),
        columns_(rows_ + kTerms * kSlab * depth_),
        pairs_(reinterpret_cast<u32*>(columns_ + kSumTerms * kSlab * depth_)) {
    configure_tiles();
  }
  ~TileProducts() { release_tiles(); }
  TileProducts(const TileProducts&) = delete;
  TileProducts& operator=(const TileProducts&) = delete;

  void pack(const Side& side, i64 first, i64 rows, float scale, float* packed, float* plain, float* line) const {
    pack_strip(side, first, rows, dim_, scale, plain, line);
    write_pairs<kTerms>(plain, dim_, depth_, reinterpret_cast<u32*>(packed));
  }

  void read(const Slab& slab, bool weighted) {
    terms_ = slab.dtype == kFloat32 ? 3 : slab.dtype == kFloat16 ? 2 : 1;
    padded_ = round_up(slab.count, kBlock);
    for (i64 k = 0; k < slab.count; ++k) read_row(slab.rows + k * slab.stride, rows_ + k * depth_);
    for (i64 d = 0; weighted && d < depth_; d += kTileSide)
      for (i64 k = 0; k < padded_; k += kTileDepth) read_columns(slab, d, k);
  }

  // Rows from the slab's count on are not used: they hold what the memory held before.
  void logits(const Slab&, const float* packed, float* p) const {
    const u32* const pairs = reinterpret_cast<const u32*>(packed);
    in_blocks(padded_, [&](i64 k, i64 lane) {
      zero_tile<0>();
      zero_tile<1>();
      zero_tile<2>();
      zero_tile<3>();
      by_size<kTerms, kTerms - 1>([&](int stream_term, int row_term) {
        const u16* const at = rows_ + (stream_term * kSlab + k) * depth_;
        for (i64 d = 0; d < depth_; d += kTileDepth)
          add_block(at + d, depth_, pairs + (row_term * depth_ + d) / 2 * kStripRows + lane);
      });
      store_block(p + k * kStripRows + lane);
    });
  }

  void sums(const Slab& slab, const float* p, float* acc) const {
    write_pairs<kSumTerms>(p, slab.count, padded_, pairs_);
    in_blocks(depth_, [&](i64 d, i64 lane) {
      float* const out = acc + d * kStripRows + lane;
      load_block(out);
      by_size<kSumTerms, 2>([&](int stream_term, int p_term) {
        const u16* const at = columns_ + (stream_term * depth_ + d) * kSlab;
        for (i64 k = 0; k < padded_; k += kTileDepth)
          add_block(at + k, kSlab, pairs_ + (p_term * padded_ + k) / 2 * kStripRows + lane);
      });
      store_block(out);
    });
  }

 private:
  static i64 depth(i64 dim) { return round_up(dim, kTileDepth); }

  template <class F>
  static void in_blocks(i64 rows, F f) {
    for (i64 row = 0; row < rows; row += kBlock)
      for (i64 lane = 0; lane < kStripRows; lane += kBlock) f(row, lane);
  }

  // Calls f(i, j) for the terms i < kCount of the stream and j < kCount of the other factor, i + j <= kLargest, from
  // the smallest products to the largest.
  template <int kCount, int kLargest, class F>
  void by_size(F f) const {
    for (int sum = kLargest; sum >= 0; --sum)
      for (int i = 0; i <= sum && i < terms_; ++i)
        if (i < kCount && sum - i < kCount) f(i, sum - i);
  }

  void read_row(const float* from, u16* out) const {
    for (i64 d = 0; d < depth_; d += kLanes) {
      Vec term[kTerms];
      split(load_at_most(from + d, dim_ - d), term);
      for (int t = 0; t < terms_; ++t)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + t * kSlab * depth_ + d),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(term[t]), 16)));
    }
  }

  // Columns d to d + 15 of rows k to k + 31.
  void read_columns(const Slab& slab, i64 d, i64 k) const {
    __m512i pairs[kSumTerms][kTileSide];
    for (i64 r = 0; r < kTileSide; ++r) {
      const i64 row = k + 2 * r;
      const float* const from = slab.rows + row * slab.stride + d;
      Vec first[kSumTerms], second[kSumTerms];
      split(load_at_most(from, row < slab.count ? dim_ - d : 0), first);
      split(load_at_most(from + slab.stride, row + 1 < slab.count ? dim_ - d : 0), second);
      for (int t = 0; t < kSumTerms; ++t) pairs[t][r] = pairs_of(first[t], second[t]);
    }
    for (int t = 0; t < kSumTerms && t < terms_; ++t) {
      transpose(pairs[t]);
      for (i64 r = 0; r < kTileSide; ++r) _mm512_storeu_si512(columns_ + (t * depth_ + d + r) * kSlab + k, pairs[t][r]);
    }
  }

  i64 dim_, depth_;
  u16* rows_;     // [kTerms][kSlab][depth_]
  u16* columns_;  // [kSumTerms][depth_][kSlab]
  u32* pairs_;    // [kSumTerms][padded_ / 2][kStripRows]
  i64 padded_ = 0;
  int terms_ = 0;
};
