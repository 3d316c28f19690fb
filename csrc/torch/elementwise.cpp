#include "elementwise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

namespace fastq {

using torch::headeronly::ScalarType;

// What every message begins with: the operator, then what of it is wrong.
#define FASTQ_CHECK(condition, ...) STD_TORCH_CHECK(condition, "fastq::", a.op, ": ", __VA_ARGS__)

static std::string shape_of(const int64_t* sizes, size_t dim) {
  std::string text = "(";
  for (size_t d = 0; d < dim; ++d) text += std::to_string(sizes[d]) + (d + 1 < dim ? ", " : dim == 1 ? "," : "");
  return text + ")";
}
std::string shape_of(const Tensor& t) {
  return shape_of(t.sizes().data(), t.dim());
}

DType storage_type(const char* op, const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    case ScalarType::Double: return DType::f64;
    default:
      STD_TORCH_CHECK(false, "fastq::", op, ": ", name, " must be float32, bfloat16, float16 or float64, got ",
                      x.scalar_type());
  }
}

// Dimensions from the outermost in memory to the innermost; those of size 1 have no place and are left out.
std::vector<int64_t> memory_order(const Tensor& t) {
  std::vector<int64_t> order;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != 1) order.push_back(d);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return t.stride(a) > t.stride(b); });
  return order;
}

// Every element once, no gaps: memory can be walked from end to end.
bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  int64_t expected = 1;
  const std::vector<int64_t> order = memory_order(t);
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (t.stride(*d) != expected) return false;
    expected *= t.size(*d);
  }
  return true;
}

bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// Straight from the allocator. A call through the dispatcher by name, as torch::stable::empty_like makes it, costs more
// than to quantize a thousand elements.
Tensor allocate(const Tensor& like, int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  int32_t device_type = 0, device_index = 0;
  if (dtype < 0) STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

// As torch.empty_like: a dense tensor's own strides, else the order of its strides without the gaps.
Tensor allocate_like(const Tensor& t) {
  return is_dense(t) ? allocate(t, t.dim(), t.sizes().data(), t.strides().data()) : torch::stable::empty_like(t);
}

namespace {

Tensor allocate_contiguous_like(const Tensor& t) {
  std::vector<int64_t> strides(t.dim());
  int64_t stride = 1;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(t.size(d), 1);
  }
  return allocate(t, t.dim(), t.sizes().data(), strides.data());
}

// Places for `count` arrays of `elements` each, in one workspace of the parameters' dtype, or of fp64.
Tensor workspace(const Tensor& like, bool f64, int count, int64_t elements, void** places) {
  const int64_t sizes = count * elements, stride = 1;
  Tensor t = allocate(like, 1, &sizes, &stride, f64 ? aoti_torch_dtype_float64() : -1);
  char* start = static_cast<char*>(t.mutable_data_ptr());
  const int64_t bytes = elements * (f64 ? 8 : 4);
  for (int i = 0; i < count; ++i) places[i] = start + i * bytes;
  return t;
}

}  // namespace

// `t` in the layout of `like`, which is dense; copied only where it has another (an expanded gradient has strides of
// 0).
Tensor in_layout_of(const Tensor& t, const Tensor& like) {
  if (same_layout(t, like)) return t;
  Tensor copy = allocate(t, like.dim(), like.sizes().data(), like.strides().data());
  return torch::stable::copy_(copy, t);
}

