// Runs chains with teams of std::threads and compares every byte with a team of one. Built and run by
// tests/test_teams.py, also with -fsanitize=thread. The cases (image, ops, parameters) come from a file and the ops
// from csrc/ops/table.h, so that a new op needs no change here.
//   teams CASES SIZE...                       exits with 0 if the bytes are the same at every team size; SIZE is a
//                                             number of threads, or as 3x4 that of blocks and of their threads
//   teams CASES SIZE... --sites               also prints "site CASE FILE:LINE" for every barrier that a case reaches
//   teams CASES SIZE... --without FILE:LINE   that sync() does nothing, or that sync_team() is a sync(); must end in
//                                             other bytes or in a report of the sanitizer
//   teams CASES --bytes                       writes the results of a team of one to standard output
// The file holds i32 count, then per case i32 h, w, slots, patches, size; u64 seed; i16 ops[slots]; f32
// params[slots][4]; u8 image[h][w][3]; i32 window[5] (see Batch), boxes[patches][2]. Without patches the result is the
// image.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "../../csrc/chain.h"
#include "thread_team.h"

namespace {

struct Case {
  qpt::i32 h, w, slots, patches, size;
  qpt::u64 seed;
  std::vector<qpt::i16> ops;
  std::vector<float> params;
  std::vector<qpt::u8> image;
  std::vector<qpt::i32> window, boxes;

