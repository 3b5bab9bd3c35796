// Forward: one pass over a block's keys with the running maximum and sum of a softmax, in powers of two.
#pragma once

#include "horizon.h"
#include "matrix_unit.h"

namespace alibi {
namespace ALIBI_TARGET {

enum ScratchSlot { kWorkspace = 0 };

// Blocks of queries that a thread takes together, tile by tile: keys and values come from far once for all of them.
constexpr int kTogether = 4;

// What is kept of tiles for blocks taken together, which meet a tile one right after the other.
struct Common {
    Turned turned;                   // values, or backward's keys, for the matrix unit
    int64_t key_tile, value_tile;    // which tile's rows stand in the stages, -1 for none,
    int staged_keys, staged_values;  // and how many
};

ALIBI_INLINE void forget_tiles(Common& common) {
    common.turned.tile = common.key_tile = common.value_tile = -1;
}

// Widened rows of a tile, unless they are there.
ALIBI_INLINE void stage_keys(Common& common, const Tile& tile, const Call& call, const KeyHead& head) {
    const int64_t number = tile.first_key / kTile;
    if (common.key_tile == number && common.staged_keys >= tile.keys) return;
    bring_keys(tile, call, head);
    common.key_tile = number;
    common.staged_keys = tile.keys;
}

ALIBI_INLINE void stage_values(Common& common, const Tile& tile, const Call& call, const KeyHead& head) {
    const int64_t number = tile.first_key / kTile;
    if (common.value_tile == number && common.staged_values >= tile.keys) return;
    bring_values(tile, call, head);
    common.value_tile = number;
    common.staged_values = tile.keys;
}

// What a thread needs for one block. Everything is [something][query], so one row is one cache-resident strip.
struct ForwardSpace {
    float* query;  // [head_dim][kBlock], times scale * log2(e); or pairs of elements as they are
    float* out;    // [value_dim][kBlock]
    // Of the tile at hand, one for blocks taken together.
    float* weights;  // [kTile][kBlock]
    float* key_stage;
    float* value_stage;
    uint16_t* stage;  // the matrix unit's, of rows of keys as they are
    Common* common;
    int64_t scored;                  // tiles
    alignas(64) float peak[kBlock];  // running maximum
    alignas(64) float sum[kBlock];
    alignas(64) float most[kBlock];   // maximum with the tile at hand
    alignas(64) float fades[kBlock];  // what the tile at hand multiplies older sums by
};

struct Forward {
    const Call* call;
    int64_t blocks;
    const Horizon* horizon;  // null where every tile is computed
    const int32_t* order;    // (batch * heads): flattest slope first; null for any order
    int64_t together;        // blocks taken together
    bool failed;
    int64_t next;
};

ALIBI_INLINE int64_t draw(int64_t& counter) {
    return __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED);
}

// The base that weights are taken against. A row that has met nothing stands at -inf, and -inf less -inf is no number;
// at +inf likewise, where 0 lets the infinity itself through to the sum.
ALIBI_INLINE Floats base_of(Floats peak) {
    return select(magnitude(peak) == kInfinity, Floats{}, peak);
}

// What the compiler is to know of a tile. Long rows are kinds of their own: sums by chains take registers that code for
// short ones would have to give up too.
template <bool two_sided, bool masked, bool pairs, bool in_chains>
struct Kind {
    static constexpr bool kTwoSided = two_sided, kMasked = masked, kPairs = pairs, kInChains = in_chains;
};

template <bool pairs, bool in_chains, class Body>
ALIBI_INLINE void by_sides(bool two_sided, bool masked, const Body& body) {
    if (two_sided)
        masked ? body(Kind<true, true, pairs, in_chains>{}) : body(Kind<true, false, pairs, in_chains>{});
    else
        masked ? body(Kind<false, true, pairs, in_chains>{}) : body(Kind<false, false, pairs, in_chains>{});
}

// Calls body(Kind<...>) with what holds of a tile of the call.
template <class Body>
ALIBI_INLINE void by_kind(const Call& call, bool masked, const Body& body) {
    const bool two_sided = call.two_sided;
    if constexpr (kHasPairs) {
        if (takes_pairs(call)) return by_sides<true, false>(two_sided, masked, body);
    }
    if (largest(call.head_dim, call.value_dim) > kChain) return by_sides<false, true>(two_sided, masked, body);
    by_sides<false, false>(two_sided, masked, body);
}

// Scores of a tile in bits into `weights`, and their maximum by lane. The matrix unit has left the products there.
template <class Is, int V>
ALIBI_INLINE void score(
    float* weights, Floats (&most)[V], const float* query, const Block& block, const Tile& tile, const KeyHead& head,
    int64_t head_dim, int lane
) {
    Floats reach[V], slope[V];
    Ints lower[V], upper[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        reach[v] = load(block.stand + lane + v * kWidth) + tile.shift;
        slope[v] = load(block.slopes + lane + v * kWidth);
        if (Is::kMasked) {
            lower[v] = load_ints(tile.lower + lane + v * kWidth);
            upper[v] = load_ints(tile.upper + lane + v * kWidth);
        }
    }
    by_rows<kRows>(tile.keys, [&](auto count, int row) __attribute__((always_inline)) {
        constexpr int R = decltype(count)::value;
        if (lane == 0)
            for (int r = 0; r < R; ++r) fetch_next(tile, head, row + r);
        // Where no slopes take registers, GCC keeps the maxima in them through the product, and has none for its terms.
        if constexpr (!kBias)
            for (int v = 0; v < V; ++v) asm("" : "+m"(most[v]));
        Accumulators<R, V> dot;
        clear(dot);
        if constexpr (Is::kPairs && kHasMatrixUnit)
            collect(dot, weights + row * kBlock + lane);
        else if constexpr (Is::kPairs)
            multiply_pairs(dot, tile.raw_key + row * head.key_step, head.key_step, query + lane, head_dim / 2);
        else
            multiply_rows<Is::kInChains>(
                dot, tile.key + row * tile.key_stride, tile.key_stride, query + lane, kBlock, head_dim
            );
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                // Both terms are small integers, so the distance is exact wherever a query stands near keys it sees.
                Floats distance = reach[v] - static_cast<float>(row + r);
                if (Is::kTwoSided) distance = magnitude(distance);
                // Float queries bear the factor already.
                const Floats product = Is::kPairs ? dot.at[r][v] * block.factor : dot.at[r][v];
                Floats x = kBias ? product - distance * slope[v] : product;
                if (Is::kMasked) {
                    const Ints key = splat_int(row + r);
                    x = select((lower[v] <= key) & (key < upper[v]), x, splat(-kInfinity));
                }
                most[v] = larger(x, most[v]);
                store(weights + (row + r) * kBlock + lane + v * kWidth, x);
            }
    });
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

// A tile's scores, and its maxima joined with those before.
template <class Is>
static void enter_scores(
    ForwardSpace& space, const Call& call, const Block& block, const Tile& tile, const KeyHead& head
) {
    if constexpr (Is::kPairs && kHasMatrixUnit)
        matrix_scores(
            space.weights, call, tile, tile.raw_key, head.key_step, call.head_dim, space.query, block.rows, space.stage
        );
    by_lanes(block.rows, [&](auto vectors, int lane) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        Floats most[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) most[v] = splat(-kInfinity);
        score<Is, V>(space.weights, most, space.query, block, tile, head, call.head_dim, lane);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(space.most + lane + v * kWidth, most[v]);
    });
}

