// New tokens of a cache: their rows are put in place, and the summary of the keys is carried on. For one token what
// this saves is not the work, a few thousand numbers, but the dozen calls into a framework that it takes otherwise; for
// a prompt, that these read and write it a dozen times.
#pragma once

#include "horizon.h"

namespace alibi {
namespace ALIBI_TARGET {

ALIBI_INLINE bool is_finite_row(int64_t type, const char* row, int64_t length) {
    // A zero for what is finite, NaN for what is not, which stays in a sum.
    Floats zeros = {};
    float rest = 0.0f;
    int64_t at = 0;
    for (; at + kWidth <= length; at += kWidth) zeros += load_as(type, row, at) * 0.0f;
    for (; at < length; ++at) rest += element_as(type, row, at) * 0.0f;
    return sum_of(zeros) + rest == 0.0f;
}

// Tokens `begin` to `end` of one head.
static void append_some(const Append& call, int64_t b, int64_t h, int64_t begin, int64_t end) {
    const size_t key_bytes = static_cast<size_t>(call.head_dim * element_size(call.type));
    const size_t value_bytes = static_cast<size_t>(call.value_dim * element_size(call.type));
    const int64_t from = call.heads ? call.heads[h] : h, book = b * call.books_batch_stride + from;
    const float* center = call.center + (b * call.kv_heads + h) * call.head_dim;
    double* norms = call.norms ? call.norms + b * call.norms_batch_stride + h * call.norms_head_stride : nullptr;
    double* radii = call.radii ? call.radii + (b * call.kv_heads + h) * call.tokens : nullptr;
    for (int64_t token = begin; token < end; ++token) {
        const int64_t to = call.at + token;
        const char* key = row_of(call.key, call.type, b, from, token);
        const char* value = row_of(call.value, call.type, b, from, token);
        const float square = square_distance(call.type, key, center, call.head_dim);
        const bool finite = is_finite(square) && is_finite_row(call.type, value, call.value_dim);
        const double radius = finite ? __builtin_sqrt(square) * kNormInflation + kNormFloor : kInfinity;
        if (radii) radii[token] = radius;
        // A tile's first row is the first of it: what stands there is of what the buffer held before.
        if (norms && (to % kTile == 0 || radius > norms[to / kTile])) norms[to / kTile] = radius;
        if (call.longest) {
            const double end_of = call.center_norm[book] + radius;
            if (finite && end_of > call.longest[book]) call.longest[book] = end_of;
            if (radius > call.farther[book]) call.farther[book] = radius;
        }
        if (!call.held_key.data) continue;
        __builtin_memcpy(const_cast<char*>(row_of(call.held_key, call.type, b, h, to)), key, key_bytes);
        __builtin_memcpy(const_cast<char*>(row_of(call.held_value, call.type, b, h, to)), value, value_bytes);
    }
}

// Stretches of a head's tokens that threads take one after the other, of whole tiles: each tile's norm is one thread's.
struct Stretches {
    const Append* call;
    int64_t next;

    static constexpr int64_t kTokens = 16 * kTile;

    int64_t a_head() const { return (call->at % kTile + call->tokens + kTokens - 1) / kTokens; }
    int64_t count() const { return call->batch * call->kv_heads * a_head(); }

    static void take(void* context, int64_t) {
        Stretches& self = *static_cast<Stretches*>(context);
        const Append& call = *self.call;
        const int64_t each = self.a_head(), count = self.count(), before = call.at % kTile;
        for (int64_t index; (index = __atomic_fetch_add(&self.next, 1, __ATOMIC_RELAXED)) < count;) {
            const int64_t head = index / each, first = index % each * kTokens - before, end = first + kTokens;
            append_some(
                call, head / call.kv_heads, head % call.kv_heads, first > 0 ? first : 0,
                end < call.tokens ? end : call.tokens
            );
        }
    }
};

static int64_t append(const Append& call) {
    Stretches stretches = {&call, 0};
    const int64_t count = stretches.count(), most = call.longest ? 1 : call.threads;
    run_team(count == 1 ? 1 : most, Stretches::take, &stretches);
    return kDone;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
