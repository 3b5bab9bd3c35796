// The C interface of the library: one struct a call, eight bytes a field, so that a caller packs it without padding.
#pragma once

#include <stdint.h>

namespace alibi {

enum DataType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum Status : int64_t { kDone = 0, kWrongSize = 1, kNoMemory = 2, kWrongPlan = 3, kWrongShape = 4 };

// Raised whenever a caller of before would be misunderstood, be it at equal sizes.
constexpr int64_t kInterface = 3;

// The grid of plans and summaries. Python's share of the work knows both.
constexpr int kBlock = 48;  // queries in a block: three vectors of 16
constexpr int kTile = 64;   // keys in a tile
constexpr int kPlan = 4;    // numbers that a plan has for a block

// A (batch, head, row, column) tensor whose columns are contiguous; strides in elements.
struct Tensor {
    void* data;
    int64_t batch_stride;
    int64_t head_stride;
    int64_t row_stride;
};

struct Call {
    int64_t size;  // sizeof(Call), so that a stale library is refused instead of misread
    int64_t threads;
    int64_t type;
    int64_t batch;
    int64_t heads;
    int64_t kv_heads;
    int64_t q_len;
    int64_t k_len;
    int64_t head_dim;
    int64_t value_dim;
    int64_t two_sided;  // whether some row may see keys after its position
    // Row i stands at i + offset and sees [position - left, position + right] (-1: unbounded), unless position is
    // given: then it holds every row's position, lower and upper instead, with row_stride from one batch element to the
    // next.
    int64_t offset;
    int64_t window_left;
    int64_t window_right;
    const int64_t* position;
    const int64_t* lower;
    const int64_t* upper;
    int64_t range_stride;
    int64_t sink;  // whether the first visible tile may be kept apart from the horizon
    int64_t learned_slopes;
    double scale;
    double tolerance;
    double dropout;
    const int64_t* seed;
    const float* slopes;
    int64_t slope_batch_stride;
    int64_t slope_head_stride;
    Tensor query;
    Tensor key;
    Tensor value;
    Tensor out;
    float* lse;  // (batch, heads, q_len)
    // (batch, heads, blocks of queries, kPlan): first tile, end tile, tile apart or -1, and how often a tile's scores
    // were taken: of tiles passed over no more than that is done, and a tile that comes back is scored twice.
    int32_t* plan;
    // A summary of the keys that outlives the call, or null: a center (batch, kv_heads, head_dim), and the largest
    // distance from it of the keys of each tile, inf where a key or value is not finite, -inf where all is padding.
    const float* center;
    const double* norms;
    int64_t norms_batch_stride;
    int64_t norms_head_stride;
    // Backward only.
    Tensor grad_out;
    const float* grad_lse;  // as lse, or null for zero
    Tensor grad_query;
    Tensor grad_key;
    Tensor grad_value;
    float* grad_slopes;  // (batch, heads)
};

// Tokens that are put behind those a cache holds, from row `at` on, or of which only the radii are asked for.
struct Append {
    int64_t size;  // sizeof(Append)
    int64_t type;
    int64_t batch;
    int64_t kv_heads;
    int64_t tokens;
    int64_t head_dim;
    int64_t value_dim;
    int64_t at;
    Tensor key;
    Tensor value;
    Tensor held_key;  // null to put nothing
    Tensor held_value;
    // The summary of the keys, as in a call; norms, unless null, are raised to what the new keys have.
    const float* center;
    double* norms;
    int64_t norms_batch_stride;
    int64_t norms_head_stride;
    double* radii;  // (batch, kv_heads, tokens), or null: each new key's distance from the center, as in norms
};

}  // namespace alibi
