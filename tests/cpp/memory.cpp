// Runs ops and chains under AddressSanitizer and UBSan: images, output and scratch lie between poisoned guard bytes,
// and scratch is exactly as large as csrc/ops/table.h says. Built and run by tests/test_memory.py.
//   memory TABLE ops                        every op at every setting of TABLE, on awkward sizes, each with the scratch
//                                           of its own entry, by teams of 1, 2 and 7, and of 3 x 2
//   memory TABLE ops-short                  the same with half the scratch; must end in a report
//   memory TABLE random SEED FIRST COUNT    random programs on random images, numbers FIRST to FIRST + COUNT - 1
//   memory TABLE scratch H W                prints "name bytes" of every op for an H x W image
// Exits with 0 if nothing is reported, every byte of the output is written, and every team gives the same bytes. TABLE
// is a file of, per op in the order of ids, "name parameters settings"; "low high integer" for each parameter; four
// numbers for each setting.
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/chain.h"
#include "thread_team.h"

namespace {

using qpt::i16;
using qpt::i32;
using qpt::i64;
using qpt::u64;
using qpt::u8;

constexpr i64 (*kOpBytes[])(i32, i32, i32) = {
#define QPT_BYTES(name, bytes) qpt::bytes,
    QPT_OPS(QPT_BYTES)
#undef QPT_BYTES
};

char running[512] = "nothing";  // named in a report

void print_running() {
  std::fprintf(stderr, "memory: while running %s\n", running);
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "memory: %s: %s\n", running, what);
  std::exit(1);
}

struct Parameter {
  float low, high;
  bool integer;
};

struct Op {
  std::vector<Parameter> parameters;
  std::vector<std::array<float, 4>> settings;
};

std::vector<Op> read_table(const char* path) {
  std::ifstream file(path);
  std::vector<Op> ops(qpt::kOpCount);
  for (int id = 0; id < qpt::kOpCount; ++id) {
    std::string name;
    size_t parameters = 0, settings = 0;
    file >> name >> parameters >> settings;
    if (name != qpt::kOpNames[id]) fail("the table is of other ops");
    ops[id].parameters.resize(parameters);
    ops[id].settings.resize(settings);
    for (Parameter& p : ops[id].parameters) file >> p.low >> p.high >> p.integer;
    for (std::array<float, 4>& values : ops[id].settings)
      for (float& value : values) file >> value;
  }
  if (!file) fail("the table is too short");
  return ops;
}

// Bytes of a pattern between guards. An instrumented access to a guard is reported at once; an access that the
// sanitizer does not see, such as a store by a vector intrinsic, changes the guards' pattern.
class Guarded {
 public:
  Guarded(i64 size, int pattern, size_t offset = 0) : size_(static_cast<size_t>(size)), pattern_(pattern) {
    const size_t whole = (2 * kGuard + offset + size_ + 63) / 64 * 64;
    store_ = static_cast<u8*>(std::aligned_alloc(64, whole));
    bytes_ = store_ + kGuard + offset;
    end_ = store_ + whole;
    std::memset(store_, pattern, whole);
    ASAN_POISON_MEMORY_REGION(store_, bytes_ - store_);
    ASAN_POISON_MEMORY_REGION(bytes_ + size_, end_ - (bytes_ + size_));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    ASAN_UNPOISON_MEMORY_REGION(store_, end_ - store_);
    for (const u8* p = store_; p < end_; ++p) {
      if (p == bytes_) p += size_;
      if (p < end_ && *p != static_cast<u8>(pattern_)) fail("a guard byte was written");
    }
    std::free(store_);
  }
  u8* bytes() const { return bytes_; }
  std::vector<u8> copy() const { return {bytes_, bytes_ + size_}; }

 private:
  static constexpr size_t kGuard = 256;
  size_t size_;
  int pattern_;
  u8 *store_, *bytes_, *end_;
};

// The teams that run an op: blocks, kSoloBlocks for qpt::Solo, and threads of a block.
struct Members {
  int blocks, size;
};
constexpr Members kTeams[] = {{qpt::kSoloBlocks, 1}, {1, 2}, {1, 7}, {3, 2}};

