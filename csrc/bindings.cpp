// The Python module, and the only file that knows Python: converts arguments, releases the GIL and
// calls prune.h. It contains no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "core/call_profile.h"
#include "core/check_layers.h"
#include "core/group_pattern.h"
#include "core/layer.h"
#include "core/layer_threshold.h"
#include "core/not_finite.h"
#include "core/packed_mask.h"
#include "core/selection_spec.h"
#include "core/tiling.h"
#include "cpu/kernels/kernels.h"
#include "cuda/gpu_backend.h"
#include "prune.h"
#include "sharding.h"

namespace py = pybind11;
using namespace lampfast;

// Python gets results as struct sequences, which are tuples with names. It gets thousands at a
// time, and where memory runs out that is an error: pybind11 makes an instance of a bound class
// without a look at what the allocator returned.
namespace {

using Type = py::gil_safe_call_once_and_store<py::object>;
PYBIND11_CONSTINIT Type threshold_type;
PYBIND11_CONSTINIT Type element_type;
PYBIND11_CONSTINIT Type needs_type;
// The members of the enumeration, which are told by their addresses: pybind11 takes longer for the
// dtype of a layer than for all the rest of it.
PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<std::vector<py::object>> dtypes;

// A new reference that Python returned, which fails for want of memory only.
py::object checked(PyObject* made) {
  if (made == nullptr) {
    PyErr_Clear();
    throw std::bad_alloc();
  }
  return py::reinterpret_steal<py::object>(made);
}

template <class... Items>
py::object named_tuple(Type& type, Items... items) {
  const py::object result =
      checked(PyStructSequence_New(reinterpret_cast<PyTypeObject*>(type.get_stored().ptr())));
  Py_ssize_t i = 0;
  (PyStructSequence_SetItem(result.ptr(), i++, checked(items()).release().ptr()), ...);
  return result;
}

}  // namespace

template <>
struct py::detail::type_caster<LayerThreshold> {
  PYBIND11_TYPE_CASTER(LayerThreshold, const_name("LayerThreshold"));

  static handle cast(const LayerThreshold& threshold, return_value_policy, handle) {
    return named_tuple(
               threshold_type, [&] { return PyLong_FromUnsignedLongLong(threshold.key); },
               [&] { return PyLong_FromLongLong(threshold.ties); },
               [&] { return PyLong_FromLongLong(threshold.pruned); },
               [&] { return PyFloat_FromDouble(threshold.magnitude); })
        .release();
  }
};

template <>
struct py::detail::type_caster<std::vector<LayerThreshold>> {
  PYBIND11_TYPE_CASTER(std::vector<LayerThreshold>, const_name("list[LayerThreshold]"));

  static handle cast(const std::vector<LayerThreshold>& thresholds, return_value_policy policy,
                     handle parent) {
    object list = checked(PyList_New(static_cast<Py_ssize_t>(thresholds.size())));
    for (std::size_t i = 0; i < thresholds.size(); ++i) {
      const handle item = type_caster<LayerThreshold>::cast(thresholds[i], policy, parent);
      PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), item.ptr());
    }
    return list.release();
  }
};

template <>
struct py::detail::type_caster<ElementIndex> {
  PYBIND11_TYPE_CASTER(ElementIndex, const_name("ElementIndex"));

  static handle cast(const ElementIndex& element, return_value_policy, handle) {
    return named_tuple(
               element_type, [&] { return PyLong_FromSize_t(element.layer); },
               [&] { return PyLong_FromLongLong(element.index); },
               [&] { return PyLong_FromSize_t(element.rank); })
        .release();
  }
};

template <>
struct py::detail::type_caster<cuda::Needs> {
  PYBIND11_TYPE_CASTER(cuda::Needs, const_name("Needs"));

  static handle cast(const cuda::Needs& needs, return_value_policy, handle) {
    return named_tuple(
               needs_type, [&] { return PyLong_FromLongLong(needs.bytes); },
               [&] { return PyLong_FromLongLong(needs.host_bytes); })
        .release();
  }
};

// Python passes a selection as a named tuple (ranking, counts).
template <>
struct py::detail::type_caster<SelectionSpec> {
  PYBIND11_TYPE_CASTER(SelectionSpec, const_name("SelectionSpec"));