// From scores to weights, and the weights into the sums.
static void enter_weights(ForwardSpace& space, const Block& block, const Tile& tile) {
    by_lanes(block.rows, [&](auto vectors, int lane) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        Floats base[V], sum[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const Floats old = load(space.peak + lane + v * kWidth);
            const Floats most = larger(old, load(space.most + lane + v * kWidth));
            base[v] = base_of(most);
            const Floats fade = select(old == -kInfinity, splat(1.0f), exp2(base_of(old) - base[v]));
            store(space.fades + lane + v * kWidth, fade);
            store(space.peak + lane + v * kWidth, most);
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
            store(at, load(at) * load(space.fades + lane + v * kWidth) + sum[v]);
        }
    });
}

static void enter_values(ForwardSpace& space, const Block& block, const Tile& tile, int64_t value_dim, bool careful) {
    by_lanes(block.rows, [&](auto vectors, int lane) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        by_rows<kRows>(static_cast<int>(value_dim), [&](auto count, int row) __attribute__((always_inline)) {
            constexpr int R = decltype(count)::value;
            Accumulators<R, V> out;
            clear(out);
            if (!careful)
                multiply<kAlongRows>(out, tile.value + row, tile.value_stride, space.weights + lane, kBlock, tile.keys);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    float* at = space.out + (row + r) * kBlock + lane + v * kWidth;
                    store(at, load(at) * load(space.fades + lane + v * kWidth) + out.at[r][v]);
                }
        });
    });
    if (careful) add_values_with_care(space, block, tile, value_dim);
}

