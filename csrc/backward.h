// Backward: probabilities are recomputed from the lse over the tiles that forward kept.
//
// A thread takes query blocks of one key head at a time; where the gradients of keys and values are added up meanwhile,
// so that no two threads add to one number, is the affair of shares.h.
#pragma once

#include "shares.h"

namespace alibi {
namespace ALIBI_TARGET {

struct BackwardSpace {
    Block block;
    float* query;        // [head_dim][kBlock], times scale * log2(e); or pairs of elements as they are
    float* flow;         // [value_dim][kBlock]: the gradient of out; or pairs
    float* query_rows;   // [kBlock][padded head_dim]
    float* flow_rows;    // [kBlock][padded value_dim]
    float* grad_query;   // [head_dim][kBlock]
    float* query_pairs;  // [kRowTerms / 2][padded head_dim]: the matrix unit's, queries by pairs of rows,
    float* flow_pairs;   // flows likewise
    float* streamed;     // (row, padded head_dim), times scale * log2(e), where forward took rows so; or null
    // Of the tile at hand, one for blocks taken together.
    float* weights;      // [kTile][kBlock]
    float* grad_scores;  // [kTile][kBlock]
    float* key_stage;
    float* value_stage;
    uint16_t* stage;  // the matrix unit's: rows of keys or values as they are,
    uint16_t* terms;  // [2][kTile][kRowTerms]: weights, then gradients of scores,
    float* products;  // [kTile][kBlock]: values with flows; grad_scores itself unless weights are dropped
    Common* common;
    // In bits, as a float and what it rounds off: lse may be large where all keys are far, and every weight of a row
    // would carry its rounding. inf where there is no mass, so that weights are 0.
    alignas(64) float lse[kBlock];
    alignas(64) float lse_rest[kBlock];
    alignas(64) float mean[kBlock];   // flow . out - gradient of lse
    alignas(64) float slope[kBlock];  // sums of grad_scores * distance
    // What a row's gradients of scores add up to is the gradient of its lse, but for what rounding the output did to
    // `mean`: that is in every one of them, by its weight, and so in `slope` by the row's mean distance.
    alignas(64) float grad_lse[kBlock];
    alignas(64) float total[kBlock];  // sums of grad_scores
    alignas(64) float away[kBlock];   // sums of weights * distance
    bool finite;                      // whether all of query_rows and flow_rows is
};

// What a tile adds to the gradients, by the matrix unit.
ALIBI_INLINE void add_gradients_by_matrix(
    BackwardSpace& space, const Call& call, const Block& block, const Tile& tile, const float* weights, float* grad_key,
    float* grad_value, int64_t key_dim, int64_t value_dim
) {
    take_terms(space.terms, weights, tile.keys, block.rows);
    add_over_queries(grad_value, value_dim, tile, space.terms, space.flow_pairs);
    take_terms(space.terms, space.grad_scores, tile.keys, block.rows);
    add_over_queries(grad_key, key_dim, tile, space.terms, space.query_pairs);
    pair_weights(space.grad_scores, tile.keys, block.rows);
    add_over_keys(space.grad_query, space.common->turned, tile.keys, call.head_dim, space.grad_scores, block.rows);
}

template <class Is>
static void retrace(
    BackwardSpace& space, const Call& call, const Block& block, const Tile& tile, const KeyHead& head, float* grad_key,
    float* grad_value, int64_t key_dim, int64_t value_dim
) {
    const bool dropping = call.dropout > 0.0;
    const float scale = drop_scale(call.dropout);
    // Weights
    if (space.streamed) stream_tile(space.weights, space.streamed, call, block, tile, head);
    if constexpr (Is::kPairs && kHasMatrixUnit) {
        if (!space.streamed)
            matrix_scores(
                space.weights, call, tile, tile.raw_key, head.key_step, call.head_dim, space.query, block.rows,
                space.stage
            );
        matrix_scores(
            space.products, call, tile, tile.raw_value, head.value_step, call.value_dim, space.flow, block.rows,
            space.stage
        );
    }
    by_lanes(block.rows, [&](auto vectors, int lane) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        Floats lse[V], rest[V], unused[V];
        Ints lower[V], upper[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            lse[v] = load(space.lse + lane + v * kWidth);
            rest[v] = load(space.lse_rest + lane + v * kWidth);
            unused[v] = Floats{};
            if (Is::kMasked) {
                lower[v] = load_ints(tile.lower + lane + v * kWidth);
                upper[v] = load_ints(tile.upper + lane + v * kWidth);
            }
        }
        if (!space.streamed) score<Is, V>(space.weights, unused, space.query, block, tile, head, call.head_dim, lane);
        for (int key = 0; key < tile.keys; ++key)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                float* at = space.weights + key * kBlock + lane + v * kWidth;
                Floats weight = exp2(load(at) - lse[v] - rest[v]);
                // Where lse is NaN so is the weight of a masked score.
                if (Is::kMasked)
                    weight = select((lower[v] <= splat_int(key)) & (splat_int(key) < upper[v]), weight, Floats{});
                store(at, weight);
            }
    });
    const float* kept = space.weights;
    if (dropping) {
        __builtin_memcpy(space.grad_scores, space.weights, sizeof(float) * kBlock * static_cast<size_t>(tile.keys));
        drop(space.grad_scores, call, block, tile, drop_threshold(call.dropout));
    }
    // Gradients of the scores
    by_lanes(block.rows, [&](auto vectors, int lane) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        Floats mean[V], reach[V], slope[V], total[V], away[V];
        Ints lower[V], upper[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            mean[v] = load(space.mean + lane + v * kWidth);
            reach[v] = load(block.stand + lane + v * kWidth) + tile.shift;
            slope[v] = total[v] = away[v] = Floats{};
            if (Is::kMasked) {
                lower[v] = load_ints(tile.lower + lane + v * kWidth);
                upper[v] = load_ints(tile.upper + lane + v * kWidth);
            }
        }
        by_rows<kRows>(tile.keys, [&](auto count, int row) __attribute__((always_inline)) {
            constexpr int R = decltype(count)::value;
            Accumulators<R, V> product;
            clear(product);
            if constexpr (Is::kPairs && kHasMatrixUnit)
                collect(product, space.products + row * kBlock + lane);
            else if constexpr (Is::kPairs)
                multiply_pairs(
                    product, tile.raw_value + row * head.value_step, head.value_step, space.flow + lane,
                    call.value_dim / 2
                );
            else
                multiply_rows<Is::kInChains>(
                    product, tile.value + row * tile.value_stride, tile.value_stride, space.flow + lane, kBlock,
                    call.value_dim
                );
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    const int at = (row + r) * kBlock + lane + v * kWidth;
                    const Floats weight = load(space.weights + at);
                    Floats flow = product.at[r][v];
                    if (dropping) {
                        // Dropped weights are 0 in this copy, which then makes room for the result.
                        const Floats left = load(space.grad_scores + at);
                        flow = select(left == 0.0f, Floats{}, flow * scale);
                        store(space.weights + at, left * scale);
                    }
                    Floats grad = weight * (flow - mean[v]);
                    Floats distance = reach[v] - static_cast<float>(row + r);
                    if (Is::kTwoSided) distance = magnitude(distance);
                    if (Is::kMasked) {
                        const Ints key = splat_int(row + r);
                        grad = select((lower[v] <= key) & (key < upper[v]), grad, Floats{});
                    }
                    if (kBias) {
                        slope[v] += grad * distance;
                        total[v] += grad;
                        away[v] += weight * distance;
                    }
                    store(space.grad_scores + at, grad);
                }
        });
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const int at = lane + v * kWidth;
            store(space.slope + at, load(space.slope + at) + slope[v]);
            store(space.total + at, load(space.total + at) + total[v]);
            store(space.away + at, load(space.away + at) + away[v]);
        }
    });
    if constexpr (Is::kPairs && kHasMatrixUnit) {
        const int64_t number = tile.first_key / kTile;
        if (space.finite &&
            turn_tile(space.common->turned, number, tile.raw_key, head.key_step, tile.keys, call.head_dim))
            return add_gradients_by_matrix(space, call, block, tile, kept, grad_key, grad_value, key_dim, value_dim);
        stage_keys(*space.common, tile, call, head);
    }
    const int rows = block.rows;
    if (Is::kMasked && !(space.finite && all_finite(tile.key, tile.key_stride, tile.keys, call.head_dim))) {
        // What is not finite may only reach the pairs that see each other, and 0 times it is no 0.
        for (int key = 0; key < tile.keys; ++key)
            for (int row = 0; row < rows; ++row) {
                if (!sees(tile, row, key)) continue;
                const float weight = kept[key * kBlock + row], grad = space.grad_scores[key * kBlock + row];
                for (int64_t e = 0; e < value_dim; ++e)
                    grad_value[key * value_dim + e] += weight * space.flow_rows[row * value_dim + e];
                for (int64_t e = 0; e < key_dim; ++e)
                    grad_key[key * key_dim + e] += grad * space.query_rows[row * key_dim + e];
                for (int64_t e = 0; e < call.head_dim; ++e)
                    space.grad_query[e * kBlock + row] += grad * tile.key[key * tile.key_stride + e];
            }
        return;
    }
    const int key_lanes = static_cast<int>(key_dim), value_lanes = static_cast<int>(value_dim);
    add_product<kAlongSum>(
        grad_value, value_dim, tile.keys, value_lanes, kept, kBlock, space.flow_rows, value_dim, rows
    );
    add_product<kAlongSum>(
        grad_key, key_dim, tile.keys, key_lanes, space.grad_scores, kBlock, space.query_rows, key_dim, rows
    );
    add_product<kAlongRows>(
        space.grad_query, kBlock, static_cast<int>(call.head_dim), rows, tile.key, tile.key_stride, space.grad_scores,
        kBlock, tile.keys
    );
}

