// The Python module qpt._C: buffers in, as (address, bytes) pairs. Private to qpt/ops/degrade/cpu.py and
// qpt/ops/contrastive/backend_cpp.py: their callers check shapes, types and ranges, they allocate. Every entry point
// compares each buffer's length with what it will read or write there, once, before anything runs:
// std::invalid_argument otherwise, ValueError in Python. The GIL is released while a batch runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
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

using qpt::i64;

// (address, bytes); (0, 0) where there is none.
using Buffer = std::pair<std::uintptr_t, i64>;

[[noreturn]] void refuse(const std::string& name, const std::string& must, i64 got) {
  throw std::invalid_argument("qpt._C: " + name + " must " + must + ", got " + std::to_string(got));
}

void in_range(const char* name, i64 value, i64 low, i64 high) {
  if (value < low || value > high) refuse(name, "be in " + std::to_string(low) + ".." + std::to_string(high), value);
}

// The buffer's pointer, once it holds `count` elements of T.
template <class T>
T* pointer(const char* name, const Buffer& buffer, i64 count, i64 item_bytes = sizeof(T)) {
  if (buffer.second < count * item_bytes || (!buffer.first && count))
    refuse(name, "hold " + std::to_string(count * item_bytes) + " bytes", buffer.first ? buffer.second : 0);
  return reinterpret_cast<T*>(buffer.first);
}

// The same where there may be none.
template <class T>
T* optional_pointer(const char* name, const Buffer& buffer, i64 count) {
  return buffer.first ? pointer<T>(name, buffer, count) : nullptr;
}

constexpr i64 kMost = i64{1} << 31;  // of any extent: products of extents and sizes stay far below 2^63

void degrade(const Buffer& images, i64 height, i64 width, const Buffer& out, i64 rows, i64 slots, const Buffer& ops,
             const Buffer& params, const Buffer& seeds, const Buffer& source, const Buffer& order,
             const Buffer& windows, const Buffer& boxes, i64 patches, i64 size, const Buffer& lut, i64 item_bytes,
             bool channels_last, const Buffer& scratch, i64 scratch_bytes, i64 threads) {
  const bool whole = !boxes.first;
  in_range("height", height, 1, kMost - 1);
  in_range("width", width, 1, (kMost - 1) / 3 / height);
  in_range("rows", rows, 0, kMost - 1);
  in_range("slots", slots, 0, 1 << 16);
  in_range("threads", threads, 1, kMost - 1);
  if (!whole) {
    in_range("patches", patches, 1, 1 << 20);
    in_range("size", size, 1, std::min(height, width));
    in_range("item_bytes", item_bytes, 1, 8);
  }
  const i64 row_items = whole ? height * width * 3 : patches * size * size * 3;
  const qpt::Patches cut{optional_pointer<const qpt::i32>("boxes", boxes, rows * patches * 2),
                         static_cast<qpt::i32>(patches),
                         static_cast<qpt::i32>(size),
                         whole ? nullptr : pointer<const void>("lut", lut, 3 * 256, item_bytes),
                         nullptr,
                         static_cast<qpt::i32>(item_bytes),
                         channels_last};
  const i64 image_bytes = height * width * 3, given = images.second / image_bytes;
  const qpt::Batch batch{pointer<const qpt::u8>("images", images, 0),
                         pointer<void>("out", out, rows * row_items, whole ? 1 : item_bytes),
                         static_cast<qpt::i32>(height),
                         static_cast<qpt::i32>(width),
                         static_cast<qpt::i32>(rows),
                         static_cast<qpt::i32>(slots),
                         pointer<const qpt::i16>("ops", ops, rows * slots),
                         pointer<const float>("params", params, rows * slots * 4),
                         pointer<const i64>("seeds", seeds, rows),
                         pointer<const qpt::i32>("source", source, rows),
                         pointer<const qpt::i32>("order", order, rows),
                         whole ? nullptr : pointer<const qpt::i32>("windows", windows, rows * 5),
                         cut};
  // Numbers that become addresses.
  bool resizes = false;
  for (i64 slot = 0; slot < rows * slots; ++slot) {
    in_range("ops", batch.ops[slot], -1, static_cast<i64>(std::size(qpt::kOpNames)) - 1);
    resizes |= batch.ops[slot] >= 0 && std::strcmp(qpt::kOpNames[batch.ops[slot]], "resize_to") == 0;
  }
  for (i64 row = 0; row < rows; ++row) {
    in_range("source", batch.source[row], 0, given - 1);
    in_range("order", batch.order[row], 0, rows - 1);
    for (i64 patch = 0; !whole && patch < patches; ++patch) {
      const qpt::i32* const corner = cut.boxes + (row * patches + patch) * 2;
      in_range("boxes", corner[0], 0, height - size);
      in_range("boxes", corner[1], 0, width - size);
    }
  }
  const i64 needed = qpt::scratch_bytes_per_thread(batch.h, batch.w, resizes, !whole);
  if (rows && scratch_bytes < needed) refuse("scratch_bytes", "be at least " + std::to_string(needed), scratch_bytes);
  qpt::u8* const own = pointer<qpt::u8>("scratch", scratch, rows ? threads * scratch_bytes : 0);
  if (rows) qpt::degrade(batch, own, scratch_bytes, static_cast<qpt::i32>(threads));
}