  bool load(handle source, bool convert) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 2) return false;
    make_caster<Ranking> ranking;
    make_caster<std::vector<std::int64_t>> counts;
    if (!ranking.load(PyTuple_GET_ITEM(source.ptr(), 0), convert) ||
        !counts.load(PyTuple_GET_ITEM(source.ptr(), 1), convert)) {
      return false;
    }
    value = SelectionSpec(cast_op<Ranking>(ranking),
                          cast_op<std::vector<std::int64_t>&&>(std::move(counts)));
    return true;
  }
};

// Python passes a layer as a tuple (address, dtype, shape, strides, device), to which one with
// scales adds (address, block, strides). Every call passes many of them, and instances of a bound
// class would take several times as long to create.
template <>
struct py::detail::type_caster<Layer> {
  PYBIND11_TYPE_CASTER(Layer, const_name("Layer"));

  bool load(handle source, bool) {
    const Py_ssize_t size = PyTuple_Check(source.ptr()) ? PyTuple_GET_SIZE(source.ptr()) : 0;
    if (size != 5 && size != 6) return false;
    const auto item = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(source.ptr(), i); };
    value.data = reinterpret_cast<std::byte*>(py::cast<std::uintptr_t>(handle(item(0))));
    value.dtype = load_dtype(item(1));
    load_integers(item(2), value.shape);
    load_integers(item(3), value.strides);
    value.device = py::cast<int>(handle(item(4)));
    value.size = element_count(value.shape);
    return size == 5 || load_scales(item(5));
  }

 private:
  static Dtype load_dtype(PyObject* object) {
    const std::vector<py::object>& known = dtypes.get_stored();
    for (std::size_t i = 0; i < known.size(); ++i) {
      if (known[i].ptr() == object) return static_cast<Dtype>(i);
    }
    return py::cast<Dtype>(handle(object));
  }

  bool load_scales(PyObject* tuple) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 3) return false;
    BlockScales scales{};
    const handle address = PyTuple_GET_ITEM(tuple, 0);
    scales.data = reinterpret_cast<const float*>(py::cast<std::uintptr_t>(address));
    scales.codes = std::exchange(value.dtype, Dtype::float64);
    load_integers(PyTuple_GET_ITEM(tuple, 1), scales.block);
    load_integers(PyTuple_GET_ITEM(tuple, 2), scales.strides);
    value.scales = std::move(scales);
    return true;
  }

  static void load_integers(PyObject* tuple, std::vector<std::int64_t>& integers) {
    if (!PyTuple_Check(tuple))
      throw py::type_error("a layer's shape, strides and block are tuples");
    integers.resize(static_cast<std::size_t>(PyTuple_GET_SIZE(tuple)));
    for (std::size_t i = 0; i < integers.size(); ++i) {
      const handle item = PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(i));
      integers[i] = py::cast<std::int64_t>(item);
    }
  }
};

// Python passes a pattern as a tuple (kept, size, axis).
template <>
struct py::detail::type_caster<GroupPattern> {
  PYBIND11_TYPE_CASTER(GroupPattern, const_name("tuple[int, int, int]"));

  bool load(handle source, bool) {
    const auto [kept, size, axis] = py::cast<std::tuple<int, int, int>>(source);
    value = {kept, size, axis};
    return true;
  }
};

// Python passes a block as a tuple (rows, columns, axis).
template <>
struct py::detail::type_caster<BlockShape> {
  PYBIND11_TYPE_CASTER(BlockShape, const_name("tuple[int, int, int]"));

