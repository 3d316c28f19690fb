// The integer engine on the CPU, for one instruction set: products of packed weights, convolutions, codes.
//
// A task goes through its columns in panels of 32, and along K in steps: the step's part of the panel is unpacked to
// bytes once, for all of the task's rows, whose sums it is added to. What is computed depends on the shape alone, so
// that the number of threads changes no bit.
#include "gemm.h"

#include "blocks.h"
#include "epilogue.h"
#include "floats.h"
#include "sums.h"

namespace fastq {
inline namespace FASTQ_ISA {

namespace {

// Where a position of the output looks at the image.
struct Position {
  int64_t image, top, left;

  FASTQ_HD Position(const GemmWindow& w, int64_t row) {
    const int64_t i = row / w.ow % w.oh, j = row % w.ow;
    image = row / w.ow / w.oh;
    top = i * w.sh - w.top;
    left = j * w.sw - w.left;
  }
  // The pixel of a tap, or -1 outside.
  FASTQ_HD int64_t pixel(const GemmWindow& w, int64_t u, int64_t v) const {
    const int64_t y = top + u * w.dh, x = left + v * w.dw;
    if (y < 0 || y >= w.height || x < 0 || x >= w.width) return -1;
    return (image * w.height + y) * w.width + x;
  }
};

// What is stored as x, as it is packed: codes as bytes, floating point numbers as fp32.
struct Codes {
  using Element = uint8_t;
  using Packed = uint8_t;
  FASTQ_HD static void load(const Element* from, int64_t n, Packed* to) {  // n is at least 1
#if FASTQ_VECTOR_BYTES == 64
    for (; n > 64; n -= 64, from += 64, to += 64) _mm512_storeu_si512(to, _mm512_loadu_si512(from));
    const __mmask64 rest = __mmask64(~uint64_t(0) >> (64 - n));
    _mm512_mask_storeu_epi8(to, rest, _mm512_maskz_loadu_epi8(rest, from));
#else
    std::memcpy(to, from, n);
#endif
  }
};
template <class S, Stored kIs>
struct Numbers : FloatsOf<S> {
  using Packed = float;
  static constexpr Stored kStored = kIs;
};
#if defined(__AMX_BF16__)
// bfloat16 as it is.
struct Halves {
  using Element = uint16_t;
  using Packed = uint16_t;
  FASTQ_HD static void load(const Element* from, int64_t n, Packed* to) { std::memcpy(to, from, n * sizeof(Element)); }
};
#endif

// Row `row` of the matrix that is multiplied: K elements, `zero` where a convolution looks beyond the image.
template <class X>
FASTQ_HD void gather(const GemmCall& c, int64_t row, int64_t group, typename X::Packed zero, typename X::Packed* to) {
  const auto* x = static_cast<const typename X::Element*>(c.x);
  if (c.k == 0) return;
  if (!c.convolution) return X::load(x + row * c.k, c.k, to);
  const GemmWindow& w = c.window;
  const Position p(w, row);
  const auto fill = [&](int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = zero;
    to += n;
  };
  if (w.dw == 1 && w.groups == 1) {
    // The taps of a line of the kernel are neighbours in memory: a few channels alone would be short runs.
    const int64_t line = w.kw * w.channels, of_image = w.width * w.channels, at = p.left * w.channels;
    const int64_t inside = at < 0 ? least(-at, line) : 0, outside = at < of_image ? least(of_image - at, line) : 0;
    for (int64_t u = 0; u < w.kh; ++u) {
      const int64_t y = p.top + u * w.dh;
      if (y < 0 || y >= w.height || inside >= outside) {
        fill(line);
        continue;
      }
      fill(inside);
      X::load(x + (p.image * w.height + y) * of_image + at + inside, outside - inside, to);
      to += outside - inside;
      fill(line - outside);
    }
    return;
  }
  for (int64_t u = 0; u < w.kh; ++u)
    for (int64_t v = 0; v < w.kw; ++v) {
      const int64_t pixel = p.pixel(w, u, v);
      if (pixel < 0) {
        fill(w.channels);
      } else {
        X::load(x + (pixel * w.groups + group) * w.channels, w.channels, to);
        to += w.channels;
      }
    }
}

// ---- codes

#if defined(__AVX512VNNI__)
using Sums = DotProducts;
#else
using Sums = Pairs;
#endif

constexpr int64_t kWholeStep =
    4096;  // of tiles, where nothing is unpacked or for many rows: fewer sums are stored and loaded
constexpr int64_t kManyRows = 128;
constexpr int64_t kStep = 512;                                // elements of K at a time
constexpr int64_t kStepTiles = kWholeStep / kBlockDepth + 1;  // that they may lie in
constexpr int64_t kPanelBytes = kPanelBlocks * kStepTiles * kTileSize;
constexpr int64_t kTaskRows = 256;      // of a task, where all rows are packed first
constexpr int64_t kOwnRows = 64;        // where a task packs its own, which are to stay in its cache
constexpr int64_t kUnpackedRows = 256;  // the same where it unpacks the weights
constexpr int64_t kSharedRows = 512;    // of a convolution, at most, to be packed first
constexpr int64_t kRowsTogether = 32;   // whose sums become outputs as soon as they are whole
constexpr int64_t kFewTasks = 4;
constexpr int64_t kSlack = 64;

FASTQ_HD bool x_is_signed(const GemmCall& c, const GemmPlan& plan) {
#if defined(__AVX512VNNI__)
  return plan.tiles || DotProducts::x_signed(c.bits);
#else
  (void)plan;
  return c.x_type == Stored::i8;  // 16 bits hold either
#endif
}
// What is added to x where it is packed.
FASTQ_HD int32_t x_shift(const GemmCall& c, const GemmPlan& plan) {
  const bool is = c.x_type == Stored::i8, wanted = x_is_signed(c, plan);
  return is == wanted ? 0 : is ? 128 : -128;
}
// Whether sums of rows of x are needed.
FASTQ_HD bool has_totals(const GemmCall& c) {
  return c.zero != nullptr || block_middle(c.bits) != 0;
}
// Whether groups of K begin with a tile.
FASTQ_HD bool whole_tiles(const GemmCall& c) {
  return c.group_size % kBlockDepth == 0 || c.scale_groups == 1;
}
FASTQ_HD int64_t depth_of(const GemmCall& c) {
  return multiple(c.k, kBlockDepth);
}

template <class T>
FASTQ_HD int32_t total_of(const T* x, int64_t n) {
  uint32_t sum = 0;  // modulo 2^32, as all sums
  for (int64_t i = 0; i < n; ++i) sum += uint32_t(int32_t(x[i]));
  return int32_t(sum);
}

FASTQ_HD int32_t total(const uint8_t* x, int64_t n, bool with_sign) {
  return with_sign ? total_of(reinterpret_cast<const int8_t*>(x), n) : total_of(x, n);
}

#if !defined(__AVX512VNNI__)
// Bytes from the upper half of a row to 16 bits in all of it, the even ones of four before the odd ones.
template <bool kSigned>
FASTQ_HD void widen_bytes(int64_t n, uint8_t* row) {
  for (int64_t i = 0; i < n; i += FASTQ_VECTOR_BYTES) {
    const Pairs::U16Whole v = load_bits<Pairs::U16Whole>(row + n + i);
    const U32 even = U32(kSigned ? Pairs::U16Whole(I16(v << 8) >> 8) : Pairs::U16Whole(v & 0xff));
    const U32 odd = U32(kSigned ? Pairs::U16Whole(I16(v) >> 8) : Pairs::U16Whole(v >> 8));
    uint32_t both[2 * kWidth];
    for (int j = 0; j < kWidth; ++j) both[2 * j] = even[j], both[2 * j + 1] = odd[j];
    std::memcpy(row + 2 * i, both, sizeof(both));
  }
}
#endif

// `n` bytes, a multiple of a line's, as the kernel takes them: as they are, or in the upper half of a row that is
// widened.
FASTQ_HD void widen(int64_t n, bool with_sign, uint8_t* row) {
#if defined(__AVX512VNNI__)
  (void)n, (void)with_sign, (void)row;
#else
  if (with_sign)
    widen_bytes<true>(n, row);
  else
    widen_bytes<false>(n, row);
#endif
}

void pack_codes(const GemmCall& c, const GemmPlan& plan, int64_t row, int64_t group, uint8_t* to) {
  const int64_t depth = depth_of(c);
  uint8_t* bytes = to + (Sums::kElement - 1) * depth;
  gather<Codes>(c, row, group, uint8_t(c.x_zero), bytes);
  if (x_shift(c, plan) != 0)
    for (int64_t i = 0; i < c.k; ++i) bytes[i] ^= 0x80;
  fill_zeros(bytes, c.k, depth);
  const bool with_sign = x_is_signed(c, plan);
  if (has_totals(c))
    for (int64_t g = 0; g < c.scale_groups; ++g) {
      const int64_t first = g * c.group_size;
      reinterpret_cast<int32_t*>(to + depth * Sums::kElement)[g] =
          total(bytes + first, least(c.group_size, c.k - first), with_sign);
    }
  widen(depth, with_sign, to);
}

// Whether floating point numbers are multiplied by weights that become numbers in registers, or as bfloat16: groups of
// K begin with so many elements as they take.
FASTQ_HD bool few_floats(const GemmCall& c) {
#if FASTQ_VECTOR_BYTES == 64
  return !c.integer() && c.m <= FewRows::kRows && (c.group_size % FewRows::kDepth == 0 || c.scale_groups == 1);
#else
  (void)c;
  return false;
#endif
}
FASTQ_HD bool as_bfloat16(const GemmCall& c) {
#if defined(__AMX_BF16__)
  return !c.integer() && c.m > FewRows::kRows && (c.group_size % BFloat16Sums::kDepth == 0 || c.scale_groups == 1);
#else
  (void)c;
  return false;
#endif
}
FASTQ_HD int64_t bytes_of_floats(const GemmCall& c) {
#if defined(__AMX_BF16__)
  if (as_bfloat16(c)) return multiple(c.k, BFloat16Sums::kDepth) * BFloat16Sums::terms(c.x_type) * 2;
#endif
  return depth_of(c) * 4;
}
constexpr int64_t kFloatTaskBytes = 1 << 20;
// So many rows of floating point numbers as a cache keeps from one panel to the next.
FASTQ_HD int64_t float_rows(int64_t stride) {
  const int64_t rows = multiple(kFloatTaskBytes / (stride + 1), kRowsTogether);
  return rows < kOwnRows ? kOwnRows : rows;
}

#if defined(__AMX_BF16__)
constexpr int64_t kFloatPanelBytes =
    (FloatSums::kStep * 4 > BFloat16Sums::kStep * 2 ? FloatSums::kStep * 4 : BFloat16Sums::kStep * 2) * kPanel;
#else
constexpr int64_t kFloatPanelBytes = FloatSums::kStep * kPanel * 4;
#endif

// Lines of an image with the border that its convolution sees, as a task has them: of each pixel the channels, packed.
// Outputs are numbered as positions of its lines, and where a tap looks is the same number of bytes away from all of
// them: no pixel is copied for each tap. What is computed at positions that are no outputs is left. Where outputs are
// `sh` lines apart, line y lies with those that have its remainder by sh, so that the next output's is the next line.
// Channels that are no whole tiles of K are multiplied by lines of the kernel, whose taps lie next to each other: each
// has a cell of so many bytes, of which a tile has one or a few, and the weights are laid out so, too
// (lines_of_kernel). Where a tile has room for a line, a line here is one of cells, those of a position together.
struct Image {
  int64_t lines;              // of outputs
  bool by_lines;              // of the kernel
  int64_t run, cell, number;  // elements next to each other, with what fills their cell; how many of them
  int64_t together;           // lines of the kernel in a tile of cells; 0: pixels are kept as they lie
  int64_t sw, pitch;          // pixels from a position to the next, positions from a line to the next
  int64_t phases, of_phase;   // remainders that are looked at, lines of each
  int64_t step, line;         // bytes of a position, of a line
  int64_t positions;

  FASTQ_HD Image(const GemmCall& c, int64_t of_lines) : lines(of_lines) {
    const GemmWindow& w = c.window;
    by_lines = w.channels % kBlockDepth != 0;
    run = by_lines ? w.kw * w.channels : w.channels;
    number = by_lines ? w.kh : w.kh * w.kw;
    cell = multiple(run, kBlockDepth);
    while (by_lines && cell <= kBlockDepth && cell > kSmallestCell && cell / 2 >= run) cell /= 2;
    together = by_lines && cell <= kBlockDepth ? kBlockDepth / cell : 0;
    sw = w.kw == 1 || together > 0 ? 1 : w.sw;  // pixels between are not looked at
    pitch = together > 0 ? w.ow : ((w.ow - 1) * sw + (w.kw - 1) * w.dw) / sw + 1;
    const int64_t highest = (together > 0 ? (w.kh - 1) / together * together : w.kh - 1) * w.dh;
    phases = least(w.sh, highest + 1);
    of_phase = ((lines - 1) * w.sh + highest) / w.sh + 1;
    step = (together > 0 ? kBlockDepth : sw * w.channels) * Sums::kElement;
    line = pitch * step;
    positions = (lines - 1) * pitch + w.ow;
  }
  static constexpr int64_t kSmallestCell = 8;

  FASTQ_HD int64_t stored() const { return phases * of_phase; }
  FASTQ_HD int64_t tiles() const { return (number * cell + kBlockDepth - 1) / kBlockDepth; }
  // One line of the image with its border, where cells are made of it.
  FASTQ_HD static int64_t bytes_of_line(const GemmCall& c) {
    const GemmWindow& w = c.window;
    return multiple(((w.ow - 1) * w.sw + w.kw) * w.channels + kBlockDepth, kLineBytes);
  }
  // Pixels, of which whole tiles of positions and of K are read; totals of pixels (of bytes of a line), of lines of the
  // kernel at the positions of each line, and of positions.
  FASTQ_HD int64_t bytes_of_pixels() const {
    return multiple(stored() * line + kRowsTogether * step + multiple(cell, kBlockDepth) * Sums::kElement, kLineBytes);
  }
  FASTQ_HD int64_t across() const { return stored() * pitch * (together > 0 ? together : 1); }
  FASTQ_HD int64_t bytes_of_totals(const GemmCall& c) const {
    const int64_t of_pixels = together > 0 ? bytes_of_line(c) + 1 : stored() * pitch * sw;
    return multiple((across() + positions + of_pixels) * 4, kLineBytes);
  }
  FASTQ_HD int64_t bytes(const GemmCall& c) const {
    return bytes_of_pixels() + bytes_of_totals(c) + (together > 0 ? bytes_of_line(c) : 0);
  }

  // The lines of a task, or 0 where rows are packed instead.
  FASTQ_HD static int64_t lines_of_task(const GemmCall& c, bool with_tiles) {
    const GemmWindow& w = c.window;
    if (!c.integer() || !c.convolution || w.groups != 1 || c.m == 0 || c.k == 0 || w.kh * w.kw > kMostTaps ||
        c.k * c.n > kMostWeights)
      return 0;
    const Image image(c, best_lines(c));
    if (image.positions > kWidest) return 0;
    if (image.by_lines && (!with_tiles || w.dw != 1 || image.tiles() >= kStepTiles)) return 0;
    // Where taps are far apart, more lines are copied than are looked at.
    const double taps = double(w.kh * w.kw < 4 ? 4 : w.kh * w.kw) * (w.dh != 1 || w.dw != 1 ? 0.5 : 1.0);
    const double copied =
        double(image.stored()) * double(image.pitch) * double(image.together > 0 ? image.together : image.sw);
    return copied <= double(image.lines) * double(w.ow) * taps ? image.lines : 0;
  }
  static constexpr int64_t kMostTaps = 1024;
  static constexpr int64_t kMostWeights = 3 << 19;  // that a cache keeps from one task to the next
  static constexpr int64_t kWidest = 4096;          // positions of one line, of which there is a task at least

  // So many lines that few positions are computed in vain and few copied twice, and no more than the cache has room
  // for. What counts are cycles: of a tile of 32 x 32 outputs those of its products and a few hundred to settle it.
  FASTQ_HD static int64_t best_lines(const GemmCall& c) {
    const GemmWindow& w = c.window;
    const int64_t most = c.bits == 8 ? kMostPositions : kMostUnpacked;
    int64_t best = 1;
    double least_cost = 1e300;
    for (int64_t lines = 1; lines <= w.oh && (lines == 1 || lines * w.ow <= most); ++lines) {
      const int64_t tasks = (w.oh + lines - 1) / lines;
      if ((w.oh + tasks - 1) / tasks != lines) continue;  // as many tasks with fewer lines
      const Image image(c, lines);
      if (lines > 1 && image.positions > most) break;
      const double tiles =
          double(multiple(image.positions, kRowsTogether) / kRowsTogether * ((c.n + kPanel - 1) / kPanel));
      const double cycles = tiles * (64.0 * double(image.tiles()) + 512.0) + double(image.bytes_of_pixels()) / 8;
      if (double(tasks) * cycles < least_cost) best = lines, least_cost = double(tasks) * cycles;
    }
    return best;
  }
  static constexpr int64_t kMostPositions = 512;
  static constexpr int64_t kMostUnpacked = 640;  // for each task the weights are unpacked once
};

// The memory of a task.
struct Scratch {
  uint8_t *x, *panel, *numbers;
  uint32_t* sums;
  float* y;
  int64_t* offset;

  FASTQ_HD static int64_t bytes_of_x(const GemmCall& c, const GemmPlan& plan) {
    if (plan.lines > 0) return Image(c, plan.lines).bytes(c);
    return plan.shared ? 0 : plan.rows * plan.stride;
  }
  FASTQ_HD static int64_t bytes(const GemmCall& c, const GemmPlan& plan) {
    const int64_t of_y = c.scale_groups > 1 ? plan.rows : 0;
    const int64_t of_offset = plan.lines > 0 ? Image(c, plan.lines).tiles() * 8 : 0;
    return bytes_of_x(c, plan) + kPanelBytes + kFloatPanelBytes + (plan.rows + of_y) * kPanel * 4 + kSlack + of_offset;
  }
  FASTQ_HD Scratch(const GemmCall& c, const GemmPlan& plan, uint8_t* memory) {
    x = memory;
    panel = x + bytes_of_x(c, plan);
    numbers = panel + kPanelBytes;
    sums = reinterpret_cast<uint32_t*>(numbers + kFloatPanelBytes);
    y = reinterpret_cast<float*>(sums + plan.rows * kPanel + kSlack / 4);
    offset = reinterpret_cast<int64_t*>(y);  // in a convolution, whose scales have no groups
  }
};

// Rows of x as a product reads them: packed, or positions of an image with its border, where position `line * width +
// i` is an output only for i < `inside`.
struct Rows {
  const uint8_t* x;
  int64_t stride;
  const int64_t* offset;  // of tiles of K, or null
  const uint8_t* totals;  // of a row, int32, one for each group of K
  int64_t totals_step;    // bytes
  int64_t width, inside;  // 0: all are outputs
  // Of K by lines of the kernel: all of it, elements of a line, of its cell; 0: as the weights are.
  int64_t depth, run, cell;

  FASTQ_HD uint32_t total(int64_t row, int64_t scale_group) const {
    int32_t sum;
    std::memcpy(&sum, totals + row * totals_step + scale_group * 4, 4);
    return uint32_t(sum);
  }
};

// Of the panel that begins with the block of column `column`, the lines of elements [first, first + count) of K.
// Weights of fewer than 8 bits are unpacked to `room`.
FASTQ_HD Lines lines_of(const GemmCall& c, const Block& b, int64_t first, int64_t count, uint8_t* room) {
  Lines w = {};
  const int64_t block = b.column / kBlockRows, last = (b.column + b.columns - 1) / kBlockRows;
  for (int j = 0; j < kPanelBlocks && block + j <= last; ++j) {
    const uint8_t* from = c.weight + (block + j) * c.row_bytes;
    if (c.bits == 8) {
      w.block[j] = from + first / 4 * kLineBytes;
      continue;
    }
    uint8_t* to = room + j * kStepTiles * kTileSize;
    const int64_t tile = first / kBlockDepth, end = (first + count + kBlockDepth - 1) / kBlockDepth;
    for (int64_t t = tile; t < end; ++t)
      unpack_tile(c.bits, from + t * block_tile_bytes(c.bits), to + (t - tile) * kTileSize);
    w.block[j] = to + first % kBlockDepth / 4 * kLineBytes;
  }
  return w;
}

// The same of K by lines of the kernel, `run` elements each in a cell of their own; what fills it is 0.
FASTQ_HD Lines lines_of_kernel(const GemmCall& c, const Block& b, int64_t run, int64_t cell, int64_t first,
                               int64_t count, uint8_t* room) {
  Lines w = {};
  const int64_t block = b.column / kBlockRows, last = (b.column + b.columns - 1) / kBlockRows;
  const int64_t tiles = (c.k + kBlockDepth - 1) / kBlockDepth;
  alignas(64) uint8_t whole[2 * kTileSize + kLineBytes] = {};
  for (int j = 0; j < kPanelBlocks && block + j <= last; ++j) {
    const uint8_t* from = c.weight + (block + j) * c.row_bytes;
    uint8_t* to = room + j * kStepTiles * kTileSize;
    w.block[j] = to;
    for (int64_t k = first; k < first + count; k += kBlockDepth) {
      // What a tile has of cells comes from at most two tiles of the weight.
      const int64_t tile = (k / cell * run + k % cell) / kBlockDepth;
      for (int64_t i = 0; i < 2 && tile + i < tiles; ++i) {
        const uint8_t* packed = from + (tile + i) * block_tile_bytes(c.bits);
        if (c.bits == 8)
          std::memcpy(whole + i * kTileSize, packed, kTileSize);
        else
          unpack_tile(c.bits, packed, whole + i * kTileSize);
      }
      // A line has four elements of each row; so many bits further begin those that are wanted.
      for (int64_t at = k; at < k + kBlockDepth; at += 4, to += kLineBytes) {
        const int64_t element = at / cell * run + at % cell, valid = least(run - at % cell, c.k - element);
        if (valid <= 0) {
          fill_zeros(to, 0, kLineBytes);
          continue;
        }
        const uint32_t mask = valid >= 4 ? ~0u : (1u << (8 * valid)) - 1;
        const int shift = int(element % 4 * 8);
        const uint8_t* line = whole + (element / 4 - tile * kBlockDepth / 4) * kLineBytes;
        for (int64_t n = 0; n < kBlockRows; ++n) {
          uint32_t these, next;
          std::memcpy(&these, line + n * 4, 4);
          std::memcpy(&next, line + kLineBytes + n * 4, 4);
          const uint32_t fields = uint32_t((uint64_t(next) << 32 | these) >> shift) & mask;
          std::memcpy(to + n * 4, &fields, 4);
        }
      }
    }
  }
  return w;
}

// What follows elements [first, first + count) of K in the panel, or the panel itself: half of the time that a weight
// takes is spent on its way. `times`: how often a tile of K is gone through.
FASTQ_HD Ahead ahead_of(const GemmCall& c, const Block& b, int64_t first, int64_t count, int64_t times) {
  if (c.convolution) return {};  // whose weights stay in the cache
  const int64_t next = first + count, block = b.column / kBlockRows;
  const bool wrap = next >= c.k;
  const int64_t bytes = (count + kBlockDepth - 1) / kBlockDepth * block_tile_bytes(c.bits);
  const uint8_t* from = c.weight + (wrap ? block + kPanelBlocks : block) * c.row_bytes +
                        (wrap ? 0 : next / kBlockDepth * block_tile_bytes(c.bits));
  if (wrap && (block + 2 * kPanelBlocks) * kBlockRows > c.n) return {};
  const int64_t steps = (count + kBlockDepth - 1) / kBlockDepth * times;
  return {{from, from + c.row_bytes}, (bytes / kLineBytes + steps - 1) / steps, 0};
}

struct IntegerProduct {
  const GemmCall& c;
  const GemmPlan& plan;
  const Scratch& s;
  Columns<kPanel> columns;

  // Rows [i, i + rows) by elements [first, first + count) of K.
  FASTQ_HD void multiply(const Rows& x, int64_t i, int64_t rows, const Lines& w, int64_t first, int64_t count,
                         bool fresh, uint32_t* sums, Ahead& ahead) const {
    const uint8_t* from = x.x + i * x.stride;
    Depths depths = {x.offset, kBlockDepth * Sums::kElement};
    if (x.offset == nullptr)
      from += first * Sums::kElement;
    else
      depths.offset += first / kBlockDepth;
#if defined(__AMX_INT8__)
    if (plan.tiles)
      return Tiles::multiply(c.bits, from, x.stride, rows, depths, w, (count + kBlockDepth - 1) / kBlockDepth, fresh,
                             sums, ahead);
#endif
    (void)ahead;
    const auto multiply = c.bits == 8 ? Sums::rows<true> : Sums::rows<false>;
    multiply(from, x.stride, rows, depths, w, (count + 3) / 4, fresh, sums);
  }

  // Fetches what these rows will be written to, for writing: stores that wait would hold up what comes after them.
  FASTQ_HD void expect(const Block& b, int64_t i, int64_t rows) const {
    const int64_t size = size_of(c.out_type);
    for (int64_t r = 0; r < rows; ++r) {
      const char* to = static_cast<const char*>(c.out) + ((b.row + i + r) * c.n + b.column) * size;
      for (int64_t at = 0; at < b.columns * size; at += kLineBytes) __builtin_prefetch(to + at, 1);
    }
  }

  // Rows [i, i + rows) of the block, whose sums over a group of K are whole.
  void settle(const Block& b, const Rows& x, int64_t i, int64_t rows, int64_t scale_group, const uint32_t* sums) {
    if (x.width == 0) return settle_rows(b, x, i, b.row + i, rows, scale_group, sums);
    for (const int64_t begin = i, end = i + rows; i < end;) {  // line by line
      const int64_t line = i / x.width, first = i - line * x.width, count = least(x.inside - first, end - i);
      if (count > 0)
        settle_rows(b, x, i, b.row + line * x.inside + first, count, scale_group, sums + (i - begin) * kPanel);
      i = (line + 1) * x.width;
    }
  }

  void settle_rows(const Block& b, const Rows& x, int64_t i, int64_t row, int64_t rows, int64_t scale_group,
                   const uint32_t* sums) {
    sums += b.column % kBlockRows;
    const Block part = {row, rows, b.column, b.columns, b.group};
    const bool totals = has_totals(c);
    const auto total = [&](int64_t r) { return x.total(i + r, scale_group); };
    const auto whole = [&](int64_t r, int64_t j) {
      return corrected_sums(sums + r * kPanel + j, columns, j, totals ? total(r) : 0);
    };
    if (c.out_type == Stored::i32) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < b.columns; j += kWidth) {
          const I32 v = whole(r, j);
          std::memcpy(static_cast<int32_t*>(c.out) + (part.row + r) * c.n + b.column + j, &v,
                      least(b.columns - j, kWidth) * sizeof(int32_t));
        }
      return;
    }
    const int64_t done = quick_columns(c, part, columns, sums, totals, total);
    if (done >= b.columns) return;
    fold(
        c, part, columns, scale_group, [&](int64_t r, int64_t j) { return __builtin_convertvector(whole(r, j), F32); },
        s.y + i * kPanel, done);
  }

  // `x`: the block's rows.
  void run(const Block& b, const Rows& x) {
    columns.set(c, b);
    if (c.k == 0) {  // groups of no element
      for (int64_t i = 0; i < b.rows * kPanel; ++i) s.sums[i] = 0;
      columns.set_scale(c, b, 0);
      columns.set_zeros(c, b, 0, 0, 0);
      for (int64_t i = 0; i < b.rows; i += kRowsTogether)
        settle(b, x, i, least(kRowsTogether, b.rows - i), 0, s.sums + i * kPanel);
      return;
    }
    const int32_t x_zero = c.x_zero + x_shift(c, plan);
    for (int64_t g = 0; g < c.scale_groups; ++g) {
      const int64_t begin = g * c.group_size, end = x.run > 0 ? x.depth : least(begin + c.group_size, c.k);
      if (c.out_type != Stored::i32) columns.set_scale(c, b, g);
      columns.set_zeros(c, b, g, block_middle(c.bits), x_zero);
#if defined(__AVX512VNNI__)
      if (!plan.tiles && whole_tiles(c) && x.offset == nullptr && b.rows <= DotProducts::kFewRows) {
        Lines w = {};
        const int64_t block = b.column / kBlockRows, last = (b.column + b.columns - 1) / kBlockRows;
        for (int j = 0; j < kPanelBlocks && block + j <= last; ++j)
          w.block[j] = c.weight + (block + j) * c.row_bytes + begin / kBlockDepth * block_tile_bytes(c.bits);
        DotProducts::multiply_few(c.bits, x.x + begin, x.stride, b.rows, w,
                                  (end - begin + kBlockDepth - 1) / kBlockDepth, s.sums);
        settle(b, x, 0, b.rows, g, s.sums);
        continue;
      }
#endif
      const int64_t step = plan.tiles && (c.bits == 8 || b.rows > kManyRows) ? kWholeStep : kStep;
      for (int64_t first = begin; first < end; first += step) {
        const int64_t count = least(step, end - first);
        const Lines w = x.run > 0 ? lines_of_kernel(c, b, x.run, x.cell, first, count, s.panel)
                                  : lines_of(c, b, first, count, s.panel);
        Ahead ahead = ahead_of(c, b, first, count, (b.rows + kRowsTogether - 1) / kRowsTogether);
        const bool fresh = first == begin;
        if (first + count < end) {
          multiply(x, 0, b.rows, w, first, count, fresh, s.sums, ahead);
          continue;
        }
        // One block of rows ahead: while its products are under way, the one before becomes outputs. Sums that no
        // other step adds to are kept no longer.
        const auto sums_of = [&](int64_t i) { return s.sums + (fresh ? i % (2 * kRowsTogether) : i) * kPanel; };
        for (int64_t i = 0; i < b.rows + kRowsTogether; i += kRowsTogether) {
          if (i < b.rows) {
            const int64_t rows = least(kRowsTogether, b.rows - i);
            if (end == c.k && !c.convolution) expect(b, i, rows);
            multiply(x, i, rows, w, first, count, fresh, sums_of(i), ahead);
          }
          const int64_t before = i - kRowsTogether;
          if (i > 0) settle(b, x, before, least(kRowsTogether, b.rows - before), g, sums_of(before));
        }
      }
    }
  }
};

// ---- floating point numbers

template <class X>
struct FloatProduct {
  const GemmCall& c;
  const GemmPlan& plan;
  const Scratch& s;
  Columns<kPanel> columns;

