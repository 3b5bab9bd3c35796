// Few queries against many keys: decoding, drafts to be verified, a chunk of a prompt against what a cache holds.
//
// The rows of all query heads that share a key head are taken together, so that each key is read once for them, and the
// keys of one sequence are cut into pieces, so that all threads work on it. With a summary of the keys (a cache keeps
// one) the nearest keys come first; their mass and the summary then tell which of the others have to be read at all.
#pragma once

#include "stream.h"

namespace alibi {
namespace ALIBI_TARGET {

// Queries up to which rows are taken together: beyond, a table of bounds for all of them pays (horizon.h).
constexpr int64_t kFewQueries = 128;
constexpr int64_t kFewWithoutSummary = 15;
// Tiles that are worth a piece of their own, and pieces of one key head that are enough for any number of threads:
// cutting follows the rows of the head and what they have to read, so that results do not depend on how many there are.
constexpr int64_t kPieceTiles = 8;
constexpr int64_t kManyPieces = 64;
constexpr int64_t kMostNearTiles = 16;
// Sums that exist at a time: key heads are worked on in waves, as many in each as these bytes have room for. Cutting
// knows nothing of waves.
#if defined(ALIBI_SMALL_CASES)
constexpr int64_t kWaveBytes = 1 << 14;
#else
constexpr int64_t kWaveBytes = 8 << 20;
#endif

ALIBI_INLINE bool is_decoding(const Call& call) {
    const int64_t rows = most_rows(call);
    if (call.dropout > 0.0 || rows > (call.norms ? kFewQueries : kFewWithoutSummary)) return false;
    // Over few keys there is nothing to cut and nothing to skip: what is left to gain is full lanes.
    if (call.k_len > 4 * kTile || streams_rows(call)) return true;
    return call.heads > call.kv_heads && rows <= kFewWithoutSummary;
}

// What the rows of one key head need of its summary: the length of the center, with the largest finite radius past the
// first tile and with that of the first tile added to it, and the largest radius past the first tile, finite or not. A
// cache that has let the first tile go decides by the same numbers, but for that tile's own.
struct Extent {
    float reach, sink_reach, farther;
    int64_t first;
};

struct Decode {
    const Call* call;
    bool streams;  // vectors along the head dimension, for a handful of rows; else rows in lanes
    bool skips;
    Line* lines;
    int64_t number_of_lines;
    Unit* units;
    int64_t units_each;  // of one key head
    // The wave: key heads, and their units.
    int64_t first_pair, end_pair, first_unit, end_unit;
    Extent* extents;  // (batch, kv head)
    float* query;     // where `streams`: (line, padded head_dim), times scale * log2(e)
    Pieces near, far;
    Pieces* now;  // what is being worked on
    bool failed;
    int64_t next;
};

static void find_extent(const Decode& run, int64_t pair) {
    const Call& call = *run.call;
    Extent& extent = run.extents[pair];
    const float* center = call.center + pair * call.head_dim;
    float square = 0.0f, most = 0.0f, sink = 0.0f;
    for (int64_t i = 0; i < call.head_dim; ++i) square += center[i] * center[i];
    extent.farther = 0.0f;
    for (int64_t t = extent.first; t < tiles_of(call); ++t) {
        const float radius = kept_radius(call, pair / call.kv_heads, pair % call.kv_heads, t);
        float& longest = t == extent.first ? sink : most;
        if (is_finite(radius) && radius > longest) longest = radius;
        if (t != extent.first && (radius > extent.farther || radius != radius)) extent.farther = radius;
    }
    extent.reach = most + __builtin_sqrtf(square);
    extent.sink_reach = (sink > most ? sink : most) + __builtin_sqrtf(square);
}

// Rows in lanes: the kernel of whole sequences, over a piece.
static void lanes_piece(const Decode& run, ForwardSpace& space, const Piece& piece, float* slot) {
    const Call& call = *run.call;
    const Unit& unit = run.units[piece.unit];
    const int64_t piece_end = piece.end * kTile;
    Block block;
    block.batch = unit.batch;
    block.head = 0;
    block.kv_head = unit.kv_head;
    block.first_row = 0;
    block.rows = unit.lines;
    block.factor = static_cast<float>(call.scale * 1.4426950408889634);
    const char* rows[kBlock];
    for (int i = 0; i < unit.lines; ++i) {
        const Line& line = run.lines[unit.first_line + i];
        rows[i] = line.query;
        block.position[i] = line.position;
        block.slopes[i] = line.slope;
        block.lower[i] = largest(line.lower, piece.apart ? 0 : line.first_tile * kTile);
        block.upper[i] = smallest(line.upper, piece_end);
        if ((piece.apart && line.apart != piece.first) || block.upper[i] <= block.lower[i])
            block.lower[i] = block.upper[i] = 0;
    }
    survey(block);
    space.out = slot + kHeader;
    start_sums(space, kBlock, call.value_dim);
    pack_queries(space.query, call, block, rows);
    const KeyHead keys = key_head(call, unit.batch, unit.kv_head, space.key_stage, space.value_stage);
    const int64_t low = largest(piece.first, block.first_key / kTile),
                  high = smallest(piece.end, (block.end_key + kTile - 1) / kTile);
    for (int64_t tile = high - 1; tile >= low; --tile) {
        // Rows are in order of their slopes, so those that see far come first: whole vectors of others drop out.
        int count = unit.lines;
        while (count > kWidth && block.lower[count - 1] >= (tile + 1) * kTile) --count;
        count = static_cast<int>(smallest(round_up(count, kWidth), unit.lines));
        if (count < block.rows) {
            block.rows = count;
            survey(block);
            if (block.end_key <= tile * kTile) continue;
        }
        advance(space, call, block, keys, tile, tile > low ? tile - 1 : -1);
    }
    __builtin_memcpy(slot, space.peak, sizeof space.peak);
    __builtin_memcpy(slot + kBlock, space.sum, sizeof space.sum);
}

static void decode_member(void* context, int64_t) {
    Decode& run = *static_cast<Decode*>(context);
    const Call& call = *run.call;
    // With the near pieces comes what the horizon will ask of the summary.
    const Pieces& pieces = *run.now;
    const int64_t extents = run.skips && run.now == &run.near ? run.end_pair - run.first_pair : 0;
    int64_t item = draw(run.next);
    if (item >= pieces.count + extents) return;
    ForwardSpace space;
    Common common;
    if (!run.streams && !make_space(&space, 1, common, call, false)) {
        __atomic_store_n(&run.failed, true, __ATOMIC_RELAXED);
        return;
    }
    const MatrixUnit matrix_unit(!run.streams && takes_matrix_unit(call));
    for (; item < pieces.count + extents; item = draw(run.next)) {
        if (item >= pieces.count) {
            find_extent(run, run.first_pair + item - pieces.count);
            continue;
        }
        const Piece& piece = pieces.list[item];
        float* slot = pieces.slot(item);
        if (run.streams)
            stream_piece(call, run.units[piece.unit], run.lines, run.query, piece, slot);
        else
            lanes_piece(run, space, piece, slot);
    }
}

// log2 of a lower bound on the mass of a row: that of the near piece that has most. False where it says nothing.
static bool near_mass(const Decode& run, const Unit& unit, int row, float* bits, float* size) {
    *bits = -kInfinity;
    *size = 0.0f;
    for (int64_t p = unit.near_piece; p < unit.near_end; ++p) {
        const float peak = run.near.slot(p)[row], sum = run.near.slot(p)[kBlock + row];
        // A NaN, which a weight left in the sum, would read as a large finite logarithm.
        if (!(sum < kInfinity)) return false;
        const float mass = peak + log2_below(sum);
        if (!(mass > *bits)) continue;
        *bits = mass;
        *size = __builtin_fabsf(peak);
    }
    return is_finite(*bits);
}

// The first tile a row has to read, from the summary and the mass of the near pieces: the certificate of horizon.h with
// the row's own norm, so with no table.
static void find_first_tile(const Decode& run, const Unit& unit, int row) {
    const Call& call = *run.call;
    Line& line = run.lines[unit.first_line + row];
    const int64_t first = line.lower / kTile, limit = unit.near;
    float most, size;
    if (!(line.slope > 0.0f) || line.upper <= line.lower || first >= limit) return;
    if (!near_mass(run, unit, row, &most, &size)) return;
    const int64_t pair = unit.batch * call.kv_heads + unit.kv_head;
    const Extent& extent = run.extents[pair];
    const Products with = products(call.type, line.query, call.center + pair * call.head_dim, call.head_dim);
    const double norm = scaled_norm(call, with.square);
    const auto rounding = [&](float reach) {
        return static_cast<double>(call.head_dim) * 1.2e-7 * 1.4426950408889634 * reach * norm;
    };
    const int64_t farthest = largest(line.position - line.lower, line.upper - line.position);
    const int64_t near = largest(line.lower, unit.near * kTile);
    const double away = static_cast<double>(line.slope), place = static_cast<double>(line.position);
    // What the peak, which is that of the near keys, is rounded by where positions are so far out that it is large
    // itself. No older key has a part in it: a cache that has let them go must decide alike.
    const double coarse =
        2.4e-7 * (size + away * static_cast<double>(largest(line.position - near, line.upper - line.position)));
    const double room = most + budget_of(call, line.slope, farthest) - kRoundingBits - rounding(extent.reach) - coarse -
                        call.scale * with.with_center * 1.4426950408889634;
    if (!(__builtin_fabs(room) < kNever)) return;
    const double slope = away * static_cast<double>(kLn2), fade = away * kTile;
    const double series = __builtin_log2(__builtin_expm1(-slope * kTile) / __builtin_expm1(-slope));
    const auto radius = [&](int64_t t) { return kept_radius(call, unit.batch, unit.kv_head, t); };
    double mass = -kHuge, held = -kHuge;
    int64_t stop = first;
    // Were every tile as wide as the widest, the series has a sum. As far as that sum may be lost (all but a bit of it)
    // no tile has to be looked at: at 128K keys they are most of them. A radius that is not finite, or a NaN, leaves
    // nothing to leap over.
    const double widest = tile_mass(extent.farther, norm, -__builtin_log2(-__builtin_expm1(-slope)));
    const double leap = place - (widest - room + 1.0) / away;
    if (widest < kNever && leap > static_cast<double>((first + 1) * kTile)) {
        stop = smallest(limit, static_cast<int64_t>(leap < 1e15 ? leap + 1.0 : 1e15) / kTile);
        mass = widest;
        held = widest - away * (place - static_cast<double>(stop * kTile - 1));
    }
    // The first tile is the sink's: it is left out here and judged apart below.
    for (int64_t t = stop; t < limit; ++t) {
        mass = from_afar(mass, fade);
        if (t != first) mass = add_logs(tile_mass(radius(t), norm, series), mass);
        const double bound = from_afar(mass, away * (place - static_cast<double>((t + 1) * kTile - 1)));
        if (!(bound <= room)) break;
        stop = t + 1;
        held = bound;
    }
    if (stop == first) return;
    const double sink = from_afar(
        tile_mass(radius(first), norm, series), away * (place - static_cast<double>((first + 1) * kTile - 1))
    );
    line.first_tile = stop;
    // What the first tile's own length adds to the rounding is charged to this test alone.
    const double sink_room = room - (rounding(extent.sink_reach) - rounding(extent.reach));
    if (!(add_logs(held, sink) <= sink_room)) line.apart = first;
}

static void find_first_tiles(void* context, int64_t) {
    Decode& run = *static_cast<Decode*>(context);
    for (int64_t unit = run.first_unit + draw(run.next); unit < run.end_unit; unit = run.first_unit + draw(run.next))
        for (int row = 0; row < run.units[unit].lines; ++row) find_first_tile(run, run.units[unit], row);
}

// Where the lines of a key head's query head of that rank among its slopes begin, of one group of rows: lines are in
// the order of key heads, groups, ranks and rows.
ALIBI_INLINE int64_t first_line(const Call& call, int64_t pair, const Group& group, int64_t rank) {
    const int64_t heads = call.heads / call.kv_heads;
    return heads * (pair * call.q_len + group.first_row) + rank * group.rows();
}

// Backward runs by blocks of queries of one head: all rows of such a block take the union of what its rows need, and
// the plan says so. `lines` are the rows' own, in their order.
static void settle_block(const Call& call, Line* lines, int64_t count, int32_t* plan) {
    const int64_t tiles = tiles_of(call);
    int64_t first = tiles, end = 0, apart = -1, least_apart = tiles;
    bool one = true;
    for (int64_t i = 0; i < count; ++i) {
        if (lines[i].upper <= lines[i].lower) continue;
        first = smallest(first, largest(lines[i].first_tile, lines[i].lower / kTile));
        end = largest(end, (lines[i].upper + kTile - 1) / kTile);
        if (lines[i].apart < 0) continue;
        one &= apart < 0 || apart == lines[i].apart;
        apart = lines[i].apart;
        least_apart = smallest(least_apart, apart);
    }
    if (!one) first = smallest(first, least_apart);
    if (!one || apart >= first) apart = -1;
    first = smallest(first, end);
    for (int64_t i = 0; i < count; ++i) {
        lines[i].first_tile = first;
        lines[i].apart = apart;
    }
    plan[0] = static_cast<int32_t>(first);
    plan[1] = static_cast<int32_t>(end);
    plan[2] = static_cast<int32_t>(apart);
    plan[3] = static_cast<int32_t>(end - first + (apart >= 0));
}

static void settle(const Decode& run) {
    const Call& call = *run.call;
    const int64_t blocks = blocks_of(call), heads = call.heads / call.kv_heads;
    for (int64_t pair = run.first_pair; pair < run.end_pair; ++pair)
        for (int64_t g = 0; g < groups_of(call); ++g) {
            const Group group = group_at(call, g);
            for (int64_t rank = 0; rank < heads; ++rank) {
                // A head's lines of a group lie together.
                Line* const lines = run.lines + first_line(call, pair, group, rank);
                const int64_t head = lines->batch * call.heads + lines->head;
                for (int64_t n = 0; n < blocks_in(group.rows()); ++n)
                    settle_block(
                        call, lines + n * kBlock, smallest(kBlock, group.rows() - n * kBlock),
                        call.plan + (head * blocks + group.first_block + n) * kPlan
                    );
            }
        }
}

// Puts the pieces of the rows of a unit together, in their order, and writes the rows.
static void finish_unit(const Decode& run, ForwardSpace& space, float* total, const Unit& unit) {
    const Call& call = *run.call;
    const int64_t width = run.streams ? round_up(unit.lines, kWidth) : kBlock;
    const auto each_slot = [&](const auto& body) {
        for (int64_t p = unit.near_piece; p < unit.near_end; ++p) body(run.near.slot(p));
        for (int64_t p = unit.far_piece; p < unit.far_end; ++p) body(run.far.slot(p));
    };
    for (int lane = 0; lane < width; lane += kWidth) {
        Floats peak = splat(-kInfinity), sum = {};
        each_slot([&](const float* slot) { peak = larger(load(slot + lane), peak); });
        store(space.peak + lane, peak);
        each_slot([&](float* slot) {
            // Nothing was met; but what was met without mass may still hold a NaN.
            const Floats here = load(slot + lane);
            const Floats share = select(here == -kInfinity, splat(1.0f), exp2(base_of(here) - base_of(peak)));
            sum += load(slot + kBlock + lane) * share;
            store(slot + lane, share);
        });
        store(space.sum + lane, sum);
    }
    alignas(64) float factors[kBlock], lse[kBlock];
    conclude(space.peak, space.sum, unit.lines, 1.0f, lse, factors);
    char* rows[kBlock];
    for (int i = 0; i < unit.lines; ++i) {
        const Line& line = run.lines[unit.first_line + i];
        call.lse[(unit.batch * call.heads + line.head) * call.q_len + line.row] = lse[i];
        rows[i] = const_cast<char*>(row_of(call.out, call.type, unit.batch, line.head, line.row));
    }
    if (run.streams) {
        const int64_t stride = round_up(call.value_dim, kWidth);
        for (int i = 0; i < unit.lines; ++i) {
            for (int64_t e = 0; e < stride; e += kWidth) store(total + e, Floats{});
            each_slot([&](const float* slot) {
                for (int64_t e = 0; e < stride; e += kWidth)
                    store(total + e, load(total + e) + load(slot + kHeader + i * stride + e) * slot[i]);
            });
            write_streamed(rows[i], call.type, total, call.value_dim, factors[i]);
        }
        return;
    }
    __builtin_memset(total, 0, static_cast<size_t>(call.value_dim) * kBlock * 4);
    each_slot([&](const float* slot) {
        for (int64_t e = 0; e < call.value_dim * kBlock; e += kBlock)
            for (int lane = 0; lane < unit.lines; lane += kWidth) {
                float* at = total + e + lane;
                store(at, load(at) + load(slot + kHeader + e + lane) * load(slot + lane));
            }
    });
    unpack_transposed(rows, call.type, total, unit.lines, call.value_dim, factors);
}

static void finish_member(void* context, int64_t) {
    Decode& run = *static_cast<Decode*>(context);
    int64_t unit = run.first_unit + draw(run.next);
    if (unit >= run.end_unit) return;
    ForwardSpace space;
    Common common;
    if (!make_space(&space, 1, common, *run.call, true)) {
        __atomic_store_n(&run.failed, true, __ATOMIC_RELAXED);
        return;
    }
    for (; unit < run.end_unit; unit = run.first_unit + draw(run.next))
        finish_unit(run, space, space.out, run.units[unit]);
}

// Every row in its place: by key head and group, within one by rising slope, so that rows that see as far lie together.
static void make_lines(Decode& run, const int32_t* order, int64_t* ranks) {
    const Call& call = *run.call;
    const int64_t heads = call.heads / call.kv_heads, pairs = call.batch * call.kv_heads;
    const int64_t padded = round_up(call.head_dim, kWidth);
    for (int64_t i = 0; i < pairs; ++i) {
        ranks[i] = 0;
        run.extents[i].first = tiles_of(call);
    }
    for (int64_t i = 0; i < call.batch * call.heads; ++i) {
        const int64_t batch = order[i] / call.heads, head = order[i] % call.heads;
        const int64_t pair = batch * call.kv_heads + head / heads, rank = ranks[pair]++;
        const float slope = slope_in_bits(call, batch, head);
        for (int64_t g = 0; g < groups_of(call); ++g) {
            const Group group = group_at(call, g);
            int64_t index = first_line(call, pair, group, rank);
            for (int64_t row = group.first_row; row < group.end_row; ++row, ++index) {
                const Place at = place_of(call, batch, row);
                const char* query = row_of(call.query, call.type, batch, head, row);
                run.lines[index] = {batch, head, row, at.position, at.lower, at.upper, 0, -1, slope, query};
                if (at.upper > at.lower) run.extents[pair].first = smallest(run.extents[pair].first, at.lower / kTile);
                if (run.streams) read_streamed(run.query + index * padded, call, query);
            }
        }
    }
}

// A unit of rows, and the tile from which keys are near: enough of them for most of the mass of its flattest row that
// falls off at all.
static void make_unit(const Decode& run, Unit& unit, int64_t pair, int64_t first_line, int64_t lines) {
    const Call& call = *run.call;
    unit = {pair / call.kv_heads,
            pair % call.kv_heads,
            first_line,
            static_cast<int>(lines),
            tiles_of(call),
            0,
            0,
            0,
            0,
            0,
            0};
    float flattest = kInfinity;
    int64_t nearest = call.k_len;
    for (int i = 0; i < unit.lines; ++i) {
        const Line& line = run.lines[unit.first_line + i];
        if (line.upper <= line.lower) continue;
        unit.low = smallest(unit.low, line.lower / kTile);
        unit.high = largest(unit.high, (line.upper + kTile - 1) / kTile);
        nearest = smallest(nearest, smallest(line.upper - 1, largest(line.position, line.lower)));
        if (line.slope > 0.0f && line.slope < flattest) flattest = line.slope;
    }
    unit.low = smallest(unit.low, unit.high);
    unit.near = unit.low;
    if (!run.skips || flattest == kInfinity) return;
    const double keys = 4.0 * 1.4426950408889634 / static_cast<double>(flattest);
    const int64_t tiles = keys < kMostNearTiles * kTile ? 1 + static_cast<int64_t>(keys) / kTile : kMostNearTiles;
    unit.near = largest(unit.low, nearest / kTile - tiles);
}

static void make_units(Decode& run) {
    const Call& call = *run.call;
    const int64_t heads = call.heads / call.kv_heads, pairs = call.batch * call.kv_heads;
    int64_t count = 0;
    for (int64_t pair = 0; pair < pairs; ++pair)
        for (int64_t g = 0; g < groups_of(call); ++g) {
            const Group group = group_at(call, g);
            const int64_t begin = first_line(call, pair, group, 0), end = begin + heads * group.rows();
            for (int64_t line = begin; line < end; line += kBlock)
                make_unit(run, run.units[count++], pair, line, smallest(kBlock, end - line));
        }
}

// At most this many pieces for a unit: the units of a key head share what is enough for the head.
ALIBI_INLINE int64_t pieces_each(const Decode& run) {
    return (kManyPieces + run.units_each - 1) / run.units_each;
}

ALIBI_INLINE int64_t slot_floats(const Decode& run) {
    const Call& call = *run.call;
    return round_up(kHeader + (run.streams ? kStreamRows : kBlock) * round_up(call.value_dim, kWidth), 16);
}

// Key heads in a wave, by what a head needs where nothing is skipped.
static int64_t heads_in_wave(const Decode& run) {
    const int64_t pieces = smallest(pieces_each(run), (tiles_of(*run.call) + kPieceTiles - 1) / kPieceTiles) + 2;
    return largest(1, kWaveBytes / (run.units_each * pieces * slot_floats(run) * 4));
}

// Cuts what the units of the wave need into pieces, and gives each its place for sums. False where memory is refused.
static bool make_pieces(Decode& run, Pieces& pieces, bool far) {
    const auto each_run = [&](const auto& body) {
        for (int64_t u = run.first_unit; u < run.end_unit; ++u) {
            const Unit& unit = run.units[u];
            if (!far) {
                body(u, unit.near, unit.high, false);
                continue;
            }
            int64_t first = unit.near, done = -1;
            for (int i = 0; i < unit.lines; ++i) {
                const Line& line = run.lines[unit.first_line + i];
                if (line.upper > line.lower) first = smallest(first, largest(line.first_tile, line.lower / kTile));
            }
            body(u, first, unit.near, false);
            // Few tiles stand apart, and those of one head are one: rows that follow each other mostly agree.
            for (int i = 0; i < unit.lines; ++i) {
                const int64_t apart = run.lines[unit.first_line + i].apart;
                bool seen = apart < 0 || apart == done;
                for (int before = 0; before < i && !seen; ++before)
                    seen = run.lines[unit.first_line + before].apart == apart;
                if (!seen) body(u, apart, apart + 1, true);
                done = apart;
            }
        }
    };
    // By the head's rows and the run alone: a head is cut alike whatever other heads its call has.
    const int64_t many = pieces_each(run);
    const auto step_of = [&](int64_t tiles) { return largest(kPieceTiles, (tiles + many - 1) / many); };
    each_run([&](int64_t, int64_t first, int64_t end, bool) {
        const int64_t step = step_of(end - first);
        pieces.count += (end - first + step - 1) / step;
    });
    if (pieces.count == 0) return true;
    pieces.slot_floats = slot_floats(run);
    const int64_t list_bytes = round_up(pieces.count * static_cast<int64_t>(sizeof(Piece)), 64);
    pieces.memory =
        static_cast<char*>(take_block(static_cast<size_t>(list_bytes + pieces.count * pieces.slot_floats * 4)));
    if (!pieces.memory) return false;
    pieces.list = reinterpret_cast<Piece*>(pieces.memory);
    pieces.slots = reinterpret_cast<float*>(pieces.memory + list_bytes);
    int64_t count = 0, unit = -1;
    each_run([&](int64_t u, int64_t first, int64_t end, bool apart) {
        int64_t& begun = far ? run.units[u].far_piece : run.units[u].near_piece;
        int64_t& ended = far ? run.units[u].far_end : run.units[u].near_end;
        if (u != unit) begun = count;
        unit = u;
        const int64_t step = step_of(end - first);
        for (int64_t t = end; t > first; t -= step) pieces.list[count++] = {u, largest(first, t - step), t, apart};
        ended = count;
    });
    return true;
}

static void decode_wave(Decode& run, int64_t threads) {
    const auto team = [&](void (*body)(void*, int64_t), int64_t items) {
        run.next = 0;
        if (!run.failed && items > 0) run_team(items == 1 ? 1 : threads, body, &run);
    };
    run.near = run.far = {};
    run.failed = !make_pieces(run, run.near, false);
    run.now = &run.near;
    team(decode_member, run.near.count + (run.skips ? run.end_pair - run.first_pair : 0));
    if (run.skips) team(find_first_tiles, run.end_unit - run.first_unit);
    settle(run);
    if (run.skips) {
        run.failed = run.failed || !make_pieces(run, run.far, true);
        run.now = &run.far;
        team(decode_member, run.far.count);
    }
    // Adding up is little work where rows are few.
    if (run.number_of_lines < 64) threads = 1;
    team(finish_member, run.end_unit - run.first_unit);
    release_block(run.far.memory);
    release_block(run.near.memory);
}

static int64_t decode(const Call& call, int64_t threads) {
    const int64_t shared = call.heads / call.kv_heads, pairs = call.batch * call.kv_heads;
    const int64_t heads = call.batch * call.heads;
    Decode run = {};
    run.call = &call;
    run.number_of_lines = heads * call.q_len;
    for (int64_t g = 0; g < groups_of(call); ++g) run.units_each += blocks_in(shared * group_at(call, g).rows());
    run.streams = streams_rows(call);
    run.skips = call.norms && call.tolerance > 0.0 && tiles_of(call) > kMostNearTiles;
    const int64_t line_bytes = round_up(run.number_of_lines * static_cast<int64_t>(sizeof(Line)), 64);
    const int64_t unit_bytes = round_up(pairs * run.units_each * static_cast<int64_t>(sizeof(Unit)), 64);
    const int64_t extent_bytes = round_up(pairs * static_cast<int64_t>(sizeof(Extent)), 64);
    const int64_t order_bytes = round_up(heads * 4, 64), rank_bytes = round_up(pairs * 8, 64);
    const int64_t query_floats = run.streams ? run.number_of_lines * round_up(call.head_dim, kWidth) : 0;
    char* memory = static_cast<char*>(take_block(
        static_cast<size_t>(
            line_bytes + unit_bytes + extent_bytes + 2 * order_bytes + rank_bytes + query_floats * 4 + 64
        )
    ));
    if (!memory) return kNoMemory;
    char* at = memory;
    const auto take = [&](int64_t bytes) {
        char* here = at;
        at += bytes;
        return here;
    };
    run.lines = reinterpret_cast<Line*>(take(line_bytes));
    run.units = reinterpret_cast<Unit*>(take(unit_bytes));
    run.extents = reinterpret_cast<Extent*>(take(extent_bytes));
    int32_t* order = reinterpret_cast<int32_t*>(take(order_bytes));
    int32_t* spare = reinterpret_cast<int32_t*>(take(order_bytes));
    int64_t* ranks = reinterpret_cast<int64_t*>(take(rank_bytes));
    run.query = reinterpret_cast<float*>(at);
    order_by_slope(order, spare, call);
    make_lines(run, order, ranks);
    make_units(run);
    const int64_t wave = heads_in_wave(run);
    for (int64_t pair = 0; pair < pairs && !run.failed; pair += wave) {
        run.first_pair = pair;
        run.end_pair = smallest(pair + wave, pairs);
        run.first_unit = run.first_pair * run.units_each;
        run.end_unit = run.end_pair * run.units_each;
        decode_wave(run, threads);
    }
    release_block(memory);
    return run.failed ? kNoMemory : kDone;
}

// Few rows cost what it takes to read the keys and values, a float in a quarter of a nanosecond or less: below so many
// of them, some 50 microseconds, waking other threads costs more than they bring.
constexpr int64_t kAloneReading = 3 << 17;

ALIBI_INLINE int64_t decode_threads(const Call& call) {
    const int64_t seen = call.window_left < 0 ? call.k_len : smallest(call.k_len, call.window_left + call.q_len);
    const int64_t read = call.batch * call.kv_heads * seen * (call.head_dim + call.value_dim);
    return read < kAloneReading ? threads_for(call) : call.threads;
}

static int64_t forward(const Call& call) {
    return is_decoding(call) ? decode(call, decode_threads(call)) : forward_blocks(call);
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
