// Backward's work cut into shares, and the sums in which they add up the gradients of keys and values.
//
// A share is a run of query blocks of one key head. Over tiles of keys that other shares reach too it keeps sums of its
// own, which are added together in a fixed order at the end. A tile that it has to itself is added up
// - in the gradients, if they can hold sums; a tile that only later shares reach besides is, too, and theirs come to
// it;
// - or else in a ring, from which a tile is written as soon as no later block of the share reaches it.
// No two threads ever add to one number, so a result depends on the number of threads at most; and what is needed
// besides the gradients is the overlap of shares and a ring a thread, however many keys there are.
#pragma once

#include "stream.h"

namespace alibi {
namespace ALIBI_TARGET {

// Blocks of a share that are taken together, tile by tile: keys, values and their gradients come from far once for all.
constexpr int kBackTogether = 4;

// The sums of one share over the tiles [low, high). Those of [own, own_end) it has to itself, the others it keeps.
struct KeySums {
    int64_t low, own, own_end, high;
    float* key;  // [kept tiles][kTile][padded head_dim]
    float* value;
    unsigned char* touched;  // by tile from `low`: whether anything has been added

    int64_t tiles() const { return high - low; }
    int64_t kept() const { return own - low + high - own_end; }
    bool keeps(int64_t tile) const { return tile < own || tile >= own_end; }
    int64_t place(int64_t tile) const { return tile < own ? tile - low : tile - own_end + own - low; }
    bool holds(int64_t tile) const { return low <= tile && tile < high && touched[tile - low]; }
};

struct Share {
    // Blocks of the query heads that share a key head: the first of every head, the second of every head, and so on, so
    // that keys are done with as the blocks go on, and of use to all heads at about the same time.
    int64_t batch, kv_head, first, end;
    int64_t cost;
    KeySums near;  // of the ranges of tiles that blocks kept
    // Of the tiles they kept apart, from the first such tile to the last, and all kept: forward names but one, that of
    // a sequence's first key.
    KeySums apart;
    int64_t live;           // how many of its own tiles are asked for at one time, at most
    const int32_t* needed;  // by block from `first`: the lowest tile that its range or a later one's has
};

// Room for the tiles a share has to itself: tile t is at t % capacity.
struct Room {
    float* key;
    float* value;
    int64_t capacity;
};

// Where the sums of a tile stand, rows one after the other.
struct TileSums {
    float* key;
    float* value;
};

struct Backward {
    const Call* call;
    int64_t blocks, group;             // blocks of a query head, and query heads of a key head
    int64_t key_stride, value_stride;  // padded head_dim and value_dim
    bool in_place;                     // whether the gradients are room for sums
    Share* shares;
    int64_t number_of_shares;
    int64_t* first_share;  // (batch * kv heads + 1)
    int32_t* needed;       // (batch, kv heads, blocks, group)
    int32_t* order;        // of the shares, the longest work first, so that what is left at the end is short
    double* slope_parts;   // (batch, heads, blocks)
    char* rings;           // one for each thread that takes shares,
    int64_t members;       // and how many these are
    int64_t ring_tiles;
    bool failed;
    int64_t next;
};

// Whether the gradients can hold sums: they are float, and their rows whole vectors one after the other.
ALIBI_INLINE bool adds_in_place(const Backward& run) {
    const Call& call = *run.call;
    return call.type == kFloat32 && call.head_dim == run.key_stride && call.value_dim == run.value_stride &&
           call.grad_key.row_stride == run.key_stride && call.grad_value.row_stride == run.value_stride;
}

ALIBI_INLINE int64_t tile_height(const Call& call, int64_t tile) {
    return smallest(kTile, call.k_len - tile * kTile);
}

// The query head and the number of a share's block.
ALIBI_INLINE int64_t head_of(const Backward& run, int64_t kv_head, int64_t at) {
    return kv_head * run.group + at % run.group;
}
ALIBI_INLINE int64_t number_of(const Backward& run, int64_t at) {
    return at / run.group;
}

ALIBI_INLINE const int32_t* plan_of(const Backward& run, int64_t batch, int64_t kv_head, int64_t at) {
    const int64_t head = batch * run.call->heads + head_of(run, kv_head, at);
    return run.call->plan + (head * run.blocks + number_of(run, at)) * kPlan;
}

// Tiles that a block kept, and one for what it costs besides.
ALIBI_INLINE int64_t cost_of(const int32_t* plan) {
    return 1 + plan[1] - plan[0] + (plan[2] >= 0);
}

// At most this many shares of one key head: each costs sums of its own over the keys that others reach.
constexpr int64_t kMostShares = 32;
// Shares for each thread, so that all finish together.
constexpr int64_t kSharesEach = 3;
// Sums and rings may take this many times the memory of the gradients of keys and values, or this many bytes: with many
// threads shares are longer, and fewer.
constexpr int64_t kMostSums = 4;
constexpr int64_t kAlwaysSums = 256 << 20;

ALIBI_INLINE int64_t bytes_of_tiles(const Backward& run, int64_t tiles) {
    return tiles * kTile * (run.key_stride + run.value_stride) * 4;
}

// The same as two buffers, each with its gap.
ALIBI_INLINE int64_t bytes_of_sums(const Backward& run, int64_t tiles) {
    return bytes_of_tiles(run, tiles) + 2 * (64 + kGap);
}

ALIBI_INLINE TileSums sums_in(const Backward& run, char*& memory, int64_t tiles) {
    float* key = floats_at(memory, tiles * kTile * run.key_stride);
    return {key, floats_at(memory, tiles * kTile * run.value_stride)};
}

// Takes [first, end) into a range that may be empty yet.
ALIBI_INLINE void widen(KeySums& sums, int64_t first, int64_t end) {
    if (first == end) return;
    if (sums.low == sums.high) sums.low = first;
    sums.low = smallest(sums.low, first);
    sums.high = largest(sums.high, end);
}

// Which tiles each share of a key head has to itself, and how many of them are asked for at one time.
static void find_own(const Backward& run, Share* shares, int64_t count) {
    int64_t reached = 0;
    if (!run.in_place) {
        // What is kept apart has sums of its own, which can be added to gradients but not to what is written.
        for (int64_t s = 0; s < count; ++s) reached = largest(reached, shares[s].apart.high);
    }
    for (int64_t s = 0; s < count; ++s) {
        KeySums& near = shares[s].near;
        near.own = smallest(near.high, largest(near.low, reached));
        near.own_end = near.high;
        reached = largest(reached, near.high);
        shares[s].apart.own = shares[s].apart.own_end = shares[s].apart.high;
    }
    if (run.in_place) return;
    int64_t asked = tiles_of(*run.call);
    for (int64_t s = count - 1; s >= 0; --s) {
        Share& share = shares[s];
        share.near.own_end = largest(share.near.own, smallest(share.near.high, asked));
        if (share.near.low < share.near.high) asked = smallest(asked, share.near.low);
        int64_t high = 0;
        for (int64_t at = share.first; at < share.end; at += kBackTogether) {
            for (int64_t with = at; with < smallest(share.end, at + kBackTogether); ++with)
                high = largest(high, plan_of(run, share.batch, share.kv_head, with)[1]);
            const int64_t low = largest(share.needed[at - share.first], share.near.own);
            share.live = largest(share.live, smallest(high, share.near.own_end) - low);
        }
    }
}

// What shares need: tiles to remember as touched, bytes of the sums they keep, tiles of the longest ring.
struct Needs {
    int64_t tiles, bytes, ring;
};

// Cuts the work into about `wanted` shares of equal cost, or one for each key head where they are fewer.
static Needs cut(Backward& run, int64_t wanted) {
    const Call& call = *run.call;
    const int64_t heads = call.batch * call.kv_heads, each = run.group * run.blocks;
    const auto plan = [&](int64_t i, int64_t at) { return plan_of(run, i / call.kv_heads, i % call.kv_heads, at); };
    int64_t total = 0;
    for (int64_t i = 0; i < heads; ++i)
        for (int64_t at = 0; at < each; ++at) total += cost_of(plan(i, at));
    Needs found = {0, 0, 0};
    run.number_of_shares = 0;
    for (int64_t i = 0; i < heads; ++i) {
        int64_t mine = 0;
        for (int64_t at = 0; at < each; ++at) mine += cost_of(plan(i, at));
        const int64_t pieces = largest(1, smallest(smallest(kMostShares, each), (mine * wanted + total - 1) / total));
        Share* const shares = run.shares + run.number_of_shares;
        run.first_share[i] = run.number_of_shares;
        run.number_of_shares += pieces;
        int64_t done = 0, at = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) {
            Share& share = shares[piece];
            share = {};
            share.batch = i / call.kv_heads;
            share.kv_head = i % call.kv_heads;
            share.first = at;
            for (; at < each && (piece == pieces - 1 || done * pieces < mine * (piece + 1)); ++at) {
                const int32_t* tiles = plan(i, at);
                done += cost_of(tiles);
                share.cost += cost_of(tiles);
                widen(share.near, tiles[0], tiles[1]);
                if (tiles[2] >= 0) widen(share.apart, tiles[2], tiles[2] + 1);
            }
            share.end = at;
            int32_t* const needed = run.needed + i * each;
            int64_t lowest = share.near.high;
            for (int64_t back = share.end - 1; back >= share.first; --back) {
                const int32_t* tiles = plan(i, back);
                if (tiles[0] < tiles[1]) lowest = smallest(lowest, tiles[0]);
                needed[back] = static_cast<int32_t>(lowest);
            }
            share.needed = needed + share.first;
        }
        find_own(run, shares, pieces);
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const Share& share = shares[piece];
            found.tiles += share.near.tiles() + share.apart.tiles();
            found.bytes += bytes_of_sums(run, share.near.kept()) + bytes_of_sums(run, share.apart.kept());
            found.ring = largest(found.ring, share.live);
        }
    }
    run.first_share[heads] = run.number_of_shares;
    return found;
}

