// Few queries against many keys: decoding. The time goes to reading keys and values, so each is read once for all the
// query heads that share it, vectors run along the head dimension, and the keys of one sequence are split among
// threads.
#pragma once

#include "forward.h"

namespace alibi {
namespace ALIBI_TARGET {

// Rows (queries times heads of a group) that one pass over the keys serves.
constexpr int kDecodeRows = 8;
// Keys that are worth a piece of their own; pieces start at multiples of it, so that cutting depends on the length
// alone.
constexpr int64_t kDecodePiece = 512;

ALIBI_INLINE bool is_decoding(const Call& call) {
    return call.q_len * (call.heads / call.kv_heads) <= kDecodeRows && call.head_dim % kWidth == 0 &&
           call.value_dim % kWidth == 0 && call.head_dim <= 256 && call.value_dim <= 256 && !(call.dropout > 0.0);
}

struct DecodeRow {
    int64_t head, row, position, lower, upper;
    int64_t first_tile;  // tiles before it hold too little to matter, but for the one apart
    int64_t apart;       // or -1
    float slope;
    float* query;  // times scale * log2(e), in the workspace
};

struct Decode {
    const Call* call;
    int rows;  // of one key head
    int64_t pieces;
    DecodeRow* table;  // (batch, kv head, row)
    float* query;      // (batch, kv head, row, head_dim)
    float* peak;       // (batch, kv head, row, piece)
    float* sum;
    float* out;  // (batch, kv head, row, piece, value_dim)
    bool skips;
    int64_t near;  // pieces from this one on are read first, and give the mass the rest is held against
    int64_t next;
};

static void decode_piece(const Decode& run, int64_t pair, int64_t piece) {
    const Call& call = *run.call;
    const int64_t batch = pair / call.kv_heads, kv_head = pair % call.kv_heads;
    const int64_t dim = call.head_dim, value_dim = call.value_dim;
    alignas(64) float scores[kDecodeRows][kTile];
    for (int r = 0; r < run.rows; ++r) {
        const int64_t at = (pair * run.rows + r) * run.pieces + piece;
        run.peak[at] = -kInfinity;
        run.sum[at] = 0.0f;
        __builtin_memset(run.out + at * value_dim, 0, static_cast<size_t>(value_dim) * 4);
    }
    const int64_t end_tile = smallest((piece + 1) * (kDecodePiece / kTile), tiles_of(call));
    for (int64_t tile = piece * (kDecodePiece / kTile); tile < end_tile; ++tile) {
        const int64_t first_key = tile * kTile;
        for (int r = 0; r < run.rows; ++r) {
            const DecodeRow& row = run.table[pair * run.rows + r];
            if (tile < row.first_tile && tile != row.apart) continue;
            const int64_t first = largest(first_key, row.lower),
                          end = smallest(smallest(first_key + kTile, call.k_len), row.upper);
            if (first >= end) continue;
            const int64_t at = (pair * run.rows + r) * run.pieces + piece;
            const int count = static_cast<int>(end - first);
            const char* keys = row_of(call.key, call.type, batch, kv_head, first);
            const int64_t key_step = call.key.row_stride * element_size(call.type);
            Floats peaks = splat(-kInfinity);
            for (int j = 0; j < count; j += kWidth) {
                // A vector of keys at a time: their sums are turned into one vector together, which costs a fifth of
                // adding up each across its lanes.
                Floats parts[kWidth];
                const int here = static_cast<int>(smallest(kWidth, count - j));
                for (int i = 0; i < kWidth; ++i) {
                    const char* key = keys + (j + (i < here ? i : here - 1)) * key_step;
                    Floats one = {}, two = {};
                    int64_t e = 0;
                    for (; e + 2 * kWidth <= dim; e += 2 * kWidth) {
                        one += load_as(call.type, key, e) * load(row.query + e);
                        two += load_as(call.type, key, e + kWidth) * load(row.query + e + kWidth);
                    }
                    if (e < dim) one += load_as(call.type, key, e) * load(row.query + e);
                    parts[i] = one + two;
                }
                transpose(parts);
                Floats dot = {};
#pragma GCC unroll 16
                for (int i = 0; i < kWidth; ++i) dot += parts[i];
                Floats away;
                Ints past;
                for (int i = 0; i < kWidth; ++i) {
                    away[i] = static_cast<float>(row.position - (first + j)) - static_cast<float>(i);
                    past[i] = i < here ? 0 : -1;
                }
                const Floats score = select(past, splat(-kInfinity), dot - magnitude(away) * row.slope);
                store(scores[r] + j, score);
                peaks = larger(score, peaks);
            }
            float most = -kInfinity;
            for (int i = 0; i < kWidth; ++i) most = peaks[i] > most ? peaks[i] : most;
            const float old = run.peak[at], peak = old > most ? old : most;
            const float base = __builtin_fabsf(peak) == kInfinity ? 0.0f : peak;
            const float old_base = __builtin_fabsf(old) == kInfinity ? 0.0f : old;
            const float fade = old == -kInfinity ? 1.0f : exp2(splat(old_base - base))[0];
            Floats sum = {};
            for (int j = 0; j < count; j += kWidth) {
                const Floats weight = exp2(load(scores[r] + j) - base);
                store(scores[r] + j, weight);
                sum += weight;
            }
            run.peak[at] = peak;
            run.sum[at] = run.sum[at] * fade + sum_of(sum);
            float* out = run.out + at * value_dim;
            const int64_t value_step = call.value.row_stride * element_size(call.type);
            const char* values = row_of(call.value, call.type, batch, kv_head, first);
            for (int64_t e = 0; e < value_dim; e += 4 * kWidth) {
                const int width = static_cast<int>(smallest(4, (value_dim - e) / kWidth));
                Floats total[4] = {};
                const char* value = values;
                if (width == 4) {
                    for (int j = 0; j < count; ++j, value += value_step) {
                        const Floats weight = splat(scores[r][j]);
#pragma GCC unroll 4
                        for (int v = 0; v < 4; ++v) total[v] += weight * load_as(call.type, value, e + v * kWidth);
                    }
                } else {
                    for (int j = 0; j < count; ++j, value += value_step)
                        for (int v = 0; v < width; ++v)
                            total[v] += splat(scores[r][j]) * load_as(call.type, value, e + v * kWidth);
                }
                for (int v = 0; v < width; ++v) {
                    float* to = out + e + v * kWidth;
                    store(to, load(to) * fade + total[v]);
                }
            }
        }
    }
}

static void decode_near(void* context, int64_t) {
    Decode& run = *static_cast<Decode*>(context);
    const int64_t each = run.pieces - run.near, items = run.call->batch * run.call->kv_heads * each;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next))
        decode_piece(run, item / each, run.pieces - 1 - item % each);
}