// The same by the matrix unit, of values that are turned.
ALIBI_INLINE void enter_values_by_matrix(ForwardSpace& space, const Block& block, const Tile& tile, int64_t value_dim) {
    pair_weights(space.weights, tile.keys, block.rows);
    for (int lane = 0; lane < block.rows; lane += kWidth) {
        // Away from a row's nearest keys its maximum hardly moves.
        const Floats fade = load(space.fades + lane);
        if (all_of(fade == 1.0f)) continue;
        for (int64_t e = 0; e < value_dim; ++e) {
            float* at = space.out + e * kBlock + lane;
            store(at, load(at) * fade);
        }
    }
    add_over_keys(space.out, space.common->turned, tile.keys, value_dim, space.weights, block.rows);
}

enum class Taken { kYes, kPassedOver, kNotYet };

// Takes a tile into a block's sums. Given `passing`, a tile whose mass is certified negligible is passed over instead;
// one that is not, behind tiles passed over before, is left for the caller to bring those back first.
static Taken advance(
    ForwardSpace& space, const Call& call, const Block& block, const KeyHead& head, int64_t number, int64_t next,
    Sight* passing = nullptr, bool behind = false
) {
    Tile tile;
    enter_tile(tile, call, block, head, number, next);
    ++space.scored;
    stage_keys(*space.common, tile, call, head);
    by_kind(call, tile.masked, [&](auto kind) __attribute__((always_inline)) {
        enter_scores<decltype(kind)>(space, call, block, tile, head);
    });
    if (passing) {
        if (may_pass_over(*passing, block, number, space.most, space.peak, space.sum)) return Taken::kPassedOver;
        if (behind) return Taken::kNotYet;
    }
    enter_weights(space, block, tile);
    // The softmax's own sum is taken before dropout.
    if (call.dropout > 0.0) drop(space.weights, call, block, tile, drop_threshold(call.dropout));
    if (takes_matrix_unit(call) &&
        turn_tile(space.common->turned, number, tile.raw_value, head.value_step, tile.keys, call.value_dim)) {
        enter_values_by_matrix(space, block, tile, call.value_dim);
        return Taken::kYes;
    }
    stage_values(*space.common, tile, call, head);
    const bool careful = tile.masked && !all_finite(tile.value, tile.value_stride, tile.keys, call.value_dim);
    enter_values(space, block, tile, call.value_dim, careful);
    return Taken::kYes;
}

// One direction of a sweep, outwards from the block's own tile.
struct Side {
    int64_t step;    // -1 leftwards, +1 rightwards
    int64_t next;    // the tile to look at
    int64_t last;    // the farthest that any row sees
    int64_t passed;  // tiles before `next` that were passed over
    bool going;
    int tries;  // how often tiles may come back
};

// What comes back is computed twice.
constexpr int kPassTries = 4;

// A block's sweep over the tiles, from its own outwards, until those beyond cannot matter.
struct Sweep {
    Block block;
    Sight sight;
    Side left, right;
    int64_t own;    // the tile to begin with; -1 where no row sees a key
    int64_t apart;  // a tile beyond, or -1
    int64_t at;     // how far it has come: this tile on its left, and as many on its right
};

ALIBI_INLINE bool is_going(const Sweep& sweep) {
    return sweep.left.going || sweep.right.going;
}