// Gives every share its sums.
static void place_shares(const Backward& run, char* memory, unsigned char* touched) {
    for (int64_t s = 0; s < run.number_of_shares; ++s) {
        Share& share = run.shares[s];
        share.near.touched = touched;
        share.apart.touched = touched + share.near.tiles();
        touched += share.near.tiles() + share.apart.tiles();
        KeySums* const both[] = {&share.near, &share.apart};
        for (KeySums* sums : both) {
            const TileSums kept = sums_in(run, memory, sums->kept());
            sums->key = kept.key;
            sums->value = kept.value;
        }
    }
}

// The gradients of a share's key head as room for sums.
ALIBI_INLINE Room gradients_of(const Call& call, const Share& share) {
    const auto rows = [&](const Tensor& tensor) {
        return reinterpret_cast<float*>(const_cast<char*>(row_of(tensor, call.type, share.batch, share.kv_head, 0)));
    };
    return {rows(call.grad_key), rows(call.grad_value), INT64_MAX};
}

ALIBI_INLINE Room ring_of(const Backward& run, int64_t member) {
    char* memory = run.rings + member * bytes_of_sums(run, run.ring_tiles);
    const TileSums ring = sums_in(run, memory, run.ring_tiles);
    return {ring.key, ring.value, run.ring_tiles};
}

