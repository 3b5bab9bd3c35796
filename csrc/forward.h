// Forward: one pass over a block's keys with the running maximum and sum of a softmax, in powers of two.
#pragma once

#include "horizon.h"

namespace alibi {
namespace ALIBI_TARGET {

enum ScratchSlot { kWorkspace = 0 };

// What a thread needs for one block. Everything is [something][query], so one row is one cache-resident strip.
struct ForwardSpace {
    float* query;    // [head_dim][kBlock], times scale * log2(e)
    float* weights;  // [kTile][kBlock]
    float* out;      // [value_dim][kBlock]
    float* key_stage;
    float* value_stage;
    alignas(64) float peak[kBlock];  // running maximum
    alignas(64) float sum[kBlock];
};

struct Forward {
    const Call* call;
    int64_t blocks;
    const Horizon* horizon;  // null where every tile is computed
    const int32_t* order;    // (batch * heads): flattest slope first; null for any order
    float* wide_key;         // (batch, kv head, key, padded element), or null
    float* wide_value;
    int64_t wide_key_stride, wide_value_stride;
    bool stage;  // convert tile by tile
    bool failed;
    int64_t next;
};

ALIBI_INLINE int64_t draw(int64_t& counter) {
    return __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED);
}

ALIBI_INLINE KeyHead key_head(
    const Call& call, const float* wide_key, int64_t wide_key_stride, const float* wide_value,
    int64_t wide_value_stride, bool stage, int64_t batch, int64_t kv_head, float* key_stage, float* value_stage
) {
    if (stage) return {nullptr, 0, nullptr, 0, key_stage, value_stage};
    if (wide_key) {
        const int64_t first = (batch * call.kv_heads + kv_head) * call.k_len;
        return {
            wide_key + first * wide_key_stride,
            wide_key_stride,
            wide_value + first * wide_value_stride,
            wide_value_stride,
            nullptr,
            nullptr};
    }
    return {
        reinterpret_cast<const float*>(row_of(call.key, kFloat32, batch, kv_head, 0)),
        call.key.row_stride,
        reinterpret_cast<const float*>(row_of(call.value, kFloat32, batch, kv_head, 0)),
        call.value.row_stride,
        nullptr,
        nullptr};
}

// The base that weights are taken against. A row that has met nothing stands at -inf, and -inf less -inf is no number;
// at +inf likewise, where 0 lets the infinity itself through to the sum.
ALIBI_INLINE Floats base_of(Floats peak) {
    return select(magnitude(peak) == kInfinity, Floats{}, peak);
}

// Scores of a tile in bits into `weights`, and their maximum by lane.
template <bool TwoSided, bool Masked, int V>
ALIBI_INLINE void score(
    float* weights, Floats (&most)[V], const float* query, const Block& block, const Tile& tile, int64_t head_dim,
    int64_t value_dim, int lane
) {
    Floats reach[V];
    Ints lower[V], upper[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        reach[v] = load(block.stand + lane + v * kWidth) + tile.shift;
        if (Masked) {
            lower[v] = load_ints(tile.lower + lane + v * kWidth);
            upper[v] = load_ints(tile.upper + lane + v * kWidth);
        }
    }
    by_rows<kRows>(
        tile.keys,
        [&](auto count, int row) __attribute__((always_inline)) {
            constexpr int R = decltype(count)::value;
            if (lane == 0)
                for (int r = 0; r < R; ++r) fetch_next(tile, row + r, head_dim, value_dim);
            Accumulators<R, V> dot;
            clear(dot);
            multiply<kAlongSum>(dot, tile.key + row * tile.key_stride, tile.key_stride, query + lane, kBlock, head_dim);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    // Both terms are small integers, so the distance is exact at any position.
                    Floats distance = reach[v] - static_cast<float>(row + r);
                    if (TwoSided) distance = magnitude(distance);
                    Floats x = dot.at[r][v] - distance * block.slope;
                    if (Masked) {
                        const Ints key = splat_int(row + r);
                        x = select((lower[v] <= key) & (key < upper[v]), x, splat(-kInfinity));
                    }
                    most[v] = larger(x, most[v]);
                    store(weights + (row + r) * kBlock + lane + v * kWidth, x);
                }
        }
    );
}

