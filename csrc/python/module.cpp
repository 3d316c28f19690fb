// fastq._runtime: what runs without torch. The CPU's features, the instruction set in use, and networks over NumPy
// arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <new>
#include <optional>
#include <string>

#include "../cpu/dispatch.h"
#include "../cpu/features.h"
#include "network.h"

namespace py = pybind11;

namespace {

using fastq::Network;
using fastq::Pool;
using fastq::Refused;
using fastq::Shape;

std::map<std::string, bool> cpu_features() {
  __builtin_cpu_init();
  return {
      {"sse4.2", __builtin_cpu_supports("sse4.2") != 0},
      {"avx2", __builtin_cpu_supports("avx2") != 0},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"f16c", __builtin_cpu_supports("f16c") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16") != 0},
      {"amx", fastq::has_amx()},
  };
}

// A copy of an array's elements, in their order, whose dtype is T's: those of files need not be aligned. None: empty.
template <class T>
std::vector<T> elements(const char* name, const std::optional<py::array>& given) {
  if (!given) return {};
  if (!py::isinstance<py::array_t<T>>(*given))
    throw Refused(std::string(name) + " must be of " + py::cast<std::string>(py::str(py::dtype::of<T>())) + ", got " +
                  py::cast<std::string>(py::str(given->dtype())));
  const auto dense = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(*given);
  if (!dense) throw std::bad_alloc();  // what pybind11 was told it has cleared
  std::vector<T> copy(size_t(dense.size()));
  if (!copy.empty()) std::memcpy(copy.data(), dense.data(), copy.size() * sizeof(T));
  return copy;
}

Shape shape_of(const std::vector<int64_t>& axes) {
  if (axes.size() == 2) return {false, axes[0], axes[1], 1, 1};
  if (axes.size() == 4) return {true, axes[0], axes[1], axes[2], axes[3]};
  throw Refused("the input: takes (B, C, H, W) or (B, F), got " + std::to_string(axes.size()) + " axes");
}

std::vector<int64_t> axes_of(const Shape& s) {
  if (!s.image) return {s.batch, s.channels};
  return {s.batch, s.channels, s.height, s.width};
}

py::array_t<float> run(Network& network, const py::array& x) {
  const auto* const given = static_cast<const float*>(x.data());
  if (!py::isinstance<py::array_t<float>>(x) || (x.flags() & py::array::c_style) == 0 ||
      reinterpret_cast<uintptr_t>(given) % alignof(float) != 0)
    throw Refused("the input: takes a C-contiguous, aligned array of float32");
  const Shape input = shape_of({x.shape(), x.shape() + x.ndim()});
  py::array_t<float> out(axes_of(network.output_shape(input)));
  float* const to = out.mutable_data();
  {
    const py::gil_scoped_release released;
    network.run(input, given, to);
  }
  return out;
}

using Two = std::array<int64_t, 2>;

}  // namespace

