// Norms on the CPU: schemas, and the division of a whole list's work. The order of a sum depends on shapes alone.
#include "../norms.h"
#include "loops.h"
#include "work.h"

#include <memory>
#include <string>
#include <tuple>

namespace niwaki {
namespace {

constexpr int64_t kChunk = 128 * 1024;  // elements summed at once, where rows are not longer
constexpr int64_t kLeastRows = 64;      // rows in a chunk at least, so that few column sums go through memory

Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return Element::f64;
    case ScalarType::Half: return Element::f16;
    case ScalarType::BFloat16: return Element::bf16;
    default: return Element::f32;
  }
}

int64_t bytes_of(Element element) { return element == Element::f64 ? 8 : element == Element::f32 ? 4 : 2; }

Reduce reduce_of(Norm norm) {
  return norm == Norm::infinity ? Reduce::maximum : norm == Norm::one ? Reduce::sum : Reduce::squares;
}

double combined(Reduce reduce, double a, double b) {
  if (reduce == Reduce::maximum) return b > a || b != b ? b : a;
  return a + b;
}

// How many sums of columns a chunk has room for.
int64_t column_room(const Matrix& m) { return (m.columns * m.inner + kColumnRoom - 1) / kColumnRoom * kColumnRoom; }

// The sums of all jobs' channels, before any root: one parallel pass over all elements, then a fold in fixed order.
std::vector<double> reduce_jobs(const std::vector<NormJob>& jobs, int64_t channels, Reduce reduce) {
  struct Chunk {
    size_t job;
    int64_t first, count;  // rows, counted over all groups
    double *rows, *columns;
  };
  std::vector<double> sums(channels, 0.0);
  std::vector<Chunk> chunks;
  std::vector<int64_t> work;
  int64_t row_sums = 0, column_sums = 0;
  for (size_t j = 0; j < jobs.size(); ++j) {
    const Matrix& m = jobs[j].matrix;
    if (m.height() == 0 || m.width() == 0) continue;
    // In eights, as the loops take them.
    const int64_t rows = (std::max((kChunk + m.width() - 1) / m.width(), kLeastRows) + 7) / 8 * 8;
    const bool split = m.column_dim >= 0;
    for (int64_t first = 0; first < m.height(); first += rows) {
      const int64_t count = std::min(rows, m.height() - first);
      chunks.push_back({j, first, count, nullptr, nullptr});
      work.push_back(count * m.width());
      row_sums += m.row_dim >= 0 && m.groups > 1 ? count : 0;
      column_sums += split ? column_room(m) : 0;
    }
  }
  // Rows are written whole, those of one group in their channels' own places; columns are added to.
  const std::unique_ptr<double[]> row_memory(new double[row_sums]);
  const std::unique_ptr<double[]> column_memory(new double[column_sums]);
  double *row_next = row_memory.get(), *column_next = column_memory.get();
  for (Chunk& c : chunks) {
    const Matrix& m = jobs[c.job].matrix;
    if (m.row_dim >= 0 && m.groups == 1) {
      c.rows = sums.data() + jobs[c.job].row_at + c.first;
    } else if (m.row_dim >= 0) {
      c.rows = row_next, row_next += c.count;
    }
    if (m.column_dim >= 0) c.columns = column_next, column_next += column_room(m);
  }
  const Loops& best = loops();
  for_each_piece(work, kChunk / 4, [&](int64_t k) {
    const Chunk& c = chunks[k];
    const Matrix& m = jobs[c.job].matrix;
    const int64_t period = m.columns * m.inner;
    const auto element = element_of(m.dtype);
    const char* x = static_cast<const char*>(m.tensor.const_data_ptr()) + c.first * m.width() * bytes_of(element);
    if (c.columns != nullptr) std::fill(c.columns, c.columns + column_room(m), 0.0);
    best.reduce[static_cast<int>(element)][static_cast<int>(reduce)](x, c.count, m.repeats, period, c.rows, c.columns);
  });
  // A job's folding is a fraction of its elements.
  for_each_piece(
      std::vector<int64_t>(jobs.size(), std::max<int64_t>(1, (row_sums + column_sums) / std::max<size_t>(1, jobs.size()))),
      kChunk / 8, [&](int64_t j) {
        const Matrix& m = jobs[j].matrix;
        auto chunk = std::lower_bound(
            chunks.begin(), chunks.end(), static_cast<size_t>(j), [](const Chunk& c, size_t job) { return c.job < job; });
        const auto last = std::upper_bound(
            chunk, chunks.end(), static_cast<size_t>(j), [](size_t job, const Chunk& c) { return job < c.job; });
        if (chunk == last) return;
        double* columns = m.column_dim >= 0 ? chunk->columns : nullptr;
        for (auto c = chunk; c != last; ++c) {
          int64_t channel = c->first % m.rows;
          for (int64_t r = 0; m.row_dim >= 0 && m.groups > 1 && r < c->count; ++r) {
            double& sum = sums[jobs[j].row_at + channel];
            sum = combined(reduce, sum, c->rows[r]);
            if (++channel == m.rows) channel = 0;
          }
          for (int64_t i = 0; columns != nullptr && c != chunk && i < m.columns * m.inner; ++i) {
            columns[i] = combined(reduce, columns[i], c->columns[i]);
          }
        }
        for (int64_t c = 0; columns != nullptr && c < m.columns; ++c, columns += m.inner) {
          double& sum = sums[jobs[j].column_at + c];
          for (int64_t i = 0; i < m.inner; ++i) sum = combined(reduce, sum, columns[i]);
        }
      });
  return sums;
}