static void decode_far(void* context, int64_t) {
    Decode& run = *static_cast<Decode*>(context);
    const int64_t items = run.call->batch * run.call->kv_heads * run.near;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next))
        decode_piece(run, item / run.near, run.near - 1 - item % run.near);
}

// The first tile a row has to read, from the summary and the mass of the near pieces: the certificate of horizon.h with
// the row's own norm, so with no table.
static void decode_horizon(void* context, int64_t) {
    Decode& run = *static_cast<Decode*>(context);
    const Call& call = *run.call;
    const int64_t lines = call.batch * call.kv_heads * run.rows, limit = run.near * (kDecodePiece / kTile);
    for (int64_t line = draw(run.next); line < lines; line = draw(run.next)) {
        DecodeRow& row = run.table[line];
        const int64_t pair = line / run.rows, batch = pair / call.kv_heads, kv_head = pair % call.kv_heads;
        if (!(row.slope > 0.0f) || row.upper <= row.lower) continue;
        float peak = -kInfinity, sum = 0.0f;
        // The piece with the most mass stands for all near ones: any lower bound will do.
        for (int64_t p = run.near; p < run.pieces; ++p) {
            const int64_t at = line * run.pieces + p;
            if (!(run.sum[at] < kInfinity)) {
                sum = run.sum[at];
                break;
            }
            if (run.peak[at] + log2_below(run.sum[at]) > peak + log2_below(sum) || p == run.near) {
                peak = run.peak[at];
                sum = run.sum[at];
            }
        }
        const float* center = call.center + pair * call.head_dim;
        const Products with =
            products(call.type, row_of(call.query, call.type, batch, row.head, row.row), center, call.head_dim);
        const double norm = scaled_norm(call, with.square);
        const int64_t first = row.lower / kTile, tiles = tiles_of(call);
        float reach = 0.0f, farther = 0.0f;
        for (int64_t t = first; t < tiles; ++t) {
            const float radius = kept_radius(call, batch, kv_head, t);
            if (is_finite(radius) && radius > reach) reach = radius;
            if (t != first && (radius > farther || radius != radius)) farther = radius;
        }
        float square = 0.0f;
        for (int64_t i = 0; i < call.head_dim; ++i) square += center[i] * center[i];
        reach += __builtin_sqrtf(square);
        const double rounding = static_cast<double>(call.head_dim) * 1.2e-7 * 1.4426950408889634 * reach * norm;
        const int64_t farthest = largest(row.position - row.lower, row.upper - row.position);
        // A NaN, which a weight left in the sum, would read as a large finite logarithm.
        if (!(sum < kInfinity)) continue;
        // What the peak is rounded by where positions are so far out that it is large itself.
        const double coarse =
            2.4e-7 * (__builtin_fabs(peak) + static_cast<double>(row.slope) * static_cast<double>(farthest));
        const double room = peak + log2_below(sum) + budget_of(call, row.slope, farthest) - kRoundingBits - rounding -
                            coarse - call.scale * with.with_center * 1.4426950408889634;
        if (!(__builtin_fabs(room) < 1e29)) continue;
        const double slope = static_cast<double>(row.slope) * static_cast<double>(kLn2);
        const double fade = static_cast<double>(row.slope) * kTile;
        const double series = __builtin_log2(__builtin_expm1(-slope * kTile) / __builtin_expm1(-slope));
        const double sink_mass = tile_mass(kept_radius(call, batch, kv_head, first), norm, series);
        double mass = -kHuge, held = -kHuge;
        int64_t stop = first;
        // Were every tile as wide as the widest, the series has a sum. As far as that sum may be lost (all but a bit of
        // it) no tile has to be looked at: at 128K keys they are most of them. A radius that is not finite, or a NaN,
        // leaves nothing to leap over.
        const double widest = tile_mass(farther, norm, -__builtin_log2(-__builtin_expm1(-slope)));
        const double leap = static_cast<double>(row.position) - (widest - room + 1.0) / row.slope;
        if (widest < kHuge && leap > static_cast<double>((first + 1) * kTile)) {
            stop = smallest(limit, static_cast<int64_t>(leap < 1e15 ? leap + 1.0 : 1e15) / kTile);
            mass = widest;
            held = widest - row.slope * static_cast<double>(row.position - (stop * kTile - 1));
        }
        // The first tile is the sink's: it is left out here and judged apart below.
        for (int64_t t = stop; t < limit; ++t) {
            mass -= fade;
            if (t != first) mass = add_logs(tile_mass(kept_radius(call, batch, kv_head, t), norm, series), mass);
            const double bound = mass - row.slope * static_cast<double>(row.position - ((t + 1) * kTile - 1));
            if (!(bound <= room)) break;
            stop = t + 1;
            held = bound;
        }
        if (stop == first) continue;
        const double sink = sink_mass - row.slope * static_cast<double>(row.position - ((first + 1) * kTile - 1));
        row.first_tile = stop;
        if (!(add_logs(held, sink) <= room)) row.apart = first;
    }
}