PYBIND11_MODULE(_runtime, m) {
  m.doc() = "fastq's native runtime: CPU features, the build's compiler, and networks over NumPy arrays.";
  m.def("cpu_features", &cpu_features, "Which instruction set extensions this processor has, by name.");
  m.def("best_isa", &fastq::best_isa, "The highest x86-64 level N (x86-64-vN) this processor runs, 2 to 4; 0 below.");
  m.def(
      "isa",
      [] {
        const char* error = nullptr;
        const fastq::GemmLoops* loops = fastq::gemm_loops_in_use(&error);
        if (loops == nullptr) throw std::runtime_error(error);
        return std::string(loops->name);
      },
      "The instruction set of the integer products that run here: v2, v3, v4, or beyond it vnni or amx; what has no "
      "such kernels runs v4's. RuntimeError where FASTQ_CPU_ISA asks for another.");
  m.def(
      "best",
      [] {
        const char* reason = nullptr;
        const int level = fastq::best_level(&reason);
        return std::make_pair(std::string(fastq::kLevelNames[level]), std::string(reason == nullptr ? "" : reason));
      },
      "The best of these that this machine runs, '' for none, and why it is not the one above it, where that is not "
      "the processor's doing.");
  m.attr("compiler") = __VERSION__;

  using namespace py::literals;
  py::class_<Network>(m, "Network",
                      "Steps that are added one by one, each of which gives its number; step 0 is the input. "
                      "ValueError for a step that cannot be.")
      .def(py::init<int>(), "threads"_a)
      .def("quantize", &Network::quantize, "name"_a, "input"_a, "scale"_a, "low"_a, "high"_a, "zero"_a)
      .def(
          "weight",
          [](Network& self, const std::string& name, const py::array& rows, const py::array& scale,
             const std::optional<py::array>& zero, std::array<int64_t, 4> form) {
            return self.weight(name, {form[0], form[1], form[2], form[3], elements<uint8_t>("weight", rows),
                                      elements<float>("weight_scale", scale), elements<int32_t>("weight_zero", zero)});
          },
          "name"_a, "rows"_a, "scale"_a, "zero"_a, "form"_a, "No step: its number is for any `product` to take.")
      .def(
          "product",
          [](Network& self, const std::string& name, int64_t input, int64_t weight,
             const std::optional<fastq::WindowNumbers>& window, const std::optional<py::array>& x_scale, int64_t x_zero,
             const std::optional<py::array>& bias, const std::optional<py::array>& multiplier,
             const std::optional<py::array>& addend, std::optional<int64_t> residual, bool relu,
             const std::optional<py::array>& out_scale, std::array<int64_t, 3> out_codes) {
            fastq::Product p;
            p.name = name;
            p.input = input;
            p.weight = weight;
            p.convolution = window.has_value();
            if (window) p.window = *window;
            p.x_scale = elements<float>("x_scale", x_scale);
            p.x_zero = x_zero;
            p.bias = elements<float>("bias", bias);
            p.multiplier = elements<float>("multiplier", multiplier);
            p.addend = elements<float>("addend", addend);
            if (residual && *residual < 0) throw Refused(name + ": the residual is no step");
            p.residual = residual.value_or(-1);
            p.relu = relu;
            p.out_scale = elements<float>("out_scale", out_scale);
            p.low = out_codes[0];
            p.high = out_codes[1];
            p.out_zero = out_codes[2];
            return self.product(std::move(p));
          },
          "name"_a, "input"_a, "weight"_a, "window"_a, "x_scale"_a, "x_zero"_a, "bias"_a, "multiplier"_a, "addend"_a,
          "residual"_a, "relu"_a, "out_scale"_a, "out_codes"_a)
      .def(
          "affine",
          [](Network& self, const std::string& name, int64_t input, const py::array& multiplier,
             const py::array& addend) {
            return self.affine(name, input, elements<float>("multiplier", multiplier),
                               elements<float>("addend", addend));
          },
          "name"_a, "input"_a, "multiplier"_a, "addend"_a)
      .def("clip", &Network::clip, "name"_a, "input"_a, "highest"_a)
      .def("add", &Network::add, "name"_a, "input"_a, "other"_a)
      .def("flatten", &Network::flatten, "name"_a, "input"_a, "features"_a)
      .def(
          "max_pool",
          [](Network& self, const std::string& name, int64_t input, Two kernel, Two stride, Two padding, Two dilation,
             bool ceil) { return self.max_pool(name, input, Pool{kernel, stride, padding, dilation, ceil, true, 0}); },
          "name"_a, "input"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "ceil"_a)
      .def(
          "average_pool",
          [](Network& self, const std::string& name, int64_t input, Two kernel, Two stride, Two padding, bool ceil,
             bool count_padding, int64_t divisor) {
            return self.average_pool(name, input, Pool{kernel, stride, padding, {1, 1}, ceil, count_padding, divisor});
          },
          "name"_a, "input"_a, "kernel"_a, "stride"_a, "padding"_a, "ceil"_a, "count_padding"_a, "divisor"_a)
      .def("adaptive_average_pool", &Network::adaptive_average_pool, "name"_a, "input"_a, "height"_a, "width"_a)
      .def("mean", &Network::mean, "name"_a, "input"_a, "keep"_a)
      .def("finish", &Network::finish, "output"_a, "The last call before `run`: which step's value is given.")
      .def("run", &run, "x"_a, "float32 (B, C, H, W) or (B, F), C-contiguous, to a new array. Without the GIL.")
      .def("expects", &Network::expects, "The input's axes, with 0 for any length; empty where no step asks for any.")
      .def(
          "output_shape",
          [](const Network& self, const std::vector<int64_t>& shape) {
            return axes_of(self.output_shape(shape_of(shape)));
          },
          "shape"_a)
      .def(
          "memory", [](const Network& self, const std::vector<int64_t>& shape) { return self.memory(shape_of(shape)); },
          "shape"_a, "Bytes of the buffers for an input of that shape.")
      .def_property_readonly("threads", &Network::threads);
}
