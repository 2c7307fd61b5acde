// The Python module qpt._C: integer pointers in, nothing validated. Private to qpt/ops/degrade/api.py and
// qpt/ops/contrastive/backend_cpp.py: their callers check shapes, types and ranges, they allocate; a wrong pointer here
// ends the process. The GIL is released while a batch runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../chain.h"
#include "contrastive.h"
#include "degrade.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void degrade(std::uintptr_t images, int height, int width, std::uintptr_t out, int rows, int slots, std::uintptr_t ops,
             std::uintptr_t params, std::uintptr_t seeds, std::uintptr_t source, std::uintptr_t order,
             std::uintptr_t windows, std::uintptr_t boxes, int patches, int size, std::uintptr_t lut, int item_bytes,
             bool channels_last, std::uintptr_t scratch, qpt::i64 scratch_bytes, int threads) {
  const qpt::Patches cut{
      pointer<const qpt::i32>(boxes), patches, size, pointer<const void>(lut), nullptr, item_bytes, channels_last};
  qpt::degrade({pointer<const qpt::u8>(images), pointer<void>(out), height, width, rows, slots,
                pointer<const qpt::i16>(ops), pointer<const float>(params), pointer<const qpt::i64>(seeds),
                pointer<const qpt::i32>(source), pointer<const qpt::i32>(order), pointer<const qpt::i32>(windows), cut},
               pointer<qpt::u8>(scratch), scratch_bytes, threads);
}

// (data, stride, count, dtype, groups, images or 0); see contrastive.h.
using SideFields = std::tuple<std::uintptr_t, qpt::i64, qpt::i64, int, std::uintptr_t, std::uintptr_t>;

qpt::contrastive::Side side(const SideFields& fields) {
  const auto& [data, stride, count, dtype, groups, images] = fields;
  return {pointer<const void>(data),      stride, count, dtype, pointer<const qpt::i64>(groups),
          pointer<const qpt::i64>(images)};
}

const qpt::contrastive::Kernels& kernels(const std::string& isa, qpt::i64 rows) {
  const qpt::contrastive::Kernels* found = qpt::contrastive::kernels(isa.c_str(), rows);
  if (!found) throw std::invalid_argument("no instruction set " + isa + " on this processor");
  return *found;
}

std::vector<std::string> contrastive_isas() {
  std::vector<std::string> names;
  for (const auto* found :
       {qpt::contrastive::avx512_kernels(), qpt::contrastive::avx2_kernels(), qpt::contrastive::portable_kernels()})
    if (found) names.push_back(found->name);
  return names;
}

std::pair<qpt::i64, qpt::i64> contrastive_division(qpt::i64 rows, qpt::i64 stream, qpt::i64 dim) {
  const qpt::contrastive::Division division = qpt::contrastive::divide(rows, stream, dim);
  return {division.task_rows, division.parts};
}

// partial and out: (row_max, row_sum, acc or 0); `partial` has room for all parts.
using SoftmaxSums = std::array<std::uintptr_t, 3>;

void contrastive_pass(const SideFields& rows, const SideFields& stream, qpt::i64 dim, float scale, float image_bias,
                      std::optional<qpt::i64> self_offset, bool running, bool same_group, std::uintptr_t bias,
                      std::pair<qpt::i64, qpt::i64> division, const SoftmaxSums& partial, const SoftmaxSums& out,
                      const std::string& isa, int threads) {
  qpt::contrastive::PairPass problem = {};
  problem.rows = side(rows);
  problem.stream = side(stream);
  problem.dim = dim;
  problem.scale = scale;
  problem.image_bias = image_bias;
  problem.has_self = self_offset.has_value();
  problem.self_offset = self_offset.value_or(0);
  problem.running = running;
  problem.bias = pointer<const float>(bias);
  problem.weighted = out[2] != 0;
  problem.task_rows = division.first;
  problem.parts = division.second;
  problem.row_max = pointer<float>(partial[0]);
  problem.row_sum = pointer<float>(partial[1]);
  problem.acc = pointer<float>(partial[2]);
  const qpt::contrastive::SoftmaxSums sums = {pointer<float>(out[0]), pointer<float>(out[1]), pointer<float>(out[2])};
  const qpt::contrastive::Kernels& chosen = kernels(isa, problem.rows.count);
  py::gil_scoped_release unlocked;
  if (same_group)
    qpt::contrastive::run_same_group(problem, threads, sums);
  else
    qpt::contrastive::run(problem, chosen, threads, sums, false);
  constexpr float kLn2 = 0.69314718f;
  for (qpt::i64 row = 0; row < problem.rows.count; ++row) sums.row_max[row] *= kLn2;
}