static void plan_sweep(Sweep& sweep, const Call& call) {
    const Block& block = sweep.block;
    sweep.left = sweep.right = {};
    sweep.own = sweep.apart = sweep.at = -1;
    if (block.end_key <= block.first_key) return;
    const int64_t low = block.first_key / kTile, high = (block.end_key + kTile - 1) / kTile;
    sweep.own = high - 1;
    if (call.two_sided) sweep.own = largest(low, smallest(high - 1, block.base >= 0 ? block.base / kTile : 0));
    sweep.at = sweep.own;
    const int tries = sweep.sight.may_pass ? kPassTries : 0;
    sweep.left = {-1, sweep.own - 1, low, 0, sweep.own > low, tries};
    sweep.right = {1, sweep.own + 1, high - 1, 0, sweep.own + 1 < high, tries};
}

// Looks at a side's next tile. One that matters, behind tiles passed over, brings these back in their order, so that
// what is left out is always the far end and a plan of ranges tells backward what forward computed. A sink need not: a
// plan has a place for it. Returns whether the tile is such a sink.
static bool look_farther(
    Side& side, ForwardSpace& space, const Call& call, const Block& block, const KeyHead& head, Sight& sight, bool fetch
) {
    const auto after = [&](int64_t tile) { return tile == side.last || !fetch ? -1 : tile + side.step; };
    const int64_t tile = side.next;
    const Taken taken =
        advance(space, call, block, head, tile, after(tile), side.tries > 0 ? &sight : nullptr, side.passed > 0);
    side.going = tile != side.last;
    if (taken == Taken::kNotYet && side.step < 0 && tile == sight.sink_tile) {
        advance(space, call, block, head, tile, -1);
        side.going = false;
        return true;
    }
    side.next += side.step;
    if (taken == Taken::kPassedOver) ++side.passed;
    if (taken != Taken::kNotYet) return false;
    for (int64_t t = tile - side.step * side.passed; t != side.next; t += side.step)
        advance(space, call, block, head, t, after(t));
    side.passed = 0;
    --side.tries;
    // With one side only nothing else has been passed over.
    if (!call.two_sided) __builtin_memset(sight.passed, 0, sizeof sight.passed);
    return false;
}

// Goes on by a tile to either side. With `fetch` what is likely to follow is fetched meanwhile.
static void go_on(Sweep& sweep, ForwardSpace& space, const Call& call, const KeyHead& head, bool fetch) {
    const Block& block = sweep.block;
    Sight& sight = sweep.sight;
    Side &left = sweep.left, &right = sweep.right;
    --sweep.at;
    if (left.going) {
        // The table leaves the sink out, so where it is visible it is judged apart, or alone when it is all that is
        // left.
        const int64_t low = left.last;
        const bool sink = sight.sink_tile == low;
        const bool stop = may_stop(sight, block, 1, left.next, sink && left.next == low, space.peak, space.sum);
        if (!stop) {
            if (look_farther(left, space, call, block, head, sight, fetch)) sweep.apart = low;
        } else {
            left.going = false;
            if (sink && left.next > low && !may_stop(sight, block, 1, left.next, true, space.peak, space.sum)) {
                advance(space, call, block, head, low, -1);
                sweep.apart = low;
            }
        }
    }
    if (right.going) {
        if (may_stop(sight, block, -1, right.next, false, space.peak, space.sum))
            right.going = false;
        else
            look_farther(right, space, call, block, head, sight, fetch);
    }
}

// What becomes of the sums of `rows` rows, by whole vectors: the natural logarithm of each softmax's denominator, and
// what the row's output is yet to be multiplied by.
static void conclude(const float* peaks, const float* sums, int rows, float scale, float* lse, float* factors) {
    for (int lane = 0; lane < rows; lane += kWidth) {
        const Floats sum = load(sums + lane), base = base_of(load(peaks + lane));
        // Where there is no mass the output is 0, which is what was summed; NaN stays either way.
        const Ints none = sum == 0.0f;
        store(factors + lane, select(none, splat(1.0f), scale / sum));
        Floats whole, nats;
        const Floats rest = log2_apart(sum, &whole);
        // In float64 until the last: backward's probabilities all carry the error of their row's lse.
        for (int i = 0; i < kWidth; ++i) {
            const double bits = static_cast<double>(base[i]) + static_cast<double>(whole[i]);
            nats[i] = static_cast<float>((bits + static_cast<double>(rest[i])) * 0.69314718055994530942);
        }
        store(lse + lane, select(none, splat(-kInfinity), nats));
    }
}