// The products of weights and values, pair by pair, of a masked tile in which some value is not finite: a lane that
// does not see it must not meet it, even times 0.
static void add_values_with_care(const ForwardSpace& space, const Block& block, const Tile& tile, int64_t value_dim) {
    for (int64_t e = 0; e < value_dim; ++e)
        for (int row = 0; row < block.rows; ++row) {
            float total = 0.0f;
            for (int key = 0; key < tile.keys; ++key)
                if (sees(tile, row, key))
                    total += tile.value[key * tile.value_stride + e] * space.weights[key * kBlock + row];
            space.out[e * kBlock + row] += total;
        }
}

template <bool TwoSided, bool Masked>
static void advance(ForwardSpace& space, const Call& call, const Block& block, const Tile& tile) {
    const bool careful = Masked && !all_finite(tile.value, tile.value_stride, tile.keys, call.value_dim);
    alignas(64) float fades[kBlock];
    by_lanes(
        block.rows,
        [&](auto vectors, int lane) __attribute__((always_inline)) {
            constexpr int V = decltype(vectors)::value;
            Floats most[V], base[V], sum[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) most[v] = load(space.peak + lane + v * kWidth);
            score<TwoSided, Masked, V>(
                space.weights, most, space.query, block, tile, call.head_dim, call.value_dim, lane
            );
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const Floats old = load(space.peak + lane + v * kWidth);
                base[v] = base_of(most[v]);
                const Floats fade = select(old == -kInfinity, splat(1.0f), exp2(base_of(old) - base[v]));
                store(fades + lane + v * kWidth, fade);
                store(space.peak + lane + v * kWidth, most[v]);
                sum[v] = Floats{};
            }
            for (int key = 0; key < tile.keys; ++key)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    float* at = space.weights + key * kBlock + lane + v * kWidth;
                    const Floats weight = exp2(load(at) - base[v]);
                    sum[v] += weight;
                    store(at, weight);
                }
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                // A tile is summed apart: one long chain of additions would round at the size of the whole at every
                // key.
                float* at = space.sum + lane + v * kWidth;
                store(at, load(at) * load(fades + lane + v * kWidth) + sum[v]);
            }
        }
    );
    // The softmax's own sum is taken before dropout.
    if (call.dropout > 0.0) drop(space.weights, call, block, tile, drop_threshold(call.dropout));
    by_lanes(
        block.rows,
        [&](auto vectors, int lane) __attribute__((always_inline)) {
            constexpr int V = decltype(vectors)::value;
            by_rows<kRows>(
                static_cast<int>(call.value_dim),
                [&](auto count, int row) __attribute__((always_inline)) {
                    constexpr int R = decltype(count)::value;
                    Accumulators<R, V> out;
                    clear(out);
                    if (!careful)
                        multiply<kAlongRows>(
                            out, tile.value + row, tile.value_stride, space.weights + lane, kBlock, tile.keys
                        );
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                        for (int v = 0; v < V; ++v) {
                            float* at = space.out + (row + r) * kBlock + lane + v * kWidth;
                            store(at, load(at) * load(fades + lane + v * kWidth) + out.at[r][v]);
                        }
                }
            );
        }
    );
    if (careful) add_values_with_care(space, block, tile, call.value_dim);
}

static void advance(
    ForwardSpace& space, const Call& call, const Block& block, const KeyHead& head, int64_t number, int64_t next
) {
    Tile tile;
    enter_tile(tile, call, block, head, number, next);
    if (call.two_sided)
        tile.masked ? advance<true, true>(space, call, block, tile) : advance<true, false>(space, call, block, tile);
    else
        tile.masked ? advance<false, true>(space, call, block, tile) : advance<false, false>(space, call, block, tile);
}

struct Sweep {
    int64_t first, end, apart;
};

