// Norms on CUDA: one launch for a whole list. Blocks walk over tiles of kTileRows rows and 32 times kVector columns and
// leave each tile's row and column sums in memory; the last block that finishes a matrix adds them up in fixed order. A
// second, small launch gathers units where there are any. Sums are in double, counters in integers: the result is the same bits every time.
#include "../norms.h"
#include "device.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <tuple>

namespace niwaki {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 32;
constexpr int kTileRows = kWarps * kWarpRows;

__device__ inline double value(double x) { return x; }
__device__ inline double value(float x) { return x; }
__device__ inline double value(__half x) { return __half2float(x); }
__device__ inline double value(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline double lift(Norm norm, double x) {
  return norm == Norm::two || norm == Norm::two_squared ? x * x : fabs(x);
}
// A NaN stays once it is met.
__device__ inline double combine(Norm norm, double a, double b) {
  if (norm == Norm::infinity) return b > a || b != b ? b : a;
  return a + b;
}

struct Entry {
  const void* x;
  int64_t groups, rows, repeats, columns, inner;
  int64_t row_at, column_at;      // places among all channels, or -1
  double *row_parts, *column_parts;  // [column tiles, height] and [row tiles, width]
  unsigned* done;
  int dtype;  // 0 float32, 1 float64, 2 float16, 3 bfloat16
  int vector;  // rows begin at multiples of 16 bytes
  __host__ __device__ int64_t height() const { return groups * rows; }
  __host__ __device__ int64_t width() const { return repeats * columns * inner; }
  __host__ __device__ int64_t tile_width() const { return dtype == 1 ? 64 : dtype == 0 ? 128 : 256; }
  __host__ __device__ int64_t row_tiles() const { return (height() + kTileRows - 1) / kTileRows; }
  __host__ __device__ int64_t column_tiles() const { return (width() + tile_width() - 1) / tile_width(); }
};

// Where a channel's norm goes: its sum to `sums`, or the norm itself to `first` and, from `split` on, to `second`.
struct Result {
  double* sums;
  void *first, *second;
  int64_t split;
  int relative, is_double;
  __device__ void store(Norm norm, int64_t at, double sum) const {
    if (first == nullptr) {
      sums[at] = sum;
      return;
    }
    if (norm == Norm::two) sum = sqrt(sum);
    void* out = at < split ? first : second;
    if (at >= split) at -= split;
    if (is_double) {
      static_cast<double*>(out)[at] = sum;
    } else {
      static_cast<float*>(out)[at] = static_cast<float>(sum);
    }
  }
};

// Each lane reads kVector adjoining columns of each row of its warp; x points at the tile's first element.
template <class T>
__device__ void reduce_tile(const Entry& e, Norm norm, int64_t row_tile, int64_t column_tile, double (*parts)[33], double* columns) {
  constexpr int kVector = 16 / sizeof(T);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t width = e.width(), height = e.height();
  const int64_t first_row = row_tile * kTileRows + warp * kWarpRows;
  const int64_t first = column_tile * 32 * kVector + lane * kVector;
  const T* x = static_cast<const T*>(e.x);
  const int64_t left = height - first_row;
  const int rows = static_cast<int>(left < 0 ? 0 : left < kWarpRows ? left : kWarpRows);
  double column[kVector] = {};
  for (int r = 0; r < rows; ++r) {
    const T* from = x + (first_row + r) * width + first;
    double row = 0;
    if (e.vector && first + kVector <= width) {
      const uint4 words = *reinterpret_cast<const uint4*>(from);
      T values[kVector];
      memcpy(values, &words, sizeof words);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const double term = lift(norm, value(values[j]));
        row = combine(norm, row, term);
        column[j] = combine(norm, column[j], term);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if (first + j < width) {
          const double term = lift(norm, value(from[j]));
          row = combine(norm, row, term);
          column[j] = combine(norm, column[j], term);
        }
      }
    }
    parts[r][lane] = row;
  }
  if (e.row_at >= 0) {
    __syncwarp();
    if (lane < rows) {
      double sum = 0;
      for (int j = 0; j < 32; ++j) sum = combine(norm, sum, parts[lane][j]);
      e.row_parts[column_tile * height + first_row + lane] = sum;
    }
    __syncwarp();
  }
  if (e.column_at >= 0) {
    // Warp after warp, in fixed order.
    for (int w = 0; w < kWarps; ++w) {
      if (warp == w) {
        for (int j = 0; j < kVector; ++j) {
          double& sum = columns[lane * kVector + j];
          sum = w == 0 ? column[j] : combine(norm, sum, column[j]);
        }
      }
      __syncthreads();
    }
    for (int c = threadIdx.x; c < 32 * kVector; c += kThreads) {
      const int64_t at = column_tile * 32 * kVector + c;
      if (at < width) e.column_parts[row_tile * width + at] = columns[c];
    }
  }
}

// The sum of a value of each thread, in fixed order, known to all of them.
__device__ double block_sum(double x, double* scratch) {
  __syncthreads();
  scratch[threadIdx.x] = x;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    __syncthreads();
  }
  return scratch[0];
}

