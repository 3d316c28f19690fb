// The integer engine's CPU code over ragged shapes, against loops written here: for builds with sanitizers, so every
// array is a heap block of exactly its size. Prints how many cases ran; exits with 1 at the first difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "../../csrc/cpu/features.h"
#include "../../csrc/cpu/gemm.cpp"

using namespace fastq;

static uint32_t state = 1;
static int drawn(int low, int high) {  // both ends included
  state = state * 1664525u + 1013904223u;
  return low + int((state >> 8) % uint32_t(high - low + 1));
}

template <class T>
struct Array {
  int64_t size;
  std::unique_ptr<T[]> data;
  explicit Array(int64_t n) : size(n), data(new T[n]()) {}
  T& operator[](int64_t i) { return data[i]; }
};

static int cases = 0;
static void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("case %d: %s\n", cases, what);
  std::exit(1);
}

// What the kernels take for a task: exactly as much as they ask for, and never what another task left.
uint8_t* fastq::task_memory(int64_t bytes) {
  static std::unique_ptr<uint8_t, void (*)(void*)> memory(nullptr, std::free);
  const int64_t whole = (bytes + 63) / 64 * 64;
  memory.reset(static_cast<uint8_t*>(std::aligned_alloc(64, size_t(whole))));
  std::memset(memory.get(), 0x5a, size_t(whole));
  return memory.get();
}

// Fields of a weight, packed in one of the layouts.
struct Weight {
  int64_t n, k, bytes;
  int bits;
  Layout layout;
  Array<int32_t> field;
  Array<uint8_t> data;
  Weight(int64_t rows, int64_t columns, int width, Layout lay)
      : n(rows),
        k(columns),
        bytes(row_bytes(lay, width, columns)),
        bits(width),
        layout(lay),
        field(n * k),
        data(stored_rows(lay, n) * bytes) {
    if (lay == Layout::blocks) {
      const Weight plain(n, k, bits, Layout::rows);
      for (int64_t i = 0; i < n * k; ++i) field[i] = plain.field.data[i];
      // The same of fields that are bytes, whose higher bits do not count.
      Array<int8_t> bytes_of(n * k);
      for (int64_t i = 0; i < n * k; ++i) bytes_of[i] = int8_t(field[i]);
      const int64_t blocks = stored_rows(lay, n);
      Array<uint8_t> again(blocks * bytes);
      gemm_loops.blocks({n, k, bits, bytes_of.data.get(), nullptr, again.data.get()}, 0, blocks);
      const PackCall c = {n, k, bits, nullptr, plain.data.data.get(), data.data.get()};
      gemm_loops.blocks(c, blocks / 2, blocks);
      gemm_loops.blocks(c, 0, blocks / 2);
      for (int64_t i = 0; i < blocks * bytes; ++i) require(data[i] == again[i], "blocks of bytes");
      return;
    }
    const int taken = field_bits(layout, bits);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j) {
        const int f = field[i * k + j] = drawn(-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
        for (int b = 0; b < taken; ++b) {
          const int64_t tile = j / tile_elements(bits), in_tile = j % tile_elements(bits);
          const int64_t at =
              layout == Layout::rows ? j * bits + b : (tile * 64 + in_tile % 64) * 8 + in_tile / 64 * taken + b;
          data[i * bytes + at / 8] |= uint8_t(((uint32_t(f) >> b) & 1u) << (at % 8));
        }
      }
  }
};

template <int kBits>
static void check_words(Weight& w) {
  for (int64_t i = 0; i < w.n; ++i)
    for (int64_t at = 0; at < w.bytes; at += 4)
      for (int place = 0; place < 8 / kBits; ++place) {
        uint32_t word;
        std::memcpy(&word, &w.data[i * w.bytes + at], 4);
        const uint32_t fields = four_fields<kBits>(word, place), scaled = four_scaled_fields<kBits>(word, place);
        for (int j = 0; j < 4; ++j) {
          const int64_t k = at / 64 * tile_elements(w.bits) + place * 64 + at % 64 + j;
          const int want = k < w.k ? w.field[i * w.k + k] : 0;
          require(int8_t(fields >> (8 * j)) == want, "four_fields");
          require(int8_t(scaled >> (8 * j)) == want * (1 << (8 - kBits)), "four_scaled_fields");
        }
      }
}

