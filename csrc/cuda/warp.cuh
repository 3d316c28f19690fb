// A warp and its matrix product, for kernels that are written warp by warp.
//
// Between two barriers of its block a warp goes through steps of its own: warp.each(step), a function of the lane. What
// a lane keeps from step to step is a Lanes<T>: on the device a variable in registers; compiled as plain C++
// (tests/cuda/) one for each of the 32 lanes, and a step is a loop over them. A matrix product, which takes its
// operands from the registers of all lanes, is one instruction of the device, or the same product written out over the
// fragments as the PTX ISA describes them ("Matrix Fragments for mma.m16n8k16", "... m16n8k32").
#pragma once

#include "storage.cuh"

namespace fastq::cuda {

constexpr int kWarp = 32;

#if defined(__CUDACC__)

template <class T>
struct Lanes {
  T own;
  __device__ __forceinline__ T& operator[](int) { return own; }
};

struct Warp {
  int index;
  template <class Step>
  __device__ __forceinline__ void each(const Step& step) const {
    step(int(threadIdx.x) % kWarp);
  }
};

#else

template <class T>
struct Lanes {
  T all[kWarp];
  Lanes() { memset(static_cast<void*>(all), 0xff, sizeof(all)); }  // what nobody wrote is NaN
  T& operator[](int lane) { return all[lane]; }
};

// Lanes run upwards in one warp and downwards in the next, as threads do in blocks (launch.cuh).
struct Warp {
  int index;
  template <class Step>
  void each(const Step& step) const {
    for (int i = 0; i < kWarp; ++i) step(index % 2 == 1 ? kWarp - 1 - i : i);
  }
};

#endif

// Registers of a lane in D += A B: A is 16 x K, B is K x 8, D is 16 x 8, and K is 32 bytes. With g = lane / 4 and
// t = lane % 4, counting K in words of 32 bits: a[0] and a[2] are A's row g at the words t and t + 4, a[1] and a[3] its
// row g + 8; b[0] and b[1] are B's column g at the words t and t + 4; d[0] and d[1] are D's row g at the columns 2t and
// 2t + 1, d[2] and d[3] its row g + 8. As A and B meet word by word, which K a word stands for is the caller's to say.
template <class D>
struct Fragments {
  const uint32_t* a;
  const uint32_t* b;
  D* d;
};

// What the words of B hold: 4 bytes (int8_t, uint8_t; A's are signed), or 2 numbers of a storage type.
template <class Element>
struct Product;

#if defined(__CUDACC__)

#define FASTQ_PRODUCT_(Element, D_, shape, types, letter)                                  \
  template <>                                                                              \
  struct Product<Element> {                                                                \
    using D = D_;                                                                          \
    template <class Of>                                                                    \
    __device__ static __forceinline__ void add(const Warp&, const Of& fragments_of) {      \
      const Fragments<D> f = fragments_of(0);                                              \
      asm("mma.sync.aligned." shape ".row.col." types                                      \
          " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                                \
          "{%0, %1, %2, %3};"                                                              \
          : "+" letter(f.d[0]), "+" letter(f.d[1]), "+" letter(f.d[2]), "+" letter(f.d[3]) \
          : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1])); \
    }                                                                                      \
  };
FASTQ_PRODUCT_(int8_t, int32_t, "m16n8k32", "s32.s8.s8.s32", "r")
FASTQ_PRODUCT_(uint8_t, int32_t, "m16n8k32", "s32.s8.u8.s32", "r")
FASTQ_PRODUCT_(BFloat16Storage, float, "m16n8k16", "f32.bf16.bf16.f32", "f")
FASTQ_PRODUCT_(Float16Storage, float, "m16n8k16", "f32.f16.f16.f32", "f")
#undef FASTQ_PRODUCT_

#else

// Elements of a word of A and of B, and what one product of them is added up in before D is rounded, once.
template <class Storage>
struct WordOf {
  static constexpr int kElements = 2;
  using D = float;
  using Sum = double;
  static double a(uint32_t word, int i) { return Storage::load(uint16_t(word >> (16 * i))); }
  static double b(uint32_t word, int i) { return a(word, i); }
  static float add(float d, double sum) { return float(double(d) + sum); }
};
template <class T>
struct WordOfBytes {
  static constexpr int kElements = 4;
  using D = int32_t;
  using Sum = int32_t;
  static int32_t a(uint32_t word, int i) { return int8_t(word >> (8 * i)); }
  static int32_t b(uint32_t word, int i) { return T(word >> (8 * i)); }
  static int32_t add(int32_t d, int32_t sum) { return int32_t(uint32_t(d) + uint32_t(sum)); }
};
template <>
struct WordOf<int8_t> : WordOfBytes<int8_t> {};
template <>
struct WordOf<uint8_t> : WordOfBytes<uint8_t> {};

template <class Element>
struct Product {
  using Word = WordOf<Element>;
  using D = typename Word::D;
  template <class Of>
  static void add(const Warp& warp, const Of& fragments_of) {
    constexpr int kRowWords = 8;
    uint32_t a[16][kRowWords], b[8][kRowWords];  // B by columns
    D* d[16][8];
    warp.each([&](int lane) {
      const Fragments<D> f = fragments_of(lane);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = f.a[i];
      for (int i = 0; i < 2; ++i) b[g][t + 4 * i] = f.b[i];
      for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][2 * t + i % 2] = &f.d[i];
    });
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        typename Word::Sum sum = 0;
        for (int word = 0; word < kRowWords; ++word)
          for (int i = 0; i < Word::kElements; ++i) sum += Word::a(a[row][word], i) * Word::b(b[column][word], i);
        *d[row][column] = Word::add(*d[row][column], sum);
      }
  }
};

#endif

}  // namespace fastq::cuda
