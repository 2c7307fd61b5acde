// The contrastive loss of a file's embeddings by the portable instruction set, for processors on which the extension is
// not built. Built and run by tests/test_aarch64.py.
//   loss FILE    writes f32 loss, lse[n], gradient[n][dim] to standard output
// The file holds i64 n, k, dim; f64 temperature; f32 queries[n][dim], keys[k][dim]; i64 query_groups[n], key_groups[k].
#include <cstdio>
#include <fstream>
#include <vector>

#include "../../csrc/cpu/contrastive.h"

namespace {

template <class T>
std::vector<T> read(std::ifstream& file, qpt::i64 count) {
  std::vector<T> out(static_cast<size_t>(count));
  file.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(T)));
  return out;
}

void write(const std::vector<float>& values) {
  std::fwrite(values.data(), sizeof(float), values.size(), stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: loss FILE\n"), 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::vector<qpt::i64> extents = read<qpt::i64>(file, 3);
  const qpt::i64 n = extents[0], k = extents[1], dim = extents[2];
  const double temperature = read<double>(file, 1)[0];
  const std::vector<float> queries = read<float>(file, n * dim), keys = read<float>(file, k * dim);
  const std::vector<qpt::i64> query_groups = read<qpt::i64>(file, n), key_groups = read<qpt::i64>(file, k);
  if (!file) return std::fprintf(stderr, "loss: the file is too short\n"), 2;

  using namespace qpt::contrastive;
  const KeySet set = {{keys.data(), dim, k, kFloat32, key_groups.data(), nullptr}, false, 0, false, true};
  std::vector<float> loss(1), lse(static_cast<size_t>(n)), gradient(static_cast<size_t>(n * dim)), similarity(2);
  std::vector<qpt::i64> valid(1), positives(static_cast<size_t>(n));
  const LossProblem problem = {{queries.data(), dim, n, kFloat32, query_groups.data(), nullptr},
                               &set,
                               1,
                               dim,
                               temperature,
                               0.0f,
                               loss.data(),
                               valid.data(),
                               lse.data(),
                               positives.data(),
                               gradient.data(),
                               similarity.data()};
  if (forward(problem, *portable_kernels(), 1) != -1) return std::fprintf(stderr, "loss: a key is not finite\n"), 1;
  write(loss), write(lse), write(gradient);
  return 0;
}