// Returns the bytes that run(team, out, scratch) leaves in out.
template <class Run>
std::vector<u8> result_of(Members members, i64 out_bytes, i64 scratch_bytes, const Run& run) {
  const int threads_count = std::max(members.blocks, 1) * members.size;
  const int pattern = 0x5A + threads_count;  // differs between teams, so that a byte nobody wrote differs too
  const Guarded out(out_bytes, pattern, static_cast<size_t>(threads_count)), scratch(scratch_bytes, ~pattern & 0xFF);
  if (members.blocks == qpt::kSoloBlocks) {
    qpt::Solo solo;
    run(solo, out.bytes(), scratch.bytes());
    return out.copy();
  }
  Barriers barriers(members.blocks, members.size);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < threads_count; ++thread)
    threads.emplace_back([&, thread] {
      ThreadTeam team(thread, &barriers);
      run(team, out.bytes(), scratch.bytes());
    });
  for (std::thread& thread : threads) thread.join();
  return out.copy();
}

class Random {
 public:
  Random(u64 seed, u64 stream) : engine_(seed * 0x9E3779B97F4A7C15u + stream) {}
  i32 below(i32 n) { return static_cast<i32>(engine_() % static_cast<u64>(n)); }
  i32 between(i32 low, i32 high) { return low + below(high - low + 1); }
  float share() { return static_cast<float>(engine_() >> 40) / 16777215.0f; }  // [0, 1], both ends
  u64 word() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

void fill_image(Random& random, u8* image, i32 samples) {
  const i32 kind = random.below(4);
  const u8 constant = static_cast<u8>(kind == 0 ? 0 : kind == 1 ? 255 : random.below(256));
  for (i32 i = 0; i < samples; ++i)
    image[i] = kind == 3 ? static_cast<u8>(random.word()) : static_cast<u8>(constant + (kind == 2 ? i / 7 : 0));
}

void run_ops(const std::vector<Op>& table, bool short_of_scratch) {
  constexpr i32 sizes[][2] = {{1, 1}, {1, 2}, {2, 1}, {1, 67}, {53, 1}, {3, 5}, {16, 16}, {19, 33}, {4, 277}};
  int runs = 0;
  for (const auto& [h, w] : sizes) {
    Random random(1, static_cast<u64>(h * 1000 + w));
    const i32 samples = h * w * 3;
    const Guarded image(samples, 0x33, 5);
    fill_image(random, image.bytes(), samples);
    for (int id = 0; id < qpt::kOpCount; ++id)
      for (const std::array<float, 4>& values : table[id].settings) {
        const bool resizing = id == qpt::k_resize_to;
        const i32 most_h = resizing ? qpt::largest_working_size(h) : h;
        const i32 most_w = resizing ? qpt::largest_working_size(w) : w;
        qpt::OpArgs args{};
        args.src = image.bytes();
        args.h = args.full_h = h;
        args.w = args.full_w = w;
        args.to_h = resizing ? qpt::working_size(h, values.data()) : h;
        args.to_w = resizing ? qpt::working_size(w, values.data()) : w;
        args.params = values.data();
        args.seed = u64{7} << 60;
        args.slot = 3;
        const auto run = [&](auto& team, u8* out, void* scratch) {
          qpt::OpArgs own = args;
          own.dst = out;
          own.scratch = scratch;
          qpt::run_op(team, static_cast<i16>(id), own);
        };
        std::vector<u8> expected;
        for (const Members members : kTeams) {
          const i64 scratch_bytes = kOpBytes[id](most_h, most_w, members.blocks) / (short_of_scratch ? 2 : 1);
          std::snprintf(running, sizeof running, "%s(%g, %g, %g, %g) on %d x %d with %d blocks of %d",
                        qpt::kOpNames[id], values[0], values[1], values[2], values[3], h, w, members.blocks,
                        members.size);
          const std::vector<u8> bytes = result_of(members, i64{args.to_h} * args.to_w * 3, scratch_bytes, run);
          if (members.blocks == qpt::kSoloBlocks) expected = bytes;
          if (bytes != expected) fail("other bytes than a team of one, or bytes that nobody wrote");
          ++runs;
        }
      }
  }
  std::printf("%d runs\n", runs);
}

// Returns a parameter of an op: that of a setting, a value anywhere in its bounds, or a number that no table allows.
float random_value(Random& random, const Op& op, size_t slot) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float wild[] = {0.0f,
                            -0.0f,
                            -1.0f,
                            1e-30f,
                            1e9f,
                            -1e9f,
                            3e38f,
                            -3e38f,
                            kInfinity,
                            -kInfinity,
                            std::numeric_limits<float>::quiet_NaN()};
  const i32 kind = random.below(16);
  if (kind == 0) return wild[random.below(static_cast<i32>(std::size(wild)))];
  if (slot >= op.parameters.size()) return 0.0f;
  if (kind < 6) return op.settings[random.below(static_cast<i32>(op.settings.size()))][slot];
  const Parameter& p = op.parameters[slot];
  const float value = p.low + random.share() * (p.high - p.low);
  return p.integer ? __builtin_rintf(value) : value;
}