// (data, stride, count, dtype, groups, images or (0, 0)); see contrastive.h.
using SideFields = std::tuple<Buffer, i64, i64, int, Buffer, Buffer>;

qpt::contrastive::Side side(const SideFields& fields, i64 dim) {
  const auto& [data, stride, count, dtype, groups, images] = fields;
  in_range("dim", dim, 1, kMost);
  in_range("count", count, 0, kMost);
  in_range("stride", stride, 0, i64{1} << 40);
  in_range("dtype", dtype, qpt::contrastive::kFloat32, qpt::contrastive::kBFloat16);
  const i64 item_bytes = dtype == qpt::contrastive::kFloat32 ? 4 : 2;
  return {pointer<const void>("vectors", data, count ? (count - 1) * stride + dim : 0, item_bytes),
          stride,
          count,
          dtype,
          pointer<const i64>("groups", groups, count),
          optional_pointer<const i64>("images", images, count)};
}

const qpt::contrastive::Kernels& kernels(const std::string& isa, i64 rows) {
  const qpt::contrastive::Kernels* found = qpt::contrastive::kernels(isa.c_str(), rows);
  if (!found) throw std::invalid_argument("no instruction set " + isa + " on this processor");
  return *found;
}

std::vector<std::string> contrastive_isas() {
  std::vector<std::string> names;
  for (qpt::i32 place = 0; place < qpt::contrastive::kInstructionSets; ++place)
    if (const auto* found = qpt::contrastive::instruction_set(place)) names.push_back(found->name);
  return names;
}

std::pair<i64, i64> contrastive_division(i64 rows, i64 stream, i64 dim) {
  const qpt::contrastive::Division division = qpt::contrastive::divide(rows, stream, dim);
  return {division.task_rows, division.parts};
}

// partial and out: (row_max, row_sum, acc or 0); `partial` has room for all parts.
using SoftmaxSums = std::array<Buffer, 3>;

void contrastive_pass(const SideFields& rows, const SideFields& stream, i64 dim, float scale, float image_bias,
                      std::optional<i64> self_offset, bool running, bool same_group, const Buffer& bias,
                      std::pair<i64, i64> division, const SoftmaxSums& partial, const SoftmaxSums& out,
                      const std::string& isa, int threads) {
  qpt::contrastive::PairPass problem = {};
  problem.rows = side(rows, dim);
  problem.stream = side(stream, dim);
  in_range("rows of a task", division.first, 1, qpt::contrastive::kMaxTaskRows);
  in_range("parts of the stream", division.second, 1, kMost);
  problem.dim = dim;
  problem.scale = scale;
  problem.image_bias = image_bias;
  problem.has_self = self_offset.has_value();
  problem.self_offset = self_offset.value_or(0);
  problem.running = running;
  problem.bias = optional_pointer<const float>("bias", bias, problem.stream.count);
  problem.weighted = out[2].first != 0;
  problem.task_rows = division.first;
  problem.parts = division.second;
  const i64 own = problem.rows.count, all = problem.parts * own;
  problem.row_max = pointer<float>("partial row_max", partial[0], all);
  problem.row_sum = pointer<float>("partial row_sum", partial[1], all);
  problem.acc = pointer<float>("partial acc", partial[2], problem.weighted ? all * dim : 0);
  const qpt::contrastive::SoftmaxSums sums = {pointer<float>("row_max", out[0], own),
                                              pointer<float>("row_sum", out[1], own),
                                              pointer<float>("acc", out[2], problem.weighted ? own * dim : 0)};
  const qpt::contrastive::Kernels& chosen = kernels(isa, problem.rows.count);
  py::gil_scoped_release unlocked;
  if (same_group)
    qpt::contrastive::run_same_group(problem, threads, sums);
  else
    qpt::contrastive::run(problem, chosen, threads, sums, false);
  constexpr float kLn2 = 0.69314718f;
  for (i64 row = 0; row < problem.rows.count; ++row) sums.row_max[row] *= kLn2;
}