static void begin_block(const Backward& run, BackwardSpace& space, const Share& share, int64_t at) {
    const Call& call = *run.call;
    Block& block = space.block;
    const int64_t head = head_of(run, share.kv_head, at);
    locate(block, call, share.batch, head, number_of(run, at));
    const int64_t row = (share.batch * call.heads + head) * call.q_len + block.first_row;
    const bool pairs = takes_pairs(call);
    const char *query[kBlock], *flows[kBlock];
    for (int i = 0; i < block.rows; ++i)
        query[i] = row_of(call.query, call.type, share.batch, head, block.first_row + i);
    if (space.streamed)
        for (int i = 0; i < block.rows; ++i) read_streamed(space.streamed + i * run.key_stride, call, query[i]);
    else
        pack_queries(space.query, call, block, query);
    __builtin_memset(space.lse_rest, 0, sizeof space.lse_rest);
    for (int i = 0; i < block.rows; ++i) {
        read_row(space.query_rows + i * run.key_stride, call.type, query[i], call.head_dim, run.key_stride, 1.0f);
        float* flow = space.flow_rows + i * run.value_stride;
        const float lse = call.lse[row + i];
        if (lse == -kInfinity) {
            space.lse[i] = kInfinity;
            space.mean[i] = space.grad_lse[i] = 0.0f;
            __builtin_memset(flow, 0, static_cast<size_t>(run.value_stride) * 4);
            flows[i] = reinterpret_cast<const char*>(flow);
            continue;
        }
        const char* grad = row_of(call.grad_out, call.type, share.batch, head, block.first_row + i);
        const char* out = row_of(call.out, call.type, share.batch, head, block.first_row + i);
        read_row(flow, call.type, grad, call.value_dim, run.value_stride, 1.0f);
        flows[i] = pairs ? grad : reinterpret_cast<const char*>(flow);
        const double bits = lse * 1.44269504088896340736;
        space.lse[i] = static_cast<float>(bits);
        if (is_finite(space.lse[i])) space.lse_rest[i] = static_cast<float>(bits - space.lse[i]);
        space.grad_lse[i] = call.grad_lse ? call.grad_lse[row + i] : 0.0f;
        space.mean[i] = products(call.type, out, flow, call.value_dim).with_center - space.grad_lse[i];
    }
    for (int i = block.rows; i < kBlock; ++i) {
        space.lse[i] = kInfinity;
        space.mean[i] = 0.0f;
    }
    __builtin_memset(space.slope, 0, sizeof space.slope);
    __builtin_memset(space.total, 0, sizeof space.total);
    __builtin_memset(space.away, 0, sizeof space.away);
    if (pairs)
        pack_block_pairs(space.flow, flows, block.rows, call.value_dim);
    else
        pack_transposed(space.flow, kFloat32, flows, block.rows, call.value_dim, 1.0f);
    if (takes_matrix_unit(call)) {
        pair_rows(space.query_pairs, run.key_stride, query, block.rows, call.head_dim);
        pair_rows(space.flow_pairs, run.value_stride, flows, block.rows, call.value_dim);
    }
    __builtin_memset(space.grad_query, 0, static_cast<size_t>(call.head_dim) * kBlock * 4);
    space.finite = all_finite(space.query_rows, run.key_stride, block.rows, run.key_stride) &&
                   all_finite(space.flow_rows, run.value_stride, block.rows, run.value_stride);
}

