// The only file that knows Python: addresses in, the GIL released, decisions out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <numeric>
#include <optional>

#include "census.h"
#include "cpu/kernels.h"
#include "cuda/gpu.h"
#include "goal.h"
#include "layer.h"
#include "packed_mask.h"
#include "places.h"
#include "select.h"

namespace py = pybind11;
using namespace lampfast;

// A layer is a tuple (address, dtype, shape, strides, device): many are made for every call, and an
// object of a class of its own would take several times as long to make.
template <>
struct py::detail::type_caster<Layer> {
  PYBIND11_TYPE_CASTER(Layer, const_name("Layer"));

  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 5) return false;
    const auto item = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(source.ptr(), i); };
    value.data = reinterpret_cast<std::byte*>(py::cast<std::uintptr_t>(handle(item(0))));
    value.dtype = py::cast<Dtype>(handle(item(1)));
    load_integers(item(2), value.shape);
    load_integers(item(3), value.strides);
    value.device = py::cast<int>(handle(item(4)));
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

// A GPU is a tuple of the fields of cuda::Gpu.
template <>
struct py::detail::type_caster<cuda::Gpu> {
  PYBIND11_TYPE_CASTER(cuda::Gpu, const_name("Gpu"));

  bool load(handle source, bool) {
    using Fields =
        std::tuple<int, std::uintptr_t, std::uintptr_t, std::int64_t, std::uintptr_t, std::int64_t>;
    const auto [device, stream, memory, bytes, host_memory, host_bytes] = py::cast<Fields>(source);
    value = {device,
             stream,
             reinterpret_cast<std::byte*>(memory),
             bytes,
             reinterpret_cast<std::byte*>(host_memory),
             host_bytes};
    return true;
  }
};

namespace {

using Layers = std::vector<Layer>;
using Gpus = std::vector<cuda::Gpu>;

const Layers nothing;  // a job that writes nothing

void apply(Places& places, const std::vector<Cut>& cuts, const std::vector<Survey>& surveys) {
  places.for_each(places.all(), [&](Place& place, const Chosen& there) {
    place.prepare_apply(there, cuts, surveys);
  });
  places.for_each(places.all(),
                  [&](Place& place, const Chosen& there) { place.apply(there, cuts, surveys); });
}

// The stages in order: select on the sources, then act on the targets.
std::vector<Cut> select_and_apply(const Layers& sources, const Layers& targets, const Goal& goal,
                                  const Machine& machine, Stages* stages) {
  Places places({sources, targets}, machine);
  Selected selected = select(places, goal, stages);
  const StageTimer timer(stages, &Stages::apply);
  apply(places, selected.cuts, selected.surveys);
  return std::move(selected.cuts);
}

std::vector<Cut> prune(const Layers& targets, const std::optional<Layers>& importances,
                       const Goal& goal, int threads, const Gpus& gpus, Stages* stages) {
  const Layers& sources = importances ? *importances : targets;
  return select_and_apply(sources, targets, goal, {threads, gpus}, stages);
}

std::vector<Cut> masks(const Layers& sources, const Layers& targets, const Goal& goal, int threads,
                       const Gpus& gpus, Stages* stages) {
  return select_and_apply(sources, targets, goal, {threads, gpus}, stages);
}

std::vector<Cut> select_only(const Layers& layers, const Goal& goal, int threads,
                             const Gpus& gpus) {
  Places places({layers, nothing}, {threads, gpus});
  return select(places, goal, nullptr).cuts;
}

void write_masks(const Layers& sources, const Layers& targets, const std::vector<Cut>& cuts,
                 int threads, const Gpus& gpus) {
  Places places({sources, targets}, {threads, gpus});
  apply(places, cuts, {});
}

void write_scores(const Layers& layers, const Layers& outputs, int threads, const Gpus& gpus) {
  Places places({layers, outputs}, {threads, gpus});
  places.for_each(places.all(), [](Place& place, const Chosen& there) { place.score(there); });
}

std::vector<Cut> describe(const Layers& layers, int threads, const Gpus& gpus) {
  Places places({layers, nothing}, {threads, gpus});
  std::vector<Cut> cuts(layers.size());
  places.for_each(places.all(),
                  [&](Place& place, const Chosen& there) { place.census(there, cuts); });
  return cuts;
}

std::optional<std::pair<std::size_t, std::int64_t>> first_nonfinite(const Layers& layers,
                                                                    int threads, const Gpus& gpus) {
  Places places({layers, nothing}, {threads, gpus});
  std::optional<Element> first;
  places.for_each(places.all(), [&](Place& place, const Chosen& there) {
    const std::optional<Element> found = place.first_not_finite(there);
    if (found && (!first || *found < *first)) first = found;
  });
  if (!first) return std::nullopt;
  return std::pair{first->layer, first->index};
}

// Packs or keeps. Masks are the addresses of their words.
template <void (Place::*act)(const Chosen&, const PackedMasks&)>
void with_packed_masks(const Layers& layers, const std::vector<std::uintptr_t>& addresses,
                       int threads, const Gpus& gpus) {
  if (addresses.size() != layers.size()) {
    throw std::invalid_argument("as many masks as layers are needed");
  }
  PackedMasks masks;
  for (const std::uintptr_t address : addresses) {
    masks.push_back(reinterpret_cast<MaskWord*>(address));
  }
  Places places({layers, nothing}, {threads, gpus});
  places.for_each(places.all(),
                  [&](Place& place, const Chosen& there) { (place.*act)(there, masks); });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled engine: addresses in, decisions out. Nothing here knows torch.";
  m.attr("__version__") = LAMPFAST_VERSION;
  m.attr("cuda_built") = cuda::built();
  m.def("cuda_usable", &cuda::usable);

  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::float32)
      .value("float16", Dtype::float16)
      .value("bfloat16", Dtype::bfloat16)
      .value("float64", Dtype::float64)
      .value("float8_e4m3fn", Dtype::float8_e4m3fn)
      .value("float8_e5m2", Dtype::float8_e5m2)
      .value("boolean", Dtype::boolean);

