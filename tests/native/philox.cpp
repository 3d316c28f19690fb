// csrc/cpu/philox.h against csrc/methods/philox.h, in places that no tensor of a test reaches: the vectors' noise of a run is
// the numbers', wherever it begins. Prints how many differ.
#include <cstdio>
#include <vector>

#include "../../csrc/cpu/philox.h"

using namespace fastq;

int main() {
  int64_t wrong = 0, all = 0;
  const int64_t sizes[] = {1, 5, 33, 4096};
  const int64_t starts[] = {0, 1, 2, 3, 4093, (int64_t(1) << 34) - 7, (int64_t(1) << 61) + 2};
  for (int kind = 0; kind < 3; ++kind)
    for (const int64_t n : sizes)
      for (const int64_t start : starts) {
        const NoiseSource source = {Noise(kind), 3.4641016f, 0x89abcdef01234567u};
        std::vector<uint32_t> room(noise_room(n));
        const uint32_t* run = fill_noise(source, start, n, room.data());
        for (int64_t i = 0; i < n; ++i, ++all) {
          float four[4];
          noise_of(source.kind, source.scale, uint64_t(start + i) / 4, source.key, four);
          const float one = noise_at(source.kind, source.scale, uint64_t(start + i), source.key);
          wrong += std::memcmp(&four[(start + i) % 4], run + i, 4) != 0 || std::memcmp(&one, run + i, 4) != 0;
        }
      }
  uint32_t word[4];
  philox(0, 0, word);
  std::printf("%lld %lld %08x %08x %08x %08x\n", static_cast<long long>(wrong), static_cast<long long>(all), word[0],
              word[1], word[2], word[3]);
}
