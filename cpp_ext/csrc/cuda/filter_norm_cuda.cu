// niwaki::filter_norm on CUDA: one block for each channel, sums in double, folded in a fixed order.
#include "../norms.h"
#include "device.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace niwaki {
namespace {

constexpr int kThreads = 256;

__device__ inline double value(double x) { return x; }
__device__ inline double value(float x) { return x; }
__device__ inline double value(__half x) { return __half2float(x); }
__device__ inline double value(__nv_bfloat16 x) { return __bfloat162float(x); }

// x is [outer, channels, inner]; Index is 32 bits wide where that suffices, for its faster division.
template <class T, class Out, class Index>
__global__ void norm_kernel(const T* x, Out* out, int p, Index count, Index inner, int64_t outer_stride) {
  const T* channel = x + static_cast<int64_t>(blockIdx.x) * inner;
  double sum = 0;
  for (Index r = threadIdx.x; r < count; r += kThreads) {
    const Index o = r / inner;
    const double v = value(channel[o * outer_stride + (r - o * inner)]);
    sum += p == 1 ? fabs(v) : v * v;
  }
  __shared__ double parts[kThreads];
  parts[threadIdx.x] = sum;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) parts[threadIdx.x] += parts[threadIdx.x + width];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = static_cast<Out>(p == 1 ? parts[0] : sqrt(parts[0]));
}

template <class T, class Out>
void launch(const ChannelView& v, int64_t p, Tensor& result, cudaStream_t stream) {
  const T* x = static_cast<const T*>(v.tensor.const_data_ptr());
  Out* out = static_cast<Out*>(result.mutable_data_ptr());
  const int64_t count = v.outer * v.inner;
  const int64_t outer_stride = v.channels * v.inner;
  const auto blocks = static_cast<unsigned>(v.channels);
  if (count < INT32_MAX - kThreads) {
    norm_kernel<T, Out, int32_t><<<blocks, kThreads, 0, stream>>>(
        x, out, static_cast<int>(p), static_cast<int32_t>(count), static_cast<int32_t>(v.inner), outer_stride);
  } else {
    norm_kernel<T, Out, int64_t>
        <<<blocks, kThreads, 0, stream>>>(x, out, static_cast<int>(p), count, v.inner, outer_stride);
  }
  NIWAKI_LAUNCH_CHECK();
}

Tensor filter_norm(const Tensor& x, int64_t p, int64_t dim) {
  const OnDevice device(x);
  const ChannelView view = channel_view(x, check_filter_norm(x, p, dim));
  require(
      view.channels <= INT32_MAX, "filter_norm got ", view.channels,
      " channels: a CUDA tensor may have 2147483647, so split it first.");
  Tensor result = torch::stable::new_zeros(x, {view.channels}, norm_dtype(x));
  const bool empty = view.channels * view.outer * view.inner == 0;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      if (!empty) launch<float, float>(view, p, result, device.stream());
      return result;
    case ScalarType::Double:
      if (!empty) launch<double, double>(view, p, result, device.stream());
      return result;
    case ScalarType::Half:
      if (!empty) launch<__half, float>(view, p, result, device.stream());
      return result;
    case ScalarType::BFloat16:
      if (!empty) launch<__nv_bfloat16, float>(view, p, result, device.stream());
      return result;
    default: throw_unsupported_norm(x.scalar_type());
  }
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_IMPL(niwaki, CUDA, m) {
  m.impl("filter_norm", TORCH_BOX(&niwaki::filter_norm));
}
