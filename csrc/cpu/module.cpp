// The Python module qpt._C: integer pointers in, nothing validated. Private to qpt/ops/degrade.py, which checks shapes,
// types and ranges and allocates; a wrong pointer here ends the process. The GIL is released while a batch runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../chain.h"
#include "degrade.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void degrade(std::uintptr_t images, int height, int width, std::uintptr_t out, int rows, int slots, std::uintptr_t ops,
             std::uintptr_t params, std::uintptr_t seeds, std::uintptr_t source, std::uintptr_t scratch, int threads) {
  qpt::degrade({pointer<const qpt::u8>(images), pointer<qpt::u8>(out), height, width, rows, slots,
                pointer<const qpt::i16>(ops), pointer<const float>(params), pointer<const qpt::i64>(seeds),
                pointer<const qpt::i32>(source), pointer<qpt::u8>(scratch), threads});
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
  m.doc() = "QPT's CPU kernels. Private: pointers are not checked; use qpt.degrade.";
  m.def("degrade", &degrade, py::arg("images"), py::arg("height"), py::arg("width"), py::arg("out"), py::arg("rows"),
        py::arg("slots"), py::arg("ops"), py::arg("params"), py::arg("seeds"), py::arg("source"), py::arg("scratch"),
        py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def("scratch_bytes", &qpt::scratch_bytes_per_thread, py::arg("height"), py::arg("width"),
        "Bytes of scratch that each thread of degrade needs.");
  m.def("op_names", &op_names, "Names of the ops, in id order.");
  m.def("build_info", &build_info);
  m.def("philox", &philox, py::arg("counter"), py::arg("key"),
        "Philox 4x32-10 of four counter words and two key words.");
}