// Puts the pieces of every row together, in their order, and writes the rows.
static void decode_finish(const Decode& run) {
    const Call& call = *run.call;
    const int64_t group = call.heads / call.kv_heads, blocks = blocks_of(call), tiles = tiles_of(call);
    alignas(64) float total[256 + 16];
    for (int64_t index = 0; index < call.batch * call.kv_heads * run.rows; ++index) {
        const DecodeRow& row = run.table[index];
        const int64_t batch = index / run.rows / call.kv_heads;
        float peak = -kInfinity, sum = 0.0f;
        for (int64_t p = 0; p < run.pieces; ++p) {
            const float here = run.peak[index * run.pieces + p];
            peak = here > peak ? here : peak;
        }
        const float base = __builtin_fabsf(peak) == kInfinity ? 0.0f : peak;
        __builtin_memset(total, 0, sizeof total);
        for (int64_t p = 0; p < run.pieces; ++p) {
            const int64_t at = index * run.pieces + p;
            const float here = run.peak[at];
            // Nothing was met; but what was met without mass may still hold a NaN.
            const float here_base = __builtin_fabsf(here) == kInfinity ? 0.0f : here;
            const float share = here == -kInfinity ? 1.0f : exp2(splat(here_base - base))[0];
            sum += run.sum[at] * share;
            for (int64_t e = 0; e < call.value_dim; e += kWidth)
                store(total + e, load(total + e) + load(run.out + at * call.value_dim + e) * share);
        }
        const int64_t line = (batch * call.heads + row.head) * call.q_len + row.row;
        const double bits = static_cast<double>(base) + static_cast<double>(__builtin_log2f(sum));
        call.lse[line] = sum == 0.0f ? -kInfinity : static_cast<float>(bits * 0.69314718055994530942);
        write_row(
            const_cast<char*>(row_of(call.out, call.type, batch, row.head, row.row)), call.type, total, call.value_dim,
            sum == 0.0f ? 1.0f : 1.0f / sum
        );
    }
    // Backward runs block by block: the plan is the union of the rows of a block, which is all of them.
    for (int64_t batch = 0; batch < call.batch; ++batch)
        for (int64_t head = 0; head < call.heads; ++head) {
            int64_t first = tiles, end = 0, apart = -1;
            for (int64_t i = 0; i < call.q_len; ++i) {
                const int64_t pair = batch * call.kv_heads + head / group;
                const DecodeRow& row = run.table[pair * run.rows + head % group * call.q_len + i];
                if (row.upper <= row.lower) continue;
                first = smallest(first, largest(row.first_tile, row.lower / kTile));
                end = largest(end, (row.upper + kTile - 1) / kTile);
                if (row.apart >= 0) apart = row.apart;
            }
            first = smallest(first, end);
            int32_t* plan = call.plan + (batch * call.heads + head) * blocks * 3;
            plan[0] = static_cast<int32_t>(first);
            plan[1] = static_cast<int32_t>(end);
            plan[2] = static_cast<int32_t>(apart >= 0 && apart < first ? apart : -1);
        }
}

