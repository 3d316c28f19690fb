// The loops of every elementwise quantizer on a GPU. A method is a struct as in csrc/methods/lsq.h.
//
// A block takes one tile of at most 4096 elements, every thread some 16-byte pieces of it: all its loads are under way
// before the first is used. What limits is memory: forward reads and writes an element once, backward reads two and
// writes one. An H200 brings 21 bytes per clock and SM at about 700 clocks of latency, 15 KB under way; a tile of fp32
// has 16 KB (backward 32 KB), and several blocks share an SM. The arithmetic, some 25 instructions an element with a
// true division, stays below that for fp32 and about level with it for 16-bit types.
//
// Sums have the CPU's structure and bits (csrc/cpu/elementwise.h): the terms go to shared memory, where kLanes threads
// add those of their lane in order; a tree over the lanes; then the partial sums, in fp64, in a fixed order. Nothing
// depends on the grid or on the number of SMs. A column block of 128 rows and 32 columns is the same sum without tree.
//
// A kernel is a sequence of phases, each a function of the thread's number with a barrier behind it: team.each(phase).
// What outlives a phase is in shared memory. tests/cuda/ runs the same phases as loops on a machine without a GPU.
#pragma once

#include <type_traits>

#include "../cpu/call.h"
#include "../methods/philox.h"
#include "storage.cuh"

