#include "network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <new>
#include <sstream>
#include <utility>

#include "../cpu/dispatch.h"

namespace fastq {

FASTQ_CPU_TABLE(GemmLoops, gemm_loops)

namespace {

constexpr int64_t kMostLength = std::numeric_limits<int32_t>::max();  // no product of two such numbers leaves int64
constexpr int64_t kMostElements = int64_t(1) << 56;  // of a value: its bytes and those of a few are counted
constexpr int64_t kGrain = 16384;                    // elements that a second thread is worth
constexpr size_t kAlignment = 64;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Refused(text.str());
}

std::string text_of(const Shape& s) {
  std::ostringstream text;
  text << "(" << s.batch << ", " << s.channels;
  if (s.image) text << ", " << s.height << ", " << s.width;
  text << ")";
  return text.str();
}

void check_range(const std::string& name, const char* what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse(name, ": ", what, " must be from ", low, " to ", high, ", got ", value);
}

template <class T>
void check_size(const std::string& name, const char* what, const std::vector<T>& values,
                std::initializer_list<size_t> sizes) {
  for (const size_t size : sizes)
    if (values.size() == size) return;
  refuse(name, ": ", what, " has ", values.size(), " elements for ", *(sizes.end() - 1));
}

int64_t times(const std::string& name, int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product) || product > kMostElements)
    refuse(name, ": a value of more than 2^56 elements");
  return product;
}

// Of a window that goes along an axis: positions of the output. As torch counts them.
int64_t windows(const std::string& name, int64_t length, int64_t before, int64_t after, int64_t kernel, int64_t stride,
                int64_t dilation, bool ceil) {
  const int64_t reach = dilation * (kernel - 1) + 1, padded = length + before + after;
  if (padded < reach)
    refuse(name, ": a kernel that reaches over ", reach, " does not fit the padded input of ", padded);
  int64_t count = (padded - reach + (ceil ? stride - 1 : 0)) / stride + 1;
  if (ceil && (count - 1) * stride >= length + before) --count;
  return count;
}

// Four levels of partial sums, as torch adds: `lanes` streams side by side, each of `size` numbers, number i of stream
// s at x[i * lanes + s].
template <int kLanes>
void cascade(const float* x, int64_t size, float* sums) {
  constexpr int kLevels = 4;
  int64_t log = 0;
  while ((int64_t(1) << log) < size) ++log;
  const int64_t power = std::max<int64_t>(4, log / kLevels), step = int64_t(1) << power, mask = step - 1;
  float level[kLevels][kLanes] = {};
  int64_t i = 0;
  while (i + step <= size) {
    for (int64_t j = 0; j < step; ++j, ++i)
      for (int s = 0; s < kLanes; ++s) level[0][s] += x[i * kLanes + s];
    for (int64_t j = 1; j < kLevels; ++j) {
      for (int s = 0; s < kLanes; ++s) {
        level[j][s] += level[j - 1][s];
        level[j - 1][s] = 0.0f;
      }
      if ((i & (mask << (j * power))) != 0) break;
    }
  }
  for (; i < size; ++i)
    for (int s = 0; s < kLanes; ++s) level[0][s] += x[i * kLanes + s];
  for (int j = 1; j < kLevels; ++j)
    for (int s = 0; s < kLanes; ++s) level[0][s] += level[j][s];
  std::copy(level[0], level[0] + kLanes, sums);
}

// Rows of kWide numbers: four of them side by side, then what is left over, then the four.
template <int kWide>
void sum_rows(const float* x, int64_t rows, float* sums) {
  float four[4 * kWide];
  const int64_t whole = rows / 4;
  cascade<4 * kWide>(x, whole, four);
  for (int64_t i = whole * 4; i < rows; ++i)
    for (int s = 0; s < kWide; ++s) four[s] += x[i * kWide + s];
  for (int k = 1; k < 4; ++k)
    for (int s = 0; s < kWide; ++s) four[s] += four[k * kWide + s];
  std::copy(four, four + kWide, sums);
}

// The sum of contiguous numbers in the order of torch's kernel for vectors of eight, which is that of every x86-64 CPU.
float torch_sum(const float* x, int64_t size) {
  constexpr int kWide = 8;
  float total = 0.0f;
  if (size < kWide) {
    sum_rows<1>(x, size, &total);
    return total;
  }
  float lanes[kWide];
  const int64_t rows = size / kWide;
  sum_rows<kWide>(x, rows, lanes);
  for (int64_t i = rows * kWide; i < size; ++i) total += x[i];
  for (const float lane : lanes) total += lane;
  return total;
}