ALIBI_INLINE TileSums sums_at(const Backward& run, const KeySums& sums, const Room& room, int64_t tile) {
    const bool kept = sums.keeps(tile);
    const int64_t row = (kept ? sums.place(tile) : tile % room.capacity) * kTile;
    return {
        (kept ? sums.key : room.key) + row * run.key_stride, (kept ? sums.value : room.value) + row * run.value_stride
    };
}

// The same to be added to: zero where nothing has been added.
ALIBI_INLINE TileSums touch(const Backward& run, const KeySums& sums, const Room& room, int64_t tile) {
    const TileSums at = sums_at(run, sums, room, tile);
    if (!sums.holds(tile)) {
        const int64_t height = tile_height(*run.call, tile);
        __builtin_memset(at.key, 0, static_cast<size_t>(height * run.key_stride) * 4);
        __builtin_memset(at.value, 0, static_cast<size_t>(height * run.value_stride) * 4);
        sums.touched[tile - sums.low] = 1;
    }
    return at;
}

// Writes the gradients of a tile's keys and values: its sums, or zeros where there are none.
static void write_tile(const Backward& run, int64_t batch, int64_t kv_head, int64_t tile, const TileSums& sums) {
    const Call& call = *run.call;
    const int64_t first = tile * kTile, height = tile_height(call, tile);
    for (int64_t j = 0; j < height; ++j) {
        char* key = const_cast<char*>(row_of(call.grad_key, call.type, batch, kv_head, first + j));
        char* value = const_cast<char*>(row_of(call.grad_value, call.type, batch, kv_head, first + j));
        if (!sums.key) {
            __builtin_memset(key, 0, static_cast<size_t>(call.head_dim * element_size(call.type)));
            __builtin_memset(value, 0, static_cast<size_t>(call.value_dim * element_size(call.type)));
            continue;
        }
        write_row(key, call.type, sums.key + j * run.key_stride, call.head_dim, static_cast<float>(call.scale));
        write_row(value, call.type, sums.value + j * run.value_stride, call.value_dim, 1.0f);
    }
}

