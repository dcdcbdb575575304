// Plain greedy suppression, one problem after the other, as one would write it first: the peer to beat.
// Compiled without contraction, so that a pair is decided by the same fp32 operations as everywhere else.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

float length(const float* segment) { return std::max(segment[1] - segment[0], 0.0f); }

float intersection(const float* a, const float* b) {
  return std::max(std::min(a[1], b[1]) - std::max(a[0], b[0]), 0.0f);
}

bool over(const float* a, const float* b, float threshold) {
  const float shared = intersection(a, b);
  return shared > threshold * (length(a) + length(b) - shared);
}

std::vector<int64_t> ranked(const float* scores, int64_t size) {
  std::vector<int64_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return order;
}

}  // namespace

extern "C" {

// Hard suppression of one problem; labels may be null. Returns how many positions were written to kept.
int64_t nms(const float* segments, const float* scores, const int64_t* labels, int64_t size, float threshold,
            int64_t most, int64_t* kept) {
  const std::vector<int64_t> order = ranked(scores, size);
  std::vector<char> suppressed(size, 0);
  int64_t count = 0;
  for (int64_t i = 0; i < size && count < most; ++i) {
    if (suppressed[i]) continue;
    const int64_t a = order[i];
    kept[count++] = a;
    for (int64_t j = i + 1; j < size; ++j) {
      if (suppressed[j]) continue;
      const int64_t b = order[j];
      if (labels && labels[a] != labels[b]) continue;
      if (over(segments + 2 * a, segments + 2 * b, threshold)) suppressed[j] = 1;
    }
  }
  return count;
}

// Soft suppression of one problem: gaussian if sigma > 0, otherwise linear above threshold; labels may be null.
int64_t soft_nms(const float* segments, const float* scores, const int64_t* labels, int64_t size, float threshold,
                 float sigma, float min_score, int64_t most, int64_t* kept, float* kept_scores) {
  std::vector<float> left(scores, scores + size);
  int64_t count = 0;
  while (count < most) {
    const int64_t best = std::max_element(left.begin(), left.end()) - left.begin();
    if (!(left[best] > min_score)) break;
    kept[count] = best;
    kept_scores[count++] = left[best];
    left[best] = -INFINITY;
    const float* a = segments + 2 * best;
    for (int64_t j = 0; j < size; ++j) {
      if (!(left[j] > min_score) || (labels && labels[best] != labels[j])) continue;
      const float* b = segments + 2 * j;
      const float shared = intersection(a, b), hull = length(a) + length(b) - shared;
      const float tiou = hull > 0 ? shared / hull : 0.0f;
      if (sigma > 0) left[j] *= std::exp(-(tiou * tiou) / sigma);
      else if (shared > threshold * hull) left[j] *= 1 - tiou;
    }
  }
  return count;
}

}