// Tiles from the block's own position outwards, until those beyond cannot matter.
static Sweep sweep(ForwardSpace& space, const Call& call, const Block& block, const KeyHead& head, Sight& sight) {
    if (block.end_key <= block.first_key) return {0, 0, -1};
    const int64_t low = block.first_key / kTile, high = (block.end_key + kTile - 1) / kTile;
    int64_t start = high - 1;
    if (call.two_sided) start = largest(low, smallest(high - 1, block.base >= 0 ? block.base / kTile : 0));
    advance(space, call, block, head, start, start > low ? start - 1 : -1);
    Sweep done = {start, start + 1, -1};
    bool leftwards = start > low, rightwards = start + 1 < high;
    while (leftwards || rightwards) {
        if (leftwards) {
            const int64_t next = done.first - 1;
            // The table leaves the sink out, so where it is visible it is judged apart, or alone when it is all that is
            // left.
            const bool sink = sight.sink_tile == low;
            bool stop = may_stop(sight, block, 1, next, sink && next == low, space.peak, space.sum);
            if (stop && sink && next > low && !may_stop(sight, block, 1, next, true, space.peak, space.sum)) {
                advance(space, call, block, head, low, -1);
                done.apart = low;
            }
            if (!stop) {
                advance(space, call, block, head, next, next > low ? next - 1 : -1);
                done.first = next;
            }
            leftwards = !stop && next > low;
        }
        if (rightwards) {
            if (may_stop(sight, block, -1, done.end, false, space.peak, space.sum)) {
                rightwards = false;
            } else {
                advance(space, call, block, head, done.end, done.end + 1 < high ? done.end + 1 : -1);
                rightwards = ++done.end < high;
            }
        }
    }
    return done;
}

static void finish(const ForwardSpace& space, const Call& call, const Block& block) {
    const float scale = drop_scale(call.dropout);
    alignas(64) float factors[kBlock];
    float* lse = call.lse + (block.batch * call.heads + block.head) * call.q_len + block.first_row;
    for (int row = 0; row < kBlock; ++row) {
        const float sum = space.sum[row];
        // Where there is no mass the output is 0, which is what was summed; NaN stays either way.
        factors[row] = sum == 0.0f ? 1.0f : scale / sum;
        if (row >= block.rows) continue;
        const float peak = space.peak[row];
        const double base = __builtin_fabsf(peak) == kInfinity ? 0.0 : peak;
        // Rounded once: backward's probabilities all carry the error of their row's lse.
        const double bits = base + static_cast<double>(__builtin_log2f(sum));
        lse[row] = sum == 0.0f ? -kInfinity : static_cast<float>(bits * 0.69314718055994530942);
    }
    char* rows =
        static_cast<char*>(call.out.data) +
        (block.batch * call.out.batch_stride + block.head * call.out.head_stride + block.first_row * call.out.row_stride
        ) * element_size(call.type);
    unpack_transposed(rows, call.type, call.out.row_stride, space.out, block.rows, call.value_dim, factors);
}

static void forward_block(const Forward& run, ForwardSpace& space, int64_t batch, int64_t head, int64_t number) {
    const Call& call = *run.call;
    Block block;
    locate(block, call, batch, head, number);
    const char* query = row_of(call.query, call.type, batch, head, block.first_row);
    const float factor = static_cast<float>(call.scale * 1.4426950408889634);
    pack_transposed(space.query, call.type, query, call.query.row_stride, block.rows, call.head_dim, factor);
    for (int row = 0; row < kBlock; ++row) {
        space.peak[row] = -kInfinity;
        space.sum[row] = 0.0f;
    }
    __builtin_memset(space.out, 0, static_cast<size_t>(call.value_dim) * kBlock * 4);
    Sight sight;
    look(sight, run.horizon, call, block);
    const KeyHead keys = key_head(
        call, run.wide_key, run.wide_key_stride, run.wide_value, run.wide_value_stride, run.stage, batch, block.kv_head,
        space.key_stage, space.value_stage
    );
    const Sweep done = sweep(space, call, block, keys, sight);
    int32_t* plan = call.plan + ((batch * call.heads + head) * run.blocks + number) * 3;
    plan[0] = static_cast<int32_t>(done.first);
    plan[1] = static_cast<int32_t>(done.end);
    plan[2] = static_cast<int32_t>(done.apart);
    finish(space, call, block);
}

ALIBI_INLINE float* floats_at(char*& memory, int64_t count) {
    float* at = reinterpret_cast<float*>(memory);
    memory += round_up(count * 4, 64);
    return at;
}