  static void pack(const GemmCall& c, int64_t row, int64_t group, uint8_t* to) {
#if defined(__AMX_BF16__)
    if (as_bfloat16(c)) {
      // A whole row first, at the end of where its terms are to be.
      const int64_t depth = multiple(c.k, BFloat16Sums::kDepth);
      const auto whole = [&](auto x) {
        using Packed = typename decltype(x)::Packed;
        auto* numbers = reinterpret_cast<Packed*>(to + depth * (kTerms * 2 - int64_t(sizeof(Packed))));
        gather<decltype(x)>(c, row, group, 0, numbers);
        fill_zeros(numbers, c.k, depth);
      };
      if constexpr (kTerms == 1)
        whole(Halves());
      else
        whole(X());
      return BFloat16Sums::split<kTerms>(depth, to);
    }
#endif
    gather<X>(c, row, group, 0.0f, reinterpret_cast<float*>(to));
    fill_zeros(reinterpret_cast<float*>(to), c.k, depth_of(c));
  }

  // Unpacks elements [first, first + count) of the panel's K. `zero`: of its columns, with what was added to fields.
  FASTQ_HD void unpack(const Block& b, int64_t first, int64_t count, const int32_t* zero) const {
#if defined(__AMX_BF16__)
    if (as_bfloat16(c)) {
      for (int64_t j = 0; j < blocks_of_panel(b); ++j)
        BFloat16Sums::unpack(c.bits, block_of(b, j), first, BFloat16Sums::tiles(count), zero + j * kBlockRows,
                             s.numbers + j * BFloat16Sums::kBlockBytes);
      return;
    }
#endif
    const Lines w = lines_of(c, b, first, count, s.panel);
    for (int j = 0; j < kPanelBlocks; ++j)
      if (w.block[j] != nullptr)
        FloatSums::weights(w.block[j], c.bits == 8, count, zero + j * kBlockRows,
                           reinterpret_cast<float*>(s.numbers) + j * kBlockRows);
  }

