// Runs one op on one picture, for an instruction counter to look at: benchmarks/roofline_degrade.py builds this and
// runs it under valgrind, which counts what qpt_counted does.
//   instructions OP SIDE P0 P1 P2 P3
// The team has one member, yet takes a thread block's path: loops strided by rank and size, no SIMD rows.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/chain.h"

namespace {

struct One {
  static constexpr bool kSolo = false;
  qpt::i32 members;  // a value the compiler does not know, as a thread block's loops have it
  qpt::i32 rank() const { return 0; }
  qpt::i32 size() const { return members; }
  void sync() const {}
  template <class Body>
  void once(Body body) const {
    body();
  }
};

}  // namespace

extern "C" __attribute__((noinline)) void qpt_counted(One& team, const qpt::Batch& batch, void* scratch) {
  qpt::run_batch_row(team, batch, 0, {scratch});
}

int main(int count, char** words) {
  if (count != 7) return 2;
  const auto op = static_cast<qpt::i16>(std::atoi(words[1]));
  const qpt::i32 side = std::atoi(words[2]);
  float params[4];
  for (int i = 0; i < 4; ++i) params[i] = std::strtof(words[3 + i], nullptr);
  const size_t bytes = static_cast<size_t>(side) * static_cast<size_t>(side) * 3;
  std::vector<qpt::u8> source(bytes), result(bytes);
  for (size_t i = 0; i < bytes; ++i)  // a slope with some texture
    source[i] =
        static_cast<qpt::u8>((i / 3 % static_cast<size_t>(side)) * 180 / static_cast<size_t>(side) + i * 40503u % 61);
  std::vector<qpt::u8> scratch(static_cast<size_t>(qpt::scratch_bytes(side, side, true, false)) + 64);
  void* aligned = scratch.data() + (64 - reinterpret_cast<size_t>(scratch.data()) % 64) % 64;
  One team{count > 0 ? 1 : 2};
  const qpt::i64 seed = 1;
  const qpt::i32 first = 0;
  const qpt::Batch batch{source.data(), result.data(), side,   side,   1,       1, &op,
                         params,        &seed,         &first, &first, nullptr, {}};
  qpt_counted(team, batch, aligned);
  unsigned sum = 0;
  for (const qpt::u8 value : result) sum += value;
  std::printf("%u\n", sum);
  return 0;
}