// (keys, self_offset or None, same_group, check), see KeySet; out: (loss, valid_rows, lse, positives, gradient or 0,
// positive_similarity).
using KeySetFields = std::tuple<SideFields, std::optional<qpt::i64>, bool, bool>;

qpt::i64 contrastive_forward(const SideFields& queries, const std::vector<KeySetFields>& sets, qpt::i64 dim,
                             double temperature, float image_bias, const std::array<std::uintptr_t, 6>& out,
                             const std::string& isa, int threads) {
  std::vector<qpt::contrastive::KeySet> key_sets;
  for (const auto& [keys, self_offset, same_group, check] : sets)
    key_sets.push_back({side(keys), self_offset.has_value(), self_offset.value_or(0), same_group, check});
  const qpt::contrastive::LossProblem problem = {side(queries),
                                                 key_sets.data(),
                                                 static_cast<qpt::i64>(key_sets.size()),
                                                 dim,
                                                 temperature,
                                                 image_bias,
                                                 pointer<float>(out[0]),
                                                 pointer<qpt::i64>(out[1]),
                                                 pointer<float>(out[2]),
                                                 pointer<qpt::i64>(out[3]),
                                                 pointer<float>(out[4]),
                                                 pointer<float>(out[5])};
  const qpt::contrastive::Kernels& chosen = kernels(isa, problem.queries.count);
  py::gil_scoped_release unlocked;
  return qpt::contrastive::forward(problem, chosen, threads);
}

void contrastive_positives(const SideFields& rows, const SideFields& stream, qpt::i64 dim,
                           std::optional<qpt::i64> self_offset, std::uintptr_t sum, std::uintptr_t count, int threads) {
  qpt::contrastive::PairPass problem = {};
  problem.rows = side(rows);
  problem.stream = side(stream);
  problem.dim = dim;
  problem.has_self = self_offset.has_value();
  problem.self_offset = self_offset.value_or(0);
  py::gil_scoped_release unlocked;
  qpt::contrastive::add_same_group(problem, threads, pointer<float>(sum), pointer<qpt::i64>(count));
}

void contrastive_self(const SideFields& rows, qpt::i64 dim, float scale, float image_bias, std::uintptr_t inverse,
                      std::uintptr_t row_sum, std::uintptr_t acc, std::uintptr_t packed, qpt::i64 block_rows,
                      const std::string& isa, int threads) {
  qpt::contrastive::SelfPairPass problem = {};
  problem.rows = side(rows);
  problem.dim = dim;
  problem.image_bias = image_bias;
  problem.inverse = pointer<const float>(inverse);
  problem.row_sum = pointer<float>(row_sum);
  problem.acc = pointer<float>(acc);
  problem.block_rows = block_rows;
  const qpt::contrastive::Kernels& chosen = kernels(isa, problem.rows.count);
  py::gil_scoped_release unlocked;
  qpt::contrastive::run_self(problem, scale, chosen, threads, pointer<float>(packed));
}

std::vector<std::string> op_names() {
  return {std::begin(qpt::kOpNames), std::end(qpt::kOpNames)};
}