namespace fastq {
inline namespace FASTQ_ISA {

enum class Walk {
  chunks,  // long rows: a tile is a chunk of a row, one parameter
  rows,    // short rows: a tile is some whole rows, a parameter for each
  columns  // rows shorter still and repeated: a tile is 128 rows by 32 columns, a parameter for each column
};

constexpr int kTile = 4096;        // elements: a chunk, or a column block
constexpr int kMaxRows = 256;      // rows of one tile
constexpr int kTermBytes = 32768;  // of shared memory, for the terms of the sums

static_assert(kTile == kChunk && kTile == kRowBlock * kLanes);

// The kernels' view of a Call.
template <class F>
struct Work {
  Geometry geometry;
  int rows;  // of one tile (Walk::rows)
  const void* x;
  const void* g;
  void* out;
  const int32_t* words;
  uint32_t* state[2];
  const int64_t* seed;
  Noise noise;
  float noise_scale;
  const void* parameter[kMaxParameters];
  bool shared[kMaxParameters];
  void* partial[kMaxSums];
  Range<F> range;
};

FASTQ_HD int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class T>
struct alignas(16) Piece {
  static constexpr int kSize = 16 / sizeof(T);
  T element[kSize];
};

// Read once, so first to leave the caches: what is written is read next.
template <class T>
FASTQ_HD Piece<T> load_piece(const T* p) {
#if defined(__CUDA_ARCH__)
  return bits_as<Piece<T>>(__ldcs(reinterpret_cast<const uint4*>(p)));
#else
  Piece<T> piece;
  memcpy(&piece, p, sizeof(piece));
  return piece;
#endif
}
template <class T>
FASTQ_HD void store_piece(T* p, const Piece<T>& piece) {
#if defined(__CUDA_ARCH__)
  __stwb(reinterpret_cast<uint4*>(p), bits_as<uint4>(piece));  // an assignment may come out as four stores
#else
  memcpy(p, &piece, sizeof(piece));
#endif
}
template <class T>
FASTQ_HD T load_element(const T* p) {
#if defined(__CUDA_ARCH__)
  return __ldcs(p);
#else
  return *p;
#endif
}
FASTQ_HD bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// M: method, S: storage type.
template <class M, class S, Walk kWalk, bool kBackward>
struct Tile {
  using T = typename S::Element;
  using F = typename S::F;
  using Job = Work<F>;
  static constexpr int kPrepared = M::kPrepared;
  static constexpr int kSums = kBackward ? M::kGradients : M::kForwardSums;
  using A = std::conditional_t<kBackward, F, double>;  // of the sums
  static constexpr int kSome = kSums > 0 ? kSums : 1;  // arrays have no length 0
  static constexpr int kVector = Piece<T>::kSize;
  // Elements whose terms are in shared memory at once: a tile, or a part of it.
  static constexpr int kPart = [] {
    int part = kTile;
    while (part * kSums * int(sizeof(A)) > kTermBytes) part /= 2;
    return part;
  }();
  static constexpr int kPieces = kVector > 4 ? 2 : 4;       // of 16 bytes, for each thread
  static constexpr int kBatch = kVector < 4 ? kVector : 4;  // elements loaded together where pieces cannot be
  static constexpr int kThreads = kPart / (kPieces * kVector);
  // Register bound: 64; 80 for two loads of everything and for the columns' many addresses; 128 where a method has more
  // values of its own (fp64's take two registers each), which still leaves 32 KB under way in an SM.
  static constexpr bool kManyValues = kPrepared * int(sizeof(F)) >= 16;
  static constexpr bool kFew = sizeof(F) == 4 || kPrepared < 3;
  static constexpr int kThreadsPerSM = !kBackward && kWalk != Walk::columns && kFew ? 1024 : kManyValues ? 512 : 768;
  static constexpr int kBlocksPerSM = kThreadsPerSM / kThreads;
  static constexpr int kTable = kWalk == Walk::rows ? kMaxRows : kWalk == Walk::columns ? int(kLanes) : 1;
  static_assert(kThreads >= kLanes && kThreads <= 1024);

  struct Shared {
    A term[kSome][kSums > 0 ? kPart : 1];
    A lane[kSome][kLanes];          // what the lanes have from the parts so far
    F prepared[kPrepared][kTable];  // values of each row or column
  };

  // Rows of one tile: as many as fit.
  static int tile_rows(const Geometry& geometry) {
    return int(geometry.inner >= kPart ? 1 : smaller(kPart / geometry.inner, kMaxRows));
  }
  static Job job(const Call& c) {
    Job job = {c.geometry, tile_rows(c.geometry), c.x, c.g, c.out, c.words, {c.state[0], c.state[1]}, c.seed,
               c.noise,    c.noise_scale,         {},  {},  {},    {}};
    for (int i = 0; i < M::kParameters; ++i) {
      job.parameter[i] = c.parameter[i];
      job.shared[i] = c.shared[i];
    }
    for (int i = 0; i < kSums; ++i) job.partial[i] = c.partial[i];
    job.range = {F(c.qmin), F(c.qmax), F(c.lower), F(c.upper), F(c.eps), {}};
    for (int i = 0; i < kMaxConstants; ++i) job.range.constant[i] = F(c.constant[i]);
    return job;
  }
  static bool serves(const Geometry& geometry) {
    if (kWalk == Walk::columns) return geometry.columns();
    return !geometry.columns() && (tile_rows(geometry) > 1) == (kWalk == Walk::rows);
  }
  static int64_t tiles(const Geometry& geometry) {
    if (kWalk == Walk::columns) return geometry.tasks() * ((geometry.width() + kLanes - 1) / kLanes);
    if (kWalk == Walk::chunks) return geometry.tasks();
    const int rows = tile_rows(geometry);
    return (geometry.outer * geometry.channels + rows - 1) / rows;
  }

  // Where this tile lies. Position p is in row p / length at place p % length.
  int64_t at;      // of position 0
  int64_t first;   // row of position 0; of the columns walk, its task
  int64_t stride;  // from row to row
  int length;      // positions of a row
  int width;       // those that exist (the last column block has fewer)
  int rows;

  FASTQ_HD Tile(const Job& job, int64_t index) {
    const Geometry& geometry = job.geometry;
    if constexpr (kWalk == Walk::columns) {
      const int64_t blocks = (geometry.width() + kLanes - 1) / kLanes, block = index % blocks;
      first = index / blocks;
      stride = geometry.width();
      at = first * kRowBlock * stride + block * kLanes;
      length = int(kLanes);
      width = int(smaller(stride - block * kLanes, kLanes));
      rows = int(smaller(geometry.outer - first * kRowBlock, kRowBlock));
    } else if constexpr (kWalk == Walk::chunks) {
      const int64_t chunks = geometry.chunks(), start = (index % chunks) * kChunk;
      first = index / chunks;
      at = first * geometry.inner + start;
      length = width = int(smaller(geometry.inner - start, kChunk));
      stride = length;
      rows = 1;
    } else {
      first = index * job.rows;
      stride = geometry.inner;
      at = first * stride;
      length = width = int(stride);
      rows = int(smaller(geometry.outer * geometry.channels - first, job.rows));
    }
  }

  FASTQ_HD static void prepare(const Job& job, int64_t channel, F* values) {
    F parameter[M::kParameters];
#pragma unroll
    for (int i = 0; i < M::kParameters; ++i)
      parameter[i] = static_cast<const F*>(job.parameter[i])[job.shared[i] ? 0 : channel];
    M::prepare(parameter, job.range, values);
  }

  // The values of a row or a column, once for the tile.
  FASTQ_HD void fill_table(const Job& job, Shared& shared, int thread) const {
    if constexpr (kWalk != Walk::chunks) {
      const int entries = kWalk == Walk::rows ? rows : int(kLanes);
      for (int j = thread; j < entries; j += kThreads) {
        int64_t channel;
        if constexpr (kWalk == Walk::rows) {
          channel = (first + j) % job.geometry.channels;
        } else {
          channel = (at % stride + (j < width ? j : width - 1)) / job.geometry.inner;
        }
        F values[kPrepared];
        prepare(job, channel, values);
#pragma unroll
        for (int i = 0; i < kPrepared; ++i) shared.prepared[i][j] = values[i];
      }
    }
  }

  // A position's place: its row, its place in the row, whether it exists, and where it is in memory.
  struct Place {
    int row, column;
    bool exists;
    int64_t offset;
  };
  FASTQ_HD Place place(int position) const {
    if constexpr (kWalk == Walk::chunks) {
      return {0, position, position < width, at + position};
    } else if constexpr (kWalk == Walk::columns) {
      const int row = position / int(kLanes), column = position % int(kLanes);
      return {row, column, column < width && row < rows, at + row * stride + column};
    } else {
      const int row = int(unsigned(position) / unsigned(length));
      return {row, position - row * length, row < rows, at + position};
    }
  }

  // kVectors: thread t's k-th piece is whole 16-byte pieces; else its elements lie kThreads apart, so that the loads of
  // neighbours touch, whatever the alignment.
  template <bool kVectors>
  FASTQ_HD static int position_of(int part, int thread, int piece, int element) {
    return part + (kVectors ? (piece * kThreads + thread) * kVector + element
                            : (piece * kBatch + element) * kThreads + thread);
  }

  // Whether a piece from `position` on exists as a whole. A column block's exists or does not: its width is a multiple
  // of kVector. What a row has after its last whole piece is left to `rest`.
  template <bool kVectors>
  FASTQ_HD bool whole(int position) const {
    if constexpr (!kVectors) {
      return false;
    } else if constexpr (kWalk == Walk::columns) {
      return place(position).exists;
    } else {
      return position + kVector <= rows * length;
    }
  }

  template <bool kVectors>
  FASTQ_HD Piece<T> load(const T* from, int part, int thread, int piece) const {
    const int position = position_of<kVectors>(part, thread, piece, 0);
    Piece<T> loaded = {};
    if constexpr (kVectors) {
      if (whole<true>(position)) loaded = load_piece(from + place(position).offset);
    } else {
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
        const Place p = place(position_of<false>(part, thread, piece, e));
        if (p.exists) loaded.element[e] = load_element(from + p.offset);
      }
    }
    return loaded;
  }

  // What an element brings beside x: words, or its noise.
  using W = std::conditional_t<M::kWord == Word::noise, F, uint32_t>;

  struct Bits {
    FASTQ_HD static void load(const Job& job, int64_t offset, bool exists, W* word) {
      if constexpr (M::kWord == Word::memory) word[0] = exists ? uint32_t(job.words[offset]) : 0u;
      if constexpr (M::kWord == Word::state) {
        word[0] = exists ? job.state[0][offset] : 0u;
        word[1] = exists ? job.state[1][offset] : 0u;
      }
      if constexpr (M::kWord == Word::noise)
        word[0] = F(noise_at(job.noise, job.noise_scale, uint64_t(offset), uint64_t(*job.seed)));
    }
    // The noise of a whole piece: four neighbours share the words of a counter. (Two fp64 are half of that.)
    FASTQ_HD static void load_piece(const Job& job, int64_t offset, W* noise) {
      if constexpr (M::kWord == Word::noise && kVector >= 4) {
        const uint64_t key = uint64_t(*job.seed);
#pragma unroll
        for (int e = 0; e < kVector; e += 4) {
          float four[4];
          noise_of(job.noise, job.noise_scale, uint64_t(offset + e) / 4, key, four);
#pragma unroll
          for (int i = 0; i < 4; ++i) noise[e + i] = F(four[i]);
        }
      } else if constexpr (M::kWord == Word::noise) {
#pragma unroll
        for (int e = 0; e < kVector; ++e) load(job, offset + e, true, noise + e);
      }
    }
    FASTQ_HD static void keep(const Job& job, int64_t offset, bool exists, const W* word) {
      if constexpr (M::kWord == Word::state) {
        if (exists) job.state[0][offset] = word[0], job.state[1][offset] = word[1];
      }
    }
  };

  // `noise` is that of the element where a piece's has been made, else null.
  FASTQ_HD T element(const Job& job, Shared& shared, const W* noise, int part, int position, T x, T g,
                     F* values) const {
    W word[2] = {};
    if (noise != nullptr) {
      word[0] = *noise;
    } else if constexpr (M::kWord != Word::none) {
      const Place p = place(position);
      Bits::load(job, p.offset, p.exists, word);
    }
    if constexpr (kWalk != Walk::chunks) {
      const Place p = place(position);
      const int entry = kWalk == Walk::columns ? p.column : p.exists ? p.row : 0;
#pragma unroll
      for (int i = 0; i < kPrepared; ++i) values[i] = shared.prepared[i][entry];
    }
    if constexpr (kBackward) {
      F terms[kSome];
      const F dx = apply_backward<M, F, W, F>(S::load(x), S::load(g), word, values, job.range, terms);
#pragma unroll
      for (int i = 0; i < kSums; ++i) shared.term[i][position - part] = terms[i];
      return S::store(dx);
    } else {
      double sums[kSome];
      F y = apply_forward<M, F, W, F>(S::load(x), word, values, job.range, sums);
      if constexpr (M::kScaled) y = S::load(S::store(y)) * values[kPrepared - 1];
      if constexpr (M::kWord == Word::state) {
        const Place p = place(position);
        Bits::keep(job, p.offset, p.exists, word);
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i) shared.term[i][position - part] = sums[i];
      return S::store(y);
    }
  }

  // One piece or batch of a thread, once it is loaded.
  template <bool kVectors>
  FASTQ_HD void compute(const Job& job, Shared& shared, int part, int thread, int piece, const Piece<T>& x,
                        const Piece<T>& g, F* values) const {
    T* to = static_cast<T*>(job.out);
    if constexpr (kVectors) {
      const int position = position_of<true>(part, thread, piece, 0);
      if (!whole<true>(position)) return;
      Piece<T> out;
      constexpr bool kNoise = M::kWord == Word::noise;
      [[maybe_unused]] W noise[kNoise ? kVector : 1];
      Bits::load_piece(job, place(position).offset, noise);
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        out.element[e] =
            element(job, shared, kNoise ? noise + e : nullptr, part, position + e, x.element[e], g.element[e], values);
      if constexpr (kBackward || M::kOutput) store_piece(to + place(position).offset, out);
    } else {
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
        const int position = position_of<false>(part, thread, piece, e);
        const T out = element(job, shared, nullptr, part, position, x.element[e], g.element[e], values);
        const Place p = place(position);
        if ((kBackward || M::kOutput) && p.exists) to[p.offset] = out;
      }
    }
  }