namespace {

struct Prepared {
  Tensor x;  // dense
  Call call = {};
  std::vector<Tensor> parameters;  // contiguous
  std::vector<Tensor> keep;
};

double below(double edge, bool f64) {
  return f64 ? std::nextafter(edge, -std::numeric_limits<double>::infinity())
             : std::nextafter(float(edge), -std::numeric_limits<float>::infinity());
}
double above(double edge, bool f64) {
  return -below(-edge, f64);
}

// The strict bounds of the straight-through mask, as fastq.ranges.mask_bounds gives them.
void mask_bounds(Call& c, int64_t boundary) {
  const bool f64 = c.dtype == DType::f64;
  c.lower = c.qmin;
  c.upper = c.qmax;
  bool lower_belongs = boundary != kOpen, upper_belongs = lower_belongs;
  if (boundary == kRounded) {
    c.lower -= 0.5;
    c.upper += 0.5;
    lower_belongs = std::fmod(c.qmin, 2.0) == 0;  // a tie goes to the even code
    upper_belongs = std::fmod(c.qmax, 2.0) == 0;
  }
  if (lower_belongs) c.lower = below(c.lower, f64);
  if (upper_belongs) c.upper = above(c.upper, f64);
}

}  // namespace

// The operators have no autograd formula: a gradient would be lost in silence. Whether a tensor requires one, the
// stable ABI does not say; Python does (fastq/ops/_library.py). Under the autograd nodes grad mode is off, and nobody
// is asked.
void refuse_gradients(const char* op, const Tensor& t) {
  if (!aoti_torch_grad_mode_is_enabled()) return;
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("fastq::requires_grad", "", stack.data(), TORCH_ABI_VERSION));
  STD_TORCH_CHECK(!torch::stable::detail::to<bool>(stack[0]), "fastq::", op,
                  " is a private operator without an autograd formula, and an input requires a gradient; call the "
                  "public function of fastq, or this one under torch.no_grad()");
}

namespace {

// The checks of the Python side once more: these are what stands between a caller of the operator and foreign memory.
void check_arguments(const Arguments& a, const Tensor& x) {
  FASTQ_CHECK(a.qmin < a.qmax, "qmin must be below qmax, got ", a.qmin, " and ", a.qmax);
  FASTQ_CHECK(kOpen <= a.boundary && a.boundary <= kRounded, "boundary must be 0, 1 or 2, got ", a.boundary);
  FASTQ_CHECK(-1 <= a.axis && a.axis < x.dim(), "axis must be -1 (none) or below the ", x.dim(),
              " dimensions of x, got ", a.axis);
  FASTQ_CHECK(a.group_size >= 0, "group_size must be at least 0 (none), got ", a.group_size);
  FASTQ_CHECK(a.axis < 0 || a.group_size == 0, "axis=", a.axis, " and group_size=", a.group_size,
              " exclude each other");
  FASTQ_CHECK(a.group_size == 0 || (x.dim() > 0 && x.size(x.dim() - 1) % a.group_size == 0),
              "group_size=", a.group_size, " must divide the last axis of x, got shape ", shape_of(x));
}

void check_parameter(const Arguments& a, int i, const Tensor& parameter, const Tensor& x) {
  const char* name = a.names[i];
  const ScalarType type = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  FASTQ_CHECK(parameter.scalar_type() == type, name, " must be float32 (float64 for float64 x), got ",
              parameter.scalar_type());
  FASTQ_CHECK(parameter.device() == x.device(), name, " must be on the device of x");
  if (a.shared[i] || (a.axis < 0 && a.group_size == 0)) {
    FASTQ_CHECK(parameter.numel() == 1, name, " must have one element per tensor, got shape ", shape_of(parameter));
    return;
  }
  std::vector<int64_t> expected = {a.axis < 0 ? 0 : x.size(a.axis)};
  if (a.group_size > 0) {
    expected.assign(x.sizes().begin(), x.sizes().end());
    expected.back() /= a.group_size;
  }
  const auto sizes = parameter.sizes();
  FASTQ_CHECK(std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()), name, " must have shape ",
              shape_of(expected.data(), expected.size()), ", got ", shape_of(parameter));
}

void check_gradient(const Arguments& a, const Tensor& grad, const Tensor& x) {
  FASTQ_CHECK(grad.scalar_type() == x.scalar_type(), "grad must have the dtype of x, ", x.scalar_type(), ", got ",
              grad.scalar_type());
  FASTQ_CHECK(grad.device() == x.device(), "grad must be on the device of x");
  FASTQ_CHECK(std::equal(grad.sizes().begin(), grad.sizes().end(), x.sizes().begin(), x.sizes().end()),
              "grad must have the shape of x, ", shape_of(x), ", got ", shape_of(grad));
}

