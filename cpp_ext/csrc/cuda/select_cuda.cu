// niwaki::keep_largest_products on CUDA: a radix selection of |gradient * weight| over a whole list, 11, 10 and 10 bits at
// a time, and what lies below it zeroed. All counts are integers and stay on the device: nothing waits.
#include "../select.h"
#include "device.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace niwaki {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTile = 8192;  // elements
constexpr int kBuckets = 2048;
constexpr int kPasses = 3;

struct Entry {
  void* g;
  const void* w;
  int64_t total;
  int dtype;  // 0 float32, 1 float64, 2 float16, 3 bfloat16
};

struct State {
  unsigned long long counts[kPasses][kBuckets];
  unsigned long long rank;  // how many more are to stay among those with the prefix
  unsigned prefix;          // the bits found so far
  float threshold;
};

__host__ __device__ constexpr int shift_of(int pass) { return pass == 0 ? 20 : pass == 1 ? 10 : 0; }
__host__ __device__ constexpr int bits_of(int pass) { return pass == 0 ? 11 : 10; }

__device__ inline float wide(float x) { return x; }
__device__ inline double wide(double x) { return x; }
__device__ inline float wide(__half x) { return __half2float(x); }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline unsigned product_of(T g, T w) {
  return __float_as_uint(static_cast<float>(wide(g) * wide(w))) & 0x7fffffffu;
}

template <class T>
__device__ void count_tile(const Entry& e, int64_t tile, int pass, unsigned prefix, unsigned* counts) {
  const int64_t end = min(e.total, (tile + 1) * kTile);
  const T *g = static_cast<const T*>(e.g), *w = static_cast<const T*>(e.w);
  for (int64_t i = tile * kTile + threadIdx.x; i < end; i += kThreads) {
    const unsigned bits = product_of(g[i], w[i]);
    // What was found in earlier passes has to agree.
    if (pass > 0 && bits >> shift_of(pass - 1) != prefix >> shift_of(pass - 1)) continue;
    atomicAdd(counts + (bits >> shift_of(pass) & ((1u << bits_of(pass)) - 1)), 1u);
  }
}

__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ Table<Entry> table, State* state, int pass) {
  __shared__ unsigned counts[kBuckets];
  for (int b = threadIdx.x; b < kBuckets; b += kThreads) counts[b] = 0;
  __syncthreads();
  const unsigned prefix = state->prefix;
  for (int64_t t = blockIdx.x; t < table.tiles; t += gridDim.x) {
    const int k = table.find(t);
    const Entry& e = table.entries[k];
    const int64_t tile = t - table.begins[k];
    switch (e.dtype) {
      case 0: count_tile<float>(e, tile, pass, prefix, counts); break;
      case 1: count_tile<double>(e, tile, pass, prefix, counts); break;
      case 2: count_tile<__half>(e, tile, pass, prefix, counts); break;
      default: count_tile<__nv_bfloat16>(e, tile, pass, prefix, counts);
    }
  }
  __syncthreads();
  for (int b = threadIdx.x; b < kBuckets; b += kThreads) {
    if (counts[b] > 0) atomicAdd(&state->counts[pass][b], static_cast<unsigned long long>(counts[b]));
  }
}

// By one thread: the bucket that the number which is looked for lies in.
__global__ void pick_kernel(State* state, int pass, unsigned long long keep) {
  unsigned long long rank = pass == 0 ? keep : state->rank;
  int b = (1 << bits_of(pass)) - 1;
  while (b > 0 && state->counts[pass][b] < rank) rank -= state->counts[pass][b--];
  state->rank = rank;
  state->prefix |= static_cast<unsigned>(b) << shift_of(pass);
  if (pass == kPasses - 1) state->threshold = __uint_as_float(state->prefix);
}