static void check_packing(int64_t k, int bits) {
  ++cases;
  Weight rows(2, k, bits, Layout::rows), tiles(2, k, bits, Layout::tiles), blocks(19, k, bits, Layout::blocks);
  for (int64_t i = 0; i < 19; ++i)
    for (int64_t j = 0; j < k; ++j)
      require(field_of_blocks(&blocks.data[0], blocks.bytes, bits, i, j) == blocks.field[i * k + j], "field_of_blocks");
  for (Weight* w : {&rows, &tiles})
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < k; ++j)
        require(field_at(&w->data[i * w->bytes], w->layout, bits, j) == w->field[i * k + j], "field_at");
  if (k > 0 && field_bits(Layout::tiles, bits) == 2) check_words<2>(tiles);
  if (k > 0 && field_bits(Layout::tiles, bits) == 4) check_words<4>(tiles);
  if (k > 0 && field_bits(Layout::tiles, bits) == 8) check_words<8>(tiles);
  for (int64_t first = 0; first < k; first += 8) {
    const int64_t count = 1 + drawn(0, int(k - first - 1));
    Array<int16_t> got(count);
    unpack_rows<int16_t>(&rows.data[rows.bytes], bits, first, count, 3, &got[0]);
    for (int64_t j = 0; j < count; ++j) require(got[j] == rows.field[k + first + j] - 3, "unpack_rows");
  }
}

static float bf16_of(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float v;
  std::memcpy(&v, &word, 4);
  return v;
}

struct Case {
  int64_t m, n, k;
  int bits;
  int64_t group_size;
  bool zeros, epilogue;
  Stored x, out;
};

