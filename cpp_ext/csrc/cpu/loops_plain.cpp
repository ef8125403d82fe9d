// The portable build of the loops: SSE2 on x86-64, NEON on aarch64. Also chooses among the builds.
#define NIWAKI_ISA plain
#define NIWAKI_WIDTH 2
#define NIWAKI_NAME kLoopsPlain
#include "loops_impl.h"

#include <cstdlib>
#include <cstring>

namespace niwaki {

const Loops& loops() {
  static const Loops& chosen = [] () -> const Loops& {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const char* asked = std::getenv("NIWAKI_CPU");
    const auto allowed = [&](const char* name) { return asked == nullptr || std::strcmp(asked, name) == 0; };
    if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return kLoopsAvx512;
    }
    if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return kLoopsAvx2;
#endif
    return kLoopsPlain;
  }();
  return chosen;
}

}  // namespace niwaki
