// x86 forms, for a team of one, of a resize along x. Neighbouring output samples read pixels at irregular distances,
// but the rows of an image all read the same ones: kTurned rows are turned, so that a sample of all of them is one
// load, and turned back. The integers are those of ops/rescale.h. Host only; included by cpu/simd.h, inside its
// namespace.

constexpr i32 kTurned = 16;         // rows at once
constexpr i32 kTurnedPixels = 640;  // most pixels of a part of the source; one output pixel has at most 98 taps
constexpr i32 kTurnedOutputs = 32;  // most output pixels of a part

// Transposes 16 x 16 bytes.
inline void turn_square(const u8* in, i64 in_stride, u8* out, i64 out_stride) {
  __m128i row[16], next[16];
#pragma GCC unroll 16
  for (i32 r = 0; r < 16; ++r) row[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + r * in_stride));
  // Each step interleaves rows r and r + 8: after four of them byte c of row r is byte r of row c.
#pragma GCC unroll 4
  for (i32 step = 0; step < 4; ++step) {
#pragma GCC unroll 8
    for (i32 r = 0; r < 8; ++r) {
      next[2 * r] = _mm_unpacklo_epi8(row[r], row[r + 8]);
      next[2 * r + 1] = _mm_unpackhi_epi8(row[r], row[r + 8]);
    }
#pragma GCC unroll 16
    for (i32 r = 0; r < 16; ++r) row[r] = next[r];
  }
#pragma GCC unroll 16
  for (i32 r = 0; r < 16; ++r) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + r * out_stride), row[r]);
}

// Calls square(start) for every 16 of `count` elements; the last square may overlap another. Calls single(i) for each
// element if they are fewer.
template <class OfSquare, class OfOne>
inline void in_squares(i32 count, OfSquare square, OfOne single) {
  if (count < 16) {
    for (i32 i = 0; i < count; ++i) single(i);
    return;
  }
  i32 i = 0;
  for (; i + 16 <= count; i += 16) square(i);
  if (i < count) square(count - 16);
}

// out[i, row] = in[row, i] for kTurned rows of `samples` samples.
inline void turn_rows(const u8* in, i64 stride, i32 samples, u8* out) {
  in_squares(
      samples, [&](i32 i) { turn_square(in + i, stride, out + i * kTurned, kTurned); },
      [&](i32 i) {
        for (i32 row = 0; row < kTurned; ++row) out[i * kTurned + row] = in[row * stride + i];
      });
}

// out[row, i] = in[i, row].
inline void turn_back(const u8* in, i32 samples, u8* out, i64 stride) {
  in_squares(
      samples, [&](i32 i) { turn_square(in + i * kTurned, kTurned, out + i, stride); },
      [&](i32 i) {
        for (i32 row = 0; row < kTurned; ++row) out[row * stride + i] = in[i * kTurned + row];
      });
}

// Computes one pixel of kTurned rows. in: its first tap's pixel.
template <int shift>
inline void resample_turned(const i32* weight, i32 count, i32 start, const u8* in, u8* out) {
#pragma GCC unroll 2
  for (i32 lane = 0; lane < kTurned; lane += kLanes) {
    Integers sum[3] = {broadcast(start), broadcast(start), broadcast(start)};
    for (i32 j = 0; j < count; ++j) {
      const Integers w = broadcast(weight[j]);
#pragma GCC unroll 3
      for (i32 c = 0; c < 3; ++c) sum[c] = multiply_add(w, load_bytes(in + (3 * j + c) * kTurned + lane), sum[c]);
    }
    // A vector of 8 lanes is stored with 8 bytes, one of 16 with 16.
#pragma GCC unroll 3
    for (i32 c = 0; c < 3; ++c) store_shifted<shift>(out + c * kTurned + lane, sum[c]);
  }
}

// Resizes along x: in [h, in_w, 3] -> out [h, out_w, 3], h >= kTurned. Output pixel x has count[x] taps from pixel
// first[x] on; neither end of its taps ever moves left as x grows. taps: weights from one pixel to the next.
template <int shift>
inline void resample_x(const u8* in, u8* out, i32 h, i32 in_w, i32 out_w, const i32* first, const i32* count,
                       const i32* weight, i32 taps, i32 start) {
  alignas(64) u8 source[kTurnedPixels * 3 * kTurned], result[kTurnedOutputs * 3 * kTurned];
  const i64 in_stride = 3 * static_cast<i64>(in_w), out_stride = 3 * static_cast<i64>(out_w);
  for (i32 rows = 0; rows < h; rows += kTurned) {
    const i32 y = rows + kTurned <= h ? rows : h - kTurned;  // the last rows may be computed twice
    for (i32 x = 0, last; x < out_w; x = last) {
      const i32 from = first[x];
      last = x + 1;
      while (last < out_w && last < x + kTurnedOutputs && first[last] + count[last] - from <= kTurnedPixels) ++last;
      turn_rows(in + y * in_stride + 3 * from, in_stride, 3 * (first[last - 1] + count[last - 1] - from), source);
      for (i32 i = x; i < last; ++i)
        resample_turned<shift>(weight + static_cast<i64>(i) * taps, count[i], start,
                               source + 3 * (first[i] - from) * kTurned, result + 3 * (i - x) * kTurned);
      turn_back(result, 3 * (last - x), out + y * out_stride + 3 * x, out_stride);
    }
  }
}
