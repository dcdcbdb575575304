// Matching and label assignment, one ground truth after the other; the loops over anchors are vectorised.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

struct Anchors {
  std::vector<float> start, end, length;
  Anchors(const float* anchors, int64_t count) : start(count), end(count), length(count) {
    for (int64_t i = 0; i < count; ++i) {
      const float half_width = anchors[2 * i + 1] * 0.5f;
      start[i] = anchors[2 * i] - half_width;
      end[i] = anchors[2 * i] + half_width;
      length[i] = std::max(end[i] - start[i], 0.0f);
    }
  }
};

// Closest ground truth of one video, for each anchor; row -1 where none overlaps.
void closest(const Anchors& anchors, const float* truths, int64_t first, int64_t last, int32_t* __restrict row,
             float* __restrict tiou) {
  const int64_t count = anchors.start.size();
  const float* __restrict start = anchors.start.data();
  const float* __restrict end = anchors.end.data();
  const float* __restrict length = anchors.length.data();
  std::fill(row, row + count, -1);
  std::fill(tiou, tiou + count, 0.0f);
  for (int64_t truth = first; truth < last; ++truth) {
    const float truth_start = truths[2 * truth], truth_end = truths[2 * truth + 1];
    const float truth_length = std::max(truth_end - truth_start, 0.0f);
    const int32_t number = static_cast<int32_t>(truth);
    for (int64_t i = 0; i < count; ++i) {
      const float latest = start[i] > truth_start ? start[i] : truth_start;
      const float earliest = end[i] < truth_end ? end[i] : truth_end;
      const float difference = earliest - latest;
      const float shared = difference > 0.0f ? difference : 0.0f;
      const float hull = length[i] + truth_length - shared;
      const float ratio = shared / (hull > 0.0f ? hull : 1.0f);
      const bool closer = ratio > tiou[i];
      row[i] = closer ? number : row[i];
      tiou[i] = closer ? ratio : tiou[i];
    }
  }
}

}  // namespace

extern "C" {

// anchors (count, 2) as centre and width; index and tiou (videos, count).
void match(const float* anchors, int64_t count, const float* truths, const int64_t* offsets, int64_t videos,
           int64_t* index, float* tiou) {
  const Anchors segments(anchors, count);
  std::vector<int32_t> row(count);
  for (int64_t video = 0; video < videos; ++video, index += count, tiou += count) {
    closest(segments, truths, offsets[video], offsets[video + 1], row.data(), tiou);
    std::copy(row.begin(), row.end(), index);
  }
}

// Without forced matches; anchors and ground truths are finite.
void assign(const float* anchors, int64_t count, const float* truths, const int64_t* truth_labels,
            const int64_t* offsets, int64_t videos, float foreground, float background, int64_t* __restrict kind,
            int64_t* __restrict labels, float* __restrict targets, float* __restrict tiou) {
  const Anchors segments(anchors, count);
  std::vector<int32_t> rows(count);
  for (int64_t video = 0; video < videos; ++video) {
    closest(segments, truths, offsets[video], offsets[video + 1], rows.data(), tiou);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = rows[i];
      const float start = row < 0 ? 0.0f : truths[2 * row], end = row < 0 ? 0.0f : truths[2 * row + 1];
      const float shared = std::max(std::min(segments.end[i], end) - std::max(segments.start[i], start), 0.0f);
      const float hull = row < 0 ? 1.0f : segments.length[i] + std::max(end - start, 0.0f) - shared;
      kind[i] = shared > foreground * hull ? 1 : shared < background * hull ? 0 : -1;
      labels[i] = row < 0 ? -1 : truth_labels[row];
      targets[2 * i] = start;
      targets[2 * i + 1] = end;
    }
    kind += count, labels += count, targets += 2 * count, tiou += count;
  }
}

}