__device__ void divide_by_mean(Norm norm, double* sums, int64_t count, double* scratch) {
  const bool squares = norm == Norm::two || norm == Norm::two_squared;
  double own = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) own += squares ? sqrt(sums[i]) : sums[i];
  double mean = block_sum(own, scratch) / static_cast<double>(count);
  if (mean < 1e-30) mean = 1e-30;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sums[i] /= squares ? mean * mean : mean;
  __syncthreads();
}

// A matrix's channels from its tiles' sums; by one block, after all others have written theirs.
__device__ void fold(const Entry& e, Norm norm, const Result& result, double* scratch) {
  if (e.row_at >= 0) {
    const int64_t tiles = e.column_tiles(), height = e.height();
    for (int64_t a = threadIdx.x; a < e.rows; a += kThreads) {
      double sum = 0;
      for (int64_t p = 0; p < e.groups; ++p) {
        for (int64_t t = 0; t < tiles; ++t) sum = combine(norm, sum, e.row_parts[t * height + p * e.rows + a]);
      }
      result.store(norm, e.row_at + a, sum);
    }
    __syncthreads();
    if (result.relative && e.rows > 0) divide_by_mean(norm, result.sums + e.row_at, e.rows, scratch);
  }
  if (e.column_at >= 0) {
    const int64_t tiles = e.row_tiles(), width = e.width();
    for (int64_t b = threadIdx.x; b < e.columns; b += kThreads) {
      double sum = 0;
      for (int64_t t = 0; t < tiles; ++t) {
        for (int64_t q = 0; q < e.repeats; ++q) {
          for (int64_t r = 0; r < e.inner; ++r) {
            sum = combine(norm, sum, e.column_parts[t * width + (q * e.columns + b) * e.inner + r]);
          }
        }
      }
      result.store(norm, e.column_at + b, sum);
    }
    __syncthreads();
    if (result.relative && e.columns > 0) divide_by_mean(norm, result.sums + e.column_at, e.columns, scratch);
  }
}

// A thread for each unit.
__global__ void __launch_bounds__(kThreads) gather_kernel(
    const double* sums, const int64_t* order, const int64_t* offsets, int64_t channels, int64_t units, Norm norm,
    double* out) {
  const int64_t u = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (u >= units) return;
  const int64_t begin = offsets[u], end = offsets[u + 1];
  if (begin < 0 || end < begin || end > channels) __trap();
  double sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    if (order[i] < 0 || order[i] >= channels) __trap();
    sum = combine(norm, sum, sums[order[i]]);
  }
  out[u] = norm == Norm::two ? sqrt(sum) : sum;
}