  // What is left of rows behind the last whole piece: fewer than kVector elements, one each for the first threads.
  FASTQ_HD void rest(const Job& job, Shared& shared, int part, int thread, F* values) const {
    const int end = rows * length, position = end - end % kVector + thread;
    if (position < end && position >= part && position < part + kPart) {
      const int64_t offset = at + position;
      const T x = load_element(static_cast<const T*>(job.x) + offset);
      T g = {};
      if constexpr (kBackward) g = load_element(static_cast<const T*>(job.g) + offset);
      const T out = element(job, shared, nullptr, part, position, x, g, values);
      if constexpr (kBackward || M::kOutput) static_cast<T*>(job.out)[offset] = out;
    }
  }

  // One thread's elements of one part of the tile. Aligned: all loads first. Otherwise a batch at a time, with less
  // under way and in less code.
  template <bool kVectors>
  FASTQ_HD void elements(const Job& job, Shared& shared, int part, int thread) const {
    const T* x = static_cast<const T*>(job.x);
    const T* g = static_cast<const T*>(job.g);
    F values[kPrepared];
    if constexpr (kVectors) {
      Piece<T> xs[kPieces], gs[kPieces];
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        xs[k] = load<true>(x, part, thread, k);
        if constexpr (kBackward) gs[k] = load<true>(g, part, thread, k);
      }
      if constexpr (kWalk == Walk::chunks) prepare(job, first % job.geometry.channels, values);
#pragma unroll
      for (int k = 0; k < kPieces; ++k) compute<true>(job, shared, part, thread, k, xs[k], gs[k], values);
      if constexpr (kWalk != Walk::columns) rest(job, shared, part, thread, values);
    } else {
      if constexpr (kWalk == Walk::chunks) prepare(job, first % job.geometry.channels, values);
#pragma unroll 1
      for (int k = 0; k < kPieces * kVector / kBatch; ++k) {
        const Piece<T> loaded = load<false>(x, part, thread, k);
        Piece<T> gradient = {};
        if constexpr (kBackward) gradient = load<false>(g, part, thread, k);
        compute<false>(job, shared, part, thread, k, loaded, gradient, values);
      }
    }
  }

  FASTQ_HD bool all_aligned(const Job& job) const {
    // Pieces of noise begin where its counters do.
    constexpr int64_t kQuad = M::kWord == Word::noise && kVector >= 4 ? 4 : 1;
    const bool steps = (kWalk != Walk::columns || stride % kVector == 0) && at % kQuad == 0;
    return steps && aligned(static_cast<const T*>(job.x) + at) && aligned(static_cast<T*>(job.out) + at) &&
           (!kBackward || aligned(static_cast<const T*>(job.g) + at));
  }

  // Adds the terms of each lane in order. A lane of a row keeps its sum in the place of its own first term.
  FASTQ_HD void add_lanes(Shared& shared, int part, int thread) const {
    const int lane = thread % int(kLanes), team = thread / int(kLanes), teams = kThreads / int(kLanes);
    if constexpr (kWalk == Walk::rows) {
#pragma unroll
      for (int i = 0; i < kSums; ++i)
        for (int row = team; row < rows; row += teams)
          if (lane < length) {
            A* term = shared.term[i] + row * length;
            A sum = 0;
            for (int j = lane; j < length; j += int(kLanes)) sum += term[j];
            term[lane] = sum;
          }
    } else {
      // Columns: rows that do not exist add nothing; nor do the columns, whose sums are never read.
      const int end = kWalk == Walk::columns ? rows * int(kLanes) : length;
      const int last = end - part < kPart ? end - part : kPart;
      for (int i = team; i < kSums; i += teams) {
        A sum = part == 0 ? A(0) : shared.lane[i][lane];
#pragma unroll 8
        for (int j = lane; j < last; j += int(kLanes)) sum += shared.term[i][j];
        shared.lane[i][lane] = sum;
      }
    }
  }

  // lane[j] += lane[j + half], in every row.
  FASTQ_HD void add_half(Shared& shared, int half, int thread) const {
    for (int item = thread; item < rows * half; item += kThreads) {
      const int row = item / half, j = item % half;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        if constexpr (kWalk == Walk::rows) {
          A* term = shared.term[i] + row * length;
          if (j + half < length) term[j] += term[j + half];
        } else {
          shared.lane[i][j] += shared.lane[i][j + half];
        }
      }
    }
  }

  FASTQ_HD void write_sums(const Job& job, Shared& shared, int64_t index, int thread) const {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      A* partial = static_cast<A*>(job.partial[i]);
      if constexpr (kWalk == Walk::chunks) {
        if (thread == 0) partial[index] = shared.lane[i][0];
      } else if constexpr (kWalk == Walk::rows) {
        for (int row = thread; row < rows; row += kThreads) partial[first + row] = shared.term[i][row * length];
      } else {
        if (thread < width) partial[first * stride + at % stride + thread] = shared.lane[i][thread];
      }
    }
  }

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& job, Shared& shared, int64_t index) {
    const Tile tile(job, index);
    if constexpr (kWalk != Walk::chunks) team.each([&](int thread) { tile.fill_table(job, shared, thread); });
    const int end = kWalk == Walk::columns ? tile.rows * int(kLanes) : tile.rows * tile.length;
    for (int part = 0; part < end; part += kPart) {
      if (tile.all_aligned(job)) {
        team.each([&](int thread) { tile.template elements<true>(job, shared, part, thread); });
      } else {
        team.each([&](int thread) { tile.template elements<false>(job, shared, part, thread); });
      }
      if constexpr (kSums > 0) team.each([&](int thread) { tile.add_lanes(shared, part, thread); });
    }
    if constexpr (kSums > 0) {
      if constexpr (kWalk != Walk::columns) {
#pragma unroll
        for (int half = int(kLanes) / 2; half > 0; half /= 2)
          team.each([&](int thread) { tile.add_half(shared, half, thread); });
      }
      team.each([&](int thread) { tile.write_sums(job, shared, index, thread); });
    }
  }
};