static void finish(const ForwardSpace& space, const Call& call, const Block& block) {
    alignas(64) float factors[kBlock], lse[kBlock];
    conclude(space.peak, space.sum, block.rows, drop_scale(call.dropout), lse, factors);
    __builtin_memcpy(
        call.lse + (block.batch * call.heads + block.head) * call.q_len + block.first_row, lse,
        static_cast<size_t>(block.rows) * 4
    );
    char* rows[kBlock];
    for (int row = 0; row < block.rows; ++row)
        rows[row] = const_cast<char*>(row_of(call.out, call.type, block.batch, block.head, block.first_row + row));
    unpack_transposed(rows, call.type, space.out, block.rows, call.value_dim, factors);
}

// Rows of a block in pairs of elements; the matrix unit wants them up to whole registers.
ALIBI_INLINE void pack_block_pairs(float* to, const char* const* rows, int count, int64_t length) {
    pack_pairs(to, rows, count, length / 2);
    if constexpr (!kHasMatrixUnit) return;
    const int64_t pairs = length / 2, whole = round_up(pairs, kRegisterTerms / 2);
    __builtin_memset(to + pairs * kBlock, 0, static_cast<size_t>((whole - pairs) * kBlock) * 4);
}

// The queries of a block in the layout that scores are taken from.
ALIBI_INLINE void pack_queries(float* to, const Call& call, const Block& block, const char* const* rows) {
    if (takes_pairs(call))
        pack_block_pairs(to, rows, block.rows, call.head_dim);
    else
        pack_transposed(to, call.type, rows, block.rows, call.head_dim, block.factor);
}

ALIBI_INLINE void start_sums(ForwardSpace& space, int rows, int64_t value_dim) {
    space.scored = 0;
    forget_tiles(*space.common);
    for (int row = 0; row < kBlock; ++row) {
        space.peak[row] = -kInfinity;
        space.sum[row] = 0.0f;
    }
    for (int64_t e = 0; e < value_dim; ++e)
        for (int lane = 0; lane < rows; lane += kWidth) store(space.out + e * kBlock + lane, Floats{});
}

// Some blocks of a head, the last first.
static void forward_blocks_of(
    const Forward& run, ForwardSpace* spaces, int64_t batch, int64_t head, int64_t first, int count
) {
    const Call& call = *run.call;
    const int64_t kv_head = head / (call.heads / call.kv_heads);
    const KeyHead keys = key_head(call, batch, kv_head, spaces[0].key_stage, spaces[0].value_stage);
    Sweep sweeps[kTogether];
    for (int i = 0; i < count; ++i) {
        Block& block = sweeps[i].block;
        locate(block, call, batch, head, first + count - 1 - i);
        const char* rows[kBlock];
        for (int row = 0; row < block.rows; ++row)
            rows[row] = row_of(call.query, call.type, batch, head, block.first_row + row);
        pack_queries(spaces[i].query, call, block, rows);
        start_sums(spaces[i], block.rows, call.value_dim);
        look(sweeps[i].sight, run.horizon, call, block);
        plan_sweep(sweeps[i], call);
    }
    for (int i = 0; i < count; ++i) {
        const Sweep& sweep = sweeps[i];
        if (sweep.own >= 0)
            advance(spaces[i], call, sweep.block, keys, sweep.own, sweep.left.going ? sweep.left.next : -1);
    }
    for (;;) {
        // Whoever is behind goes on, so that they meet a tile one right after the other; the first fetches the next.
        int next = -1, first_going = -1;
        for (int i = 0; i < count; ++i) {
            if (!is_going(sweeps[i])) continue;
            if (first_going < 0) first_going = i;
            if (next < 0 || sweeps[i].at > sweeps[next].at) next = i;
        }
        if (next < 0) break;
        go_on(sweeps[next], spaces[next], call, keys, next == first_going);
    }
    for (int i = 0; i < count; ++i) {
        const Sweep& sweep = sweeps[i];
        const int64_t number = first + count - 1 - i;
        int32_t* plan = call.plan + ((batch * call.heads + head) * run.blocks + number) * kPlan;
        const bool empty = sweep.own < 0;
        plan[0] = static_cast<int32_t>(empty ? 0 : sweep.left.next + 1 + sweep.left.passed);
        plan[1] = static_cast<int32_t>(empty ? 0 : sweep.right.next - sweep.right.passed);
        plan[2] = static_cast<int32_t>(sweep.apart);
        plan[3] = static_cast<int32_t>(spaces[i].scored);
        finish(spaces[i], call, sweep.block);
    }
}