  // Rows [i, i + rows) by what was unpacked.
  FASTQ_HD void multiply(const Block& b, const Rows& x, int64_t i, int64_t rows, int64_t first, int64_t count,
                         bool fresh, Ahead& ahead) const {
    const uint8_t* from = x.x + i * x.stride;
    auto* sums = reinterpret_cast<float*>(s.sums) + i * kPanel;
#if defined(__AMX_BF16__)
    if (as_bfloat16(c))
      return BFloat16Sums::multiply<kTerms>(from + first * kTerms * 2, x.stride, rows, s.numbers,
                                            blocks_of_panel(b) == kPanelBlocks, BFloat16Sums::tiles(count), fresh, sums,
                                            ahead);
#endif
    (void)b, (void)ahead;
    FloatSums::multiply(reinterpret_cast<const float*>(from) + first, x.stride / 4, rows,
                        reinterpret_cast<const float*>(s.numbers), count, fresh, sums);
  }

  // Rows [i, i + rows) of the block, whose sums over a group of K are whole.
  void settle(const Block& b, int64_t i, int64_t rows, int64_t scale_group) const {
    const float* sums = reinterpret_cast<const float*>(s.sums) + i * kPanel + b.column % kBlockRows;
    float* y = s.y + i * kPanel;
    if (scale_group + 1 < c.scale_groups) return add_group(rows, sums, scale_group == 0, y);
    const Block part = {b.row + i, rows, b.column, b.columns, b.group};
    fold(c, part, columns, scale_group, [&](int64_t r, int64_t j) { return load_bits<F32>(sums + r * kPanel + j); }, y);
  }
  // What fold does of a group that is not the last one, for whole rows of the panel.
  FASTQ_HD void add_group(int64_t rows, const float* sums, bool first, float* y) const {
    F32 scale[kPanel / kWidth];
    for (int64_t j = 0; j < kPanel / kWidth; ++j) scale[j] = load_bits<F32>(columns.scale + j * kWidth);
    for (int64_t i = 0; i < rows * kPanel; i += kPanel)
      for (int64_t j = 0; j < kPanel / kWidth; ++j) {
        const F32 v = load_bits<F32>(sums + i + j * kWidth) * scale[j];
        float* to = y + i + j * kWidth;
        store_bits(to, first ? v : load_bits<F32>(to) + v);
      }
  }