template <class T>
__device__ void zero_tile(const Entry& e, int64_t tile, unsigned threshold) {
  const int64_t end = min(e.total, (tile + 1) * kTile);
  T* g = static_cast<T*>(e.g);
  const T* w = static_cast<const T*>(e.w);
  for (int64_t i = tile * kTile + threadIdx.x; i < end; i += kThreads) {
    if (product_of(g[i], w[i]) < threshold) g[i] = T{};
  }
}

// Above every number when nothing is kept.
__global__ void __launch_bounds__(kThreads)
    zero_kernel(const __grid_constant__ Table<Entry> table, const State* state, bool none) {
  const unsigned threshold = none ? 0x80000000u : state->prefix;
  for (int64_t t = blockIdx.x; t < table.tiles; t += gridDim.x) {
    const int k = table.find(t);
    const Entry& e = table.entries[k];
    const int64_t tile = t - table.begins[k];
    switch (e.dtype) {
      case 0: zero_tile<float>(e, tile, threshold); break;
      case 1: zero_tile<double>(e, tile, threshold); break;
      case 2: zero_tile<__half>(e, tile, threshold); break;
      default: zero_tile<__nv_bfloat16>(e, tile, threshold);
    }
  }
}

Tensor keep_largest_products(
    const std::vector<Tensor>& gradients, const std::vector<Tensor>& weights, int64_t keep) {
  const int64_t total = check_products(gradients, weights, keep);
  const OnDevice device(weights[0]);
  std::vector<Table<Entry>> tables(1);
  for (size_t k = 0; k < weights.size(); ++k) {
    const int64_t numel = weights[k].numel();
    if (numel == 0) continue;
    if (tables.back().count == Table<Entry>::kCapacity) tables.emplace_back();
    const ScalarType t = weights[k].scalar_type();
    Entry e{};
    e.g = const_cast<void*>(gradients[k].const_data_ptr()), e.w = weights[k].const_data_ptr(), e.total = numel;
    e.dtype = t == ScalarType::Double ? 1 : t == ScalarType::Half ? 2 : t == ScalarType::BFloat16 ? 3 : 0;
    tables.back().add(e, (numel + kTile - 1) / kTile);
  }
  const int32_t index = weights[0].get_device_index();
  Tensor result = torch::stable::new_empty(weights[0], {}, ScalarType::Float);
  if (keep == 0 || keep == total) {
    torch::stable::fill_(result, keep == 0 ? std::numeric_limits<double>::infinity() : 0.0);
  }
  if (keep == total) return result;
  const Tensor memory = torch::stable::new_empty(weights[0], {static_cast<int64_t>(sizeof(State))}, ScalarType::Byte);
  auto* state = static_cast<State*>(memory.mutable_data_ptr());
  STD_CUDA_CHECK(cudaMemsetAsync(state, 0, sizeof(State), device.stream()));
  for (int pass = 0; pass < kPasses && keep > 0; ++pass) {
    for (const auto& table : tables) {
      count_kernel<<<grid_of(count_kernel, kThreads, table.tiles, index), kThreads, 0, device.stream()>>>(table, state, pass);
      NIWAKI_LAUNCH_CHECK();
    }
    pick_kernel<<<1, 1, 0, device.stream()>>>(state, pass, static_cast<unsigned long long>(keep));
    NIWAKI_LAUNCH_CHECK();
  }
  for (const auto& table : tables) {
    zero_kernel<<<grid_of(zero_kernel, kThreads, table.tiles, index), kThreads, 0, device.stream()>>>(table, state, keep == 0);
    NIWAKI_LAUNCH_CHECK();
  }
  if (keep > 0) {
    STD_CUDA_CHECK(cudaMemcpyAsync(
        result.mutable_data_ptr(), &state->threshold, sizeof(float), cudaMemcpyDeviceToDevice, device.stream()));
  }
  return result;
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_IMPL(niwaki, CUDA, m) {
  m.impl("keep_largest_products", TORCH_BOX(&niwaki::keep_largest_products));
}
