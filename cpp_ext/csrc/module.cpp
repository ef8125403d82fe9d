// The Python module _C: schemas and CPU kernels.
#include "module.h"

NIWAKI_MODULE(_C)