  void run(const Block& b, const Rows& x) {
    const int64_t offset = b.column % kBlockRows;
    auto* sums = reinterpret_cast<float*>(s.sums);
    columns.set(c, b);
    columns.set_scale(c, b, 0);
    if (c.k == 0) {  // groups of no element
      for (int64_t i = 0; i < b.rows * kPanel; ++i) sums[i] = 0.0f;
      settle(b, 0, b.rows, 0);
      return;
    }
    alignas(64) int32_t zero[kPanel];
    for (int64_t j = 0; j < kPanel; ++j) zero[j] = block_middle(c.bits);
    for (int64_t g = 0; g < c.scale_groups; ++g) {
      const int64_t begin = g * c.group_size, end = least(begin + c.group_size, c.k);
      const int64_t at = b.column * c.scale_step + g;
      for (int64_t j = 0; j < b.columns; ++j) columns.scale[j] = c.scale[at + j * c.scale_step];
      if (c.zero != nullptr)
        for (int64_t j = 0; j < b.columns; ++j) zero[offset + j] = block_middle(c.bits) + c.zero[at + j * c.scale_step];
      int64_t step = FloatSums::kStep;
#if FASTQ_VECTOR_BYTES == 64
      if (few_floats(c)) {
        for (int64_t j = 0; j < blocks_of_panel(b); ++j)
          FewRows::multiply(c.bits, reinterpret_cast<const float*>(x.x) + begin, x.stride / 4, b.rows, block_of(b, j),
                            begin, (end - begin + FewRows::kDepth - 1) / FewRows::kDepth, zero + j * kBlockRows,
                            sums + j * kBlockRows);
        settle(b, 0, b.rows, g);
        continue;
      }
#endif
#if defined(__AMX_BF16__)
      if (as_bfloat16(c)) step = BFloat16Sums::kStep;
#endif
      for (int64_t first = begin; first < end; first += step) {
        const int64_t count = least(step, end - first);
        unpack(b, first, count, zero);
        Ahead ahead = ahead_of(c, b, first, count, kTilesAhead * ((b.rows + kRowsTogether - 1) / kRowsTogether));
        if (first + count < end) {
          multiply(b, x, 0, b.rows, first, count, first == begin, ahead);
          continue;
        }
        for (int64_t i = 0; i < b.rows; i += kRowsTogether) {
          const int64_t rows = least(kRowsTogether, b.rows - i);
          multiply(b, x, i, rows, first, count, first == begin, ahead);
          settle(b, i, rows, g);
        }
      }
    }
  }

