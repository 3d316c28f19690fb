// fastq._runtime: what runs without torch. Today the CPU's features and the instruction set in use; the integer runtime
// over NumPy arrays comes here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "../cpu/call.h"
#include "../cpu/features.h"

namespace {

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

}  // namespace

PYBIND11_MODULE(_runtime, m) {
  m.doc() = "fastq's native runtime: CPU features and the build's compiler.";
  m.def("cpu_features", &cpu_features, "Which instruction set extensions this processor has, by name.");
  m.def("best_isa", &fastq::best_isa, "The highest x86-64 level N (x86-64-vN) this processor runs, 2 to 4; 0 below.");
  m.def(
      "isa",
      [] {
        const char* error = nullptr;
        const fastq::Kernels* k = fastq::kernels(&error);
        if (k == nullptr) throw std::runtime_error(error);
        return std::string(k->isa);
      },
      "The instruction set whose kernels run here: v2, v3 or v4. RuntimeError where FASTQ_CPU_ISA asks for another.");
  m.attr("compiler") = __VERSION__;
}
