// The C interface of the library: one struct a call, eight bytes a field, so that a caller packs it without padding.
#pragma once

#include <stdint.h>

namespace alibi {

enum DataType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum Status : int64_t { kDone = 0, kWrongSize = 1, kNoMemory = 2, kWrongPlan = 3, kWrongShape = 4 };

// Raised whenever a caller of before would be misunderstood, be it at equal sizes.
constexpr int64_t kInterface = 6;

// The grid of plans and summaries. Python's share of the work knows both.
constexpr int kBlock = 48;  // queries in a block, at most: three vectors of 16
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
    // (batch, heads, blocks of queries, kPlan), blocks in the order of their rows: first tile, end tile, tile apart or
    // -1, and how often a tile's scores were taken: of tiles passed over no more than that is done, and a tile that
    // comes back is scored twice.
    int32_t* plan;
    // A summary of the keys that outlives the call, or null: a center (batch, kv_heads, head_dim), and the largest
    // distance from it of the keys of each tile, inf where a key or value is not finite, -inf where all is padding.
    const float* center;
    const double* norms;
    int64_t norms_batch_stride;
    int64_t norms_head_stride;
    // Rows that no block mixes: group g has the rows group_rows[g] to group_rows[g + 1], and blocks from number
    // group_blocks[g] on. Null where all rows are one group. Packed sequences are groups: rows that see keys far apart
    // would all sweep what lies between, and their distances would not be small integers.
    int64_t groups;
    const int64_t* group_rows;
    const int64_t* group_blocks;
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
    const int64_t* heads;  // which heads of the new tokens are put, and measured; null for all in their order
    Tensor held_key;       // null to put nothing
    Tensor held_value;
    // The summary of the keys, as in a call; norms, unless null, are raised to what the new keys have, and those of a
    // tile that begins with a new key are set to it.
    const float* center;
    double* norms;
    int64_t norms_batch_stride;
    int64_t norms_head_stride;
    double* radii;  // (batch, kv_heads, tokens), or null: each new key's distance from the center, as in norms
    // What a cache that forgets knows of all keys it has seen, by head of the new tokens, or null: the length of the
    // center, which with the largest finite distance is never less than `longest`, and the largest distance of all.
    const double* center_norm;
    double* longest;
    double* farther;
    int64_t books_batch_stride;
    int64_t threads;  // that share the tokens; one where `longest` is given, which all of them raise
};

// Rows of queries held against the keys that a cache has let go of. cache/audit.py and cache/auditor.py say what the
// numbers mean and why they bound what they bound; all is in nats.
struct Audit {
    int64_t size;  // sizeof(Audit)
    int64_t type;
    int64_t batch;
    int64_t heads;
    int64_t kv_heads;
    int64_t q_len;
    int64_t head_dim;
    Tensor query;
    const float* lse;       // (batch, heads, q_len), over what is held
    const float* center;    // (batch, kv_heads, head_dim)
    const double* longest;  // (batch, kv_heads): no key is longer, its distance to the center added
    double scale;
    double rounding;       // what scores may round by, as a share of the product of lengths
    double slack;          // and whatever their size
    const double* slopes;  // (heads)
    // What windows are found from, or null: the largest distance of a key, ln of the series of a head's slope, and what
    // rows have asked for so far, which is raised.
    const double* farther;  // (batch, kv_heads)
    const double* series;   // (heads)
    double* nats;           // (heads)
    double* largest;        // (heads)
    // Lines whose maximum bounds the mass that is gone, or null where none is: what follows is then not read.
    const double* at;    // (batch, heads, lines)
    const double* rise;  // (batch, heads, lines)
    int64_t lines;
    int64_t place;        // where the masses stand,
    int64_t position;     // and the first row
    const double* least;  // (heads): where the excess would be at its worst
    double limit;         // of the excess
    double* worst;        // (heads): raised, where all is within the limit
    double* excess;       // (batch, heads, q_len)
    double* verdict;      // the largest excess, and the largest at its worst; NaN where one is not a number
};

}  // namespace alibi