// Whether this block is the last of `total` that report to the counter; what the others wrote is visible then.
__device__ bool is_last(unsigned* counter, unsigned total, bool* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *flag = atomicAdd(counter, 1u) == total - 1;
  __syncthreads();
  const bool last = *flag;
  if (last) __threadfence();
  __syncthreads();
  return last;
}

__global__ void __launch_bounds__(kThreads) norms_kernel(
    const __grid_constant__ Table<Entry> table, Norm norm, const Result result) {
  __shared__ double parts[kWarps][kWarpRows][33];
  __shared__ double columns[256];
  __shared__ double scratch[kThreads];
  __shared__ bool flag;
  for (int64_t t = blockIdx.x; t < table.tiles; t += gridDim.x) {
    const int k = table.find(t);
    const Entry& e = table.entries[k];
    const int64_t tile = t - table.begins[k], across = e.column_tiles();
    double(*own)[33] = parts[threadIdx.x / 32];
    switch (e.dtype) {
      case 0: reduce_tile<float>(e, norm, tile / across, tile % across, own, columns); break;
      case 1: reduce_tile<double>(e, norm, tile / across, tile % across, own, columns); break;
      case 2: reduce_tile<__half>(e, norm, tile / across, tile % across, own, columns); break;
      default: reduce_tile<__nv_bfloat16>(e, norm, tile / across, tile % across, own, columns);
    }
    if (is_last(e.done, static_cast<unsigned>(e.row_tiles() * across), &flag)) {
      fold(e, norm, result, scratch);
    }
  }
}

int dtype_of(ScalarType t) {
  return t == ScalarType::Double ? 1 : t == ScalarType::Half ? 2 : t == ScalarType::BFloat16 ? 3 : 0;
}

// Sums all channels into fresh memory, which is returned; or writes their norms to `first` and `second`.
Tensor launch(
    const std::vector<NormJob>& jobs, int64_t channels, Norm norm, bool relative, const Tensor& like, Tensor* first,
    Tensor* second, cudaStream_t stream) {
  std::vector<Entry> entries;
  int64_t doubles = channels;
  for (const NormJob& job : jobs) {
    const Matrix& m = job.matrix;
    Entry e{};
    e.x = m.tensor.const_data_ptr();
    e.groups = m.groups, e.rows = m.rows, e.repeats = m.repeats, e.columns = m.columns, e.inner = m.inner;
    e.row_at = job.row_at, e.column_at = job.column_at;
    e.dtype = dtype_of(m.dtype);
    e.vector = reinterpret_cast<uintptr_t>(e.x) % 16 == 0 && m.width() * m.tensor.element_size() % 16 == 0;
    if (e.height() == 0 || e.width() == 0) continue;
    require(
        e.row_tiles() * e.column_tiles() <= INT32_MAX, "a norm got a tensor of ", m.height(), " rows of ", m.width(),
        ": split it first.");
    if (e.row_at >= 0) doubles += e.column_tiles() * e.height();
    if (e.column_at >= 0) doubles += e.row_tiles() * e.width();
    entries.push_back(e);
  }
  // Channels' sums, tiles' sums and counters in one piece of memory; channels without elements stay 0.
  const int64_t counters = (static_cast<int64_t>(entries.size()) + 1) / 2;
  const Tensor memory = torch::stable::new_empty(like, {std::max<int64_t>(1, doubles + counters)}, ScalarType::Double);
  double* sums = static_cast<double*>(memory.mutable_data_ptr());
  double* parts = sums + channels;
  auto* done = reinterpret_cast<unsigned*>(sums + doubles);
  STD_CUDA_CHECK(cudaMemsetAsync(sums, 0, channels * sizeof(double), stream));
  STD_CUDA_CHECK(cudaMemsetAsync(done, 0, counters * sizeof(double), stream));
  for (size_t k = 0; k < entries.size(); ++k) {
    Entry& e = entries[k];
    if (e.row_at >= 0) e.row_parts = parts, parts += e.column_tiles() * e.height();
    if (e.column_at >= 0) e.column_parts = parts, parts += e.row_tiles() * e.width();
    e.done = done + k;
  }
  Result result{sums, nullptr, nullptr, INT64_MAX, relative, norm_dtype(like) == ScalarType::Double};
  for (Tensor* out : {first, second}) {
    if (out == nullptr) continue;
    STD_CUDA_CHECK(cudaMemsetAsync(out->mutable_data_ptr(), 0, out->numel() * out->element_size(), stream));
    (out == first ? result.first : result.second) = out->mutable_data_ptr();
  }
  if (second != nullptr) result.split = first->numel();
  for (size_t k = 0; k < entries.size();) {
    Table<Entry> table;
    for (; k < entries.size() && table.count < Table<Entry>::kCapacity; ++k) {
      table.add(entries[k], entries[k].row_tiles() * entries[k].column_tiles());
    }
    const unsigned blocks = grid_of(norms_kernel, kThreads, table.tiles, like.get_device_index());
    norms_kernel<<<blocks, kThreads, 0, stream>>>(table, norm, result);
    NIWAKI_LAUNCH_CHECK();
  }
  return memory;
}