// Partial sums to gradients, or of the forward pass to sums: kFinishLanes side by side in fp64 (lane = number of the
// partial sum % kFinishLanes), each in order, and a tree over them, as on the CPU. Where a parameter has fewer partial
// sums, fewer lanes of a block serve it and the block serves more parameters.
template <class M, class F, bool kBackward>
struct Finish {
  using A = std::conditional_t<kBackward, F, double>;
  static constexpr int kThreads = int(kFinishLanes);
  static constexpr int kBlocksPerSM = 4;

  struct Shared {
    double sum[kThreads];
  };

  struct Job {
    Sums sums;
    int lanes;
    int number;
    const void* parameter[kMaxParameters];
    bool shared[kMaxParameters];
    const void* partial;
    void* out;
    F scale;
  };
  static Job job(const Call& c, int number) {
    const Sums sums(c.geometry, kBackward ? c.shared[number] : c.total);
    Job job = {sums, lanes(sums), number, {}, {}, c.partial[number], nullptr, F(1)};
    job.out = kBackward ? c.gradient[number] : c.sums[number];
    if (kBackward) job.scale = F(c.scale[number]);
    for (int i = 0; i < M::kParameters; ++i) {
      job.parameter[i] = c.parameter[i];
      job.shared[i] = c.shared[i];
    }
    return job;
  }

