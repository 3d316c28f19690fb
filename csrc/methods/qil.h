// QIL: fastq/reference/qil.py has the formula and the paper.
//
//   D = max(|width|, eps) ; C = center, for weights max(center, D) ; G = max(|gamma|, eps)
//   u = (a - (C - D)) / (2 D), a = |x| and sign = -1 where x < 0 for weights ; hat = sign * (0; 1 where u >= 1; u^G
//   inside) y = round(hat * L) / L dx      = g * G * u^(G-1) / (2 D) inside 0 < u < 1, else 0 dcenter = -sum sign * dx
//   ; dwidth = -sign(width) * sum sign * dx * (2 u - 1) dgamma  = sign(gamma) * sum g * sign * u^G * ln(u)
//
// The constant is L.
#pragma once

#include "functions.h"

namespace fastq {
inline namespace FASTQ_ISA {

enum class Transforms { activation, weight, weight_by_power };

template <Transforms kWhat>
struct QIL : Quantizer {
  static constexpr bool kWeight = kWhat != Transforms::activation;
  static constexpr bool kPower = kWhat == Transforms::weight_by_power;
  static constexpr int kParameters = kPower ? 3 : 2;  // center, width, gamma
  static constexpr int kPrepared = kParameters;       // C - D, 2 D, G
  static constexpr int kGradients = kParameters;      // dcenter, dwidth, dgamma

  // max(|p|, eps); inf - inf: inf and NaN give NaN
  template <class F>
  FASTQ_HD static F guarded(F p, F eps) {
    const F magnitude = p < F(0) ? -p : p;
    return (magnitude < eps ? eps : magnitude) + (magnitude - magnitude);
  }

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F half = guarded(parameter[1], r.eps);
    F center = parameter[0] + (parameter[0] - parameter[0]);
    if (kWeight && center < half) center = half;
    p[0] = center - half;
    p[1] = F(2) * half;
    if constexpr (kPower) p[2] = guarded(parameter[2], r.eps);
  }

  template <class V, class F>
  FASTQ_HD static V position(V x, const V* p) {
    if constexpr (kWeight) {
      return (select(x < splat<V>(F(0)), -x, x) - p[0]) / p[1];
    } else {
      return (x - p[0]) / p[1];
    }
  }

  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r) {
    const V u = position<V, F>(x, p);
    const V zero = splat<V>(F(0)), one = splat<V>(F(1)), levels = splat<V>(r.constant[0]);
    V hat = clip(u, F(0), F(1));
    if constexpr (kPower) {
      const V nan = nan_of(u, F()) + nan_of(p[2], F());
      hat = select(u <= zero, zero, select(u >= one, one, power(select(u > zero, hat, one), p[2], F()))) + nan;
    }
    if constexpr (kWeight) hat = select(x < zero, -hat, hat);
    return round_clipped(hat * levels, F()) / levels;
  }

  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>&, V* terms) {
    const V u = position<V, F>(x, p);
    const V zero = splat<V>(F(0)), one = splat<V>(F(1));
    const auto inside = both(u > zero, u < one);
    V nan = nan_of(u, F());
    V slope = g;
    if constexpr (kPower) {
      nan = nan + nan_of(p[2], F());
      const V within = select(inside, u, one), raised = power(within, p[2], F());
      slope = g * (p[2] * raised / u);
      terms[2] = select(inside, g * (select(x < zero, -raised, raised) * log(within, F())), nan);
    }
    const V h = select(inside, slope / p[1], nan);
    V signed_h = h;
    if constexpr (kWeight) signed_h = select(x < zero, -h, h);
    terms[0] = signed_h;
    terms[1] = select(inside, signed_h * (splat<V>(F(2)) * u - one), nan);
    return h;
  }

  template <class F>
  FASTQ_HD static F finish(int gradient, F sum, const F* parameter, F scale) {
    const F total = sum * scale;
    // No index that is known at run time alone: on a GPU it would put the parameters into local memory.
    if (gradient == 0) return -total;
    if (gradient == 1) return parameter[1] < F(0) ? total : -total;
    return parameter[kParameters - 1] < F(0) ? -total : total;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