// Run `c` as a filled-in call; `want` gives the exact sum of a part of K for a row and a column.
template <class Want>
static void check_product(GemmCall c, const Case& of, const Weight& w, const Want& want) {
  ++cases;
  const int64_t scales = of.n * c.scale_groups, size = of.out == Stored::f32 || of.out == Stored::i32 ? 4
                                                       : of.out == Stored::bf16                       ? 2
                                                                                                      : 1;
  Array<float> scale(scales), bias(of.n), multiplier(of.n), addend(of.n), x_scale(of.m), out_scale(1);
  Array<int32_t> zero(scales);
  Array<uint16_t> residual(of.m * of.n);
  Array<uint8_t> out(of.m * of.n * size);
  const int middle = 1 << (of.bits - 1);
  for (int64_t i = 0; i < scales; ++i)
    scale[i] = float(drawn(1, 100)) / 64, zero[i] = of.zeros ? drawn(-middle, middle - 1) : 0;
  for (int64_t i = 0; i < of.n; ++i)
    bias[i] = float(drawn(-99, 99)), multiplier[i] = float(drawn(-9, 9)) / 8, addend[i] = float(drawn(-9, 9));
  for (int64_t i = 0; i < of.m; ++i) x_scale[i] = float(drawn(1, 9)) / 16;
  for (int64_t i = 0; i < of.m * of.n; ++i) residual[i] = uint16_t(drawn(0x3f80, 0x4100));
  out_scale[0] = 37.0f;
  c.m = of.m, c.n = of.n, c.k = of.k, c.bits = of.bits, c.layout = Layout::blocks, c.row_bytes = w.bytes;
  Array<int32_t> sums(scales);
  c.x_type = of.x, c.out_type = of.out, c.weight = w.data.data.get(), c.out = out.data.get();
  c.scale = scale.data.get(), c.scale_step = c.scale_groups, c.zero = of.zeros ? zero.data.get() : nullptr;
  if (of.epilogue) {
    c.bias = bias.data.get(), c.multiplier = multiplier.data.get(), c.addend = addend.data.get();
    c.residual = residual.data.get(), c.residual_type = Stored::bf16, c.activation = Activation::relu;
    if (c.integer()) c.x_scale = x_scale.data.get(), c.x_scale_step = of.m > 1;
  }
  c.out_scale = out_scale.data.get(), c.low = of.out == Stored::u8 ? 0 : -128, c.high = c.low + 255, c.out_zero = 5;
  for (int64_t j = 0; j < of.n; ++j)
    for (int64_t k = 0; k < of.k; ++k) {
      int32_t& sum = sums[j * c.scale_groups + k / c.group_size];
      sum += w.field.data[j * of.k + k] - zero[j * c.scale_groups + k / c.group_size];
    }
  c.sums = sums.data.get();
  const GemmPlan plan = gemm_loops.plan(c);
  const int64_t tasks = plan.count(), packed = plan.shared ? plan.row_tasks * plan.rows * plan.stride : 0;
  std::unique_ptr<uint8_t, void (*)(void*)> memory(static_cast<uint8_t*>(std::aligned_alloc(64, size_t(packed + 64))),
                                                   std::free);
  if (plan.shared && plan.stride > 0) {
    gemm_loops.pack(c, plan, memory.get(), of.m / 2, of.m);
    gemm_loops.pack(c, plan, memory.get(), 0, of.m / 2);
  }
  gemm_loops.product(c, plan, memory.get(), tasks / 2, tasks);
  gemm_loops.product(c, plan, memory.get(), 0, tasks / 2);
  for (int64_t i = 0; i < of.m; ++i)
    for (int64_t j = 0; j < of.n; ++j) {
      const int64_t at = i * of.n + j;
      if (of.out == Stored::i32) {
        int32_t got;
        std::memcpy(&got, &out[at * 4], 4);
        require(got == want(i, j, 0, of.k, zero[j]), "an accumulator");
        continue;
      }
      double y = 0;
      for (int64_t g = 0; g < c.scale_groups; ++g) {
        const int64_t begin = g * c.group_size, end = least(begin + c.group_size, of.k);
        const float row = c.x_scale == nullptr ? 1.0f : x_scale[i * c.x_scale_step];
        y += double(want(i, j, begin, end, zero[j * c.scale_groups + g])) * row * scale[j * c.scale_groups + g];
      }
      if (of.epilogue) y = std::fmax((y + bias[j]) * multiplier[j] + addend[j] + bf16_of(residual[at]), 0.0);
      if (of.out == Stored::f32) {
        float got;
        std::memcpy(&got, &out[at * 4], 4);
        require(std::fabs(got - y) <= 1e-5 * (1 + std::fabs(y)) * std::sqrt(double(of.k + 1)), "a float");
      } else if (of.out == Stored::bf16) {
        uint16_t got;
        std::memcpy(&got, &out[at * 2], 2);
        require(std::fabs(bf16_of(got) - y) <= 0.01 * (1 + std::fabs(y)), "a bfloat16");
      } else {
        const double code = std::fmin(std::fmax(y / 37.0, c.low - 5), c.high - 5) + 5;
        const int got = of.out == Stored::u8 ? int(out[at]) : int(int8_t(out[at]));
        require(std::fabs(got - code) <= 0.51, "a code");
      }
    }
}

// x in exactly its bytes: codes, or bfloat16 of small whole numbers (exact).
struct Input {
  Stored type;
  Array<int32_t> value;
  Array<uint8_t> data;
  Input(int64_t count, Stored t) : type(t), value(count), data(count * (is_code(t) ? 1 : t == Stored::f32 ? 4 : 2)) {
    for (int64_t i = 0; i < count; ++i) {
      const int v = value[i] = t == Stored::u8 ? drawn(0, 255) : drawn(-128, 127);
      const float f = float(v);
      uint32_t word;
      std::memcpy(&word, &f, 4);
      const uint16_t half = uint16_t(word >> 16);
      if (is_code(t)) data[i] = uint8_t(v);
      if (t == Stored::bf16) std::memcpy(&data[i * 2], &half, 2);
      if (t == Stored::f32) std::memcpy(&data[i * 4], &f, 4);
    }
  }
};