void check_word(const Arguments& a, const Tensor& x) {
  FASTQ_CHECK(a.word != Word::memory || a.words, "it needs the words that are read beside x");
  FASTQ_CHECK(a.word != Word::noise || a.seed, "it needs a seed");
  if (a.words) {
    FASTQ_CHECK(a.words->scalar_type() == ScalarType::Int, "words must be int32, got ", a.words->scalar_type());
    FASTQ_CHECK(a.words->device() == x.device(), "words must be on the device of x");
    const auto sizes = a.words->sizes();
    FASTQ_CHECK(std::equal(sizes.begin(), sizes.end(), x.sizes().begin(), x.sizes().end()),
                "words must have the shape of x, ", shape_of(x), ", got ", shape_of(*a.words));
  }
  if (a.seed) {
    FASTQ_CHECK(a.seed->scalar_type() == ScalarType::Long, "seed must be int64, got ", a.seed->scalar_type());
    FASTQ_CHECK(a.seed->device() == x.device(), "seed must be on the device of x");
    FASTQ_CHECK(a.seed->numel() == 1, "seed must have one element, got shape ", shape_of(*a.seed));
    FASTQ_CHECK(0 <= a.noise && a.noise <= int64_t(Noise::normal), "noise must be 0, 1 or 2, got ", a.noise);
  }
}

Prepared prepare(const Runner& runner, const Arguments& a, const Tensor& x, const std::vector<Tensor>& parameters) {
  refuse_gradients(a.op, x);
  for (const Tensor& parameter : parameters) refuse_gradients(a.op, parameter);
  check_arguments(a, x);
  check_word(a, x);
  Prepared p{x, {}, {}, {}};
  Call& c = p.call;
  c.method = a.method;
  c.dtype = storage_type(a.op, "x", x);
  c.parameters = a.parameters;
  c.prepared_values = a.prepared_values;
  c.qmin = double(a.qmin);
  c.qmax = double(a.qmax);
  c.eps = a.eps;
  std::copy(a.constants, a.constants + kMaxConstants, c.constant);
  mask_bounds(c, a.boundary);

  // Groups follow the last axis, and their parameters the logical order of x; noise follows that order, too.
  const bool logical = a.group_size > 0 || a.word == Word::noise;
  if (logical ? !x.is_contiguous() : !is_dense(x)) {
    p.x = logical ? torch::stable::contiguous(x) : in_layout_of(x, torch::stable::empty_like(x));
  }
  if (a.word == Word::memory) {
    p.keep.push_back(in_layout_of(*a.words, p.x));
    c.words = static_cast<const int32_t*>(p.keep.back().const_data_ptr());
  }
  if (a.word == Word::noise) {
    c.seed = static_cast<const int64_t*>(a.seed->const_data_ptr());
    c.noise = Noise(a.noise);
    c.noise_scale = float(a.noise_scale);
  }

  Geometry& geometry = c.geometry;
  const int64_t numel = x.numel();
  if (a.group_size > 0) {
    geometry = {1, numel / a.group_size, a.group_size};
  } else if (a.axis >= 0) {
    geometry = {1, x.size(a.axis), 1};
    bool inside = false;
    for (int64_t d : memory_order(p.x)) {
      if (d == a.axis) {
        inside = true;
      } else {
        (inside ? geometry.inner : geometry.outer) *= x.size(d);
      }
    }
    if (x.size(a.axis) == 1) std::swap(geometry.inner, geometry.outer);
  } else {
    geometry = {1, 1, numel};
  }

  for (size_t i = 0; i < parameters.size(); ++i) {
    check_parameter(a, int(i), parameters[i], x);
    c.shared[i] = a.shared[i];
    p.parameters.push_back(parameters[i].is_contiguous() ? parameters[i] : torch::stable::contiguous(parameters[i]));
    c.parameter[i] = p.parameters.back().const_data_ptr();
  }
  c.x = p.x.const_data_ptr();

  if (numel > 0 && runner.prepares_columns && geometry.columns()) {
    const int64_t padded = (geometry.width() + kLanes - 1) / kLanes * kLanes;
    p.keep.push_back(workspace(p.parameters[0], c.dtype == DType::f64, c.prepared_values, padded, c.prepared));
  }
  return p;
}

}  // namespace

