// Divides the work of a whole list among the threads.
#pragma once

#include "../common.h"

namespace niwaki {

// Calls `piece(k)` for each k, on several threads where the `work` (elements, or bytes) is worth it: each thread takes
// the pieces that begin in its share of the whole list's work, whichever tensor they belong to.
template <class Piece>
void for_each_piece(const std::vector<int64_t>& work, int64_t grain, const Piece& piece) {
  if (work.empty()) return;
  std::vector<int64_t> begins(work.size());
  int64_t total = 0;
  for (size_t k = 0; k < work.size(); ++k) begins[k] = total, total += work[k];
  torch::stable::parallel_for(0, std::max<int64_t>(total, 1), grain, [&](int64_t begin, int64_t end) {
    auto k = std::lower_bound(begins.begin(), begins.end(), begin) - begins.begin();
    for (; k < static_cast<int64_t>(begins.size()) && begins[k] < end; ++k) piece(k);
  });
}

}  // namespace niwaki
