// The Python module, and the only file that knows Python: converts arguments, releases the GIL and
// calls prune.h. It contains no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <utility>

#include "core/call_profile.h"
#include "core/check_layers.h"
#include "core/layer.h"
#include "core/layer_threshold.h"
#include "core/not_finite.h"
#include "core/packed_mask.h"
#include "core/selection_spec.h"
#include "cpu/kernels/kernels.h"
#include "cuda/gpu_backend.h"
#include "prune.h"

namespace py = pybind11;
using namespace lampfast;

// Python passes a layer as a tuple (address, dtype, shape, strides, device). Every call passes many
// of them, and instances of a bound class would take several times as long to create.
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
    value.size = element_count(value.shape);
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

// Python passes a GPU as a tuple of the fields of cuda::Gpu.
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

// Python passes the machine as a tuple (threads, GPUs).
template <>
struct py::detail::type_caster<Machine> {
  PYBIND11_TYPE_CASTER(Machine, const_name("Machine"));

  bool load(handle source, bool) {
    auto [threads, gpus] = py::cast<std::pair<int, std::vector<cuda::Gpu>>>(source);
    value = {threads, std::move(gpus)};
    return true;
  }
};

// Python passes packed masks as the addresses of their first words.
template <>
struct py::detail::type_caster<PackedMasks> {
  PYBIND11_TYPE_CASTER(PackedMasks, const_name("Sequence[int]"));

  bool load(handle source, bool) {
    for (const handle address : py::reinterpret_borrow<py::sequence>(source)) {
      value.push_back(reinterpret_cast<MaskWord*>(py::cast<std::uintptr_t>(address)));
    }
    return true;
  }
};

namespace {

// The Python type of NotFinite. The attribute `element` of an instance is the index of the first
// element that is not finite, or None if that element has changed in the meantime.
PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> not_finite_error;

void translate_not_finite(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const NotFinite& error) {
    const py::object& type = not_finite_error.get_stored();
    const py::object exception = type(error.what());
    exception.attr("element") = py::cast(error.element);
    PyErr_SetObject(type.ptr(), exception.ptr());
  }
}

void bind_types(py::module_& m) {
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
      .value("per_layer", Ranking::per_layer);

  py::class_<SelectionSpec>(m, "SelectionSpec")
      .def(py::init<Ranking, std::vector<std::int64_t>>(), py::arg("ranking"), py::arg("counts"));

  py::class_<LayerThreshold>(m, "LayerThreshold")
      .def_readonly("key", &LayerThreshold::key)
      .def_readonly("ties", &LayerThreshold::ties)
      .def_readonly("pruned", &LayerThreshold::pruned)
      .def_readonly("magnitude", &LayerThreshold::magnitude);

  py::class_<ElementIndex>(m, "ElementIndex")
      .def_readonly("layer", &ElementIndex::layer)
      .def_readonly("index", &ElementIndex::index);

  py::class_<CallProfile>(m, "CallProfile")
      .def(py::init<>())
      .def_readonly("estimate", &CallProfile::estimate)
      .def_readonly("partition", &CallProfile::partition)
      .def_readonly("narrow", &CallProfile::narrow)
      .def_readonly("select", &CallProfile::select)
      .def_readonly("commit", &CallProfile::commit)
      .def_readonly("misses", &CallProfile::misses)
      .def_property_readonly("drawn", [](const CallProfile& p) { return p.elements.drawn; })
      .def_property_readonly("read", [](const CallProfile& p) { return p.elements.read; })
      .def_property_readonly("candidates",
                             [](const CallProfile& p) { return p.elements.candidates; });

  py::class_<cuda::Needs>(m, "Needs")
      .def_readonly("bytes", &cuda::Needs::bytes)
      .def_readonly("host_bytes", &cuda::Needs::host_bytes);

  not_finite_error.call_once_and_store_result(
      [&] { return py::object(py::exception<NotFinite>(m, "NotFiniteError", PyExc_ValueError)); });
  py::register_exception_translator(&translate_not_finite);
}

void bind_calls(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> released;
  const auto layers = py::arg("layers");
  const auto targets = py::arg("targets");
  const auto masks_arg = py::arg("masks");
  const auto spec = py::arg("spec");
  const auto machine = py::arg("machine");
  const auto profile = py::arg("profile") = nullptr;
  m.def("prune", &prune, layers, targets, spec, machine, profile, released);
  m.def("masks", &masks, layers, masks_arg, spec, machine, profile, released);
  m.def("thresholds", &thresholds, layers, spec, machine, released);
  m.def("zero_thresholds", &zero_thresholds, layers, machine, released);
  m.def("score", &score, layers, py::arg("scores"), machine, released);
  m.def("first_not_finite", &first_not_finite, layers, machine, released);
  m.def("pack", &pack, layers, masks_arg, machine, released);
  m.def("apply_packed_masks", &apply_packed_masks, layers, masks_arg, machine, released);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled engine: addresses in, decisions out. Nothing here knows torch.";
  m.attr("__version__") = LAMPFAST_VERSION;
  m.attr("cuda_built") = cuda::built();
  bind_types(m);
  bind_calls(m);
  m.def("instruction_set", &cpu::instruction_set);
#if defined(LAMPFAST_TEST_SIZES)
  m.def("use_instruction_set", &cpu::use_instruction_set);
#endif
  m.def("cuda_usable", &cuda::usable);
  m.def("cuda_runs_on", &cuda::runs_on, py::arg("device"));
  m.def("cuda_needs", &cuda::needs, py::arg("layers"), py::arg("device"));
  m.def("cuda_needs_of_scores", &cuda::needs_of_scores, py::arg("layers"), py::arg("device"));
}