// [outer, rows, columns] to [outer, columns, rows].
template <class T>
void transpose(Threads& threads, const T* from, T* to, int64_t outer, int64_t rows, int64_t columns) {
  constexpr int64_t kTile = 16;
  const int64_t of_rows = (rows + kTile - 1) / kTile;
  threads.run(outer * of_rows, kGrain / (kTile * columns) + 1, [=](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const T* x = from + task / of_rows * rows * columns;
      T* y = to + task / of_rows * rows * columns;
      const int64_t first = task % of_rows * kTile, last = std::min(first + kTile, rows);
      for (int64_t column = 0; column < columns; column += kTile)
        for (int64_t i = first; i < last; ++i)
          for (int64_t j = column; j < std::min(column + kTile, columns); ++j) y[j * rows + i] = x[i * columns + j];
    }
  });
}

bool has_nan(const float* x, int64_t n) {
  bool found = false;
  for (int64_t i = 0; i < n; ++i) found |= x[i] != x[i];
  return found;
}

// Aligned to lines of the cache.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size)
      : data_(::operator new(std::max<size_t>(size, 1), std::align_val_t(kAlignment))), size_(size) {}
  size_t size() const { return size_; }
  template <class T>
  T* at() const {
    return static_cast<T*>(data_.get());
  }

 private:
  struct Deleter {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<void, Deleter> data_;
  size_t size_ = 0;
};

}  // namespace

// As the kernels read it, whatever the products that take it.
struct Network::Weight {
  WeightArrays arrays;  // without rows
  GemmCall call = {};   // what is the weight's
  std::vector<int32_t> sums;
  Memory blocks;
};

struct Network::Step {
  Op op = Op::input;
  std::string name;
  std::vector<int64_t> takes;
  bool codes = false;  // the value is int8
  int slot = -1;       // where the value lies; -1: it is not used
  Product product;
  GemmCall call = {};  // what does not depend on the input
  int64_t blank = -1;  // product: the step whose samples with a NaN have nothing else in the output
  Pool pool;
  std::vector<float> multiplier, addend;
  float scale = 1.0f, highest = 0.0f;
  int32_t low = 0, high = 0, zero = 0;
  int64_t height = 0, width = 0, features = 0;
  bool keep = false;
};

// A call's memory. What is not used any more serves again.
struct Network::Buffers {
  std::vector<Memory> slots;

  void* at(int slot, size_t bytes) {
    Memory& own = slots.at(slot);
    if (own.size() < bytes) {
      own = Memory();
      own = Memory(bytes);
    }
    return own.at<void>();
  }
};