// What a tile of keys has to do with a block.
static void enter_gradients(
    const Backward& run, BackwardSpace& space, const KeyHead& keys, int64_t number, int64_t next, const TileSums& sums
) {
    const Call& call = *run.call;
    Tile tile;
    enter_tile(tile, call, space.block, keys, number, next);
    if (!takes_matrix_unit(call)) stage_keys(*space.common, tile, call, keys);
    stage_values(*space.common, tile, call, keys);
    by_kind(call, tile.masked, [&](auto kind) __attribute__((always_inline)) {
        retrace<decltype(kind)>(
            space, call, space.block, tile, keys, sums.key, sums.value, run.key_stride, run.value_stride
        );
    });
}

static void end_block(const Backward& run, BackwardSpace& space) {
    const Call& call = *run.call;
    const Block& block = space.block;
    alignas(64) float factors[kBlock];
    for (int i = 0; i < kBlock; ++i) factors[i] = static_cast<float>(call.scale);
    char* rows[kBlock];
    for (int i = 0; i < block.rows; ++i)
        rows[i] = const_cast<char*>(row_of(call.grad_query, call.type, block.batch, block.head, block.first_row + i));
    unpack_transposed(rows, call.type, space.grad_query, block.rows, call.head_dim, factors);
    double slope = 0.0;
    for (int i = 0; i < block.rows; ++i) {
        const double stray = static_cast<double>(space.total[i]) - space.grad_lse[i];
        slope -= space.slope[i] - stray * space.away[i];
    }
    run.slope_parts[(block.batch * call.heads + block.head) * run.blocks + block.number] = slope;
}

