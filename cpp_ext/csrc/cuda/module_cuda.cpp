// The Python module _C_cuda: CUDA kernels alone, so that _C also loads where PyTorch has no CUDA.
#include "../module.h"

NIWAKI_MODULE(_C_cuda)