static void forward_member(void* context, int64_t) {
    Forward& run = *static_cast<Forward*>(context);
    const Call& call = *run.call;
    const int64_t key_dim = round_up(call.head_dim, kWidth), value_dim = round_up(call.value_dim, kWidth);
    const int64_t floats = (key_dim + value_dim + kTile) * kBlock + kTile * (key_dim + value_dim);
    char* memory = static_cast<char*>(scratch(kWorkspace, static_cast<size_t>(floats * 4 + 8 * 64)));
    if (!memory) {
        __atomic_store_n(&run.failed, true, __ATOMIC_RELAXED);
        return;
    }
    ForwardSpace space;
    space.query = floats_at(memory, key_dim * kBlock);
    space.weights = floats_at(memory, kTile * kBlock);
    space.out = floats_at(memory, value_dim * kBlock);
    space.key_stage = floats_at(memory, kTile * key_dim);
    space.value_stage = floats_at(memory, kTile * value_dim);
    const int64_t items = call.batch * call.heads * run.blocks;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next)) {
        const int64_t pair = run.order ? run.order[item / run.blocks] : item / run.blocks;
        // The last queries have the most keys before them: first, so that what is left at the end is short.
        forward_block(run, space, pair / call.heads, pair % call.heads, run.blocks - 1 - item % run.blocks);
    }
}

// What comes before the blocks: the horizon's summary of keys and queries, and conversion to float.

struct Preparation {
    const Call* call;
    const Horizon* horizon;
    float* wide_key;
    float* wide_value;
    int64_t wide_key_stride, wide_value_stride;
    int64_t next;
};

static void prepare_heads(void* context, int64_t) {
    Preparation& run = *static_cast<Preparation*>(context);
    const int64_t items = run.call->batch * run.call->kv_heads;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next))
        find_center(*run.horizon, *run.call, item / run.call->kv_heads, item % run.call->kv_heads);
}

static void prepare_keys(void* context, int64_t) {
    Preparation& run = *static_cast<Preparation*>(context);
    const Call& call = *run.call;
    const int64_t tiles = tiles_of(call), chunks = (tiles + kChunkTiles - 1) / kChunkTiles;
    const int64_t key_items = call.batch * call.kv_heads * chunks;
    const int64_t items = key_items + (run.horizon ? call.batch * call.heads : 0);
    for (int64_t item = draw(run.next); item < items; item = draw(run.next)) {
        if (item >= key_items) {
            find_levels(*run.horizon, call, (item - key_items) / call.heads, (item - key_items) % call.heads);
            continue;
        }
        const int64_t index = item / chunks, batch = index / call.kv_heads, kv_head = index % call.kv_heads;
        const int64_t first = item % chunks * kChunkTiles, end = smallest(first + kChunkTiles, tiles);
        if (run.wide_key) {
            for (int64_t j = first * kTile; j < smallest(end * kTile, call.k_len); ++j) {
                const int64_t at = index * call.k_len + j;
                read_row(
                    run.wide_key + at * run.wide_key_stride, call.type, row_of(call.key, call.type, batch, kv_head, j),
                    call.head_dim, run.wide_key_stride, 1.0f
                );
                read_row(
                    run.wide_value + at * run.wide_value_stride, call.type,
                    row_of(call.value, call.type, batch, kv_head, j), call.value_dim, run.wide_value_stride, 1.0f
                );
            }
        }
        if (run.horizon)
            for (int64_t t = first; t < end; ++t) find_radii(*run.horizon, call, batch, kv_head, t);
    }
}

static void prepare_bounds(void* context, int64_t) {
    Preparation& run = *static_cast<Preparation*>(context);
    const int64_t items = run.call->batch * run.call->heads;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next))
        tabulate(*run.horizon, *run.call, item / run.call->heads, item % run.call->heads);
}

static void prepare(Preparation& run, int64_t threads) {
    const Call& call = *run.call;
    if (run.horizon) {
        for (int64_t b = 0; b < call.batch; ++b) find_visible(*run.horizon, call, b);
        run.next = 0;
        run_team(threads, prepare_heads, &run);
    }
    run.next = 0;
    run_team(threads, prepare_keys, &run);
    if (!run.horizon) return;
    for (int64_t i = 0; i < call.batch * call.kv_heads; ++i) find_reach(*run.horizon, call, i);
    run.next = 0;
    run_team(threads, prepare_bounds, &run);
}