 private:
#if defined(__AMX_BF16__)
  static constexpr int kTerms = BFloat16Sums::terms(X::kStored);
#endif
  FASTQ_HD static int64_t blocks_of_panel(const Block& b) {
    return (b.column + b.columns - 1) / kBlockRows - b.column / kBlockRows + 1;
  }
  FASTQ_HD const uint8_t* block_of(const Block& b, int64_t j) const {
    return c.weight + (b.column / kBlockRows + j) * c.row_bytes;
  }
  static constexpr int64_t kTilesAhead = 2;  // of floating point numbers in a tile of bytes
};

// ---- depthwise convolutions

// A convolution whose channels each have a kernel of their own: no dot products, but vectors of channels.
template <class Wide>
struct Depthwise {
  static constexpr int64_t kColumns = kDepthwiseChannels;
  static constexpr int64_t kTaps = 32;  // at a time

  struct alignas(64) Scratch {
    Wide weight[kTaps * kColumns];
    Wide x[kColumns];
    Wide sums[kDepthwiseRows * kColumns];
    Columns<kColumns> columns;
    int32_t channel[kColumns];  // of the input, from the block's first one
  };

  static void load_weights(const GemmCall& c, const Block& b, int64_t first, int64_t count, Scratch& s) {
    for (int64_t j = 0; j < b.columns; ++j) {
      const int64_t n = b.column + j;
      const int32_t zero = c.zero == nullptr ? 0 : c.zero[n * c.scale_step];
      for (int64_t t = 0; t < count; ++t)
        s.weight[t * kColumns + j] = Wide(field_of_blocks(c.weight, c.row_bytes, c.bits, n, first + t) - zero);
    }
  }

