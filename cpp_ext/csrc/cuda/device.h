// What every CUDA kernel shares: the tensor's device and stream, and the check after a launch.
#pragma once

#include "../common.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

namespace niwaki {

// Makes the tensor's device current and names the stream that PyTorch uses there.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// A table of what to work on, which travels as the kernel's parameters: no copy to the device, so graphs capture it.
// CUDA takes 32764 bytes of parameters from compute capability 7.0 and CUDA 12.1 on.
constexpr size_t kTableBytes = 30 * 1024;

template <class Entry>
struct Table {
  static constexpr int kCapacity = static_cast<int>(kTableBytes / (sizeof(Entry) + sizeof(int64_t)));
  int count = 0;
  int64_t tiles = 0;             // of all entries
  int64_t begins[kCapacity];     // an entry's first tile
  Entry entries[kCapacity];

  void add(const Entry& entry, int64_t its_tiles) {
    begins[count] = tiles;
    entries[count++] = entry;
    tiles += its_tiles;
  }

  // The entry that tile `t` belongs to.
  __device__ int find(int64_t t) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (begins[middle] <= t) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// As many blocks as are resident at once, or fewer: each walks over the tiles.
template <class Kernel>
unsigned grid_of(Kernel kernel, int threads, int64_t tiles, int32_t device) {
  int per_processor = 1, processors = 1;
  STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, 0));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  return static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(tiles, int64_t{per_processor} * processors)));
}

}  // namespace niwaki

#define NIWAKI_LAUNCH_CHECK() STD_CUDA_KERNEL_LAUNCH_CHECK()