// Pairs of batch element and head by rising slope: a flat head sees far, and long work goes first.
static void order_by_slope(int32_t* order, int32_t* spare, const Call& call) {
    const int64_t pairs = call.batch * call.heads;
    auto slope = [&](int32_t pair) { return slope_of(call, pair / call.heads, pair % call.heads); };
    for (int64_t i = 0; i < pairs; ++i) order[i] = static_cast<int32_t>(i);
    for (int64_t width = 1; width < pairs; width *= 2) {
        for (int64_t start = 0; start < pairs; start += 2 * width) {
            int64_t a = start, b = smallest(start + width, pairs);
            const int64_t middle = b, end = smallest(start + 2 * width, pairs);
            for (int64_t i = start; i < end; ++i)
                spare[i] = b >= end || (a < middle && !(slope(order[b]) < slope(order[a]))) ? order[a++] : order[b++];
        }
        int32_t* swap = order;
        order = spare;
        spare = swap;
    }
    // The caller reads the first array: an odd number of rounds leaves the result in the second.
    int rounds = 0;
    for (int64_t width = 1; width < pairs; width *= 2) ++rounds;
    if (rounds % 2) __builtin_memcpy(spare, order, static_cast<size_t>(pairs) * 4);
}

// Multiply-adds below which waking other threads costs more than they bring.
constexpr double kAlone = 1 << 20;

ALIBI_INLINE int64_t threads_for(const Call& call) {
    const double work = static_cast<double>(call.batch * call.heads) * static_cast<double>(call.q_len) *
                        static_cast<double>(call.k_len) * static_cast<double>(call.head_dim + call.value_dim);
    return work < kAlone ? 1 : call.threads;
}

struct WideLayout {
    bool wide, stage;
    int64_t key_stride, value_stride, bytes;
};

// 16-bit keys and values are widened once for the whole call where several blocks read them, else tile by tile.
ALIBI_INLINE WideLayout wide_layout(const Call& call, bool may_stage) {
    WideLayout layout = {false, false, round_up(call.head_dim, kWidth), round_up(call.value_dim, kWidth), 0};
    if (call.type == kFloat32) return layout;
    const int64_t readers = blocks_of(call) * (call.heads / call.kv_heads);
    layout.stage = may_stage && readers <= 2;
    layout.wide = !layout.stage;
    if (layout.wide)
        layout.bytes = call.batch * call.kv_heads * call.k_len * (layout.key_stride + layout.value_stride) * 4 + 128;
    return layout;
}

// A call by blocks of queries.
static int64_t forward_blocks(const Call& call) {
    const int64_t threads = threads_for(call), pairs = call.batch * call.heads;
    const bool skips = horizon_is_worthwhile(call);
    const WideLayout layout = wide_layout(call, true);
    Horizon horizon;
    const int64_t horizon_size = skips ? horizon_bytes(call, nullptr, nullptr) : 0;
    const int64_t order_size = skips ? round_up(pairs * 4, 64) : 0;
    char* memory = nullptr;
    if (skips || layout.wide) {
        memory = static_cast<char*>(take_block(static_cast<size_t>(horizon_size + 2 * order_size + layout.bytes)));
        if (!memory) return kNoMemory;
    }
    Forward run = {
        &call,        blocks_of(call), nullptr, nullptr, nullptr, nullptr, layout.key_stride, layout.value_stride,
        layout.stage, false,           0};
    char* at = memory;
    if (skips) {
        horizon_bytes(call, &horizon, at);
        at += horizon_size;
        run.horizon = &horizon;
        int32_t* order = reinterpret_cast<int32_t*>(at);
        order_by_slope(order, reinterpret_cast<int32_t*>(at + order_size), call);
        at += 2 * order_size;
        run.order = order;
    }
    if (layout.wide) {
        run.wide_key = floats_at(at, call.batch * call.kv_heads * call.k_len * layout.key_stride);
        run.wide_value = floats_at(at, call.batch * call.kv_heads * call.k_len * layout.value_stride);
    }
    if (memory) {
        Preparation first = {&call, run.horizon, run.wide_key, run.wide_value, layout.key_stride, layout.value_stride,
                             0};
        prepare(first, threads);
    }
    run_team(threads, forward_member, &run);
    release_block(memory);
    return run.failed ? kNoMemory : kDone;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