// What a copied x was computed into, in the layout that the caller expects.
Tensor restore(const Tensor& out, const Tensor& x) {
  Tensor y = torch::stable::empty_like(x);
  return same_layout(out, y) ? out : torch::stable::copy_(y, out);
}

Tensor workspace(const Tensor& like, int64_t elements) {
  const int64_t stride = 1;
  return allocate(like, 1, &elements, &stride);
}

double gradient_norm(int64_t norm, const Tensor& x, const Tensor& parameter, int64_t qmax) {
  if (norm == 0) return 1.0;
  int64_t n = x.numel();
  if (norm == 1 && parameter.numel() > 0) n /= parameter.numel();
  return 1.0 / std::sqrt(double(std::max<int64_t>(n, 1)) * double(qmax));
}

namespace {

// The partial sums of a backward pass, and where they go; of many calls, one workspace holds them all.
int64_t partials_bytes(const Call& c) {
  constexpr int64_t kLine = 64;
  return (c.gradients * c.geometry.partials() * (c.dtype == DType::f64 ? 8 : 4) + kLine - 1) / kLine * kLine;
}
void place_partials(Call& c, char* start) {
  for (int i = 0; i < c.gradients; ++i)
    c.partial[i] = start + i * c.geometry.partials() * (c.dtype == DType::f64 ? 8 : 4);
}
Tensor allocate_bytes(const Tensor& like, int64_t bytes) {
  const int64_t stride = 1;
  return allocate(like, 1, &bytes, &stride, aoti_torch_dtype_uint8());
}

// One call with what it needs while it runs: an output without elements needs none.
struct Job {
  Prepared p;
  std::vector<Tensor> result;  // y; or dx and the gradients

  Tensor finished(const Tensor& x) const { return p.x.get() == x.get() ? result[0] : restore(result[0], x); }
};

Job forward_job(const Runner& runner, const Arguments& a, const Tensor& x, const std::vector<Tensor>& parameters) {
  Job job{prepare(runner, a, x, parameters), {}};
  job.result = {allocate_like(job.p.x)};
  if (x.numel() > 0) job.p.call.out = job.result[0].mutable_data_ptr();
  return job;
}

Job backward_job(const Runner& runner, const Arguments& a, const Tensor& grad, const Tensor& x,
                 const std::vector<Tensor>& parameters) {
  refuse_gradients(a.op, grad);
  Job job{prepare(runner, a, x, parameters), {}};
  Call& c = job.p.call;
  check_gradient(a, grad, x);
  job.result = {allocate_like(job.p.x)};
  c.gradients = a.gradients;
  for (int i = 0; i < a.gradients; ++i) {
    job.result.push_back(x.numel() > 0 ? allocate_contiguous_like(parameters[i])
                                       : torch::stable::new_zeros(parameters[i], parameters[i].sizes()));
    c.gradient[i] = job.result.back().mutable_data_ptr();
    c.scale[i] = a.scales[i];
  }
  if (x.numel() == 0) return job;
  job.p.keep.push_back(in_layout_of(grad, job.p.x));
  c.g = job.p.keep.back().const_data_ptr();
  c.out = job.result[0].mutable_data_ptr();
  return job;
}

}  // namespace

Tensor run_forward(const Runner& runner, const Arguments& a, const Tensor& x, const std::vector<Tensor>& parameters) {
  Job job = forward_job(runner, a, x, parameters);
  if (x.numel() == 0) return job.result[0];
  runner.forward(job.p.call, job.p.x);
  return job.finished(x);
}