// Some blocks of a share from `at` on.
static void backward_blocks_of(
    const Backward& run, BackwardSpace* spaces, const Share& share, const Room& room, int64_t at, int count
) {
    const Call& call = *run.call;
    const KeyHead keys = key_head(call, share.batch, share.kv_head, spaces[0].key_stage, spaces[0].value_stage);
    const int32_t* plans[kBackTogether];
    int64_t low = INT64_MAX, high = 0;
    forget_tiles(*spaces[0].common);
    for (int i = 0; i < count; ++i) {
        begin_block(run, spaces[i], share, at + i);
        plans[i] = plan_of(run, share.batch, share.kv_head, at + i);
        const int64_t first = plans[i][0], end = plans[i][1], apart = plans[i][2];
        if (apart >= 0)
            enter_gradients(
                run, spaces[i], keys, apart, first < end ? first : -1, touch(run, share.apart, room, apart)
            );
        if (first == end) continue;
        low = smallest(low, first);
        high = largest(high, end);
    }
    for (int64_t tile = low; tile < high; ++tile)
        for (int i = 0; i < count; ++i) {
            if (tile < plans[i][0] || tile >= plans[i][1]) continue;
            // The first to come to a tile fetches the one that follows.
            const int64_t next = i == 0 && tile + 1 < high ? tile + 1 : -1;
            enter_gradients(run, spaces[i], keys, tile, next, touch(run, share.near, room, tile));
        }
    for (int i = 0; i < count; ++i) end_block(run, spaces[i]);
}

