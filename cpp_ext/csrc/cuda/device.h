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

}  // namespace niwaki

#define NIWAKI_LAUNCH_CHECK() STD_CUDA_KERNEL_LAUNCH_CHECK()