static void check_linear(const Case& of) {
  const Weight w(of.n, of.k, of.bits, Layout::blocks);
  Input x(of.m * of.k, of.x);
  GemmCall c = {};
  c.x = x.data.data.get();
  c.x_zero = is_code(of.x) ? 7 : 0;
  c.group_size = of.group_size > 0 ? of.group_size : of.k > 0 ? of.k : 1;
  c.scale_groups = of.group_size > 0 ? (of.k + of.group_size - 1) / of.group_size : 1;
  check_product(c, of, w, [&](int64_t i, int64_t j, int64_t begin, int64_t end, int32_t zero) {
    int64_t sum = 0;
    for (int64_t k = begin; k < end; ++k)
      sum += int64_t(x.value[i * of.k + k] - c.x_zero) * (w.field.data[j * of.k + k] - zero);
    return sum;
  });
}

static void check_convolution(GemmWindow v, int64_t n, int bits, bool zeros, Stored type, Stored out) {
  const int64_t bottom = drawn(0, 2), right = drawn(0, 2);
  v.oh = (v.height + v.top + bottom - v.dh * (v.kh - 1) - 1) / v.sh + 1;
  v.ow = (v.width + v.left + right - v.dw * (v.kw - 1) - 1) / v.sw + 1;
  const Case of = {v.batch * v.oh * v.ow, n, v.kh * v.kw * v.channels, bits, 0, zeros, false, type, out};
  const Weight w(n, of.k, bits, Layout::blocks);
  Input x(v.batch * v.height * v.width * v.groups * v.channels, type);
  GemmCall c = {};
  c.x = x.data.data.get();
  c.x_zero = is_code(type) ? 7 : 0;
  c.group_size = of.k;
  c.scale_groups = 1;
  c.convolution = true;
  c.window = v;
  check_product(c, of, w, [&](int64_t i, int64_t j, int64_t begin, int64_t end, int32_t zero) {
    const int64_t b = i / (v.oh * v.ow), oy = i / v.ow % v.oh, ox = i % v.ow, group = j / (n / v.groups);
    int64_t sum = 0;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t tap = k / v.channels, y = oy * v.sh + tap / v.kw * v.dh - v.top,
                    p = ox * v.sw + tap % v.kw * v.dw - v.left;
      if (y < 0 || y >= v.height || p < 0 || p >= v.width) continue;
      const int64_t at = (((b * v.height + y) * v.width + p) * v.groups + group) * v.channels + k % v.channels;
      sum += int64_t(x.value[at] - c.x_zero) * (w.field.data[j * of.k + k] - zero);
    }
    return sum;
  });
}

static void check_codes(int64_t rows, int64_t k, bool each) {
  ++cases;
  Array<uint16_t> x(rows * k);
  Array<uint8_t> out(rows * k);
  Array<float> scale(rows);
  for (int64_t i = 0; i < rows * k; ++i) x[i] = uint16_t(drawn(0, 65535));  // of every kind: NaN and infinity too
  scale[0] = 0.25f;
  QuantizeCall c = {};
  c.x_type = Stored::bf16, c.x = x.data.get(), c.rows = each ? rows : 1, c.k = each ? k : rows * k;
  c.low = -127, c.high = 127, c.out = out.data.get(), c.scale = scale.data.get(),
  c.scales = each ? scale.data.get() : nullptr;
  if (each)
    gemm_loops.rows(c, 0, rows);
  else
    gemm_loops.quantize(c, 0, (c.k + kChunk - 1) / kChunk);
  for (int64_t i = 0; i < rows * k; ++i) {
    const double q = double(bf16_of(x[i])) / double(scale[each ? i / k : 0]);
    const double want = q != q ? 0 : std::fmin(std::fmax(q, -127), 127);
    require(std::fabs(int8_t(out[i]) - want) <= 0.51, "a code of a number");
  }
}