Tensor filter_norm(const Tensor& x, double p, int64_t dim, bool squared) {
  const OnDevice device(x);
  const Norm norm = norm_of(p, squared);
  int64_t channels;
  const auto jobs = norm_jobs("filter_norm", {x}, {{0, dim, -1}}, channels);
  Tensor result = torch::stable::new_empty(x, {channels}, norm_dtype(x));
  launch(jobs, channels, norm, false, x, &result, nullptr, device.stream());
  return result;
}

std::tuple<Tensor, Tensor> channel_norms(const Tensor& x, double p, bool squared) {
  const OnDevice device(x);
  const Norm norm = norm_of(p, squared);
  int64_t channels;
  const auto jobs = norm_jobs("channel_norms", {x}, {{0, 0, -1}, {0, 1, -1}}, channels);
  Tensor out = torch::stable::new_empty(x, {x.size(0)}, norm_dtype(x));
  Tensor in = torch::stable::new_empty(x, {x.size(1)}, norm_dtype(x));
  launch(jobs, channels, norm, false, x, &out, &in, device.stream());
  return {out, in};
}

Tensor multi_filter_norm(
    const std::vector<Tensor>& xs, const Tensor& slots, const Tensor& order, const Tensor& offsets, double p, bool squared,
    bool relative) {
  const OnDevice device(order);
  const Norm norm = norm_of(p, squared);
  int64_t channels;
  const auto jobs = norm_jobs("multi_filter_norm", xs, slots_of("multi_filter_norm", slots), channels);
  const Scatter scatter = check_scatter(order, offsets, channels, xs.empty() ? nullptr : &xs[0]);
  const Tensor sums = launch(jobs, channels, norm, relative, order, nullptr, nullptr, device.stream());
  Tensor result = torch::stable::new_empty(order, {scatter.units}, ScalarType::Double);
  if (scatter.units > 0) {
    const auto blocks = static_cast<unsigned>((scatter.units + kThreads - 1) / kThreads);
    gather_kernel<<<blocks, kThreads, 0, device.stream()>>>(
        static_cast<const double*>(sums.const_data_ptr()), scatter.order.const_data_ptr<int64_t>(),
        scatter.offsets.const_data_ptr<int64_t>(), channels, scatter.units, norm,
        static_cast<double*>(result.mutable_data_ptr()));
    NIWAKI_LAUNCH_CHECK();
  }
  return result;
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_IMPL(niwaki, CUDA, m) {
  m.impl("filter_norm", TORCH_BOX(&niwaki::filter_norm));
  m.impl("channel_norms", TORCH_BOX(&niwaki::channel_norms));
  m.impl("multi_filter_norm", TORCH_BOX(&niwaki::multi_filter_norm));
}