  // Channels of a pixel from element `at` of x on, less the zero-point.
  FASTQ_HD static void load_x(const GemmCall& c, int64_t at, int64_t n, Wide* to) {
    if constexpr (sizeof(Wide) == sizeof(float) && Wide(0.5f) != Wide(0)) {
      each_float(c.x_type, [&](auto s) {
        using S = decltype(s);
        FloatsOf<S>::load(static_cast<const typename S::Element*>(c.x) + at, n, to);
      });
    } else if (c.x_type == Stored::i8) {
      for (int64_t i = 0; i < n; ++i) to[i] = Wide(static_cast<const int8_t*>(c.x)[at + i] - c.x_zero);
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = Wide(static_cast<const uint8_t*>(c.x)[at + i] - c.x_zero);
    }
  }

  FASTQ_HD static F32 number(const Wide* sums) {
    if constexpr (Wide(0.5f) != Wide(0))
      return load_bits<F32>(sums);
    else
      return __builtin_convertvector(load_bits<I32>(sums), F32);
  }

  static void run(const GemmCall& c, const Block& b) {
    Scratch s;
    const GemmWindow& w = c.window;
    const int64_t each = c.n / w.groups;  // outputs of an input channel
    const int64_t lowest = b.column / each, channels = (b.column + b.columns - 1) / each - lowest + 1;
    for (int64_t j = 0; j < b.columns; ++j) s.channel[j] = int32_t((b.column + j) / each - lowest);
    fill_zeros(s.sums, 0, kDepthwiseRows * kColumns);
    s.columns.set(c, b);
    for (int64_t first = 0; first < c.k; first += kTaps) {
      const int64_t count = least(kTaps, c.k - first);
      load_weights(c, b, first, count, s);
      for (int64_t i = 0; i < b.rows; ++i) {
        const Position p(w, b.row + i);
        for (int64_t t = 0; t < count; ++t) {
          const int64_t pixel = p.pixel(w, (first + t) / w.kw, (first + t) % w.kw);
          if (pixel < 0) continue;
          load_x(c, pixel * w.groups + lowest, channels, s.x);
          Wide* sums = s.sums + i * kColumns;
          const Wide* weight = s.weight + t * kColumns;
          if (each == 1)
            for (int64_t j = 0; j < b.columns; ++j) sums[j] += s.x[j] * weight[j];
          else
            for (int64_t j = 0; j < b.columns; ++j) sums[j] += s.x[s.channel[j]] * weight[j];
        }
      }
    }
    if (c.out_type == Stored::i32) {
      for (int64_t i = 0; i < b.rows; ++i)
        std::memcpy(static_cast<int32_t*>(c.out) + (b.row + i) * c.n + b.column, s.sums + i * kColumns,
                    b.columns * sizeof(int32_t));
      return;
    }
    s.columns.set_scale(c, b, 0);
    fold(c, b, s.columns, 0, [&](int64_t i, int64_t j) { return number(s.sums + i * kColumns + j); }, nullptr);
  }
};

// ---- tasks

template <class Body>
FASTQ_HD void each_product(const GemmCall& c, const Body& body) {
  switch (c.x_type) {
    case Stored::bf16: return body(FloatProduct<Numbers<BFloat16, Stored::bf16>>::pack);
    case Stored::f16: return body(FloatProduct<Numbers<Float16, Stored::f16>>::pack);
    default: return body(FloatProduct<Numbers<Float32, Stored::f32>>::pack);
  }
}

void pack_row(const GemmCall& c, const GemmPlan& plan, int64_t row, int64_t group, uint8_t* to) {
  if (c.integer())
    pack_codes(c, plan, row, group, to);
  else
    each_product(c, [&](auto pack) { pack(c, row, group, to); });
}

GemmPlan plan_of(const GemmCall& c) {
  GemmPlan p = {};
  if (c.depthwise()) {
    p.rows = kDepthwiseRows, p.columns = kDepthwiseChannels, p.groups = 1, p.shared = true;
    p.row_tasks = (c.m + p.rows - 1) / p.rows;
    p.column_tasks = (c.n + p.columns - 1) / p.columns;
    p.work = least(c.m, p.rows) * least(c.n, p.columns) * c.k;
    return p;
  }
  const int64_t depth = depth_of(c);
  p.groups = c.convolution ? c.window.groups : 1;
  int64_t bytes = c.integer() ? depth * Sums::kElement + (has_totals(c) ? c.scale_groups * 4 : 0) : bytes_of_floats(c);
  // Rows an odd number of lines apart do not fall into the same sets of the cache.
  bytes = multiple(bytes, kLineBytes);
  p.stride = bytes / kLineBytes % 2 == 0 ? bytes + kLineBytes : bytes;
#if defined(__AMX_INT8__)
  p.tiles = c.integer() ? c.m > DotProducts::kFewRows && whole_tiles(c) : as_bfloat16(c);
#endif
  const int64_t of_group = c.n / p.groups;
  const int64_t panels = (of_group + (of_group % kBlockRows == 0 ? 0 : kBlockRows - 1) + kPanel - 1) / kPanel;
  p.lines = Image::lines_of_task(c, p.tiles);
  if (p.lines > 0) {
    const Image image(c, p.lines);
    p.stride = image.step;
    p.rows = multiple(image.positions, kRowsTogether);
    p.row_tasks = c.window.batch * ((c.window.oh + p.lines - 1) / p.lines);
    // An image of few tasks is packed by some more of them, which share its columns.
    const int64_t parts = least(panels, (kFewTasks + p.row_tasks - 1) / (p.row_tasks + (p.row_tasks == 0)));
    p.columns = (panels + parts - 1) / (parts + (parts == 0)) * kPanel;
    p.column_tasks = (panels * kPanel + p.columns - 1) / (p.columns + (p.columns == 0));
    p.work = p.rows * least(c.n, p.columns) * c.k;
    p.scratch = Scratch::bytes(c, p);
    return p;
  }
  p.shared = p.groups == 1 && (!c.convolution || c.m <= kSharedRows);
  int64_t of_task = p.shared ? kTaskRows : c.bits == 8 ? kOwnRows : kUnpackedRows;
  if (as_bfloat16(c)) of_task = least(of_task, float_rows(p.stride));
  p.row_tasks = (c.m + of_task - 1) / of_task;
  p.rows = p.row_tasks == 0 ? 0 : multiple((c.m + p.row_tasks - 1) / p.row_tasks, kRowsTogether);
  p.column_tasks = p.shared ? panels : 1;
  p.columns = p.shared ? kPanel : panels * kPanel;
  p.work = least(c.m, p.rows) * least(of_group, p.columns) * c.k;
  p.scratch = Scratch::bytes(c, p);
  return p;
}

void pack(const GemmCall& c, const GemmPlan& plan, uint8_t* packed, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) pack_row(c, plan, row, 0, packed + (row - plan.first_row) * plan.stride);
}