// Buffers for one call, which go back when it ends, however it does.
class Network::Lease {
 public:
  explicit Lease(Network& network) : network_(network) {
    const std::lock_guard lock(network.mutex_);
    if (!network.idle_.empty()) {
      own_ = std::move(network.idle_.back());
      network.idle_.pop_back();
    } else {
      own_ = std::make_unique<Buffers>();
      own_->slots.resize(network.slots_);
    }
  }
  ~Lease() {
    const std::lock_guard lock(network_.mutex_);
    if (network_.idle_.size() < network_.idle_.capacity()) network_.idle_.push_back(std::move(own_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Buffers* operator->() const { return own_.get(); }

 private:
  Network& network_;
  std::unique_ptr<Buffers> own_;
};

Network::Network(int threads)
    : threads_(threads),
      parallel_([this](int64_t n, int64_t grain, const Loop& body) { threads_.run(n, grain, body); }) {
  if (threads < 1 || threads > 1024) refuse("threads must be from 1 to 1024, got ", threads);
  const char* error = nullptr;
  if (gemm_loops_in_use(&error) == nullptr) refuse(error);
  idle_.reserve(16);  // buffers that are kept: more calls at once make their own
  push(Op::input, "the input", {}, false);
}

Network::~Network() = default;

// ---- steps

void Network::require_open() const {
  if (output_ >= 0) refuse("a network that is finished has no more steps");
}

const Network::Step& Network::taken(int64_t step, const std::string& name) const {
  if (step < 0 || step >= int64_t(steps_.size()))
    refuse(name, ": takes the value of step ", step, " of ", steps_.size(), " before it");
  return *steps_[step];
}

Network::Step& Network::push(Op op, const std::string& name, std::vector<int64_t> takes, bool codes) {
  require_open();
  for (const int64_t step : takes) taken(step, name);
  auto made = std::make_unique<Step>();
  made->op = op;
  made->name = name;
  made->takes = std::move(takes);
  made->codes = codes;
  steps_.push_back(std::move(made));
  return *steps_.back();
}

void Network::floats_alone(const Step& step) const {
  for (const int64_t of : step.takes)
    if (steps_[of]->codes) refuse(step.name, ": takes floating point, and step ", of, " gives codes");
}

int64_t Network::quantize(const std::string& name, int64_t input, float scale, int64_t low, int64_t high,
                          int64_t zero) {
  check_range(name, "the lowest code", low, -128, 127);
  check_range(name, "the highest code", high, low + 1, 127);
  check_range(name, "the zero-point", zero, low, high);
  Step& s = push(Op::quantize, name, {input}, true);
  floats_alone(s);
  s.scale = scale;
  s.low = int32_t(low);
  s.high = int32_t(high);
  s.zero = int32_t(zero);
  return int64_t(steps_.size()) - 1;
}

int64_t Network::weight(const std::string& name, WeightArrays arrays) {
  require_open();
  auto made = std::make_unique<Weight>();
  made->arrays = std::move(arrays);
  WeightArrays& w = made->arrays;
  if (w.bits != 2 && w.bits != 3 && w.bits != 4 && w.bits != 8) refuse(name, ": a weight of ", w.bits, " bits");
  check_range(name, "the number of outputs", w.n, 1, kMostLength);
  check_range(name, "the number of elements of a row", w.k, 1, kMostLength);
  check_range(name, "group_size", w.group_size, 0, kMostLength);
  if (w.group_size % 16 != 0) refuse(name, ": group_size must be a multiple of 16, got ", w.group_size);
  GemmCall& c = made->call;
  c.n = w.n;
  c.k = w.k;
  c.bits = int(w.bits);
  const int64_t bytes = row_bytes(Layout::rows, c.bits, c.k);
  c.group_size = w.group_size > 0 ? w.group_size : w.k;
  c.scale_groups = (c.k + c.group_size - 1) / c.group_size;
  const size_t n = size_t(w.n), scales = n * size_t(c.scale_groups);
  check_size(name, "the weight", w.rows, {n * size_t(bytes)});
  if (w.group_size > 0)
    check_size(name, "the weight's scale", w.scale, {scales});
  else
    check_size(name, "the weight's scale", w.scale, {1, scales});
  const bool shared = w.group_size == 0 && w.scale.size() == 1;
  c.scale_step = shared ? 0 : c.scale_groups;
  if (!w.zero.empty()) check_size(name, "the weight's zero-point", w.zero, {w.scale.size()});
  const int64_t half = int64_t(1) << (w.bits - 1);
  for (const int32_t zero : w.zero) check_range(name, "the weight's zero-point", zero, -half, half - 1);
  made->sums.resize(scales);
  std::array<int32_t, 4096> fields;
  for (int64_t row = 0; row < c.n; ++row)
    for (int64_t group = 0; group < c.scale_groups; ++group) {
      const int64_t end = std::min((group + 1) * c.group_size, c.k);
      const int32_t zero = w.zero.empty() ? 0 : w.zero[row * c.scale_step + group];
      uint32_t sum = 0;
      for (int64_t first = group * c.group_size; first < end; first += int64_t(fields.size())) {
        const int64_t count = std::min(end - first, int64_t(fields.size()));
        unpack_rows(w.rows.data() + row * bytes, c.bits, first, count, zero, fields.data());
        for (int64_t i = 0; i < count; ++i) sum += uint32_t(fields[i]);
      }
      made->sums[row * c.scale_groups + group] = int32_t(sum);
    }
  c.layout = Layout::blocks;
  c.row_bytes = row_bytes(c.layout, c.bits, c.k);
  made->blocks = Memory(size_t(stored_rows(c.layout, c.n) * c.row_bytes));
  fastq::run_pack({c.n, c.k, c.bits, nullptr, w.rows.data(), made->blocks.at<uint8_t>()}, parallel_);
  w.rows = {};
  c.weight = made->blocks.at<uint8_t>();
  c.scale = w.scale.data();
  c.zero = w.zero.empty() ? nullptr : w.zero.data();
  c.sums = made->sums.data();
  weights_.push_back(std::move(made));
  return int64_t(weights_.size()) - 1;
}

int64_t Network::product(Product p) {
  const bool of_codes = taken(p.input, p.name).codes;
  const std::string& name = p.name;
  if (p.weight < 0 || p.weight >= int64_t(weights_.size()))
    refuse(name, ": weight ", p.weight, " of ", weights_.size());
  const WeightArrays& w = weights_[p.weight]->arrays;
  GemmCall c = weights_[p.weight]->call;
  const size_t n = size_t(w.n);
  const int64_t half = int64_t(1) << (w.bits - 1);
  for (const auto& [what, values] : {std::pair{"bias", &p.bias}, {"multiplier", &p.multiplier}, {"addend", &p.addend}})
    if (!values->empty()) check_size(name, what, *values, {n});
  if (p.multiplier.empty() != p.addend.empty()) refuse(name, ": a multiplier goes with an addend");
  if (p.convolution) {
    const auto& [channels, kh, kw, sh, sw, left, right, top, bottom, dh, dw, groups] = p.window;
    for (const int64_t number : {channels, kh, kw, sh, sw, dh, dw, groups})
      check_range(name, "a number of the window", number, 1, kMostLength);
    for (const int64_t number : {left, right, top, bottom}) check_range(name, "the padding", number, 0, kMostLength);
    if (kh * kw > kMostLength || kh * kw * channels != w.k)
      refuse(name, ": rows of ", w.k, " elements for ", channels, " channels and a kernel of ", kh, " x ", kw);
    if (w.n % groups != 0) refuse(name, ": ", groups, " groups do not divide ", w.n, " outputs");
    if (channels * groups > kMostLength) refuse(name, ": ", channels * groups, " channels");
    if (w.group_size != 0) refuse(name, ": a convolution's weight has no group_size");
    c.convolution = true;
    c.window = {.batch = 0,
                .height = 0,
                .width = 0,
                .channels = channels,
                .groups = groups,
                .kh = kh,
                .kw = kw,
                .sh = sh,
                .sw = sw,
                .dh = dh,
                .dw = dw,
                .left = left,
                .top = top,
                .oh = 0,
                .ow = 0};
  }
  if (of_codes) {
    check_size(name, "the scale of the input", p.x_scale, {1});
    check_range(name, "the zero-point of the input", p.x_zero, -128, 127);
    const int64_t of_x = std::max(127 - p.x_zero, p.x_zero + 128), of_w = w.zero.empty() ? half : 2 * half - 1;
    if (std::min(c.k, c.group_size) > kMostLength / (of_x * of_w))
      refuse(name, ": ", std::min(c.k, c.group_size), " products of up to ", of_x, " x ", of_w,
             " could overflow int32");
  } else if (!p.x_scale.empty() || p.x_zero != 0) {
    refuse(name, ": a scale and a zero-point are those of codes, and step ", p.input, " gives floating point");
  }
  const bool gives_codes = !p.out_scale.empty();
  std::vector<int64_t> takes = {p.input};
  if (p.residual != -1) {
    if (taken(p.residual, name).codes) refuse(name, ": the residual must be floating point");
    takes.push_back(p.residual);
  }
  if (gives_codes) {
    check_size(name, "the scale of the output", p.out_scale, {1});
    check_range(name, "the lowest code of the output", p.low, -128, 127);
    check_range(name, "the highest code of the output", p.high, p.low + 1, 127);
    check_range(name, "the zero-point of the output", p.out_zero, p.low, p.high);
  }
  const Step& from = *steps_[p.input];
  const int64_t blank = !gives_codes && from.op == Op::quantize ? from.takes[0] : -1;
  if (blank >= 0) takes.push_back(blank);
  Step& s = push(Op::product, name, std::move(takes), gives_codes);
  s.blank = blank;
  s.product = std::move(p);
  const Product& own = s.product;
  const auto or_null = [](const auto& values) { return values.empty() ? nullptr : values.data(); };
  c.x_type = of_codes ? Stored::i8 : Stored::f32;
  c.x_zero = int32_t(own.x_zero);
  c.x_scale = or_null(own.x_scale);
  c.bias = or_null(own.bias);
  c.multiplier = or_null(own.multiplier);
  c.addend = or_null(own.addend);
  c.residual_type = Stored::f32;
  c.activation = own.relu ? Activation::relu : Activation::none;
  c.out_type = gives_codes ? Stored::i8 : Stored::f32;
  c.out_scale = or_null(own.out_scale);
  c.low = int32_t(own.low);
  c.high = int32_t(own.high);
  c.out_zero = int32_t(own.out_zero);
  s.call = c;
  return int64_t(steps_.size()) - 1;
}

int64_t Network::affine(const std::string& name, int64_t input, std::vector<float> multiplier,
                        std::vector<float> addend) {
  if (multiplier.empty()) refuse(name, ": no channels");
  check_size(name, "addend", addend, {multiplier.size()});
  Step& s = push(Op::affine, name, {input}, false);
  floats_alone(s);
  s.multiplier = std::move(multiplier);
  s.addend = std::move(addend);
  return int64_t(steps_.size()) - 1;
}

int64_t Network::clip(const std::string& name, int64_t input, float highest) {
  if (!(highest >= 0.0f)) refuse(name, ": clips to ", highest);
  Step& s = push(Op::clip, name, {input}, false);
  floats_alone(s);
  s.highest = highest;
  return int64_t(steps_.size()) - 1;
}

int64_t Network::add(const std::string& name, int64_t input, int64_t other) {
  floats_alone(push(Op::add, name, {input, other}, false));
  return int64_t(steps_.size()) - 1;
}

int64_t Network::flatten(const std::string& name, int64_t input, int64_t features) {
  check_range(name, "the number of features", features, 0, kMostLength);
  Step& s = push(Op::flatten, name, {input}, taken(input, name).codes);
  s.features = features;
  return int64_t(steps_.size()) - 1;
}

namespace {

void check_pool(const std::string& name, const Pool& pool) {
  for (int d = 0; d < 2; ++d) {
    check_range(name, "the kernel", pool.kernel[d], 1, kMostLength);
    check_range(name, "the stride", pool.stride[d], 1, kMostLength);
    check_range(name, "the dilation", pool.dilation[d], 1, kMostLength);
    const int64_t reach = pool.dilation[d] * (pool.kernel[d] - 1) + 1;
    check_range(name, "the padding", pool.padding[d], 0, std::min(reach / 2, kMostLength));
  }
  check_range(name, "the divisor", pool.divisor, -kMostLength, kMostLength);
}

}  // namespace

int64_t Network::max_pool(const std::string& name, int64_t input, const Pool& pool) {
  check_pool(name, pool);
  Step& s = push(Op::max_pool, name, {input}, false);
  floats_alone(s);
  s.pool = pool;
  return int64_t(steps_.size()) - 1;
}

int64_t Network::average_pool(const std::string& name, int64_t input, const Pool& pool) {
  check_pool(name, pool);
  if (pool.dilation[0] != 1 || pool.dilation[1] != 1) refuse(name, ": an average has no dilation");
  Step& s = push(Op::average_pool, name, {input}, false);
  floats_alone(s);
  s.pool = pool;
  return int64_t(steps_.size()) - 1;
}

int64_t Network::adaptive_average_pool(const std::string& name, int64_t input, int64_t height, int64_t width) {
  check_range(name, "the height", height, 1, kMostLength);
  check_range(name, "the width", width, 1, kMostLength);
  Step& s = push(Op::adaptive_pool, name, {input}, false);
  floats_alone(s);
  s.height = height;
  s.width = width;
  return int64_t(steps_.size()) - 1;
}

int64_t Network::mean(const std::string& name, int64_t input, bool keep) {
  Step& s = push(Op::mean, name, {input}, false);
  floats_alone(s);
  s.keep = keep;
  return int64_t(steps_.size()) - 1;
}

// Which steps lead to the output, and the buffer of each, free again after the last one that takes it.
void Network::finish(int64_t output) {
  require_open();
  if (output < 0 || output >= int64_t(steps_.size())) refuse("the output is step ", output, " of ", steps_.size());
  if (steps_[output]->codes) refuse("the output is codes; it must be floating point");
  std::vector<int64_t> last(steps_.size(), -1);
  last[output] = int64_t(steps_.size());
  for (int64_t i = output; i > 0; --i)
    if (last[i] >= 0)
      for (const int64_t taken : steps_[i]->takes) last[taken] = std::max(last[taken], i);
  if (last[0] < 0) refuse("the output does not depend on the input");
  std::vector<int> free;
  std::vector<std::vector<int>> ends(steps_.size());
  for (int64_t i = 0; i <= output; ++i) {
    if (last[i] < 0) continue;
    if (free.empty()) free.push_back(slots_++);
    steps_[i]->slot = free.back();
    free.pop_back();
    if (last[i] < int64_t(steps_.size())) ends[last[i]].push_back(steps_[i]->slot);
    free.insert(free.end(), ends[i].begin(), ends[i].end());
  }
  output_ = output;
}

// ---- shapes

std::vector<int64_t> Network::expects() const {
  std::vector<bool> same(steps_.size(), false);  // of the input's shape
  same[0] = true;
  for (size_t i = 1; i < steps_.size(); ++i) {
    const Step& s = *steps_[i];
    if (s.slot < 0 || !same[s.takes[0]]) continue;
    if (s.op == Op::product) {
      if (s.product.convolution) return {0, s.product.window[0] * s.product.window[11], 0, 0};
      return {0, s.call.k};
    }
    same[i] = s.op == Op::quantize || s.op == Op::affine || s.op == Op::clip;
  }
  return {};
}

Shape Network::shape_after(const Step& s, const std::vector<Shape>& shapes) const {
  const Shape& x = shapes[s.takes[0]];
  Shape y = x;
  const auto need_image = [&] {
    if (!x.image) refuse(s.name, ": takes (B, C, H, W), got ", text_of(x));
  };
  switch (s.op) {
    case Op::input:
    case Op::quantize:
    case Op::clip: return y;
    case Op::affine:
      if (x.channels != int64_t(s.multiplier.size()))
        refuse(s.name, ": takes ", s.multiplier.size(), " channels, got ", text_of(x));
      return y;
    case Op::add: {
      const Shape& other = shapes[s.takes[1]];
      if (!(other == x)) refuse(s.name, ": adds values of one shape, got ", text_of(x), " and ", text_of(other));
      return y;
    }
    case Op::flatten:
      y = {false, x.batch, x.sample(), 1, 1};
      if (s.features != 0 && s.features != y.channels)
        refuse(s.name, ": takes ", s.features, " features, got ", y.channels, " of ", text_of(x));
      return y;
    case Op::product: {
      const GemmCall& c = s.call;
      if (!c.convolution) {
        if (x.image || x.channels != c.k) refuse(s.name, ": takes (B, ", c.k, "), got ", text_of(x));
        y.channels = c.n;
      } else {
        const GemmWindow& w = c.window;
        const WindowNumbers& n = s.product.window;
        if (!x.image || x.channels != w.channels * w.groups)
          refuse(s.name, ": takes (B, ", w.channels * w.groups, ", H, W), got ", text_of(x));
        y.channels = c.n;
        y.height = windows(s.name, x.height, n[7], n[8], w.kh, w.sh, w.dh, false);
        y.width = windows(s.name, x.width, n[5], n[6], w.kw, w.sw, w.dw, false);
      }
      if (s.product.residual >= 0 && !(shapes[s.product.residual] == y))
        refuse(s.name, ": adds a residual of ", text_of(shapes[s.product.residual]), " to ", text_of(y));
      return y;
    }
    case Op::max_pool:
    case Op::average_pool: {
      need_image();
      const Pool& p = s.pool;
      y.height = windows(s.name, x.height, p.padding[0], p.padding[0], p.kernel[0], p.stride[0], p.dilation[0], p.ceil);
      y.width = windows(s.name, x.width, p.padding[1], p.padding[1], p.kernel[1], p.stride[1], p.dilation[1], p.ceil);
      return y;
    }
    case Op::adaptive_pool:
      need_image();
      y.height = s.height;
      y.width = s.width;
      return y;
    case Op::mean:
      need_image();
      y.image = s.keep;
      y.height = y.width = 1;
      return y;
  }
  return y;
}

std::vector<Shape> Network::shapes(const Shape& input) const {
  if (output_ < 0) refuse("a network runs when it is finished");
  check_range("the input", "the batch", input.batch, 0, kMostLength);
  for (const int64_t size : {input.channels, input.height, input.width})
    check_range("the input", "an axis", size, 1, kMostLength);
  if (!input.image && input.positions() != 1) refuse("the input: two axes have no height and width");
  std::vector<Shape> found(steps_.size());
  for (int64_t i = 0; i <= output_; ++i) {
    const Step& s = *steps_[i];
    if (s.slot < 0) continue;
    found[i] = i == 0 ? input : shape_after(s, found);
    const Shape& y = found[i];
    for (const int64_t size : {y.channels, y.height, y.width}) check_range(s.name, "an axis", size, 1, kMostLength);
    times(s.name, std::max<int64_t>(y.batch, 1), times(s.name, y.positions(), y.channels));
  }
  return found;
}

Shape Network::output_shape(const Shape& input) const {
  return shapes(input)[output_];
}

// Bytes that each slot needs.
std::vector<size_t> Network::sizes(const std::vector<Shape>& shapes) const {
  std::vector<size_t> bytes(slots_, 0);
  for (int64_t i = 0; i <= output_; ++i) {
    const Step& s = *steps_[i];
    if (s.slot >= 0)
      bytes[s.slot] = std::max(bytes[s.slot], size_t(shapes[i].elements()) * (s.codes ? 1 : sizeof(float)));
  }
  return bytes;
}

int64_t Network::memory(const Shape& input) const {
  int64_t total = 0;
  for (const size_t bytes : sizes(shapes(input)))
    if (__builtin_add_overflow(total, int64_t(bytes), &total)) refuse("the buffers have more than 2^63 bytes");
  return total;
}

// ---- the run

namespace {

// Over samples and lines of the output of a pool: one(image, line) with channels-last pointers.
template <class Line>
void each_line(Threads& threads, const Shape& y, int64_t work, const Line& line) {
  threads.run(y.batch * y.height, kGrain / std::max<int64_t>(y.width * y.channels * work, 1) + 1,
              [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) line(i / y.height, i % y.height);
              });
}

void max_pool_line(const Pool& p, const Shape& x, const Shape& y, const float* from, float* to, int64_t image,
                   int64_t line) {
  const int64_t c = x.channels;
  for (int64_t j = 0; j < y.width; ++j) {
    float* out = to + ((image * y.height + line) * y.width + j) * c;
    std::fill(out, out + c, -std::numeric_limits<float>::infinity());
    const int64_t top = line * p.stride[0] - p.padding[0], left = j * p.stride[1] - p.padding[1];
    const auto first = [](int64_t start, int64_t dilation) {
      return start >= 0 ? 0 : (-start + dilation - 1) / dilation;
    };
    for (int64_t u = first(top, p.dilation[0]); u < p.kernel[0]; ++u) {
      const int64_t row = top + u * p.dilation[0];
      if (row >= x.height) break;
      for (int64_t v = first(left, p.dilation[1]); v < p.kernel[1]; ++v) {
        const int64_t column = left + v * p.dilation[1];
        if (column >= x.width) break;
        const float* in = from + ((image * x.height + row) * x.width + column) * c;
        for (int64_t k = 0; k < c; ++k) out[k] = in[k] > out[k] || in[k] != in[k] ? in[k] : out[k];
      }
    }
  }
}

// The sum of an area, row by row, as torch's pools add.
void sum_area(const Shape& x, const float* from, int64_t image, int64_t top, int64_t bottom, int64_t left,
              int64_t right, float* out) {
  const int64_t c = x.channels;
  std::fill(out, out + c, 0.0f);
  for (int64_t row = top; row < bottom; ++row)
    for (int64_t column = left; column < right; ++column) {
      const float* in = from + ((image * x.height + row) * x.width + column) * c;
      for (int64_t k = 0; k < c; ++k) out[k] += in[k];
    }
}

void average_pool_line(const Pool& p, const Shape& x, const Shape& y, const float* from, float* to, int64_t image,
                       int64_t line) {
  const int64_t c = x.channels;
  for (int64_t j = 0; j < y.width; ++j) {
    float* out = to + ((image * y.height + line) * y.width + j) * c;
    int64_t top = line * p.stride[0] - p.padding[0], left = j * p.stride[1] - p.padding[1];
    int64_t bottom = std::min(top + p.kernel[0], x.height + p.padding[0]);
    int64_t right = std::min(left + p.kernel[1], x.width + p.padding[1]);
    const int64_t whole = (bottom - top) * (right - left);
    top = std::max<int64_t>(top, 0);
    left = std::max<int64_t>(left, 0);
    bottom = std::min(bottom, x.height);
    right = std::min(right, x.width);
    sum_area(x, from, image, top, bottom, left, right, out);
    if (top >= bottom || left >= right) continue;
    const int64_t inside = (bottom - top) * (right - left);
    const float divisor = float(p.divisor != 0 ? p.divisor : p.count_padding ? whole : inside);
    for (int64_t k = 0; k < c; ++k) out[k] = out[k] / divisor;
  }
}

void adaptive_pool_line(const Shape& x, const Shape& y, const float* from, float* to, int64_t image, int64_t line) {
  const int64_t c = x.channels;
  const auto begin = [](int64_t i, int64_t in, int64_t out) { return i * in / out; };
  const auto end = [](int64_t i, int64_t in, int64_t out) { return ((i + 1) * in + out - 1) / out; };
  const int64_t top = begin(line, x.height, y.height), bottom = end(line, x.height, y.height);
  for (int64_t j = 0; j < y.width; ++j) {
    float* out = to + ((image * y.height + line) * y.width + j) * c;
    const int64_t left = begin(j, x.width, y.width), right = end(j, x.width, y.width);
    sum_area(x, from, image, top, bottom, left, right, out);
    const float height = float(bottom - top), width = float(right - left);
    for (int64_t k = 0; k < c; ++k) out[k] = out[k] / height / width;
  }
}

// Channels [begin, end) of an image: their numbers side by side, then the sum.
void means(const Shape& x, const float* from, float* to, int64_t image, int64_t begin, int64_t end) {
  const int64_t count = x.positions();
  std::vector<float> numbers(size_t((end - begin) * count));
  for (int64_t i = 0; i < count; ++i)
    for (int64_t k = begin; k < end; ++k) numbers[(k - begin) * count + i] = from[(image * count + i) * x.channels + k];
  for (int64_t k = begin; k < end; ++k)
    to[image * x.channels + k] = torch_sum(numbers.data() + (k - begin) * count, count) / float(count);
}

}  // namespace

void Network::run_product(const Step& s, const std::vector<Shape>& shapes, const std::vector<void*>& values,
                          const Shape& y, void* out) {
  GemmCall c = s.call;
  const Shape& x = shapes[s.takes[0]];
  c.m = y.batch * y.positions();
  if (c.m == 0) return;
  c.x = values[s.takes[0]];
  c.out = out;
  c.residual = s.product.residual >= 0 ? values[s.product.residual] : nullptr;
  if (c.convolution) {
    c.window.batch = x.batch;
    c.window.height = x.height;
    c.window.width = x.width;
    c.window.oh = y.height;
    c.window.ow = y.width;
  }
  fastq::run_product(c, parallel_);
  if (s.blank < 0) return;
  const auto* given = static_cast<const float*>(values[s.blank]);
  const int64_t each = shapes[s.blank].sample(), of_output = y.sample();
  auto* to = static_cast<float*>(out);
  threads_.run(x.batch, kGrain / each + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (has_nan(given + i * each, each))
        std::fill(to + i * of_output, to + (i + 1) * of_output, std::numeric_limits<float>::quiet_NaN());
  });
}

void Network::run_step(const Step& s, const std::vector<Shape>& shapes, const std::vector<void*>& values,
                       const Shape& y, void* out) {
  const Shape& x = shapes[s.takes[0]];
  const auto* from = static_cast<const float*>(values[s.takes[0]]);
  auto* to = static_cast<float*>(out);
  const int64_t n = x.elements(), channels = x.channels;
  if (n == 0) return;
  switch (s.op) {
    case Op::input: return;
    case Op::product: return run_product(s, shapes, values, y, out);
    case Op::quantize: {
      QuantizeCall c = {};
      c.x_type = Stored::f32;
      c.x = from;
      c.rows = 1;
      c.k = n;
      c.scale = &s.scale;
      c.low = s.low;
      c.high = s.high;
      c.zero = s.zero;
      c.out = out;
      return run_quantize(c, parallel_);
    }
    case Op::affine:
      return threads_.run(n / channels, kGrain / channels + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t k = 0; k < channels; ++k)
            to[i * channels + k] = from[i * channels + k] * s.multiplier[k] + s.addend[k];
      });
    case Op::clip:
      return threads_.run(n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const float v = from[i] < 0.0f ? 0.0f : from[i];
          to[i] = v > s.highest ? s.highest : v;
        }
      });
    case Op::add: {
      const auto* other = static_cast<const float*>(values[s.takes[1]]);
      return threads_.run(n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = from[i] + other[i];
      });
    }
    case Op::flatten:  // in the order of (C, H, W)
      if (s.codes)
        return transpose(threads_, static_cast<const int8_t*>(values[s.takes[0]]), static_cast<int8_t*>(out), x.batch,
                         x.positions(), channels);
      return transpose(threads_, from, to, x.batch, x.positions(), channels);
    case Op::max_pool:
      return each_line(threads_, y, std::min<int64_t>(s.pool.kernel[0] * s.pool.kernel[1], 64),
                       [&](int64_t image, int64_t line) { max_pool_line(s.pool, x, y, from, to, image, line); });
    case Op::average_pool:
      return each_line(threads_, y, 1,
                       [&](int64_t image, int64_t line) { average_pool_line(s.pool, x, y, from, to, image, line); });
    case Op::adaptive_pool:
      return each_line(threads_, y, 1,
                       [&](int64_t image, int64_t line) { adaptive_pool_line(x, y, from, to, image, line); });
    case Op::mean: {
      constexpr int64_t kSide = 16;
      const int64_t blocks = (channels + kSide - 1) / kSide;
      return threads_.run(x.batch * blocks, kGrain / (kSide * x.positions()) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          means(x, from, to, i / blocks, i % blocks * kSide, std::min((i % blocks + 1) * kSide, channels));
      });
    }
  }
}