ALIBI_INLINE float* floats_at(char*& memory, int64_t count) {
    float* at = reinterpret_cast<float*>(memory);
    memory += round_up(count * 4, 64);
    guard(memory);
    memory += kGap;
    return at;
}

// Terms of 16 bits in the room of so many floats.
ALIBI_INLINE uint16_t* terms_at(char*& memory, int64_t floats) {
    return reinterpret_cast<uint16_t*>(floats_at(memory, floats));
}

// A thread's workspace for `count` blocks together; false where memory is refused. `out_too` leaves no place for the
// sums to others.
static bool make_space(ForwardSpace* spaces, int count, Common& common, const Call& call, bool out_too) {
    const int64_t key_dim = round_up(call.head_dim, kWidth), value_dim = round_up(call.value_dim, kWidth);
    const bool widens = call.type != kFloat32, pairs = takes_pairs(call), matrix = takes_matrix_unit(call);
    const int64_t matrix_floats = stage_floats(call) + turned_floats(call.value_dim);
    const int64_t floats =
        (count * (key_dim + value_dim) + kTile) * kBlock + kTile * (key_dim + value_dim) + (matrix ? matrix_floats : 0);
    const int64_t buffers = 5 + 2 * count;
    char* memory = static_cast<char*>(scratch(kWorkspace, static_cast<size_t>(floats * 4 + buffers * (64 + kGap))));
    if (!memory) return false;
    ForwardSpace& space = spaces[0];
    space.weights = floats_at(memory, kTile * kBlock);
    space.key_stage = widens && !pairs ? floats_at(memory, kTile * key_dim) : nullptr;
    space.value_stage = widens ? floats_at(memory, kTile * value_dim) : nullptr;
    space.stage = matrix ? terms_at(memory, stage_floats(call)) : nullptr;
    space.common = &common;
    common.turned.at = matrix ? terms_at(memory, turned_floats(call.value_dim)) : nullptr;
    for (int i = 0; i < count; ++i) {
        spaces[i] = space;
        spaces[i].query = floats_at(memory, key_dim * kBlock);
        spaces[i].out = out_too ? floats_at(memory, value_dim * kBlock) : nullptr;
    }
    return true;
}

// Blocks are taken several at a time where this leaves enough to be shared out.
#if defined(ALIBI_SMALL_CASES)
constexpr int64_t kTurnsEach = 0;
#else
constexpr int64_t kTurnsEach = 8;
#endif

static void forward_member(void* context, int64_t) {
    Forward& run = *static_cast<Forward*>(context);
    const Call& call = *run.call;
    ForwardSpace spaces[kTogether];
    Common common;
    if (!make_space(spaces, kTogether, common, call, true)) {
        __atomic_store_n(&run.failed, true, __ATOMIC_RELAXED);
        return;
    }
    const MatrixUnit matrix_unit(takes_matrix_unit(call));
    const int64_t turns = (run.blocks + run.together - 1) / run.together, items = call.batch * call.heads * turns;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next)) {
        const int64_t pair = run.order ? run.order[item / turns] : item / turns;
        // The last queries have the most keys before them: first, so that what is left at the end is short.
        const int64_t first = (turns - 1 - item % turns) * run.together;
        const int count = static_cast<int>(smallest(run.together, run.blocks - first));
        forward_blocks_of(run, spaces, pair / call.heads, pair % call.heads, first, count);
    }
}

