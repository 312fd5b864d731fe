// The only file that knows Python: addresses in, the GIL released, decisions out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <numeric>
#include <optional>

#include "apply.h"
#include "census.h"
#include "cpu/kernels.h"
#include "cuda/devices.h"
#include "layer.h"
#include "scores.h"
#include "select.h"

namespace py = pybind11;
using namespace lampfast;

// A layer is a tuple (address, dtype, shape, strides): many are made for every call, and an object
// of a class of its own would take several times as long to make.
template <>
struct py::detail::type_caster<Layer> {
  PYBIND11_TYPE_CASTER(Layer, const_name("Layer"));

  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 4) return false;
    const auto item = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(source.ptr(), i); };
    value.data = reinterpret_cast<std::byte*>(py::cast<std::uintptr_t>(handle(item(0))));
    value.dtype = py::cast<Dtype>(handle(item(1)));
    load_integers(item(2), value.shape);
    load_integers(item(3), value.strides);
    if (value.shape.size() != value.strides.size()) {
      throw std::invalid_argument("a layer needs as many strides as dimensions");
    }
    value.size = std::accumulate(value.shape.begin(), value.shape.end(), std::int64_t{1},
                                 std::multiplies<>());
    return true;
  }

 private:
  static void load_integers(PyObject* tuple, std::vector<std::int64_t>& integers) {
    if (!PyTuple_Check(tuple)) throw py::type_error("a layer's shape and strides are tuples");
    integers.clear();
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
      integers.push_back(py::cast<std::int64_t>(handle(PyTuple_GET_ITEM(tuple, i))));
    }
  }
};

namespace {

using Layers = std::vector<Layer>;

// The stages in order: select on the sources, then act on the targets.
std::vector<Cut> masks(const Layers& sources, const Layers& targets, std::int64_t count,
                       int threads, Stages* stages) {
  cpu::Team team(threads);
  Selected selected = select(sources, targets, count, team, stages);
  const StageTimer timer(stages, &Stages::apply);
  mask(sources, targets, selected.cuts, selected.surveys, team);
  return std::move(selected.cuts);
}

std::vector<Cut> prune(const Layers& targets, const std::optional<Layers>& importances,
                       std::int64_t count, int threads, Stages* stages) {
  cpu::Team team(threads);
  const Layers& sources = importances ? *importances : targets;
  Selected selected = select(sources, {}, count, team, stages);
  const StageTimer timer(stages, &Stages::apply);
  zero(sources, targets, selected.cuts, selected.surveys, team);
  return std::move(selected.cuts);
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

  py::class_<Cut>(m, "Cut")
      .def_readonly("key", &Cut::key)
      .def_readonly("ties", &Cut::ties)
      .def_readonly("pruned", &Cut::pruned)
      .def_readonly("threshold", &Cut::threshold);

  py::class_<Stages>(m, "Stages")
      .def(py::init<>())
      .def_readonly("guess", &Stages::guess)
      .def_readonly("survey", &Stages::survey)
      .def_readonly("select", &Stages::select)
      .def_readonly("apply", &Stages::apply);

  const py::call_guard<py::gil_scoped_release> released;
  m.def("instruction_set", &cpu::instruction_set);
  m.def(
      "select",
      [](const Layers& layers, std::int64_t count, int threads) {
        cpu::Team team(threads);
        return select(layers, {}, count, team, nullptr).cuts;
      },
      py::arg("layers"), py::arg("count"), py::arg("threads"), released);
  m.def(
      "mask",
      [](const Layers& sources, const Layers& targets, const std::vector<Cut>& cuts, int threads) {
        cpu::Team team(threads);
        mask(sources, targets, cuts, {}, team);
      },
      py::arg("sources"), py::arg("targets"), py::arg("cuts"), py::arg("threads"), released);
  m.def("masks", &masks, py::arg("sources"), py::arg("targets"), py::arg("count"),
        py::arg("threads"), py::kw_only(), py::arg("stages") = nullptr, released);
  m.def("prune", &prune, py::arg("targets"), py::arg("importances"), py::arg("count"),
        py::arg("threads"), py::kw_only(), py::arg("stages") = nullptr, released);
  m.def(
      "score",
      [](const Layers& layers, const Layers& outputs, int threads) {
        cpu::Team team(threads);
        score(layers, outputs, team);
      },
      py::arg("layers"), py::arg("outputs"), py::arg("threads"), released);
  m.def(
      "census",
      [](const Layers& layers, int threads) {
        cpu::Team team(threads);
        return census(layers, team);
      },
      py::arg("layers"), py::arg("threads"), released);
  m.def(
      "first_nonfinite",
      [](const Layers& layers, int threads) -> std::optional<std::pair<std::size_t, std::int64_t>> {
        cpu::Team team(threads);
        const auto found = first_not_finite(layers, team);
        if (!found) return std::nullopt;
        return std::pair{found->layer, found->index};
      },
      py::arg("layers"), py::arg("threads"), released);
}