// Line y of an image `x`, as positions of its convolution see it: from pixel `-left` on, each `apart` pixels, to
// `width` of them.
FASTQ_HD void load_line(const GemmCall& c, const uint8_t* x, int64_t y, int64_t apart, int64_t width, uint8_t* to) {
  const GemmWindow& w = c.window;
  const auto fill = [&](int64_t from, int64_t end) {
    for (int64_t i = from * w.channels; i < end * w.channels; ++i) to[i] = uint8_t(c.x_zero);
  };
  // Pixels [left, right) lie inside.
  const int64_t left = least((w.left + apart - 1) / apart, width);
  const int64_t beyond = (w.width + w.left + apart - 1) / apart, right = least(beyond > left ? beyond : left, width);
  if (y < 0 || y >= w.height || left >= right) return fill(0, width);
  fill(0, left);
  const uint8_t* from = x + (y * w.width + left * apart - w.left) * w.channels;
  if (apart == 1)
    Codes::load(from, (right - left) * w.channels, to + left * w.channels);
  else
    for (int64_t j = left; j < right; ++j, from += apart * w.channels)
      Codes::load(from, w.channels, to + j * w.channels);
  fill(right, width);
}

// Of `n` cells the bytes from `from` on, each `apart` bytes; `to`: cells of a position are a tile's bytes.
template <int64_t kCell>
FASTQ_HD void copy_cells(const uint8_t* from, int64_t apart, int64_t n, uint8_t* to) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * kBlockDepth, from + i * apart, kCell);
}

// Lines of cells, and their totals: of line `at` those of the lines of the kernel that it has.
FASTQ_HD void load_cells(const GemmCall& c, const GemmPlan& plan, const Image& image, const uint8_t* x, int64_t line,
                         uint8_t* to, int32_t* across, int32_t* sums, uint8_t* room) {
  const GemmWindow& w = c.window;
  const int64_t width = (w.ow - 1) * w.sw + w.kw, bytes = width * w.channels, apart = w.sw * w.channels;
  const bool shifted = x_shift(c, plan) != 0, with_sign = x_is_signed(c, plan), totals = has_totals(c);
  fill_zeros(room, bytes, Image::bytes_of_line(c));
  for (int64_t at = 0; at < image.stored(); ++at) {
    const int64_t top = (line + at % image.of_phase) * w.sh + at / image.of_phase - w.top;
    for (int64_t l = 0; l < image.together; ++l) {
      load_line(c, x, top + l * w.dh, 1, width, room);
      if (shifted)
        for (int64_t i = 0; i < bytes; ++i) room[i] ^= 0x80;
      uint8_t* cells = to + at * image.line + l * image.cell;
      switch (image.cell) {
        case 8: copy_cells<8>(room, apart, w.ow, cells); break;
        case 16: copy_cells<16>(room, apart, w.ow, cells); break;
        case 32: copy_cells<32>(room, apart, w.ow, cells); break;
        default: copy_cells<64>(room, apart, w.ow, cells); break;
      }
      if (!totals) continue;
      // Sums of all bytes before each, modulo 2^32: of a run they differ by its own.
      uint32_t sum = 0;
      sums[0] = 0;
      for (int64_t i = 0; i < bytes; ++i) {
        sum += with_sign ? uint32_t(int32_t(int8_t(room[i]))) : room[i];
        sums[i + 1] = int32_t(sum);
      }
      int32_t* of_line = across + (at * image.together + l) * image.pitch;
      for (int64_t j = 0; j < w.ow; ++j)
        of_line[j] = int32_t(uint32_t(sums[j * apart + image.run]) - uint32_t(sums[j * apart]));
    }
  }
}

// Lines [line, line + image.lines) of outputs of one image, its pixels packed to `to`; `offset` has room for all tiles.
FASTQ_HD Rows image_rows(const GemmCall& c, const GemmPlan& plan, const Image& image, int64_t batch, int64_t line,
                         uint8_t* to, int64_t* offset) {
  const GemmWindow& w = c.window;
  const int64_t channels = w.channels;
  const auto* x = static_cast<const uint8_t*>(c.x) + batch * w.height * w.width * channels;
  auto* totals = reinterpret_cast<int32_t*>(to + image.bytes_of_pixels());
  int32_t *across = totals + image.positions, *sums = across + image.across();
  if (image.together > 0) {
    load_cells(c, plan, image, x, line, to, across, sums, to + image.bytes_of_pixels() + image.bytes_of_totals(c));
  } else {
    const int64_t width = image.pitch * image.sw, all = image.stored() * width * channels;
    uint8_t* bytes = to + (Sums::kElement - 1) * all;
    for (int64_t at = 0; at < image.stored(); ++at)
      load_line(c, x, (line + at % image.of_phase) * w.sh + at / image.of_phase - w.top, w.sw / image.sw, width,
                bytes + at * width * channels);
    if (x_shift(c, plan) != 0)
      for (int64_t i = 0; i < all; ++i) bytes[i] ^= 0x80;
    const bool with_sign = x_is_signed(c, plan);
    if (has_totals(c)) {
      for (int64_t i = 0; i < image.stored() * width; ++i) sums[i] = total(bytes + i * channels, channels, with_sign);
      for (int64_t i = 0; i < image.stored(); ++i)
        for (int64_t v = 0; v < w.kw; ++v) {
          const int32_t* from = sums + i * width + v * w.dw;
          int32_t* of_line = across + i * image.pitch;
          for (int64_t j = 0; j < w.ow; ++j) of_line[j] = v == 0 ? from[j * image.sw] : of_line[j] + from[j * image.sw];
        }
    }
    widen(all, with_sign, to);
  }
  // Where the lines of the kernel's line u begin, for the first output.
  const auto line_of = [&](int64_t u) { return u * w.dh % w.sh * image.of_phase + u * w.dh / w.sh; };
  const int64_t together = image.together > 0 ? image.together : 1;
  if (has_totals(c))
    for (int64_t i = 0; i < image.lines; ++i)
      for (int64_t u = 0; u < w.kh; ++u) {
        const int32_t* from = across + ((line_of(u / together * together) + i) * together + u % together) * image.pitch;
        int32_t* sum = totals + i * image.pitch;
        for (int64_t j = 0; j < w.ow; ++j) sum[j] = u == 0 ? from[j] : sum[j] + from[j];
      }
  const int64_t of_cell = image.together > 0 ? 1 : image.cell / kBlockDepth, taps = image.number / w.kh;
  for (int64_t t = 0; t < image.tiles(); ++t) {
    const int64_t n = t / of_cell * together;  // the tap, or the line of the kernel
    offset[t] =
        line_of(n / taps) * image.line + (n % taps * w.dw * channels + t % of_cell * kBlockDepth) * Sums::kElement;
  }
  const bool by = image.by_lines;
  return {to,
          image.step,
          offset,
          reinterpret_cast<const uint8_t*>(totals),
          4,
          image.pitch,
          w.ow,
          by ? image.tiles() * kBlockDepth : 0,
          by ? image.run : 0,
          image.cell};
}