py::tuple philox(std::array<qpt::u32, 4> counter, std::array<qpt::u32, 2> key) {
  const qpt::Philox4 words = qpt::philox4x32_10({counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
  return py::make_tuple(words.x, words.y, words.z, words.w);
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
#ifdef QPT_BUILD_FLAGS  // a string, from setup.py
  info["flags"] = QPT_BUILD_FLAGS;
#else
  info["flags"] = "";
#endif
#ifdef _OPENMP
  info["openmp"] = _OPENMP;  // the specification's date, yyyymm
#else
  info["openmp"] = 0;
#endif
#if defined(__AVX512F__)
  info["isa"] = "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
  info["isa"] = "AVX2";
#elif defined(__x86_64__)
  info["isa"] = "x86-64";
#else
  info["isa"] = "generic";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "QPT's CPU kernels. Private: pointers are not checked; use qpt.degrade and qpt.contrastive_loss.";
  m.def("degrade", &degrade, py::arg("images"), py::arg("height"), py::arg("width"), py::arg("out"), py::arg("rows"),
        py::arg("slots"), py::arg("ops"), py::arg("params"), py::arg("seeds"), py::arg("source"), py::arg("order"),
        py::arg("windows"), py::arg("boxes"), py::arg("patches"), py::arg("size"), py::arg("lut"),
        py::arg("item_bytes"), py::arg("channels_last"), py::arg("scratch"), py::arg("scratch_bytes"),
        py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
        "windows, boxes, lut: 0 for whole images. See Batch in chain.h.");
  m.def("scratch_bytes", &qpt::scratch_bytes_per_thread, py::arg("height"), py::arg("width"), py::arg("resizes"),
        py::arg("for_patches"),
        "Return the bytes of scratch that each thread of degrade needs. resizes: a row holds resize_to; for_patches: "
        "the output is patches.");
  m.def("shared_bytes_used", &qpt::shared_bytes_used, py::arg("height"), py::arg("width"), py::arg("resizes"),
        py::arg("for_patches"), py::arg("shared_bytes"),
        "Return the bytes of a GPU's shared memory, of shared_bytes, that a row uses for images of this size.");
  m.def("contrastive_isas", &contrastive_isas, "Instruction sets of the contrastive loss here, the best first.");
  m.def("contrastive_division", &contrastive_division, py::arg("rows"), py::arg("stream"), py::arg("dim"),
        "(rows of a task, parts of the stream).");
  m.def("contrastive_pass", &contrastive_pass, py::arg("rows"), py::arg("stream"), py::arg("dim"), py::arg("scale"),
        py::arg("image_bias"), py::arg("self_offset"), py::arg("running"), py::arg("same_group"), py::arg("bias"),
        py::arg("division"), py::arg("partial"), py::arg("out"), py::arg("isa"), py::arg("threads"));
  m.def("contrastive_forward", &contrastive_forward, py::arg("queries"), py::arg("sets"), py::arg("dim"),
        py::arg("temperature"), py::arg("image_bias"), py::arg("out"), py::arg("isa"), py::arg("threads"),
        "-1, or the first of the sets to check that holds nan or infinity.");
  m.def("contrastive_positives", &contrastive_positives, py::arg("rows"), py::arg("stream"), py::arg("dim"),
        py::arg("self_offset"), py::arg("sum"), py::arg("count"), py::arg("threads"));
  m.def("contrastive_self", &contrastive_self, py::arg("rows"), py::arg("dim"), py::arg("scale"), py::arg("image_bias"),
        py::arg("inverse"), py::arg("row_sum"), py::arg("acc"), py::arg("packed"), py::arg("block_rows"),
        py::arg("isa"), py::arg("threads"));
  m.def("op_names", &op_names, "Names of the ops, in id order.");
  m.def("build_info", &build_info);
  m.def("philox", &philox, py::arg("counter"), py::arg("key"),
        "Philox 4x32-10 of four counter words and two key words.");
}