  static int lanes(const Sums& sums) {
    int lanes = 1;
    while (lanes < kThreads && lanes < sums.count) lanes *= 2;
    return lanes;
  }
  static int64_t blocks(const Job& job) {
    const int64_t each = kThreads / job.lanes;
    return (job.sums.channels + each - 1) / each;
  }

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& job, Shared& shared, int64_t index) {
    const int lanes = job.lanes;
    const int64_t first = index * (kThreads / lanes);
    team.each([&](int thread) {
      const int64_t channel = first + thread / lanes;
      double sum = 0;
      if (channel < job.sums.channels) {
        const A* partial = static_cast<const A*>(job.partial);
#pragma unroll 4
        for (int64_t i = thread % lanes; i < job.sums.count; i += lanes)
          sum += double(partial[job.sums.at(i, channel)]);
      }
      shared.sum[thread] = sum;
    });
    for (int half = lanes / 2; half > 0; half /= 2)
      team.each([&](int thread) {
        if (thread % lanes < half) shared.sum[thread] += shared.sum[thread + half];
      });
    team.each([&](int thread) {
      const int64_t channel = first + thread / lanes;
      if (thread % lanes != 0 || channel >= job.sums.channels) return;
      if constexpr (kBackward) {
        F parameter[M::kParameters];
#pragma unroll
        for (int i = 0; i < M::kParameters; ++i)
          parameter[i] = static_cast<const F*>(job.parameter[i])[job.shared[i] ? 0 : channel];
        static_cast<F*>(job.out)[channel] = M::finish(job.number, F(shared.sum[thread]), parameter, job.scale);
      } else {
        static_cast<double*>(job.out)[channel] = shared.sum[thread];
      }
    });
  }
};