void Network::run(const Shape& input, const float* x, float* out) {
  const std::vector<Shape> found = shapes(input);
  const std::vector<size_t> bytes = sizes(found);
  const Lease buffers(*this);
  std::vector<void*> values(steps_.size(), nullptr);
  const auto last_axes_alone = [](const Shape& s) { return s.channels == 1 || s.positions() == 1; };
  const auto buffer = [&](const Step& s) { return buffers->at(s.slot, bytes[s.slot]); };
  if (last_axes_alone(input)) {
    values[0] = const_cast<float*>(x);  // read alone
  } else {
    values[0] = buffer(*steps_[0]);
    transpose(threads_, x, static_cast<float*>(values[0]), input.batch, input.channels, input.positions());
  }
  const Shape& y = found[output_];
  for (int64_t i = 1; i <= output_; ++i) {
    const Step& s = *steps_[i];
    if (s.slot < 0) continue;
    values[i] = i == output_ && last_axes_alone(y) ? static_cast<void*>(out) : buffer(s);
    run_step(s, found, values, found[i], values[i]);
  }
  const auto* last = static_cast<const float*>(values[output_]);
  if (last == out) return;
  if (last_axes_alone(y))
    std::copy(last, last + y.elements(), out);
  else
    transpose(threads_, last, out, y.batch, y.positions(), y.channels);
}

}  // namespace fastq
