// Greedy suppression that looks only where an overlap over the threshold can be: the strongest form on one core.
// Candidates are sorted by class and start; each kept one strikes those of lower rank in a window around its start.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Integers that order as the values do; -0.0 equals 0.0.
int32_t ordered_bits(float value) {
  value += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

struct Entry {
  int64_t label;
  float start, end;
  int32_t rank;
};

}  // namespace

extern "C" {

// Hard suppression of every problem of a batch; labels may be null. index (videos, most) is -1 behind the count.
void windowed_nms(const float* segments, const float* scores, const int64_t* labels, int64_t videos, int64_t size,
                  float threshold, int64_t most, int64_t* index, int64_t* count) {
  std::vector<uint64_t> by_rank(size);
  std::vector<Entry> entries(size);
  std::vector<int32_t> place(size);
  std::vector<char> suppressed(size);
  const float ahead = 1 - threshold, behind = (1 - threshold) / std::max(threshold, 1e-30f);
  for (int64_t video = 0; video < videos; ++video, segments += 2 * size, scores += size, index += most) {
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t descending = ~(static_cast<uint32_t>(ordered_bits(scores[i])) ^ 0x80000000u);
      by_rank[i] = static_cast<uint64_t>(descending) << 32 | static_cast<uint32_t>(i);
    }
    std::sort(by_rank.begin(), by_rank.end());
    for (int64_t rank = 0; rank < size; ++rank) {
      const int64_t i = by_rank[rank] & 0xffffffff;
      entries[rank] = {labels ? labels[i] : 0, segments[2 * i], segments[2 * i + 1], static_cast<int32_t>(rank)};
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return a.label != b.label ? a.label < b.label : a.start < b.start;
    });
    float longest = 0;
    for (int64_t at = 0; at < size; ++at) {
      place[entries[at].rank] = static_cast<int32_t>(at);
      longest = std::max(longest, entries[at].end - entries[at].start);
    }
    std::fill(suppressed.begin(), suppressed.end(), 0);
    int64_t kept = 0;
    for (int64_t rank = 0; rank < size && kept < most; ++rank) {
      const int64_t at = place[rank];
      if (suppressed[at]) continue;
      index[kept++] = by_rank[rank] & 0xffffffff;
      const Entry& a = entries[at];
      const float length = std::max(a.end - a.start, 0.0f);
      // The bounds are exact in real numbers; the margin covers the rounding of the test itself.
      const float margin = 8e-6f * (std::abs(a.start) + std::abs(a.end) + longest + 1);
      const float last = a.start + ahead * length + margin;
      const float first = a.start - std::min(behind * length, ahead * longest) - margin;
      const auto strike = [&](int64_t other) {
        const Entry& b = entries[other];
        const float shared = std::max(std::min(a.end, b.end) - std::max(a.start, b.start), 0.0f);
        const float hull = length + std::max(b.end - b.start, 0.0f) - shared;
        suppressed[other] |= shared > threshold * hull && b.rank > rank;
      };
      for (int64_t j = at + 1; j < size && entries[j].label == a.label && entries[j].start <= last; ++j) strike(j);
      for (int64_t j = at - 1; j >= 0 && entries[j].label == a.label && entries[j].start >= first; --j) strike(j);
    }
    count[video] = kept;
    std::fill(index + kept, index + most, -1);
    if (labels) labels += size;
  }
}

}