// What comes before the blocks: the horizon's summary of keys and queries.

struct Preparation {
    const Call* call;
    const Horizon* horizon;
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
    const int64_t items = key_items + call.batch * call.heads;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next)) {
        if (item >= key_items) {
            find_levels(*run.horizon, call, (item - key_items) / call.heads, (item - key_items) % call.heads);
            continue;
        }
        const int64_t index = item / chunks, batch = index / call.kv_heads, kv_head = index % call.kv_heads;
        const int64_t first = item % chunks * kChunkTiles, end = smallest(first + kChunkTiles, tiles);
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
    for (int64_t b = 0; b < call.batch; ++b) find_visible(*run.horizon, call, b);
    run.next = 0;
    run_team(threads, prepare_heads, &run);
    run.next = 0;
    run_team(threads, prepare_keys, &run);
    for (int64_t i = 0; i < call.batch * call.kv_heads; ++i) find_reach(*run.horizon, call, i);
    run.next = 0;
    run_team(threads, prepare_bounds, &run);
}

// 0, 1, ... count - 1, stably, those `before(a, b)` puts first in front.
template <class Before>
ALIBI_INLINE void sort_indices(int32_t* order, int32_t* spare, int64_t count, Before before) {
    for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(i);
    int rounds = 0;
    for (int64_t width = 1; width < count; width *= 2, ++rounds) {
        for (int64_t start = 0; start < count; start += 2 * width) {
            int64_t a = start, b = smallest(start + width, count);
            const int64_t middle = b, end = smallest(start + 2 * width, count);
            for (int64_t i = start; i < end; ++i)
                spare[i] = b >= end || (a < middle && !before(order[b], order[a])) ? order[a++] : order[b++];
        }
        int32_t* swap = order;
        order = spare;
        spare = swap;
    }
    // The caller reads the first array: an odd number of rounds leaves the result in the second.
    if (rounds % 2) __builtin_memcpy(spare, order, static_cast<size_t>(count) * 4);
}

// Pairs of batch element and head by rising slope: a flat head sees far, and long work goes first.
static void order_by_slope(int32_t* order, int32_t* spare, const Call& call) {
    const auto slope = [&](int32_t pair) { return slope_of(call, pair / call.heads, pair % call.heads); };
    sort_indices(order, spare, call.batch * call.heads, [&](int32_t a, int32_t b) { return slope(a) < slope(b); });
}

// Multiply-adds below which waking other threads costs more than they bring.
#if defined(ALIBI_SMALL_CASES)
constexpr double kAlone = 1;
#else
constexpr double kAlone = 1 << 20;
#endif

ALIBI_INLINE int64_t threads_for(const Call& call) {
    const double work = static_cast<double>(call.batch * call.heads) * static_cast<double>(call.q_len) *
                        static_cast<double>(call.k_len) * static_cast<double>(call.head_dim + call.value_dim);
    return work < kAlone ? 1 : call.threads;
}

// A call by blocks of queries.
static int64_t forward_blocks(const Call& call) {
    const int64_t threads = threads_for(call), pairs = call.batch * call.heads;
    Forward run = {&call, blocks_of(call), nullptr, nullptr, 1, false, 0};
    if (pairs * run.blocks >= kTogether * kTurnsEach * threads) run.together = kTogether;
    Horizon horizon;
    char* memory = nullptr;
    if (horizon_is_worthwhile(call)) {
        const int64_t horizon_size = horizon_bytes(call, nullptr, nullptr), order_size = round_up(pairs * 4, 64);
        memory = static_cast<char*>(take_block(static_cast<size_t>(horizon_size + 2 * order_size)));
        if (!memory) return kNoMemory;
        horizon_bytes(call, &horizon, memory);
        run.horizon = &horizon;
        int32_t* order = reinterpret_cast<int32_t*>(memory + horizon_size);
        order_by_slope(order, reinterpret_cast<int32_t*>(memory + horizon_size + order_size), call);
        run.order = order;
        Preparation first = {&call, &horizon, 0};
        prepare(first, threads);
    }
    run_team(threads, forward_member, &run);
    release_block(memory);
    return run.failed ? kNoMemory : kDone;
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
