// x86 forms, for a team of one, of ops/median.h: networks of minima and maxima for windows of up to 5 x 5 samples,
// counting for larger ones. A median is a sample, so every form gives the same bytes. Samples are biased, since AVX2
// compares bytes as signed numbers. Host only; included by cpu/simd.h, inside its namespace.

constexpr u8 kMedianBias = 0x80;
constexpr i32 kMedianLanes = 32;  // samples per vector of AVX2

inline __m256i load_samples(const u8* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void store_samples(u8* out, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
}

#if defined(__AVX512BW__)
using Bytes = __m512i;
constexpr i32 kByteLanes = 64;
inline Bytes load_vector(const u8* p) {
  return _mm512_loadu_si512(p);
}
inline void store_vector(u8* out, Bytes v) {
  _mm512_storeu_si512(out, v);
}
inline Bytes least(Bytes a, Bytes b) {
  return _mm512_min_epi8(a, b);
}
inline Bytes greatest(Bytes a, Bytes b) {
  return _mm512_max_epi8(a, b);
}
inline Bytes unbiased(Bytes v) {
  return _mm512_xor_si512(v, _mm512_set1_epi8(-128));
}
#else
using Bytes = __m256i;
constexpr i32 kByteLanes = kMedianLanes;
inline Bytes load_vector(const u8* p) {
  return load_samples(p);
}
inline void store_vector(u8* out, Bytes v) {
  store_samples(out, v);
}
inline Bytes least(Bytes a, Bytes b) {
  return _mm256_min_epi8(a, b);
}
inline Bytes greatest(Bytes a, Bytes b) {
  return _mm256_max_epi8(a, b);
}
inline Bytes unbiased(Bytes v) {
  return _mm256_xor_si256(v, _mm256_set1_epi8(-128));
}
#endif

inline void sort_two(Bytes& low, Bytes& high) {
  const Bytes smaller = least(low, high);
  high = greatest(low, high);
  low = smaller;
}

// Makes v[0] the least and v[count - 1] the greatest of v[0 .. count).
template <i32 count>
inline void find_ends(Bytes* v) {
#pragma GCC unroll 64
  for (i32 i = 0; i < count / 2; ++i) sort_two(v[i], v[count - 1 - i]);
#pragma GCC unroll 64
  for (i32 i = 1; i < (count + 1) / 2; ++i) sort_two(v[0], v[i]);
#pragma GCC unroll 64
  for (i32 i = count / 2; i < count - 1; ++i) sort_two(v[i], v[count - 1]);
}

// Forgetful selection of the median of v[0 .. count) and `rest` more samples, an odd number in all: the least and the
// greatest of more than half of them cannot be the median, so both are dropped and the next sample is added, until
// three are left.
template <i32 count, i32 rest>
inline Bytes forgetful_median(Bytes* v, const Bytes* more) {
  find_ends<count>(v);
  if constexpr (count == 3) {
    return v[1];
  } else {
    v[0] = more[0];
    return forgetful_median<count - 1, rest - 1>(v, more + 1);
  }
}

// The median of kCount vectors, an odd number.
template <i32 kCount>
inline Bytes median_of(Bytes* v) {
  constexpr i32 held = kCount / 2 + 2;
  return forgetful_median<held, kCount - held>(v, v + held);
}

// Calls part(at) for parts of `lanes` samples that cover the row from `from` on; the last one may overlap another.
template <class Part>
inline void in_parts(i32 from, i32 samples, i32 lanes, Part part) {
  for (; from + lanes <= samples; from += lanes) part(from);
  if (from < samples) part(samples - lanes);
}

// Writes to out[i] the median of row[dy][i + 3 dx], 3 x 3 samples, for kByteLanes samples from `at` on.
inline void median_of_nine(const u8* const* rows, i32 at, u8* out) {
  Bytes v[9];
#pragma GCC unroll 9
  for (i32 i = 0; i < 9; ++i) v[i] = load_vector(rows[i / 3] + at + 3 * (i % 3));
  store_vector(out + at, unbiased(median_of<9>(v)));
}

// Sorts five vectors.
inline void sort_five(Bytes* v) {
  sort_two(v[0], v[1]);
  sort_two(v[3], v[4]);
  sort_two(v[2], v[4]);
  sort_two(v[2], v[3]);
  sort_two(v[1], v[4]);
  sort_two(v[0], v[3]);
  sort_two(v[0], v[2]);
  sort_two(v[1], v[3]);
  sort_two(v[1], v[2]);
}

// Five values, two pairs of them sorted.
struct FiveValues {
  Bytes a, b, c, d, e;  // a <= b, c <= d
  inline explicit FiveValues(const Bytes* v) : a(v[0]), b(v[1]), c(v[2]), d(v[3]), e(v[4]) {
    sort_two(a, b);
    sort_two(c, d);
  }
};

// The greatest two of five.
inline void greatest_two(const Bytes* v, Bytes* out) {
  const FiveValues x(v);
  Bytes low = greatest(x.a, x.d), high = greatest(x.b, x.c);  // the greatest two of four
  sort_two(low, high);
  out[0] = greatest(low, x.e);
  out[1] = high;
}
inline void least_two(const Bytes* v, Bytes* out) {
  const FiveValues x(v);
  Bytes low = least(x.a, x.d), high = least(x.b, x.c);
  sort_two(low, high);
  out[0] = low;
  out[1] = least(high, x.e);
}

// The greatest three of five: of four the greatest two, and the greater one of the others and the fifth.
inline void greatest_three(const Bytes* v, Bytes* out) {
  const FiveValues x(v);
  out[0] = greatest(x.a, x.d);
  out[1] = greatest(x.b, x.c);
  out[2] = greatest(greatest(least(x.a, x.d), least(x.b, x.c)), x.e);
}
inline void least_three(const Bytes* v, Bytes* out) {
  const FiveValues x(v);
  out[0] = least(x.a, x.d);
  out[1] = least(x.b, x.c);
  out[2] = least(least(greatest(x.a, x.d), greatest(x.b, x.c)), x.e);
}

// Five without their least and their greatest.
inline void middle_three(const Bytes* v, Bytes* out) {
  const FiveValues x(v);
  out[0] = greatest(x.a, x.c);
  out[1] = least(x.b, x.d);
  out[2] = greatest(least(x.a, x.c), least(greatest(x.b, x.d), x.e));
}

// Writes to out[i] the median of row[dy][i + 3 dx], 5 x 5 samples, for kByteLanes samples or more. The columns of five
// samples are sorted once for the five windows that hold them. In a square whose columns are sorted and whose rows then
// are too, six samples are below the median for certain, and six above: those that have more than twelve others above
// or to the left, or below or to the right. The median of the other thirteen is that of all.
inline void median_of_25(const u8* const* rows, i32 samples, u8* out) {
  constexpr i32 kTile = 1024, kBeyond = 12;  // samples of a part of the row, and of the columns after its last sample
  alignas(64) u8 sorted[5][kTile + kBeyond + 4];
  const i32 tile = samples < kTile ? samples : kTile;
  in_parts(0, samples, tile, [&](i32 start) {
    in_parts(0, tile + kBeyond, kByteLanes, [&](i32 at) {
      Bytes v[5];
#pragma GCC unroll 5
      for (i32 dy = 0; dy < 5; ++dy) v[dy] = load_vector(rows[dy] + start + at);
      sort_five(v);
#pragma GCC unroll 5
      for (i32 dy = 0; dy < 5; ++dy) store_vector(sorted[dy] + at, v[dy]);
    });
    in_parts(0, tile, kByteLanes, [&](i32 at) {
      const auto row = [&](i32 dy, Bytes* v) {
#pragma GCC unroll 5
        for (i32 dx = 0; dx < 5; ++dx) v[dx] = load_vector(sorted[dy] + at + 3 * dx);
      };
      Bytes v[5], left[13];
      row(0, v);
      greatest_two(v, left);
      row(4, v);
      least_two(v, left + 2);
      row(1, v);
      greatest_three(v, left + 4);
      row(3, v);
      least_three(v, left + 7);
      row(2, v);
      middle_three(v, left + 10);
      store_vector(out + start + at, unbiased(median_of<13>(left)));
    });
  });
}

// Writes to out[i] the median of the (2 radius + 1)^2 samples row[dy][i + 3 dx], for kBlocks * kMedianLanes samples
// from `at` on, bit by bit as the generic form.
template <i32 kBlocks>
inline void counted_median(const u8* const* rows, i32 radius, i32 at, u8* out) {
  const i32 taps = 2 * radius + 1;
  const __m256i half = _mm256_set1_epi8(static_cast<char>(taps * taps / 2)), bias = _mm256_set1_epi8(-128);
  __m256i low[kBlocks], bound[kBlocks], below[kBlocks];
#pragma GCC unroll 8
  for (i32 b = 0; b < kBlocks; ++b) low[b] = bias;
  for (i32 bit = 128; bit > 0; bit >>= 1) {
#pragma GCC unroll 8
    for (i32 b = 0; b < kBlocks; ++b) {
      bound[b] = _mm256_xor_si256(low[b], _mm256_set1_epi8(static_cast<char>(bit)));
      below[b] = _mm256_setzero_si256();
    }
    for (i32 dy = 0; dy < taps; ++dy) {
      const u8* p = rows[dy] + at;
      for (i32 dx = 0; dx < taps; ++dx, p += 3) {
#pragma GCC unroll 8
        for (i32 b = 0; b < kBlocks; ++b)
          below[b] = _mm256_sub_epi8(below[b], _mm256_cmpgt_epi8(bound[b], load_samples(p + b * kMedianLanes)));
      }
    }
#pragma GCC unroll 8
    for (i32 b = 0; b < kBlocks; ++b) {
      const __m256i kept = _mm256_cmpeq_epi8(_mm256_max_epu8(below[b], half), half);
      low[b] = _mm256_blendv_epi8(low[b], bound[b], kept);
    }
  }
#pragma GCC unroll 8
  for (i32 b = 0; b < kBlocks; ++b) store_samples(out + at + b * kMedianLanes, _mm256_xor_si256(low[b], bias));
}

// Computes a whole row of samples; returns false if the generic form must.
inline bool median_row(const u8* const* rows, i32 radius, i32 samples, u8* out) {
  constexpr i32 kBlocks = 4;
  if (samples < kByteLanes || radius < 1) return false;
  if (radius == 1) {
    in_parts(0, samples, kByteLanes, [&](i32 at) { median_of_nine(rows, at, out); });
  } else if (radius == 2) {
    median_of_25(rows, samples, out);
  } else {
    i32 at = 0;
    for (; at + kBlocks * kMedianLanes <= samples; at += kBlocks * kMedianLanes)
      counted_median<kBlocks>(rows, radius, at, out);
    in_parts(at, samples, kMedianLanes, [&](i32 from) { counted_median<1>(rows, radius, from, out); });
  }
  return true;
}