std::vector<Tensor> run_forward_many(const Runner& runner, const std::vector<Arguments>& a,
                                     const std::vector<Tensor>& x, const std::vector<std::vector<Tensor>>& parameters) {
  std::vector<Job> jobs;
  std::vector<Call> calls;
  jobs.reserve(x.size());
  calls.reserve(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    jobs.push_back(forward_job(runner, a[i], x[i], parameters[i]));
    if (x[i].numel() > 0) calls.push_back(jobs.back().p.call);
  }
  if (!calls.empty()) runner.forward_many(calls, x[0]);
  std::vector<Tensor> result;
  for (size_t i = 0; i < x.size(); ++i) result.push_back(x[i].numel() > 0 ? jobs[i].finished(x[i]) : jobs[i].result[0]);
  return result;
}

std::vector<std::vector<Tensor>> run_backward_many(const Runner& runner, const std::vector<Arguments>& a,
                                                   const std::vector<Tensor>& g, const std::vector<Tensor>& x,
                                                   const std::vector<std::vector<Tensor>>& parameters) {
  std::vector<Job> jobs;
  std::vector<Call> calls;
  jobs.reserve(x.size());
  calls.reserve(x.size());
  int64_t bytes = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    jobs.push_back(backward_job(runner, a[i], g[i], x[i], parameters[i]));
    if (x[i].numel() == 0) continue;
    calls.push_back(jobs.back().p.call);
    bytes += partials_bytes(calls.back());
  }
  if (!calls.empty()) {
    const Tensor partials = allocate_bytes(x[0], bytes);
    char* start = static_cast<char*>(partials.mutable_data_ptr());
    for (Call& c : calls) {
      place_partials(c, start);
      start += partials_bytes(c);
    }
    runner.backward_many(calls, x[0]);
  }
  std::vector<std::vector<Tensor>> result;
  result.reserve(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    result.push_back(std::move(jobs[i].result));
    if (x[i].numel() > 0 && jobs[i].p.x.get() != x[i].get()) result[i][0] = restore(result[i][0], x[i]);
  }
  return result;
}

namespace {

Job sums_job(const Runner& runner, const Arguments& a, const Tensor& x, const std::vector<Tensor>& parameters) {
  Job job{prepare(runner, a, x, parameters), {}};
  Call& c = job.p.call;
  const int64_t channels = a.total ? 1 : c.geometry.channels;
  const int64_t sizes[] = {a.forward_sums, channels}, strides[] = {channels, 1};
  Tensor y = a.output ? allocate_like(job.p.x) : fastq::workspace(x, 0);
  Tensor sums = allocate(x, 2, sizes, strides, aoti_torch_dtype_float64());
  job.result = {y, x.numel() > 0 ? sums : torch::stable::new_zeros(sums, sums.sizes())};
  if (x.numel() == 0) return job;
  c.forward_sums = a.forward_sums;
  c.total = a.total;
  c.out = a.output ? y.mutable_data_ptr() : const_cast<void*>(c.x);  // for its address; nothing is written
  for (int i = 0; i < a.forward_sums; ++i) c.sums[i] = static_cast<double*>(sums.mutable_data_ptr()) + i * channels;
  job.p.keep.push_back(workspace(x, true, c.forward_sums, c.geometry.partials(), c.partial));
  return job;
}

std::array<Tensor, 2> finished_sums(const Job& job, const Arguments& a, const Tensor& x) {
  return {a.output && x.numel() > 0 ? job.finished(x) : job.result[0], job.result[1]};
}

// x and its state in one layout; `result` holds the planes.
Job state_job(const Runner& runner, const Arguments& a, const Tensor& x, const std::vector<Tensor>& parameters,
              const std::array<Tensor, 2>& planes, std::array<const char*, 2> names) {
  for (int i = 0; i < 2; ++i) {
    const auto sizes = planes[i].sizes();
    FASTQ_CHECK(planes[i].scalar_type() == ScalarType::Int, names[i], " must be int32, got ", planes[i].scalar_type());
    FASTQ_CHECK(planes[i].device() == x.device(), names[i], " must be on the device of x");
    FASTQ_CHECK(std::equal(sizes.begin(), sizes.end(), x.sizes().begin(), x.sizes().end()), names[i],
                " must have the shape of x, ", shape_of(x), ", got ", shape_of(planes[i]));
  }
  Job job{prepare(runner, a, x, parameters), {}};
  for (int i = 0; i < 2 && x.numel() > 0; ++i) {
    job.result.push_back(in_layout_of(planes[i], job.p.x));
    job.p.call.state[i] = static_cast<uint32_t*>(job.result[i].mutable_data_ptr());
  }
  job.p.call.out = job.p.x.mutable_data_ptr();
  return job;
}

// What was copied goes home.
void write_back(const Job& job, Tensor x, std::array<Tensor, 2> planes) {
  if (job.p.x.get() != x.get()) torch::stable::copy_(x, job.p.x);
  for (int i = 0; i < 2; ++i)
    if (job.result[i].get() != planes[i].get()) torch::stable::copy_(planes[i], job.result[i]);
}

}  // namespace

