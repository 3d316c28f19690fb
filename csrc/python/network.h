// An integer network as a list of steps over channels-last buffers: what the runtime without torch runs. Nothing that
// it is given is trusted: steps, numbers and arrays come from files.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/product.h"
#include "threads.h"

namespace fastq {

// A step that cannot be, or an input that does not fit.
struct Refused : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// (batch, channels) or (batch, channels, height, width), which lie in memory with the channels last.
struct Shape {
  bool image = false;
  int64_t batch = 0, channels = 0, height = 1, width = 1;
  int64_t positions() const { return height * width; }
  int64_t sample() const { return channels * positions(); }
  int64_t elements() const { return batch * sample(); }
  bool operator==(const Shape&) const = default;
};

// Codes of a weight in the layout `rows`, with what they stand for: as fastq.PackedWeight has them.
struct WeightArrays {
  int64_t n = 0, k = 0, bits = 0, group_size = 0;  // 0: no groups
  std::vector<uint8_t> rows;
  std::vector<float> scale;
  std::vector<int32_t> zero;  // that of the stored fields, or empty
};

// (channels of a group, kh, kw, sh, sw, left, right, top, bottom, dh, dw, groups)
using WindowNumbers = std::array<int64_t, 12>;

struct Product {
  std::string name;
  int64_t input = 0;
  int64_t weight = 0;  // its number
  bool convolution = false;
  WindowNumbers window = {};
  std::vector<float> x_scale;  // of codes: one
  int64_t x_zero = 0;
  std::vector<float> bias, multiplier, addend;  // [n], or empty
  int64_t residual = -1;                        // a step
  bool relu = false;
  std::vector<float> out_scale;  // one: the output is codes
  int64_t low = 0, high = 0, out_zero = 0;
};

struct Pool {
  std::array<int64_t, 2> kernel = {1, 1}, stride = {1, 1}, padding = {0, 0}, dilation = {1, 1};
  bool ceil = false;
  bool count_padding = true;  // of an average: the padding has a part in what is divided by
  int64_t divisor = 0;        // 0: the number of positions
};

class Network {
 public:
  explicit Network(int threads);
  ~Network();

  // Packs a weight for the products that take it, and gives its number. Throws Refused.
  int64_t weight(const std::string& name, WeightArrays arrays);

  // Each of these adds a step, which takes values of steps before it, and gives its number. Throws Refused. Step 0 is
  // the input.
  int64_t quantize(const std::string& name, int64_t input, float scale, int64_t low, int64_t high, int64_t zero);
  int64_t product(Product p);
  int64_t affine(const std::string& name, int64_t input, std::vector<float> multiplier, std::vector<float> addend);
  int64_t clip(const std::string& name, int64_t input, float highest);  // to 0 and that
  int64_t add(const std::string& name, int64_t input, int64_t other);
  int64_t flatten(const std::string& name, int64_t input, int64_t features);  // of which there are so many, or any: 0
  int64_t max_pool(const std::string& name, int64_t input, const Pool& pool);
  int64_t average_pool(const std::string& name, int64_t input, const Pool& pool);
  int64_t adaptive_average_pool(const std::string& name, int64_t input, int64_t height, int64_t width);
  int64_t mean(const std::string& name, int64_t input, bool keep);

  // The value that the network gives. After this it runs, and has no more steps.
  void finish(int64_t output);

  // What the first step that asks for a shape asks for, with 0 for what may be any: no axes where none does.
  std::vector<int64_t> expects() const;
  // Throws Refused where an input of `input` does not fit.
  Shape output_shape(const Shape& input) const;
  // Bytes of the buffers for one such input.
  int64_t memory(const Shape& input) const;
  // x and out are (B, C, H, W) or (B, C), contiguous. Several threads may call it at once.
  void run(const Shape& input, const float* x, float* out);

  int threads() const { return threads_.count(); }

 private:
  enum class Op { input, quantize, product, affine, clip, add, flatten, max_pool, average_pool, adaptive_pool, mean };
  struct Step;
  struct Weight;
  struct Buffers;
  class Lease;

  Step& push(Op op, const std::string& name, std::vector<int64_t> takes, bool codes);
  const Step& taken(int64_t step, const std::string& name) const;
  void floats_alone(const Step& step) const;
  std::vector<Shape> shapes(const Shape& input) const;
  Shape shape_after(const Step& step, const std::vector<Shape>& shapes) const;
  std::vector<size_t> sizes(const std::vector<Shape>& shapes) const;
  void run_step(const Step& step, const std::vector<Shape>& shapes, const std::vector<void*>& values, const Shape& y,
                void* out);
  void run_product(const Step& step, const std::vector<Shape>& shapes, const std::vector<void*>& values, const Shape& y,
                   void* out);
  void require_open() const;

  Threads threads_;
  const ParallelFor parallel_;
  std::vector<std::unique_ptr<Weight>> weights_;
  std::vector<std::unique_ptr<Step>> steps_;
  int64_t output_ = -1;
  int slots_ = 0;
  std::mutex mutex_;  // of the buffers that no call uses
  std::vector<std::unique_ptr<Buffers>> idle_;
};

}  // namespace fastq