// The panels of a task's columns.
template <class P>
FASTQ_HD void run_panels(const GemmCall& c, const GemmPlan& plan, P& product, int64_t row, int64_t rows,
                         int64_t of_column, int64_t group, const Rows& x) {
  // Panels begin with whole blocks, a group's columns anywhere.
  const int64_t of_group = c.n / plan.groups, first = group * of_group, last = first + of_group;
  const int64_t base = first / kBlockRows * kBlockRows + of_column * plan.columns;
  for (int64_t panel = base; panel < least(base + plan.columns, last); panel += kPanel) {
    const int64_t column = panel < first ? first : panel;
    const int64_t end = least(panel + kPanel, last);
    if (column < end) product.run({row, rows, column, end - column, group}, x);
  }
}

void run_image_task(const GemmCall& c, const GemmPlan& plan, const uint8_t*, int64_t task, uint8_t* memory) {
  const int64_t of_image = (c.window.oh + plan.lines - 1) / plan.lines, of_row = task / plan.column_tasks;
  const int64_t batch = of_row / of_image, line = of_row % of_image * plan.lines;
  const Image image(c, least(plan.lines, c.window.oh - line));
  const Scratch s(c, plan, memory);
  const Rows x = image_rows(c, plan, image, batch, line, s.x, s.offset);
  IntegerProduct product = {c, plan, s, {}};
  const int64_t row = (batch * c.window.oh + line) * c.window.ow;
  run_panels(c, plan, product, row, image.positions, task % plan.column_tasks, 0, x);
}

template <class P>
void run_task(const GemmCall& c, const GemmPlan& plan, const uint8_t* packed, int64_t task, uint8_t* memory) {
  const int64_t of_column = task % plan.column_tasks, of_row = task / plan.column_tasks % plan.row_tasks,
                group = task / plan.column_tasks / plan.row_tasks;
  const int64_t row = of_row * plan.rows, rows = least(plan.rows, c.m - row);
  if (rows <= 0) return;
  const Scratch s(c, plan, memory);
  const uint8_t* x = packed;
  if (!plan.shared) {
    for (int64_t i = 0; i < rows; ++i) pack_row(c, plan, row + i, group, s.x + i * plan.stride);
    x = s.x;
  } else {
    x += (row - plan.first_row) * plan.stride;
  }
  P product = {c, plan, s, {}};
  run_panels(c, plan, product, row, rows, of_column, group,
             {x, plan.stride, nullptr, x + depth_of(c) * Sums::kElement, plan.stride, 0, 0, 0, 0, 0});
}

void product(const GemmCall& c, const GemmPlan& plan, const uint8_t* packed, int64_t begin, int64_t end) {
  if (c.depthwise()) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task % plan.row_tasks * plan.rows, column = task / plan.row_tasks * plan.columns;
      const Block b = {row, least(plan.rows, c.m - row), column, least(plan.columns, c.n - column), 0};
      if (c.integer())
        Depthwise<uint32_t>::run(c, b);
      else
        Depthwise<float>::run(c, b);
    }
    return;
  }
  uint8_t* memory = task_memory(plan.scratch);
  const auto run = [&](auto task_of) {
    for (int64_t task = begin; task < end; ++task) task_of(c, plan, packed, task, memory);
  };
  const auto run_tasks = [&] {
    if (c.integer()) return run(plan.lines > 0 ? run_image_task : run_task<IntegerProduct>);
    switch (c.x_type) {
      case Stored::bf16: return run(run_task<FloatProduct<Numbers<BFloat16, Stored::bf16>>>);
      case Stored::f16: return run(run_task<FloatProduct<Numbers<Float16, Stored::f16>>>);
      default: return run(run_task<FloatProduct<Numbers<Float32, Stored::f32>>>);
    }
  };
#if defined(__AMX_INT8__)
  if (plan.tiles) {
    const TileState state;
    return run_tasks();
  }
#endif
  run_tasks();
}

// ---- weights

void blocks_of(const PackCall& c, int64_t begin, int64_t end) {
  const int64_t tiles = (c.k + kBlockDepth - 1) / kBlockDepth, of_row = row_bytes(Layout::rows, c.bits, c.k);
  const int64_t of_block = row_bytes(Layout::blocks, c.bits, c.k);
  alignas(64) uint8_t lines[kTileSize];
  alignas(64) int8_t room[kBlockDepth];
  for (int64_t block = begin; block < end; ++block)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * kBlockDepth, count = least(kBlockDepth, c.k - first);
      for (int64_t i = 0; i < kBlockRows; ++i) {
        const int64_t n = block * kBlockRows + i;
        const int8_t* fields = room;
        if (c.fields != nullptr && n < c.n && count == kBlockDepth) {
          fields = c.fields + n * c.k + first;
        } else {
          fill_zeros(room, n < c.n ? count : 0, kBlockDepth);
          if (n < c.n && c.fields != nullptr) std::memcpy(room, c.fields + n * c.k + first, count);
          if (n < c.n && c.fields == nullptr) unpack_rows(c.rows + n * of_row, c.bits, first, count, int8_t(0), room);
        }
        for (int64_t r = 0; r < kBlockRows; ++r) std::memcpy(lines + r * kLineBytes + i * 4, fields + r * 4, 4);
      }
      uint8_t* to = c.blocks + block * of_block + t * block_tile_bytes(c.bits);
      if (c.bits == 8) {
        std::memcpy(to, lines, kTileSize);
        continue;
      }
      for (int i = 0; i < kTileSize; ++i)
        lines[i] = uint8_t(lines[i] ^ block_middle(c.bits));  // of the lowest bits, + too
      switch (c.bits) {
        case 2: pack_tile<2>(lines, to); break;
        case 3: pack_tile<3>(lines, to); break;
        default: pack_tile<4>(lines, to); break;
      }
    }
}

// ---- codes

// Codes of elements [begin, end).
template <class S>
FASTQ_HD void codes(const QuantizeCall& c, int64_t begin, int64_t end, float scale) {
  const auto* x = static_cast<const typename S::Element*>(c.x);
  const float low = float(c.low - c.zero), high = float(c.high - c.zero);
  const F32 step = splat<F32>(scale), offset = splat<F32>(c.offset == nullptr ? 0.0f : *c.offset);
  for (int64_t i = begin; i < end; i += kWidth) {
    F32 v = load<S>(x + i, end - i);
    if (c.offset != nullptr) v = v - offset;
    store_codes(static_cast<uint8_t*>(c.out) + i, end - i, code_of(v, step, low, high), c.zero);
  }
}

void quantize(const QuantizeCall& c, int64_t begin, int64_t end) {
  each_float(c.x_type, [&](auto s) { codes<decltype(s)>(c, begin * kChunk, least(end * kChunk, c.k), *c.scale); });
}

// NaN where one of them is NaN.
template <class V>
FASTQ_HD V larger(V a, V b) {
  return select(a > b, a, select(a == a, b, a));
}

void quantize_rows(const QuantizeCall& c, int64_t begin, int64_t end) {
  each_float(c.x_type, [&](auto s) {
    using S = decltype(s);
    for (int64_t row = begin; row < end; ++row) {
      const auto* x = static_cast<const typename S::Element*>(c.x) + row * c.k;
      F32 most = {};
      for (int64_t i = 0; i < c.k; i += kWidth) most = larger(magnitude_of(load<S>(x + i, c.k - i), float()), most);
      float largest = most[0];
      for (int j = 1; j < kWidth; ++j) largest = larger(largest, float(most[j]));
      c.scales[row] = token_scale(largest, float(c.high));
      codes<S>(c, row * c.k, (row + 1) * c.k, c.scales[row]);
    }
  });
}

#define FASTQ_NAME_OF(isa) #isa
#define FASTQ_NAME(isa) FASTQ_NAME_OF(isa)

}  // namespace

extern const GemmLoops gemm_loops;
const GemmLoops gemm_loops = {FASTQ_NAME(FASTQ_ISA), plan_of, pack, product, quantize, quantize_rows, blocks_of};

}  // namespace FASTQ_ISA
}  // namespace fastq
