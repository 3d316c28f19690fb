// The kernels of decode.cuh, and what starts them.
#include <algorithm>
#include <numeric>

#include "decode.cuh"

namespace fastq::cuda {

namespace {

struct Pad {
  using Job = PadCall;
  struct Shared {};
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSM = 4;

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared&, int64_t index) {
    team.each([&](int thread) {
      const int64_t at = index * kThreads + thread;
      if (at >= c.rows * c.padded) return;
      const int64_t row = at / c.padded, byte = at % c.padded;
      c.to[at] = byte < c.bytes ? c.from[row * c.bytes + byte] : uint8_t(0);
    });
  }
};

template <class X>
Status with_bits(const DecodeCall& c, void* stream) {
  const int64_t blocks = (c.gemm.n + kDecodeRows - 1) / kDecodeRows * c.splits;
  using Two = Decode<X, 2>;
  using Four = Decode<X, 4>;
  using Eight = Decode<X, 8>;
  switch (c.bits) {
    case 2: return FASTQ_LAUNCH(Two, c, blocks, stream);
    case 4: return FASTQ_LAUNCH(Four, c, blocks, stream);
    default: return FASTQ_LAUNCH(Eight, c, blocks, stream);
  }
}

int multiprocessors() {
#if defined(__CUDACC__)
  int device = 0, count = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  return known ? count : 1;
#else
  return 4;
#endif
}

}  // namespace

Status decode_plan(DecodeCall& c, void*) {
  const GemmCall& g = c.gemm;
  const bool grouped = g.scale_groups > 1;
  c.bits = field_bits(Layout::tiles, g.bits);
  c.m = int(g.m);
  c.tiles = int(g.row_bytes / kTileBytes);
  c.k = c.tiles * tile_elements(c.bits);
  c.group_factor = grouped ? (uint64_t(1) << 40) / uint64_t(g.group_size / 16) + 1 : 0;
  // What x's zero-point takes off a group's sum comes off at once: a warp then has the whole group.
  const int64_t elements = tile_elements(c.bits);
  c.unit = grouped && g.integer() && g.x_zero != 0 ? int(std::lcm(g.group_size, elements) / elements) : 1;

  const int64_t blocks = (g.n + kDecodeRows - 1) / kDecodeRows;
  const int64_t wanted = 2 * multiprocessors() / blocks, most = c.tiles / (2 * kDecodeWarps * c.unit);
  // A warp's sums of 64 f, of at most 128 * 255, stay below 2^31.
  const int64_t least = c.tiles * elements / (int64_t(kDecodeWarps) << 15) + 1;
  c.splits = int(std::max(std::min(wanted, most), least));
  return {};
}

Status decode(const DecodeCall& c, void* stream) {
  Status status = {};
  switch (c.gemm.x_type) {
    case Stored::bf16: status = with_bits<Halves<BFloat16Storage>>(c, stream); break;
    case Stored::f16: status = with_bits<Halves<Float16Storage>>(c, stream); break;
    case Stored::u8: status = with_bits<Bytes<uint8_t>>(c, stream); break;
    default: status = with_bits<Bytes<int8_t>>(c, stream);
  }
  if (status.error != nullptr || c.splits == 1) return status;
  const int64_t outputs = c.m * c.gemm.n;
  return FASTQ_LAUNCH(DecodeFinish, c, (outputs + DecodeFinish::kThreads - 1) / DecodeFinish::kThreads, stream);
}

Status pad_rows(const PadCall& c, void* stream) {
  return FASTQ_LAUNCH(Pad, c, (c.rows * c.padded + Pad::kThreads - 1) / Pad::kThreads, stream);
}

}  // namespace fastq::cuda
