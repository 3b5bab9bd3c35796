// What `cache/audit.py` and `cache/auditor.py` compute of the rows of one call. As with an append it is little work,
// and thirty calls into a framework.
#pragma once

#include "horizon.h"

namespace alibi {
namespace ALIBI_TARGET {

// The larger one; NaN, whichever of them it is, stays.
ALIBI_INLINE double larger_or_nan(double most, double x) {
    return x > most || x != x ? x : most;
}

ALIBI_INLINE void raise_to(double& most, double x) {
    if (x > most) most = x;
}

static int64_t audit(const Audit& call) {
    const double rounding = call.rounding, nothing = -__builtin_inf();
    double worst = nothing, coming = nothing;
    for (int64_t h = 0; h < call.heads; ++h) {
        const int64_t kv_head = h / (call.heads / call.kv_heads);
        double most = nothing;
        for (int64_t b = 0; b < call.batch; ++b) {
            const int64_t head = b * call.heads + h, keys = b * call.kv_heads + kv_head;
            for (int64_t i = 0; i < call.q_len; ++i) {
                const char* row = row_of(call.query, call.type, b, h, i);
                const Products with = products(call.type, row, call.center + keys * call.head_dim, call.head_dim);
                const double norm = __builtin_sqrt(static_cast<double>(with.square));
                const double rho = norm * (__builtin_fabs(call.scale) * kNormInflation) + kNormFloor;
                // The mass that is kept, from below and about the center.
                const double kept = static_cast<double>(call.lse[head * call.q_len + i]) -
                                    call.scale * static_cast<double>(with.with_center) -
                                    rounding * rho * call.longest[keys] - call.slack;
                if (call.farther) {
                    const double asked = rho * call.farther[keys] + call.series[h] - kept;
                    if (__builtin_fabs(asked) < __builtin_inf()) raise_to(call.nats[h], asked);
                    if (rho < __builtin_inf()) raise_to(call.largest[h], rho);
                }
                if (!call.at) continue;
                double gone = nothing;
                for (int64_t n = head * call.lines; n < (head + 1) * call.lines; ++n)
                    gone = larger_or_nan(gone, call.at[n] + rho * call.rise[n]);
                const double excess =
                    gone - call.slopes[h] * static_cast<double>(call.position - call.place + i) - kept;
                call.excess[head * call.q_len + i] = excess;
                most = larger_or_nan(most, excess);
            }
        }
        if (!call.at) continue;
        worst = larger_or_nan(worst, most);
        coming = larger_or_nan(coming, most + call.slopes[h] * (static_cast<double>(call.position) - call.least[h]));
    }
    if (!call.at) return kDone;
    call.verdict[0] = worst;
    call.verdict[1] = coming;
    if (!(worst <= call.limit)) return kDone;
    for (int64_t b = 0; b < call.batch; ++b)
        for (int64_t h = 0; h < call.heads; ++h)
            for (int64_t i = 0; i < call.q_len; ++i)
                raise_to(call.worst[h], call.excess[(b * call.heads + h) * call.q_len + i]);
    return kDone;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