std::array<Tensor, 2> run_forward_sums(const Runner& runner, const Arguments& a, const Tensor& x,
                                       const std::vector<Tensor>& parameters) {
  Job job = sums_job(runner, a, x, parameters);
  if (x.numel() > 0) runner.forward(job.p.call, job.p.x);
  return finished_sums(job, a, x);
}

std::vector<std::array<Tensor, 2>> run_forward_sums_many(const Runner& runner, const std::vector<Arguments>& a,
                                                         const std::vector<Tensor>& x,
                                                         const std::vector<std::vector<Tensor>>& parameters) {
  std::vector<Job> jobs;
  std::vector<Call> calls;
  jobs.reserve(x.size());
  calls.reserve(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    jobs.push_back(sums_job(runner, a[i], x[i], parameters[i]));
    if (x[i].numel() > 0) calls.push_back(jobs.back().p.call);
  }
  if (!calls.empty()) runner.forward_many(calls, x[0]);
  std::vector<std::array<Tensor, 2>> result;
  for (size_t i = 0; i < x.size(); ++i) result.push_back(finished_sums(jobs[i], a[i], x[i]));
  return result;
}

void run_in_place(const Runner& runner, const Arguments& a, Tensor& x, const std::vector<Tensor>& parameters,
                  const std::array<Tensor, 2>& planes, std::array<const char*, 2> names) {
  Job job = state_job(runner, a, x, parameters, planes, names);
  if (x.numel() == 0) return;
  runner.forward(job.p.call, job.p.x);
  write_back(job, x, planes);
}

void run_in_place_many(const Runner& runner, const std::vector<Arguments>& a, const std::vector<Tensor>& x,
                       const std::vector<std::vector<Tensor>>& parameters,
                       const std::vector<std::array<Tensor, 2>>& planes, std::array<const char*, 2> names) {
  std::vector<Job> jobs;
  std::vector<Call> calls;
  jobs.reserve(x.size());
  calls.reserve(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    jobs.push_back(state_job(runner, a[i], x[i], parameters[i], planes[i], names));
    if (x[i].numel() > 0) calls.push_back(jobs.back().p.call);
  }
  if (!calls.empty()) runner.forward_many(calls, x[0]);
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i].numel() > 0) write_back(jobs[i], x[i], planes[i]);
}

std::vector<Tensor> run_backward(const Runner& runner, const Arguments& a, const Tensor& grad, const Tensor& x,
                                 const std::vector<Tensor>& parameters) {
  Job job = backward_job(runner, a, grad, x, parameters);
  if (x.numel() == 0) return std::move(job.result);
  const Tensor partials = allocate_bytes(x, partials_bytes(job.p.call));
  place_partials(job.p.call, static_cast<char*>(partials.mutable_data_ptr()));
  runner.backward(job.p.call, job.p.x);
  job.result[0] = job.finished(x);
  return std::move(job.result);
}

}  // namespace fastq
