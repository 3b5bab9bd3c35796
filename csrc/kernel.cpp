// The kernels of one instruction set. Compiled once for each, with ALIBI_TARGET naming it.

#include "append.h"
#include "audit.h"
#include "backward.h"
#include "decode.h"
#include "kernels.h"

namespace alibi {

#define ALIBI_KERNELS_NAME_(target) kernels_##target
#define ALIBI_KERNELS_NAME(target) ALIBI_KERNELS_NAME_(target)

extern const Kernels ALIBI_KERNELS_NAME(ALIBI_TARGET);
const Kernels ALIBI_KERNELS_NAME(ALIBI_TARGET) = {
    ALIBI_TARGET::forward, ALIBI_TARGET::backward, ALIBI_TARGET::append, ALIBI_TARGET::audit
};

}  // namespace alibi
