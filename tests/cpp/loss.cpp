// The contrastive loss of a file's embeddings by one instruction set, for processors on which the extension is not
// built or which are emulated. Built and run by tests/test_aarch64.py and tests/test_contrastive_tiles.py.
//   loss FILE NAME    writes f32 loss, lse[n], gradient[n][dim], key_gradient[k][dim] to standard output; NAME as in
//                     qpt._C.contrastive_isas()
// The file holds i64 n, k, dim, dtype (DType, of the keys); f64 temperature; f32 queries[n][dim]; keys[k][dim]; i64
// query_groups[n], key_groups[k]. key_gradient: sum_i exp(z_ij - lse_i) q_i, which is not yet divided by anything.
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
  if (argc != 3) return std::fprintf(stderr, "usage: loss FILE NAME\n"), 2;
  using namespace qpt::contrastive;
  std::ifstream file(argv[1], std::ios::binary);
  const std::vector<qpt::i64> extents = read<qpt::i64>(file, 4);
  const qpt::i64 n = extents[0], k = extents[1], dim = extents[2];
  const qpt::i32 dtype = static_cast<qpt::i32>(extents[3]);
  const double temperature = read<double>(file, 1)[0];
  const std::vector<float> queries = read<float>(file, n * dim);
  const std::vector<char> keys = read<char>(file, k * dim * (dtype == kFloat32 ? 4 : 2));
  const std::vector<qpt::i64> query_groups = read<qpt::i64>(file, n), key_groups = read<qpt::i64>(file, k);
  if (!file) return std::fprintf(stderr, "loss: the file is too short\n"), 2;
  const Kernels* const isa = kernels(argv[2], n);
  if (!isa) return std::fprintf(stderr, "loss: this processor has no %s\n", argv[2]), 3;

  const Side query_side = {queries.data(), dim, n, kFloat32, query_groups.data(), nullptr};
  const Side key_side = {keys.data(), dim, k, dtype, key_groups.data(), nullptr};
  const KeySet set = {key_side, false, 0, false, true};
  std::vector<float> loss(1), lse(static_cast<size_t>(n)), gradient(static_cast<size_t>(n * dim)), similarity(1);
  std::vector<qpt::i64> valid(1), positives(static_cast<size_t>(n));
  const LossProblem problem = {query_side,
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
  if (forward(problem, *isa, 1) != -1) return std::fprintf(stderr, "loss: a key is not finite\n"), 1;

  constexpr float kLog2E = 1.44269504f;
  std::vector<float> bias(lse), row_max(static_cast<size_t>(k)), row_sum(row_max),
      key_gradient(static_cast<size_t>(k * dim));
  for (float& x : bias) x *= -kLog2E;
  PairPass pass = {};
  pass.rows = key_side;
  pass.stream = query_side;
  pass.dim = dim;
  pass.scale = static_cast<float>(kLog2E / temperature);
  pass.bias = bias.data();
  pass.weighted = true;
  pass.task_rows = kMaxTaskRows;
  pass.parts = 1;
  pass.row_max = row_max.data();
  pass.row_sum = row_sum.data();
  pass.acc = key_gradient.data();
  run(pass, *isa, 1, {row_max.data(), row_sum.data(), key_gradient.data()}, false);
  write(loss), write(lse), write(gradient), write(key_gradient);
  return 0;
}