static void backward_member(void* context, int64_t member) {
    Backward& run = *static_cast<Backward*>(context);
    // There is a ring for so many.
    if (member >= run.members) return;
    const Call& call = *run.call;
    const int64_t key_dim = run.key_stride, value_dim = run.value_stride;
    const bool widens = call.type != kFloat32, pairs = takes_pairs(call), matrix = takes_matrix_unit(call);
    const int64_t each = (3 * key_dim + 2 * value_dim) * kBlock + kStreamRows * key_dim +
                         (matrix ? kRowTerms / 2 * (key_dim + value_dim) : 0);
    const int64_t common =
        2 * kTile * kBlock + kTile * (key_dim + value_dim) +
        (matrix ? stage_floats(call) + turned_floats(call.head_dim) + kTermsOfTile + kTile * kBlock : 0);
    const int64_t floats = kBackTogether * each + common, buffers = kBackTogether * 8 + 8;
    char* memory = static_cast<char*>(scratch(kWorkspace, static_cast<size_t>(floats * 4 + buffers * (64 + kGap))));
    if (!memory) {
        __atomic_store_n(&run.failed, true, __ATOMIC_RELAXED);
        return;
    }
    BackwardSpace spaces[kBackTogether];
    Common together;
    BackwardSpace& space = spaces[0];
    space.weights = floats_at(memory, kTile * kBlock);
    space.grad_scores = floats_at(memory, kTile * kBlock);
    // The gradient of queries takes keys as floats, but for the matrix unit, and where a key is not finite; values are
    // needed so only where there are no pairs.
    space.key_stage = widens ? floats_at(memory, kTile * key_dim) : nullptr;
    space.value_stage = widens && !pairs ? floats_at(memory, kTile * value_dim) : nullptr;
    space.stage = matrix ? terms_at(memory, stage_floats(call)) : nullptr;
    space.common = &together;
    together.turned.at = matrix ? terms_at(memory, turned_floats(call.head_dim)) : nullptr;
    space.terms = matrix ? terms_at(memory, kTermsOfTile) : nullptr;
    space.products = matrix && call.dropout > 0.0 ? floats_at(memory, kTile * kBlock) : space.grad_scores;
    for (BackwardSpace& one : spaces) {
        one.weights = space.weights;
        one.grad_scores = space.grad_scores;
        one.key_stage = space.key_stage;
        one.value_stage = space.value_stage;
        one.stage = space.stage;
        one.common = space.common;
        one.terms = space.terms;
        one.products = space.products;
        one.query = floats_at(memory, key_dim * kBlock);
        one.flow = floats_at(memory, value_dim * kBlock);
        one.query_rows = floats_at(memory, key_dim * kBlock);
        one.flow_rows = floats_at(memory, value_dim * kBlock);
        one.grad_query = floats_at(memory, key_dim * kBlock);
        one.query_pairs = matrix ? floats_at(memory, kRowTerms / 2 * key_dim) : nullptr;
        one.flow_pairs = matrix ? floats_at(memory, kRowTerms / 2 * value_dim) : nullptr;
        one.streamed = streams_rows(call) ? floats_at(memory, kStreamRows * key_dim) : nullptr;
    }
    const MatrixUnit matrix_unit(matrix);
    Room ring = ring_of(run, member);
    for (int64_t item = draw(run.next); item < run.number_of_shares; item = draw(run.next)) {
        const Share& share = run.shares[run.order[item]];
        // No longer than must be, so that it stays in the nearest cache that holds it.
        ring.capacity = share.live;
        const Room room = run.in_place ? gradients_of(call, share) : ring;
        int64_t tile = share.near.own;
        for (int64_t at = share.first; at < share.end; at += kBackTogether) {
            const int count = static_cast<int>(smallest(kBackTogether, share.end - at));
            backward_blocks_of(run, spaces, share, room, at, count);
            if (!run.in_place) tile = write_finished(run, share, ring, tile, at + count - 1);
        }
    }
}

