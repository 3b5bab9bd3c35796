// What each instruction set's object file offers.
#pragma once

#include "call.h"

namespace alibi {

struct Kernels {
    int64_t (*forward)(const Call& call);
    int64_t (*backward)(const Call& call);
    int64_t (*append)(const Append& call);
    int64_t (*audit)(const Audit& call);
};

}  // namespace alibi