// (keys, self_offset or None, same_group, check), see KeySet; out: (loss, valid_rows, lse, positives, gradient or 0,
// positive_similarity).
using KeySetFields = std::tuple<SideFields, std::optional<i64>, bool, bool>;

i64 contrastive_forward(const SideFields& queries, const std::vector<KeySetFields>& sets, i64 dim, double temperature,
                        float image_bias, const std::array<Buffer, 6>& out, const std::string& isa, int threads) {
  std::vector<qpt::contrastive::KeySet> key_sets;
  for (const auto& [keys, self_offset, same_group, check] : sets)
    key_sets.push_back({side(keys, dim), self_offset.has_value(), self_offset.value_or(0), same_group, check});
  const qpt::contrastive::Side rows = side(queries, dim);
  const i64 n = rows.count;
  const qpt::contrastive::LossProblem problem = {rows,
                                                 key_sets.data(),
                                                 static_cast<i64>(key_sets.size()),
                                                 dim,
                                                 temperature,
                                                 image_bias,
                                                 pointer<float>("loss", out[0], 1),
                                                 pointer<i64>("valid_rows", out[1], 1),
                                                 pointer<float>("lse", out[2], n),
                                                 pointer<i64>("positives", out[3], n),
                                                 optional_pointer<float>("gradient", out[4], n * dim),
                                                 pointer<float>("similarity", out[5], 2)};
  const qpt::contrastive::Kernels& chosen = kernels(isa, problem.queries.count);
  py::gil_scoped_release unlocked;
  const i64 found = qpt::contrastive::forward(problem, chosen, threads);
  qpt::u32 largest = 0;  // bits without the sign: those of infinity and nan are the largest
  for (i64 at = 0; found < 0 && problem.gradient && at < n * dim; ++at) {
    qpt::u32 bits;
    std::memcpy(&bits, problem.gradient + at, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  return largest >= 0x7f800000u ? -2 : found;
}

void contrastive_positives(const SideFields& rows, const SideFields& stream, i64 dim, std::optional<i64> self_offset,
                           const Buffer& sum, const Buffer& count, int threads) {
  qpt::contrastive::PairPass problem = {};
  problem.rows = side(rows, dim);
  problem.stream = side(stream, dim);
  float* const sums = pointer<float>("sum", sum, problem.rows.count * dim);
  i64* const counts = pointer<i64>("count", count, problem.rows.count);
  problem.dim = dim;
  problem.has_self = self_offset.has_value();
  problem.self_offset = self_offset.value_or(0);
  py::gil_scoped_release unlocked;
  qpt::contrastive::add_same_group(problem, threads, sums, counts);
}

// severities: of the rows and of the stream, `kinds` numbers each.
void contrastive_graded(const SideFields& rows, const SideFields& stream, i64 dim,
                        const std::pair<Buffer, Buffer>& severities, i64 kinds, float scale,
                        std::optional<i64> self_offset, const Buffer& sum, const Buffer& weight, const std::string& isa,
                        int threads) {
  qpt::contrastive::GradedPass problem = {};
  problem.rows = side(rows, dim);
  problem.stream = side(stream, dim);
  in_range("kinds", kinds, 1, kMost);
  problem.dim = dim;
  problem.kinds = kinds;
  problem.row_severities = pointer<const float>("row severities", severities.first, problem.rows.count * kinds);
  problem.stream_severities = pointer<const float>("severities", severities.second, problem.stream.count * kinds);
  problem.scale = scale;
  problem.has_self = self_offset.has_value();
  problem.self_offset = self_offset.value_or(0);
  problem.sum = pointer<float>("sum", sum, problem.rows.count * dim);
  problem.weight = pointer<float>("weight", weight, problem.rows.count);
  const qpt::contrastive::Kernels& chosen = kernels(isa, problem.rows.count);
  py::gil_scoped_release unlocked;
  qpt::contrastive::run_graded(problem, chosen, threads);
}

void contrastive_self(const SideFields& rows, i64 dim, float scale, float image_bias, const Buffer& inverse,
                      const Buffer& row_sum, const Buffer& acc, const Buffer& packed, i64 block_rows,
                      const std::string& isa, int threads) {
  qpt::contrastive::SelfPairPass problem = {};
  constexpr i64 kStrip = qpt::contrastive::kStrip;
  problem.rows = side(rows, dim);
  const i64 n = problem.rows.count;
  if (problem.rows.dtype != qpt::contrastive::kFloat32 || dim % kStrip || block_rows % kStrip)
    refuse("rows", "be float32, dim and block_rows multiples of " + std::to_string(kStrip), dim);
  in_range("block_rows", block_rows, kStrip, qpt::contrastive::kMaxTaskRows);
  problem.dim = dim;
  problem.image_bias = image_bias;
  problem.inverse = optional_pointer<const float>("inverse", inverse, n);
  problem.row_sum = pointer<float>("row_sum", row_sum, problem.inverse ? 0 : n);
  problem.acc = pointer<float>("acc", acc, problem.inverse ? n * dim : 0);
  float* const strips = pointer<float>("packed", packed, (n + kStrip - 1) / kStrip * kStrip * dim);
  problem.block_rows = block_rows;
  const qpt::contrastive::Kernels& chosen = kernels(isa, problem.rows.count);
  py::gil_scoped_release unlocked;
  qpt::contrastive::run_self(problem, scale, chosen, threads, strips);
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
  m.doc() =
      "QPT's CPU kernels. Private: only the lengths of buffers, (address, bytes) each, are checked; use qpt.degrade "
      "and "
      "qpt.contrastive_loss.";
  m.def("degrade", &degrade, py::arg("images"), py::arg("height"), py::arg("width"), py::arg("out"), py::arg("rows"),
        py::arg("slots"), py::arg("ops"), py::arg("params"), py::arg("seeds"), py::arg("source"), py::arg("order"),
        py::arg("windows"), py::arg("boxes"), py::arg("patches"), py::arg("size"), py::arg("lut"),
        py::arg("item_bytes"), py::arg("channels_last"), py::arg("scratch"), py::arg("scratch_bytes"),
        py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
        "windows, boxes, lut: (0, 0) for whole images. See Batch in chain.h.");
  m.def("scratch_bytes", &qpt::scratch_bytes_per_thread, py::arg("height"), py::arg("width"), py::arg("resizes"),
        py::arg("for_patches"),
        "Return the bytes of scratch that each thread of degrade needs. resizes: a row holds resize_to; for_patches: "
        "the output is patches.");
  m.def("team_scratch_bytes", &qpt::scratch_bytes, py::arg("height"), py::arg("width"), py::arg("resizes"),
        py::arg("for_patches"), py::arg("blocks"),
        "Return the bytes of scratch that a team of so many thread blocks of a GPU needs.");
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
        "-1; or the first of the sets to check that holds nan or infinity; or -2, a gradient that is not finite.");
  m.def("contrastive_positives", &contrastive_positives, py::arg("rows"), py::arg("stream"), py::arg("dim"),
        py::arg("self_offset"), py::arg("sum"), py::arg("count"), py::arg("threads"));
  m.def("contrastive_graded", &contrastive_graded, py::arg("rows"), py::arg("stream"), py::arg("dim"),
        py::arg("severities"), py::arg("kinds"), py::arg("scale"), py::arg("self_offset"), py::arg("sum"),
        py::arg("weight"), py::arg("isa"), py::arg("threads"));
  m.def("contrastive_self", &contrastive_self, py::arg("rows"), py::arg("dim"), py::arg("scale"), py::arg("image_bias"),
        py::arg("inverse"), py::arg("row_sum"), py::arg("acc"), py::arg("packed"), py::arg("block_rows"),
        py::arg("isa"), py::arg("threads"));
  m.def("op_names", &op_names, "Names of the ops, in id order.");
  m.def("build_info", &build_info);
  m.def("philox", &philox, py::arg("counter"), py::arg("key"),
        "Philox 4x32-10 of four counter words and two key words.");
}