// Divides a slot's norms (`squares`: whose squares these are) by their mean, so that layers of other widths compare.
void divide_by_mean(double* sums, int64_t count, bool squares) {
  double mean = 0;
  for (int64_t i = 0; i < count; ++i) mean += squares ? std::sqrt(sums[i]) : sums[i];
  mean = std::max(mean / static_cast<double>(count), 1e-30);
  for (int64_t i = 0; i < count; ++i) sums[i] /= squares ? mean * mean : mean;
}

Tensor as_tensor(const double* sums, int64_t count, Norm norm, const Tensor& x) {
  Tensor result = torch::stable::new_empty(x, {count}, norm_dtype(x));
  const auto store = [&](auto* out) {
    std::transform(sums, sums + count, out, [&](double sum) {
      return static_cast<std::remove_reference_t<decltype(*out)>>(norm == Norm::two ? std::sqrt(sum) : sum);
    });
  };
  if (norm_dtype(x) == ScalarType::Double) {
    store(static_cast<double*>(result.mutable_data_ptr()));
  } else {
    store(static_cast<float*>(result.mutable_data_ptr()));
  }
  return result;
}

Tensor filter_norm(const Tensor& x, double p, int64_t dim, bool squared) {
  const Norm norm = norm_of(p, squared);
  int64_t channels;
  const auto jobs = norm_jobs("filter_norm", {x}, {{0, dim, -1}}, channels);
  return as_tensor(reduce_jobs(jobs, channels, reduce_of(norm)).data(), channels, norm, x);
}

std::tuple<Tensor, Tensor> channel_norms(const Tensor& x, double p, bool squared) {
  const Norm norm = norm_of(p, squared);
  int64_t channels;
  const auto jobs = norm_jobs("channel_norms", {x}, {{0, 0, -1}, {0, 1, -1}}, channels);
  const auto sums = reduce_jobs(jobs, channels, reduce_of(norm));
  return {as_tensor(sums.data(), x.size(0), norm, x), as_tensor(sums.data() + x.size(0), x.size(1), norm, x)};
}

Tensor multi_filter_norm(
    const std::vector<Tensor>& xs, const Tensor& slots, const Tensor& order, const Tensor& offsets, double p, bool squared,
    bool relative) {
  const char* op = "multi_filter_norm";
  const Norm norm = norm_of(p, squared);
  int64_t channels;
  const auto jobs = norm_jobs(op, xs, slots_of(op, slots), channels);
  const Scatter scatter = check_scatter(order, offsets, channels, xs.empty() ? nullptr : &xs[0]);
  const int64_t* from = scatter.offsets.const_data_ptr<int64_t>();
  const int64_t* places = scatter.order.const_data_ptr<int64_t>();
  const Reduce reduce = reduce_of(norm);
  std::vector<double> sums = reduce_jobs(jobs, channels, reduce);
  if (relative) {
    for (const NormJob& job : jobs) {
      for (const auto& [at, count] : {std::pair{job.row_at, job.matrix.rows}, {job.column_at, job.matrix.columns}}) {
        if (at >= 0) divide_by_mean(sums.data() + at, count, is_squares(norm));
      }
    }
  }
  Tensor result = torch::stable::new_empty(scatter.order, {scatter.units}, ScalarType::Double);
  double* out = static_cast<double*>(result.mutable_data_ptr());
  for (int64_t u = 0; u < scatter.units; ++u) {
    const int64_t begin = from[u], end = from[u + 1];
    require<std::out_of_range>(
        begin >= 0 && begin <= end && end <= channels, op, " got offsets from ", begin, " to ", end, " for unit ", u,
        ": they rise from 0 to the number of channels, ", channels, ".");
    double total = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = places[i];
      require<std::out_of_range>(
          place >= 0 && place < channels, op, " got order[", i, "] = ", place, " for ", channels,
          " channels: pass places between 0 and ", channels - 1, ".");
      total = combined(reduce, total, sums[place]);
    }
    out[u] = norm == Norm::two ? std::sqrt(total) : total;
  }
  return result;
}

std::string cpu_instructions() { return loops().name; }

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_FRAGMENT(niwaki, m) {
  m.def("filter_norm(Tensor x, float p, int dim, bool squared=False) -> Tensor");
  m.def("channel_norms(Tensor x, float p, bool squared=False) -> (Tensor, Tensor)");
  m.def(
      "multi_filter_norm(Tensor[] xs, Tensor slots, Tensor order, Tensor offsets, float p, bool squared=False, "
      "bool relative=False) -> Tensor");
  m.def("cpu_instructions() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(niwaki, CPU, m) {
  m.impl("filter_norm", TORCH_BOX(&niwaki::filter_norm));
  m.impl("channel_norms", TORCH_BOX(&niwaki::channel_norms));
  m.impl("multi_filter_norm", TORCH_BOX(&niwaki::multi_filter_norm));
}

STABLE_TORCH_LIBRARY_IMPL(niwaki, CompositeExplicitAutograd, m) {
  m.impl("cpu_instructions", TORCH_BOX(&niwaki::cpu_instructions));
}