int main() {
#if defined(__AMX_INT8__)
  if (!allow_amx()) return 2;
#endif
  for (int bits : {2, 3, 4, 8})
    for (int64_t k : {0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 257, 300}) check_packing(k, bits);
  const Stored outs[] = {Stored::i32, Stored::f32, Stored::bf16, Stored::i8, Stored::u8};
  const int widths[] = {2, 3, 4, 8};
  int turn = 0;
  for (int64_t m : {1, 3, 5, 64, 66})
    for (int64_t n : {1, 31, 33})
      for (int64_t k : {0, 1, 17, 511, 513, 1030}) {
        ++turn;
        const Stored x = turn % 2 ? Stored::i8 : Stored::u8;
        check_linear({m, n, k, widths[turn % 4], 0, turn % 3 == 0, turn % 5 > 1, x, outs[turn % 5]});
      }
  for (int64_t group_size : {16, 48, 528})
    for (int64_t k : {0, 15, 96, 1100})
      for (Stored x : {Stored::i8, Stored::bf16, Stored::f32}) {
        ++turn;
        check_linear({6, 34, k, widths[turn % 4], group_size, turn % 2 == 0, true, x, outs[1 + turn % 4]});
      }
  for (Stored x : {Stored::bf16, Stored::f32}) check_linear({67, 5, 259, 3, 0, true, true, x, Stored::f32});
  for (int64_t channels : {1, 3, 40})
    for (int64_t groups : {1, 2, 130})
      for (int64_t stride : {1, 2}) {
        if (channels * groups > 200) continue;
        ++turn;
        const GemmWindow v = {1 + turn % 2,     7,        6,      channels,   groups,
                              1 + turn % 3,     3,        stride, 3 - stride, 1 + turn % 2,
                              1 + turn / 2 % 2, turn % 3, 1,      0,          0};
        const Stored x = turn % 3 == 0 ? Stored::bf16 : turn % 3 == 1 ? Stored::i8 : Stored::u8;
        check_convolution(v, groups * (1 + turn % 2), widths[turn % 4], turn % 2 == 0, x,
                          x == Stored::bf16 ? Stored::f32 : outs[turn % 2]);
      }
  // Padding wider than the image; K of more than one step, which begins within a line of the kernel.
  check_convolution({2, 5, 2, 3, 1, 3, 4, 1, 1, 1, 1, 6, 4, 0, 0}, 5, 4, true, Stored::u8, Stored::i32);
  check_convolution({1, 5, 6, 70, 1, 3, 4, 1, 2, 1, 1, 2, 1, 0, 0}, 5, 3, true, Stored::i8, Stored::i32);
  check_convolution({1, 5, 6, 70, 1, 3, 4, 1, 2, 1, 1, 2, 1, 0, 0}, 5, 2, true, Stored::bf16, Stored::f32);
  check_convolution({1, 9, 9, 1, 3, 7, 7, 1, 1, 1, 1, 3, 3, 0, 0}, 6, 4, true, Stored::u8, Stored::i32);  // 49 taps
  // Images that are read as they lie, in one and in several lines, wider than a task's rows, with a border on all
  // sides.
  for (int bits : widths)
    for (int64_t width : {1, 5, 15, 40})
      for (int64_t dilation : {1, 2}) {
        ++turn;
        check_convolution({1 + turn % 2, 6, width, 64 * (1 + turn % 2), 1, 3, 3, 1, 1, dilation, dilation, 2 * dilation,
                           dilation, 0, 0},
                          turn % 3 == 0 ? 33 : 70, bits, turn % 2 == 0, turn % 3 ? Stored::i8 : Stored::u8,
                          outs[turn % 5]);
      }
  // The same with outputs lines and pixels apart, and by lines of the kernel where channels are no whole tiles.
  for (int bits : widths)
    for (int64_t channels : {1, 3, 16, 40, 64, 96})
      for (int64_t kernel : {1, 2, 3, 7}) {
        ++turn;
        const int64_t down = 1 + turn % 3, across = 1 + turn / 2 % 2, dilation = kernel < 7 ? 1 + turn % 5 / 4 : 1;
        check_convolution({1 + turn % 2, 15, 17, channels, 1, kernel, 1 + (turn * kernel) % 7 % kernel, down, across,
                           dilation, 1, turn % 3, turn % 4, 0, 0},
                          turn % 3 == 0 ? 33 : 7, bits, turn % 2 == 0, turn % 3 ? Stored::i8 : Stored::u8,
                          outs[turn % 5]);
      }
  for (int64_t k : {0, 1, 15, 4097}) check_codes(3, k, true), check_codes(3, k, false);
  std::printf("%d\n", cases);
}