  py::enum_<Ranking>(m, "Ranking")
      .value("lamp", Ranking::lamp)
      .value("magnitude", Ranking::magnitude)
      .value("each_apart", Ranking::each_apart);

  py::class_<Goal>(m, "Goal").def(py::init([](Ranking ranking, std::vector<std::int64_t> counts) {
                                    return Goal{ranking, std::move(counts)};
                                  }),
                                  py::arg("ranking"), py::arg("counts"));

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
  m.def("cuda_needs", [](const Layers& layers, int device) {
    const cuda::Needs needs = cuda::needs(layers, device);
    return std::pair{needs.bytes, needs.host_bytes};
  });
  m.def("cuda_needs_of_scores", [](const Layers& layers, int device) {
    const cuda::Needs needs = cuda::needs_of_scores(layers, device);
    return std::pair{needs.bytes, needs.host_bytes};
  });
  const auto gpus = py::arg("gpus") = py::tuple();
  const auto stages = py::arg("stages") = nullptr;
  m.def("select", &select_only, py::arg("layers"), py::arg("goal"), py::arg("threads"), gpus,
        released);
  m.def("mask", &write_masks, py::arg("sources"), py::arg("targets"), py::arg("cuts"),
        py::arg("threads"), gpus, released);
  m.def("masks", &masks, py::arg("sources"), py::arg("targets"), py::arg("goal"),
        py::arg("threads"), gpus, py::kw_only(), stages, released);
  m.def("prune", &prune, py::arg("targets"), py::arg("importances"), py::arg("goal"),
        py::arg("threads"), gpus, py::kw_only(), stages, released);
  m.def("score", &write_scores, py::arg("layers"), py::arg("outputs"), py::arg("threads"), gpus,
        released);
  m.def("census", &describe, py::arg("layers"), py::arg("threads"), gpus, released);
  m.def("first_nonfinite", &first_nonfinite, py::arg("layers"), py::arg("threads"), gpus, released);
  m.def("pack", &with_packed_masks<&Place::pack>, py::arg("layers"), py::arg("masks"),
        py::arg("threads"), gpus, released);
  m.def("keep", &with_packed_masks<&Place::keep>, py::arg("layers"), py::arg("masks"),
        py::arg("threads"), gpus, released);
}