// After block `at`, the last of those taken together: writes the tiles of the ring, from `tile` on, that no later block
// reaches. Returns where it stopped.
static int64_t write_finished(const Backward& run, const Share& share, const Room& ring, int64_t tile, int64_t at) {
    int64_t end = share.near.own_end;
    if (at + 1 < share.end) end = smallest(end, share.needed[at + 1 - share.first]);
    for (; tile < end; ++tile)
        if (share.near.holds(tile))
            write_tile(run, share.batch, share.kv_head, tile, sums_at(run, share.near, ring, tile));
    return tile;
}

ALIBI_INLINE void add_rows(float* to, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += kWidth) store(to + i, load(to + i) + load(from + i));
}

// Adds up the sums of each tile, in the order of the shares, and writes it, but for those that came from a ring.
static void collect_member(void* context, int64_t) {
    Backward& run = *static_cast<Backward*>(context);
    const Call& call = *run.call;
    const int64_t tiles = tiles_of(call), items = call.batch * call.kv_heads * tiles;
    for (int64_t item = draw(run.next); item < items; item = draw(run.next)) {
        const int64_t index = item / tiles, tile = item % tiles, height = tile_height(call, tile);
        TileSums whole = {nullptr, nullptr};
        bool written = false;
        for (int64_t s = run.first_share[index]; s < run.first_share[index + 1]; ++s) {
            const Share& share = run.shares[s];
            const KeySums* const both[] = {&share.near, &share.apart};
            for (const KeySums* sums : both) {
                if (!sums->holds(tile)) continue;
                written |= !run.in_place && !sums->keeps(tile);
                if (written) continue;
                // The room matters only where sums are added up in place: all others that are left are kept.
                const TileSums part = sums_at(run, *sums, gradients_of(call, share), tile);
                if (whole.key) {
                    add_rows(whole.key, part.key, height * run.key_stride);
                    add_rows(whole.value, part.value, height * run.value_stride);
                } else {
                    whole = part;
                }
            }
        }
        if (!written) write_tile(run, index / call.kv_heads, index % call.kv_heads, tile, whole);
    }
}

}  // namespace ALIBI_TARGET
}  // namespace alibi
