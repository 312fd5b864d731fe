// The only file that knows Python: addresses in, the GIL released, decisions out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <numeric>

#include "apply.h"
#include "census.h"
#include "cpu/kernels.h"
#include "cuda/devices.h"
#include "layer.h"
#include "scores.h"
#include "select.h"

namespace py = pybind11;
using namespace lampfast;

namespace {

Layer make_layer(std::uintptr_t data, Dtype dtype, std::vector<std::int64_t> shape,
                 std::vector<std::int64_t> strides) {
  if (shape.size() != strides.size()) {
    throw std::invalid_argument("a layer needs as many strides as dimensions");
  }
  const auto size =
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  return {reinterpret_cast<std::byte*>(data), dtype, std::move(shape), std::move(strides), size};
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled engine: addresses in, decisions out. Nothing here knows torch.";
  m.attr("__version__") = LAMPFAST_VERSION;
  m.attr("cuda_built") = cuda::built();

  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::float32)
      .value("float16", Dtype::float16)
      .value("bfloat16", Dtype::bfloat16)
      .value("float64", Dtype::float64)
      .value("float8_e4m3fn", Dtype::float8_e4m3fn)
      .value("float8_e5m2", Dtype::float8_e5m2)
      .value("boolean", Dtype::boolean);

  py::class_<Layer>(m, "Layer")
      .def(py::init(&make_layer), py::arg("data"), py::arg("dtype"), py::arg("shape"),
           py::arg("strides"));

  py::class_<Cut>(m, "Cut")
      .def_readonly("key", &Cut::key)
      .def_readonly("ties", &Cut::ties)
      .def_readonly("pruned", &Cut::pruned)
      .def_readonly("threshold", &Cut::threshold);

  const py::call_guard<py::gil_scoped_release> released;
  m.def("instruction_set", &cpu::instruction_set);
  m.def("select", &lampfast::select, py::arg("layers"), py::arg("count"), py::arg("threads"),
        released);
  m.def("zero", &zero, py::arg("sources"), py::arg("targets"), py::arg("cuts"), py::arg("threads"),
        released);
  m.def("mask", &mask, py::arg("sources"), py::arg("targets"), py::arg("cuts"), py::arg("threads"),
        released);
  m.def("score", &score, py::arg("layers"), py::arg("outputs"), py::arg("threads"), released);
  m.def("census", &census, py::arg("layers"), py::arg("threads"), released);
  m.def(
      "first_nonfinite",
      [](const std::vector<Layer>& layers,
         int threads) -> std::optional<std::pair<std::size_t, std::int64_t>> {
        const auto found = first_not_finite(layers, threads);
        if (!found) return std::nullopt;
        return std::pair{found->layer, found->index};
      },
      py::arg("layers"), py::arg("threads"), released);
}