// A plan says what memory is read and added to, and comes from the caller.
static bool plan_is_sound(const Call& call) {
    const int64_t tiles = tiles_of(call), count = call.batch * call.heads * blocks_of(call);
    bool sound = true;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t* plan = call.plan + i * kPlan;
        const int64_t first = plan[0], end = plan[1], apart = plan[2];
        sound &= 0 <= first && first <= end && end <= tiles && -1 <= apart && (apart < first || apart == -1);
    }
    return sound;
}

static int64_t backward(const Call& call) {
    if (!plan_is_sound(call)) return kWrongPlan;
    const int64_t threads = threads_for(call), heads = call.batch * call.kv_heads, blocks = blocks_of(call);
    Backward run = {};
    run.call = &call;
    run.blocks = blocks;
    run.group = call.heads / call.kv_heads;
    run.key_stride = round_up(call.head_dim, kWidth);
    run.value_stride = round_up(call.value_dim, kWidth);
    run.in_place = adds_in_place(run);
    int64_t wanted = threads > 1 ? kSharesEach * threads : 1;
    const int64_t most_shares = smallest(heads + wanted, heads * kMostShares), numbers = heads * run.group * blocks;
    const int64_t share_bytes = round_up(most_shares * static_cast<int64_t>(sizeof(Share)), 64);
    const int64_t index_bytes = round_up((heads + 1) * 8, 64), slope_bytes = round_up(numbers * 8, 64);
    const int64_t needed_bytes = round_up(numbers * 4, 64), order_bytes = round_up(most_shares * 4, 64);
    char* const tables = static_cast<char*>(
        take_block(static_cast<size_t>(share_bytes + index_bytes + slope_bytes + needed_bytes + 2 * order_bytes))
    );
    if (!tables) return kNoMemory;
    char* at = tables;
    run.shares = reinterpret_cast<Share*>(at);
    at += share_bytes;
    run.first_share = reinterpret_cast<int64_t*>(at);
    at += index_bytes;
    run.slope_parts = reinterpret_cast<double*>(at);
    at += slope_bytes;
    run.needed = reinterpret_cast<int32_t*>(at);
    at += needed_bytes;
    run.order = reinterpret_cast<int32_t*>(at);
    at += order_bytes;
    int32_t* const spare = reinterpret_cast<int32_t*>(at);
    const int64_t enough = largest(kMostSums * heads * bytes_of_tiles(run, tiles_of(call)), kAlwaysSums);
    Needs needs;
    int64_t members, ring_bytes;
    for (;; wanted -= (wanted + 3) / 4) {
        needs = cut(run, wanted);
        members = smallest(threads, run.number_of_shares);
        ring_bytes = bytes_of_sums(run, needs.ring);
        if (wanted == 1 || needs.bytes + members * ring_bytes <= enough) break;
    }
    sort_indices(run.order, spare, run.number_of_shares, [&](int32_t a, int32_t b) {
        return run.shares[a].cost > run.shares[b].cost;
    });
    const int64_t touched_bytes = round_up(needs.tiles, 64);
    char* const sums =
        static_cast<char*>(take_block(static_cast<size_t>(touched_bytes + needs.bytes + members * ring_bytes)));
    if (!sums) {
        release_block(tables);
        return kNoMemory;
    }
    __builtin_memset(sums, 0, static_cast<size_t>(touched_bytes));
    place_shares(run, sums + touched_bytes, reinterpret_cast<unsigned char*>(sums));
    run.rings = sums + touched_bytes + needs.bytes;
    run.ring_tiles = needs.ring;
    run.members = members;
    run_team(members == 1 ? 1 : threads, backward_member, &run);
    if (!run.failed) {
        run.next = 0;
        run_team(threads, collect_member, &run);
        for (int64_t pair = 0; pair < call.batch * call.heads; ++pair) {
            double slope = 0.0;
            for (int64_t n = 0; n < blocks; ++n) slope += run.slope_parts[pair * blocks + n];
            call.grad_slopes[pair] = static_cast<float>(slope);
        }
    }
    release_block(sums);
    release_block(tables);
    return run.failed ? kNoMemory : kDone;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