// Draws the size of an image: mostly small, 1 of 32 up to 200 x 200, some long and thin.
void random_size(Random& random, i32* h, i32* w) {
  const i32 kind = random.below(32);
  const i32 most = kind == 0 ? 200 : kind < 8 ? 48 : 16;
  *h = random.between(1, most);
  *w = random.between(1, most);
  if (kind == 31)
    *(random.below(2) ? h : w) = random.between(1, 600), *(random.below(2) ? h : w) = random.between(1, 3);
}

void run_random(const std::vector<Op>& table, u64 seed, u64 number) {
  Random random(seed, number);
  i32 h, w;
  random_size(random, &h, &w);
  const i32 slots = random.below(6), samples = h * w * 3;
  std::vector<i16> ops;
  std::vector<float> params;
  int used = std::snprintf(running, sizeof running, "pair %llu, %d x %d:", number, h, w);
  for (i32 slot = 0; slot < slots; ++slot) {
    const bool none = random.below(16) == 0;  // -1, or an id that is none of the table's
    const i32 id = none ? random.between(-3, -1) + (random.below(2) ? qpt::kOpCount + 3 : 0)
                        : random.below(static_cast<i32>(qpt::kOpCount));
    ops.push_back(static_cast<i16>(id));
    for (size_t i = 0; i < 4; ++i) params.push_back(none ? 0.0f : random_value(random, table[id], i));
    if (!none) used += std::snprintf(running + used, sizeof running - used, " %s", qpt::kOpNames[id]);
  }
  const Guarded image(samples, 0x33, random.below(8));
  fill_image(random, image.bytes(), samples);
  const u64 row_seed = random.word();
  const qpt::i64 signed_seed = static_cast<qpt::i64>(row_seed);
  const i32 first = 0;
  const bool resizes = std::find(ops.begin(), ops.end(), qpt::k_resize_to) != ops.end();
  const auto result_with = [&](i64 shared_bytes, Members members) {
    const Guarded shared(shared_bytes, 0x77 + members.size);
    return result_of(members, samples, qpt::scratch_bytes(h, w, resizes, false, members.blocks),
                     [&](auto& team, u8* out, void* scratch) {
                       qpt::run_row(team,
                                    {image.bytes(),
                                     out,
                                     h,
                                     w,
                                     1,
                                     slots,
                                     ops.data(),
                                     params.data(),
                                     &signed_seed,
                                     &first,
                                     &first,
                                     nullptr,
                                     {}},
                                    0, {scratch, shared.bytes(), shared_bytes});
                     });
  };
  const std::vector<u8> expected = result_with(0, {qpt::kSoloBlocks, 1});
  if (random.below(4)) return;
  const int blocks = random.between(1, 3);
  const i64 shared_bytes = blocks > 1 ? 0 : random.below(3) * qpt::image_bytes(h, w, resizes);
  if (result_with(shared_bytes, {blocks, random.between(2, 4)}) != expected)
    fail("other bytes than a team of one, or bytes that nobody wrote");
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const auto is = [&](const char* mode, size_t count) { return words.size() == count && words[1] == mode; };
  const auto number = [&](size_t word) { return std::strtoull(words[word].c_str(), nullptr, 10); };
  __sanitizer_set_death_callback(print_running);
  if (is("ops", 2)) {
    run_ops(read_table(argv[1]), false);
  } else if (is("ops-short", 2)) {
    run_ops(read_table(argv[1]), true);
  } else if (is("random", 5)) {
    const std::vector<Op> table = read_table(argv[1]);
    for (u64 i = 0; i < number(4); ++i) run_random(table, number(2), number(3) + i);
    std::printf("%llu pairs\n", number(4));
  } else if (is("scratch", 4)) {
    for (int id = 0; id < qpt::kOpCount; ++id)
      std::printf("%s %lld\n", qpt::kOpNames[id],
                  kOpBytes[id](static_cast<i32>(number(2)), static_cast<i32>(number(3)), qpt::kSoloBlocks));
  } else {
    std::fprintf(stderr, "usage: memory TABLE ops | ops-short | random SEED FIRST COUNT | scratch H W\n");
    return 2;
  }
  return 0;
}