static int64_t decode(const Call& call, int64_t threads) {
    Decode run;
    run.call = &call;
    const int64_t group = call.heads / call.kv_heads, pairs = call.batch * call.kv_heads;
    run.rows = static_cast<int>(group * call.q_len);
    run.pieces = (call.k_len + kDecodePiece - 1) / kDecodePiece;
    run.next = 0;
    const int64_t lines = pairs * run.rows;
    const int64_t bytes = round_up(lines * static_cast<int64_t>(sizeof(DecodeRow)), 64) +
                          round_up(lines * call.head_dim * 4, 64) + 2 * round_up(lines * run.pieces * 4, 64) +
                          round_up(lines * run.pieces * call.value_dim * 4, 64);
    char* memory = static_cast<char*>(take_block(static_cast<size_t>(bytes)));
    if (!memory) return kNoMemory;
    char* at = memory;
    run.table = reinterpret_cast<DecodeRow*>(at);
    at += round_up(lines * static_cast<int64_t>(sizeof(DecodeRow)), 64);
    run.query = floats_at(at, lines * call.head_dim);
    run.peak = floats_at(at, lines * run.pieces);
    run.sum = floats_at(at, lines * run.pieces);
    run.out = floats_at(at, lines * run.pieces * call.value_dim);
    const float factor = static_cast<float>(call.scale * 1.4426950408889634);
    for (int64_t batch = 0; batch < call.batch; ++batch)
        for (int64_t head = 0; head < call.heads; ++head) {
            Block block;
            locate(block, call, batch, head, 0);
            for (int64_t i = 0; i < call.q_len; ++i) {
                const int64_t line = (batch * call.kv_heads + block.kv_head) * run.rows + head % group * call.q_len + i;
                DecodeRow& row = run.table[line];
                row = {head,
                       i,
                       block.position[i],
                       block.lower[i],
                       block.upper[i],
                       0,
                       -1,
                       block.slope,
                       run.query + line * call.head_dim};
                read_row(
                    row.query, call.type, row_of(call.query, call.type, batch, head, i), call.head_dim, call.head_dim,
                    factor
                );
            }
        }
    int64_t end = 0;
    for (int64_t line = 0; line < lines; ++line) end = largest(end, run.table[line].upper);
    run.skips = call.norms && call.tolerance > 0.0 && run.pieces > 2;
    run.near = run.skips ? largest(0, (end - 1) / kDecodePiece - 1) : 0;
    run_team(threads, decode_near, &run);
    if (run.near > 0) {
        run.next = 0;
        run_team(threads, decode_horizon, &run);
        run.next = 0;
        run_team(threads, decode_far, &run);
    }
    decode_finish(run);
    release_block(memory);
    return kDone;
}

static int64_t forward(const Call& call) {
    return is_decoding(call) ? decode(call, threads_for(call)) : forward_blocks(call);
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
