// niwaki::channel_slice on CUDA. The indices are checked before anything is read through them, which waits for
// the device once when there are any.
#include "../slices.h"
#include "device.h"

namespace niwaki {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

// bad[block] = {position, value} of the first index out of bounds, or {-1, 0}; block 0 checks rows, 1 columns.
__global__ void check_kernel(
    const int64_t* rows, int64_t row_count, int64_t row_size, const int64_t* columns, int64_t column_count,
    int64_t column_size, int64_t* bad) {
  const int64_t* index = blockIdx.x == 0 ? rows : columns;
  const int64_t count = index == nullptr ? 0 : (blockIdx.x == 0 ? row_count : column_count);
  const int64_t size = blockIdx.x == 0 ? row_size : column_size;
  __shared__ unsigned long long first;
  if (threadIdx.x == 0) first = ~0ull;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    if (index[i] < 0 || index[i] >= size) {
      atomicMin(&first, static_cast<unsigned long long>(i));
      break;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    bad[2 * blockIdx.x] = static_cast<int64_t>(first);
    bad[2 * blockIdx.x + 1] = first == ~0ull ? 0 : index[first];
  }
}

void check_bounds(const SlicePlan& plan, cudaStream_t stream) {
  if (plan.rows.values == nullptr && plan.columns.values == nullptr) return;
  const Tensor found = torch::stable::new_empty(plan.source, {4}, ScalarType::Long);
  int64_t* bad = found.mutable_data_ptr<int64_t>();
  check_kernel<<<2, kThreads, 0, stream>>>(
      plan.rows.values, plan.rows.count, plan.rows.size, plan.columns.values, plan.columns.count,
      plan.columns.size, bad);
  NIWAKI_LAUNCH_CHECK();
  int64_t host[4];
  STD_CUDA_CHECK(cudaMemcpyAsync(host, bad, sizeof host, cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  if (host[0] >= 0) throw_out_of_bounds(0, host[1], host[0], plan.rows.size);
  if (host[2] >= 0) throw_out_of_bounds(1, host[3], host[2], plan.columns.size);
}

// One thread for each element of the result; Index is 32 bits wide where that suffices.
template <class Word, class Index>
__global__ void gather_kernel(
    const Word* from, Word* to, const int64_t* rows, const int64_t* columns, Index total, Index columns_count,
    Index block, int64_t row_stride, int64_t column_stride) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index n = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; n < total; n += step) {
    const Index pair = n / block;
    const Index i = pair / columns_count;
    const Index j = pair - i * columns_count;
    const int64_t row = rows == nullptr ? i : rows[i];
    const int64_t column = columns == nullptr ? j : columns[j];
    to[n] = from[row * row_stride + column * column_stride + (n - pair * block)];
  }
}

template <class Word>
void launch(const SlicePlan& plan, cudaStream_t stream) {
  const Word* from = static_cast<const Word*>(plan.source.const_data_ptr());
  Word* to = static_cast<Word*>(plan.result.mutable_data_ptr());
  const int64_t total = plan.result.numel();
  const auto blocks = static_cast<unsigned>(std::min((total + kThreads - 1) / kThreads, kMaxBlocks));
  // The last step past the end must not overflow the index either.
  if (total < INT32_MAX - kMaxBlocks * kThreads) {
    gather_kernel<Word, int32_t><<<blocks, kThreads, 0, stream>>>(
        from, to, plan.rows.values, plan.columns.values, static_cast<int32_t>(total),
        static_cast<int32_t>(plan.columns.count), static_cast<int32_t>(plan.block), plan.row_stride,
        plan.column_stride);
  } else {
    gather_kernel<Word, int64_t><<<blocks, kThreads, 0, stream>>>(
        from, to, plan.rows.values, plan.columns.values, total, plan.columns.count, plan.block, plan.row_stride,
        plan.column_stride);
  }
  NIWAKI_LAUNCH_CHECK();
}

Tensor channel_slice(const Tensor& x, std::optional<Tensor> keep0, std::optional<Tensor> keep1) {
  require(x.is_cuda(), "channel_slice got keep0 or keep1 on another device than x: move them with .to(x.device).");
  const OnDevice device(x);
  SlicePlan plan = plan_slice(x, keep0, keep1);
  check_bounds(plan, device.stream());
  if (plan.result.numel() == 0) return plan.result;
  switch (plan.element_bytes) {
    case 1: launch<uint8_t>(plan, device.stream()); break;
    case 2: launch<uint16_t>(plan, device.stream()); break;
    case 4: launch<uint32_t>(plan, device.stream()); break;
    case 8: launch<uint2>(plan, device.stream()); break;
    case 16: launch<uint4>(plan, device.stream()); break;
    default:
      require(false, "channel_slice got elements of ", plan.element_bytes, " bytes: convert them to 1, 2, 4, 8 or 16.");
  }
  return plan.result;
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_IMPL(niwaki, CUDA, m) {
  m.impl("channel_slice", TORCH_BOX(&niwaki::channel_slice));
}
