// The tile operations of csrc/cpu/contrastive_amx.cpp on arrays, for processors without AMX; results as Intel's manual
// defines them (TDPBF16PS), but for the order of additions within a product. Included inside that file's namespace.

alignas(64) thread_local u8 tiles[8][16][64];
thread_local bool configured = false;  // a tile that is not configured faults

inline void configure_tiles() {
  configured = true;
}
inline void release_tiles() {
  configured = false;
}
inline bool tiles_available() {
  return true;
}
template <int tile>
inline void load_tile(const void* from, i64 stride) {
  if (!configured) __builtin_trap();
  for (i64 row = 0; row < 16; ++row)
    __builtin_memcpy(tiles[tile][row], static_cast<const u8*>(from) + row * stride, 64);
}
template <int tile>
inline void store_tile(void* to, i64 stride) {
  if (!configured) __builtin_trap();
  for (i64 row = 0; row < 16; ++row) __builtin_memcpy(static_cast<u8*>(to) + row * stride, tiles[tile][row], 64);
}
template <int tile>
inline void zero_tile() {
  if (!configured) __builtin_trap();
  __builtin_memset(tiles[tile], 0, sizeof tiles[tile]);
}
inline float widen_number(u32 bits) {
  float out;
  __builtin_memcpy(&out, &bits, sizeof out);
  // Numbers below the smallest normal one count as 0.
  return __builtin_fabsf(out) < 0x1p-126f ? 0.0f : out;
}
template <int out, int rows, int pairs>
inline void multiply_tiles() {
  if (!configured) __builtin_trap();
  for (i64 m = 0; m < 16; ++m) {
    u32 left[16], right[16];
    float sum[16] = {};
    __builtin_memcpy(left, tiles[rows][m], 64);
    for (i64 k = 0; k < 16; ++k) {
      __builtin_memcpy(right, tiles[pairs][k], 64);
      for (i64 n = 0; n < 16; ++n) {
        sum[n] = __builtin_fmaf(widen_number(left[k] << 16), widen_number(right[n] << 16), sum[n]);
        sum[n] = __builtin_fmaf(widen_number(left[k] & 0xFFFF0000u), widen_number(right[n] & 0xFFFF0000u), sum[n]);
      }
    }
    float before[16];
    __builtin_memcpy(before, tiles[out][m], 64);
    for (i64 n = 0; n < 16; ++n) before[n] += sum[n];
    __builtin_memcpy(tiles[out][m], before, 64);
  }
}
