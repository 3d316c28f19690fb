// exp, log, tanh and power of csrc/methods/functions.h over a sample of all floats: prints the largest errors in ulp
// (of power, per 1.3 + 0.75 * exponent), and that a vector gives what a number does; with a file name, writes arguments
// and results there.
#include <cmath>
#include <cstdio>
#include <vector>

#include "../../csrc/cpu/vector.h"

using namespace fastq;

static double ulps(double want, float got) {
  if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got) ? 0 : 1e9;
  if (std::isinf(float(want)) || std::isinf(got)) return float(want) == got ? 0 : 1e9;
  int e;
  std::frexp(float(want) == 0 ? 1e-45f : float(want), &e);
  return std::fabs(want - got) / std::ldexp(1.0, e - 24 > -149 ? e - 24 : -149);
}

static bool same(float a, float b) {
  return std::memcmp(&a, &b, 4) == 0 || (a != a && b != b);
}

int main(int count, char** names) {
  std::vector<float> table;
  double worst[4] = {};
  const float exponents[] = {1.5f, 0.1f, 3.7f, 1.0f, 1e-8f, 2.0f, 30.0f, 251.3f, 1e30f};
  bool alike = true;
  for (uint64_t i = 0; i < (uint64_t(1) << 32); i += 2003) {
    const uint32_t b = uint32_t(i);
    float x;
    std::memcpy(&x, &b, 4);
    const F32 v = splat<F32>(x);
    const float base = x > 0 && x <= 1 ? x : 0.7f, y = exponents[i / 2003 % 9];
    const float of_vector[] = {fastq::exp(v, float())[0], fastq::log(v, float())[0], fastq::tanh(v, float())[0],
                               fastq::power(splat<F32>(base), splat<F32>(y), float())[0]};
    const float of_number[] = {fastq::exp(x, float()), fastq::log(x, float()), fastq::tanh(x, float()),
                               fastq::power(base, y, float())};
    const double want[] = {std::exp(double(x)), std::log(double(x)), std::tanh(double(x)),
                           std::pow(double(base), double(y))};
    const double allowed[] = {1.0, 1.0, 1.0, 1.3 + 0.75 * double(y)};
    for (float argument : {x, base, y}) table.push_back(argument);
    for (int k = 0; k < 4; ++k) {
      alike = alike && same(of_vector[k], of_number[k]);
      worst[k] = std::fmax(worst[k], ulps(want[k], of_number[k]) / allowed[k]);
      table.push_back(of_vector[k]);
    }
  }
  std::printf("%d %.3f %.3f %.3f %.3f\n", int(alike), worst[0], worst[1], worst[2], worst[3]);
  if (count > 1) {
    std::FILE* file = std::fopen(names[1], "wb");
    std::fwrite(table.data(), 4, table.size(), file);
    std::fclose(file);
  }
}