  size_t result_bytes() const {
    const size_t side = static_cast<size_t>(size);
    return patches == 0 ? image.size() : static_cast<size_t>(patches) * side * side * 3 * sizeof(qpt::u32);
  }
};

template <class T>
void read(std::ifstream& file, T* out, size_t count) {
  if (!file.read(reinterpret_cast<char*>(out), static_cast<std::streamsize>(count * sizeof(T)))) {
    std::fprintf(stderr, "teams: the case file is too short\n");
    std::exit(2);
  }
}

std::vector<Case> read_cases(const char* path) {
  std::ifstream file(path, std::ios::binary);
  qpt::i32 count;
  read(file, &count, 1);
  std::vector<Case> cases(static_cast<size_t>(count));
  for (Case& c : cases) {
    qpt::i32 extents[5];
    read(file, extents, 5);
    c.h = extents[0], c.w = extents[1], c.slots = extents[2], c.patches = extents[3], c.size = extents[4];
    read(file, &c.seed, 1);
    c.ops.resize(static_cast<size_t>(c.slots));
    c.params.resize(static_cast<size_t>(c.slots) * 4);
    c.image.resize(static_cast<size_t>(c.h) * static_cast<size_t>(c.w) * 3);
    read(file, c.ops.data(), c.ops.size());
    read(file, c.params.data(), c.params.size());
    read(file, c.image.data(), c.image.size());
    c.window.resize(5);
    c.boxes.resize(static_cast<size_t>(c.patches) * 2);
    read(file, c.window.data(), c.window.size());
    read(file, c.boxes.data(), c.boxes.size());
  }
  return cases;
}

// Memory that starts at a 64-byte boundary and is filled with a pattern, so that a result that depends on it is
// noticed.
struct Buffer {
  explicit Buffer(size_t size) : bytes(size + 64) {}
  void* poison(int pattern) {
    std::memset(bytes.data(), pattern, bytes.size());
    const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
    return reinterpret_cast<void*>((address + 63) / 64 * 64);
  }
  std::vector<qpt::u8> bytes;
};

// A lookup table with another number for every value of every channel.
std::vector<qpt::u32> make_lut() {
  std::vector<qpt::u32> lut(3 * 256);
  for (size_t i = 0; i < lut.size(); ++i) lut[i] = static_cast<qpt::u32>(i * 2654435761u);
  return lut;
}
const std::vector<qpt::u32> lut = make_lut();

template <class Team>
void run(Team& team, const Case& c, qpt::u8* out, const qpt::Memory& memory) {
  const qpt::i64 seed = static_cast<qpt::i64>(c.seed);
  const qpt::i32 source = 0, order = 0;
  const qpt::i32* boxes = c.patches == 0 ? nullptr : c.boxes.data();
  const qpt::Patches patches{boxes, c.patches, c.size, lut.data(), nullptr, sizeof(qpt::u32), true};
  const qpt::Batch batch{
      c.image.data(),  out,    c.h, c.w, 1, c.slots, c.ops.data(), c.params.data(), &seed, &source, &order,
      c.window.data(), patches};
  qpt::run_batch_row(team, batch, 0, memory);
}

size_t scratch_size(const Case& c, qpt::i32 blocks) {
  return static_cast<size_t>(qpt::scratch_bytes(c.h, c.w, true, c.patches > 0, blocks));
}

size_t image_size(const Case& c) {
  return static_cast<size_t>(qpt::image_bytes(c.h, c.w, true));
}

// Returns the memory of case n at the start of an area: its scratch, then shared memory for none, one or both images;
// for none if the team has several blocks.
qpt::Memory memory_in(void* area, const Case& c, size_t n, qpt::i32 blocks) {
  return {area, static_cast<qpt::u8*>(area) + scratch_size(c, blocks),
          static_cast<qpt::i64>(blocks > 1 ? 0 : n % 3 * image_size(c))};
}

// Returns what a team of one makes of a case: the CPU engine.
std::vector<qpt::u8> run_alone(const Case& c) {
  qpt::Solo solo;
  Buffer scratch(scratch_size(c, qpt::kSoloBlocks));
  std::vector<qpt::u8> out(c.result_bytes(), 0xEE);
  run(solo, c, out.data(), {scratch.poison(0x11)});
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    return std::fprintf(stderr, "usage: teams CASES SIZE... [--sites | --without FILE:LINE] | teams CASES --bytes\n"),
           2;
  if (std::strcmp(argv[2], "--bytes") == 0) {
    for (const Case& c : read_cases(argv[1])) {
      const std::vector<qpt::u8> result = run_alone(c);
      std::fwrite(result.data(), 1, result.size(), stdout);
    }
    return 0;
  }
  const bool list_sites = std::strcmp(argv[argc - 1], "--sites") == 0;
  const char* without = std::strcmp(argv[argc - 2], "--without") == 0 ? argv[argc - 1] : nullptr;
  const int last_size = argc - 1 - (without ? 2 : list_sites ? 1 : 0);
  const std::vector<Case> cases = read_cases(argv[1]);

  std::vector<Sites> reached(cases.size());
  // The teams run before the team of one, so that a race that ends the program does so at once.
  std::vector<std::vector<std::vector<qpt::u8>>> results;  // [size][case]
  for (int i = 2; i <= last_size; ++i) {
    int blocks = 1, size = 0;
    if (std::sscanf(argv[i], "%dx%d", &blocks, &size) != 2) blocks = 1, size = std::atoi(argv[i]);
    Barriers ops(blocks, size);
    Barrier between(blocks * size);  // threads always wait for each other between cases, whatever is left out
    size_t largest_area = 0;
    for (const Case& c : cases) largest_area = std::max(largest_area, scratch_size(c, blocks) + 2 * image_size(c));
    Buffer buffer(largest_area);
    std::vector<std::vector<qpt::u8>>& out = results.emplace_back();
    for (const Case& c : cases) out.emplace_back(c.result_bytes(), 0xDD);
    void* area = nullptr;
    const auto work = [&](int thread) {
      int phase = 0;
      for (size_t n = 0; n < cases.size(); ++n) {
        if (thread == 0) area = buffer.poison(0xA5);
        between.wait(phase);
        ThreadTeam team(thread, &ops, without, list_sites ? &reached[n] : nullptr);
        run(team, cases[n], out[n].data(), memory_in(area, cases[n], n, blocks));
        between.wait(phase);
      }
    };
    std::vector<std::thread> threads;
    for (int thread = 0; thread < blocks * size; ++thread) threads.emplace_back(work, thread);
    for (std::thread& thread : threads) thread.join();
  }

  int different = 0;
  for (size_t n = 0; n < cases.size(); ++n) {
    const std::vector<qpt::u8> expected = run_alone(cases[n]);
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i][n] == expected) continue;
      ++different;
      std::printf("case %zu differs with a team of %s\n", n, argv[2 + i]);
    }
  }
  for (size_t n = 0; n < cases.size(); ++n)
    for (const std::string& site : reached[n]) std::printf("site %zu %s\n", n, site.c_str());
  std::printf("%zu cases compared\n", cases.size());
  return different ? 1 : 0;
}