// Which of many jobs a block works on: the last one whose first block is not after it.
template <class Jobs>
FASTQ_HD int job_of(const Jobs& jobs, int64_t index) {
  int low = 0, high = jobs.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (jobs.first[middle] <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

constexpr int kMostJobs = 96;  // of one launch: 32 KB of kernel parameters hold them

// The tiles of many calls of one method and storage type.
template <class M, class S, bool kBackward>
struct ManyTiles {
  using F = typename S::F;
  using Chunks = Tile<M, S, Walk::chunks, kBackward>;
  using Rows = Tile<M, S, Walk::rows, kBackward>;
  using Columns = Tile<M, S, Walk::columns, kBackward>;
  static constexpr int kThreads = Chunks::kThreads;
  // Three walks in one kernel need more registers than each alone.
  static constexpr int kBlocksPerSM = (kBackward ? 512 : 768) / kThreads;
  static_assert(Rows::kThreads == kThreads && Columns::kThreads == kThreads);

  union Shared {
    typename Chunks::Shared chunks;
    typename Rows::Shared rows;
    typename Columns::Shared columns;
  };
  struct Job {
    int count;
    int64_t first[kMostJobs];  // block
    Walk walk[kMostJobs];
    Work<F> work[kMostJobs];
  };
  static_assert(sizeof(Job) < 32764);

  // Adds a call and gives the number of blocks so far.
  static int64_t add(Job& job, const Call& c, int64_t blocks) {
    const int i = job.count++;
    job.first[i] = blocks;
    const auto put = [&]<class T>(Walk walk) {
      job.walk[i] = walk;
      job.work[i] = T::job(c);
      return blocks + T::tiles(c.geometry);
    };
    if (Columns::serves(c.geometry)) return put.template operator()<Columns>(Walk::columns);
    if (Rows::serves(c.geometry)) return put.template operator()<Rows>(Walk::rows);
    return put.template operator()<Chunks>(Walk::chunks);
  }

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& job, Shared& shared, int64_t index) {
    const int i = job_of(job, index);
    const int64_t own = index - job.first[i];
    switch (job.walk[i]) {
      case Walk::chunks: return Chunks::run(team, job.work[i], shared.chunks, own);
      case Walk::rows: return Rows::run(team, job.work[i], shared.rows, own);
      case Walk::columns: return Columns::run(team, job.work[i], shared.columns, own);
    }
  }
};

// The sums of many calls.
template <class M, class F, bool kBackward>
struct ManyFinish {
  using One = Finish<M, F, kBackward>;
  static constexpr int kThreads = One::kThreads;
  static constexpr int kBlocksPerSM = One::kBlocksPerSM;
  using Shared = typename One::Shared;
  struct Job {
    int count;
    int64_t first[kMostJobs];
    typename One::Job job[kMostJobs];
  };
  static_assert(sizeof(Job) < 32764);

  static int64_t add(Job& job, const Call& c, int number, int64_t blocks) {
    const int i = job.count++;
    job.first[i] = blocks;
    job.job[i] = One::job(c, number);
    return blocks + One::blocks(job.job[i]);
  }

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& job, Shared& shared, int64_t index) {
    const int i = job_of(job, index);
    One::run(team, job.job[i], shared, index - job.first[i]);
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