  bool load(handle source, bool) {
    const auto [rows, columns, axis] =
        py::cast<std::tuple<std::int64_t, std::int64_t, int>>(source);
    value = {rows, columns, axis};
    return true;
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

// A Python object with the methods of Communicator. Numbers are passed as memory to change in
// place.
class PythonCommunicator : public Communicator {
 public:
  explicit PythonCommunicator(py::object object)
      : object_(std::move(object)),
        rank_(py::cast<std::size_t>(object_.attr("rank"))),
        size_(py::cast<std::size_t>(object_.attr("size"))) {}
  ~PythonCommunicator() override {
    const py::gil_scoped_acquire acquired;
    object_ = py::object();
  }

  std::size_t rank() const override { return rank_; }
  std::size_t size() const override { return size_; }
  void sum(std::vector<std::int64_t>& numbers) override { reduce("sum", numbers); }
  void max(std::vector<std::int64_t>& numbers) override { reduce("max", numbers); }

  std::vector<std::string> gather(const std::string& own, std::size_t expected) override {
    const py::gil_scoped_acquire acquired;
    return py::cast<std::vector<std::string>>(object_.attr("gather")(py::bytes(own), expected));
  }

 private:
  void reduce(const char* how, std::vector<std::int64_t>& numbers) {
    const py::gil_scoped_acquire acquired;
    const auto bytes = static_cast<py::ssize_t>(numbers.size() * sizeof(std::int64_t));
    object_.attr(how)(py::memoryview::from_memory(numbers.data(), bytes, false));
  }

  py::object object_;
  std::size_t rank_;
  std::size_t size_;
};

// Python passes a sharding as a tuple: the communicator, the dtype and the shape of each layer, a
// tuple of the fields of Piece for each piece, and the begins.
template <>
struct py::detail::type_caster<Sharding> {
  PYBIND11_TYPE_CASTER(Sharding, const_name("Sharding"));

  bool load(handle source, bool) {
    using Integers = std::vector<std::int64_t>;
    using Layers = std::vector<std::pair<Dtype, Integers>>;
    using Pieces = std::vector<std::tuple<std::size_t, bool, std::int64_t, Integers>>;
    auto [communicator, layers, pieces, begins] =
        py::cast<std::tuple<py::object, Layers, Pieces, std::vector<Integers>>>(source);
    value.communicator = std::make_shared<PythonCommunicator>(std::move(communicator));
    for (auto& [dtype, shape] : layers) {
      const std::int64_t size = element_count(shape);
      value.layers.push_back({nullptr, dtype, shape, {}, Layer::in_host_memory, size});
    }
    for (auto& [layer, is_counted, first, steps] : pieces) {
      value.pieces.push_back({layer, is_counted, first, std::move(steps)});
    }
    value.begins = std::move(begins);
    return true;
  }
};

// Python passes the machine as a tuple (threads, GPUs), and a sharding behind these if there is
// one.
template <>
struct py::detail::type_caster<Machine> {
  PYBIND11_TYPE_CASTER(Machine, const_name("Machine"));

  bool load(handle source, bool) {
    const auto fields = py::reinterpret_borrow<py::sequence>(source);
    value.threads = py::cast<int>(fields[0]);
    value.gpus = py::cast<std::vector<cuda::Gpu>>(fields[1]);
    if (fields.size() > 2) value.sharding = py::cast<Sharding>(fields[2]);
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

void bind_named_tuple(py::module_& m, Type& type, const char* name,
                      const std::vector<const char*>& names) {
  std::vector<PyStructSequence_Field> fields;
  for (const char* field : names) fields.push_back({field, nullptr});
  fields.push_back({nullptr, nullptr});
  PyStructSequence_Desc description{name, nullptr, fields.data(), static_cast<int>(names.size())};
  type.call_once_and_store_result(
      [&] { return checked(reinterpret_cast<PyObject*>(PyStructSequence_NewType(&description))); });
  const py::object& stored = type.get_stored();
  m.attr(stored.attr("__name__")) = stored;
}

void bind_types(py::module_& m) {
  const py::object dtype = py::enum_<Dtype>(m, "Dtype")
                               .value("float32", Dtype::float32)
                               .value("float16", Dtype::float16)
                               .value("bfloat16", Dtype::bfloat16)
                               .value("float64", Dtype::float64)
                               .value("float8_e4m3fn", Dtype::float8_e4m3fn)
                               .value("float8_e5m2", Dtype::float8_e5m2)
                               .value("boolean", Dtype::boolean);
  dtypes.call_once_and_store_result([&] {
    std::vector<py::object> members;
    for (const auto& [name, member] : dtype.attr("__members__").cast<py::dict>()) {
      members.push_back(py::reinterpret_borrow<py::object>(member));
    }
    return members;
  });

  py::enum_<Ranking>(m, "Ranking")
      .value("lamp", Ranking::lamp)
      .value("magnitude", Ranking::magnitude)
      .value("per_layer", Ranking::per_layer);

  m.attr("SelectionSpec") =
      py::module_::import("collections").attr("namedtuple")("SelectionSpec", "ranking counts");
  bind_named_tuple(m, threshold_type, "lampfast._core.LayerThreshold",
                   {"key", "ties", "pruned", "magnitude"});
  bind_named_tuple(m, element_type, "lampfast._core.ElementIndex", {"layer", "index", "rank"});
  bind_named_tuple(m, needs_type, "lampfast._core.Needs", {"bytes", "host_bytes"});

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

  not_finite_error.call_once_and_store_result(
      [&] { return py::object(py::exception<NotFinite>(m, "NotFiniteError", PyExc_ValueError)); });
  py::register_exception_translator(&translate_not_finite);
}

// Calls commit(sink), which writes. What Python gets is made before anything is written, as memory
// may run out meanwhile, and so is what Python itself has to do by then.
template <class Commit>
py::list thresholds_of(const py::object& before_writing, Commit&& commit) {
  py::list result;
  const py::gil_scoped_release released;
  commit([&](const std::vector<LayerThreshold>& thresholds) {
    const py::gil_scoped_acquire acquired;
    result = py::cast(thresholds);
    if (!before_writing.is_none()) before_writing(result);
  });
  return result;
}

using Select = void(const std::vector<Layer>&, const std::vector<Layer>&, const SelectionSpec&,
                    const Machine&, CallProfile*, const ResultSink&);

// Without targets the layers themselves are written.
template <Select& select>
py::list select_and_commit(const std::vector<Layer>& layers,
                           const std::optional<std::vector<Layer>>& targets,
                           const SelectionSpec& spec, const Machine& machine, CallProfile* profile,
                           const py::object& before_writing) {
  return thresholds_of(before_writing, [&](const ResultSink& sink) {
    select(layers, targets ? *targets : layers, spec, machine, profile, sink);
  });
}

void bind_calls(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> released;
  const auto layers = py::arg("layers");
  const auto targets = py::arg("targets");
  const auto masks_arg = py::arg("masks");
  const auto spec = py::arg("spec");
  const auto machine = py::arg("machine");
  const auto profile = py::arg("profile") = nullptr;
  const auto before_writing = py::arg("before_writing") = py::none();
  m.def("prune", &select_and_commit<prune>, layers, targets, spec, machine, profile,
        before_writing);
  m.def("masks", &select_and_commit<masks>, layers, masks_arg, spec, machine, profile,
        before_writing);
  m.def("thresholds", &thresholds, layers, spec, machine, released);
  m.def("zero_thresholds", &zero_thresholds, layers, machine, released);
  m.def(
      "prune_zeros",
      [](const std::vector<Layer>& masks, const std::vector<Layer>& weights, const Machine& lent,
         const py::object& before) {
        return thresholds_of(
            before, [&](const ResultSink& sink) { prune_zeros(masks, weights, lent, sink); });
      },
      layers, targets, machine, before_writing);
  m.def(
      "prune_groups",
      [](const std::vector<Layer>& ranked, const std::vector<Layer>& weights,
         const std::vector<GroupPattern>& patterns, const Machine& lent, const py::object& before) {
        return thresholds_of(before, [&](const ResultSink& sink) {
          prune_groups(ranked, weights, patterns, lent, sink);
        });
      },
      layers, targets, py::arg("patterns"), machine, before_writing);
  m.def("group_thresholds", &group_thresholds, layers, py::arg("patterns"), machine, released);
  m.def("mask_groups", &mask_groups, layers, masks_arg, py::arg("patterns"), machine, released);
  m.def(
      "prune_blocks",
      [](const std::vector<Layer>& ranked, const std::vector<Layer>& weights,
         const std::vector<BlockShape>& blocks, const SelectionSpec& asked, const Machine& lent,
         const py::object& before) {
        return thresholds_of(before, [&](const ResultSink& sink) {
          prune_blocks(ranked, weights, blocks, asked, lent, sink);
        });
      },
      layers, targets, py::arg("blocks"), spec, machine, before_writing);
  m.def("block_thresholds", &block_thresholds, layers, py::arg("blocks"), spec, machine, released);
  m.def("mask_blocks", &mask_blocks, layers, masks_arg, py::arg("blocks"), spec, machine, released);
  m.def("sizes_of_zero_blocks", &sizes_of_zero_blocks, layers, py::arg("blocks"), machine,
        released);
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
