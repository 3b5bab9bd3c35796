// Runs the kernels without Python, for the sanitizers: random calls over the whole surface, their results held to plain
// loops in double, but for one in six that holds what is not finite, which is run alone. Half of the buffers are of
// exactly the size they need, so that the sanitizer sees a step outside; the others have gaps between rows and around
// the whole, full of NaN, that must neither be read nor written.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <thread>
#include <vector>

#define ALIBI_TARGET driver
#include "../call.h"
#include "../simd.h"

extern "C" {
int alibi_choose(const char* name);
const char* alibi_chosen();
int64_t alibi_forward(const alibi::Call* call);
int64_t alibi_backward(const alibi::Call* call);
int64_t alibi_append(const alibi::Append* call);
int64_t alibi_audit(const alibi::Audit* call);
}

namespace {

using alibi::Call;

struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 33);
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(next()) % n; }
    template <size_t N>
    int64_t one_of(const int64_t (&list)[N]) {
        return list[below(N)];
    }
    float unit() { return static_cast<float>(next() % 65536) / 65536.0f; }
    float normal() { return 3.4f * ((unit() + unit() + unit() + unit()) / 2.0f - 1.0f); }
};

// A (batch, head, row, element) tensor of the call's type in some memory layout.
class Numbers {
 public:
    void make(Random& random, int64_t type, int64_t batch, int64_t heads, int64_t rows, int64_t dim) {
        type_ = type;
        batch_ = batch;
        heads_ = heads;
        rows_ = rows;
        dim_ = dim;
        const int64_t gap = random.below(2) ? 1 + random.below(9) : 0;
        const bool heads_inside = random.below(3) == 0;
        margin_ = gap ? 37 : 0;
        place_.row_stride = heads_inside ? heads * dim + gap : dim + gap;
        place_.head_stride = heads_inside ? dim : rows * place_.row_stride + gap;
        place_.batch_stride = heads_inside ? rows * place_.row_stride + gap : heads * place_.head_stride + gap;
        const int64_t last = at(batch - 1, heads - 1, rows - 1, dim - 1);
        const size_t size = static_cast<size_t>(last + 1 + margin_);
        halves_.assign(type == alibi::kFloat32 ? 0 : size, 0x7fff);  // a NaN in both formats
        floats_.assign(type == alibi::kFloat32 ? size : 0, NAN);
        owned_.assign(size, false);
        each([&](int64_t index) { owned_[static_cast<size_t>(index)] = true; });
    }
    void fill(Random& random, float size) {
        each([&](int64_t index) { set(index, random.normal() * size); });
    }
    // Every row from `first` to `end`: element e of it becomes change(e, what it was).
    template <class Change>
    void alter(int64_t first, int64_t end, const Change& change) {
        for (int64_t b = 0; b < batch_; ++b)
            for (int64_t h = 0; h < heads_; ++h)
                for (int64_t row = first; row < end; ++row)
                    for (int64_t e = 0; e < dim_; ++e)
                        set(at(b, h, row, e), change(e, static_cast<float>(get(b, h, row, e))));
    }
    // Infinities and NaN here and there.
    void spoil(Random& random) {
        for (int64_t n = 1 + random.below(3); n > 0; --n) {
            const int64_t b = random.below(batch_), h = random.below(heads_), row = random.below(rows_);
            const float kinds[] = {NAN, INFINITY, -INFINITY};
            set(at(b, h, row, random.below(dim_)), kinds[random.below(3)]);
        }
    }
    alibi::Tensor place() {
        alibi::Tensor to = place_;
        to.data = type_ == alibi::kFloat32 ? static_cast<void*>(floats_.data() + margin_)
                                           : static_cast<void*>(halves_.data() + margin_);
        return to;
    }
    double get(int64_t b, int64_t h, int64_t row, int64_t e) const {
        const size_t index = static_cast<size_t>(at(b, h, row, e));
        if (type_ == alibi::kFloat32) return floats_[index];
        return type_ == alibi::kBFloat16 ? alibi::driver::from_bfloat16(halves_[index])
                                         : alibi::driver::from_float16(halves_[index]);
    }
    bool gaps_are_whole() const {
        for (size_t i = 0; i < owned_.size(); ++i)
            if (!owned_[i] && (type_ == alibi::kFloat32 ? floats_[i] == floats_[i] : halves_[i] != 0x7fff))
                return false;
        return true;
    }

 private:
    int64_t at(int64_t b, int64_t h, int64_t row, int64_t e) const {
        return margin_ + b * place_.batch_stride + h * place_.head_stride + row * place_.row_stride + e;
    }
    void set(int64_t index, float x) {
        const size_t i = static_cast<size_t>(index);
        if (type_ == alibi::kFloat32)
            floats_[i] = x;
        else
            halves_[i] = type_ == alibi::kBFloat16 ? alibi::driver::to_bfloat16(x) : alibi::driver::to_float16(x);
    }
    template <class Body>
    void each(const Body& body) const {
        for (int64_t b = 0; b < batch_; ++b)
            for (int64_t h = 0; h < heads_; ++h)
                for (int64_t row = 0; row < rows_; ++row)
                    for (int64_t e = 0; e < dim_; ++e) body(at(b, h, row, e));
    }

    int64_t type_, batch_, heads_, rows_, dim_, margin_;
    alibi::Tensor place_;
    std::vector<float> floats_;
    std::vector<uint16_t> halves_;
    std::vector<bool> owned_;
};

struct Case {
    Call call;
    uint64_t number;
    Numbers query, key, value, out, grad_out, grad_query, grad_key, grad_value;
    std::vector<float> slopes, lse, grad_lse, grad_slopes, center;
    std::vector<double> norms;
    std::vector<int32_t> plan;
    std::vector<int64_t> position, lower, upper, group_rows, group_blocks;
    int64_t blocks;
    int64_t seed;
    bool is_finite;
};

void choose_shape(Call& call, Random& random) {
    call.type = random.below(3);
    call.batch = 1 + random.below(2);
    call.kv_heads = 1 + random.below(2);
    call.heads = call.kv_heads * (1 + random.below(3));
    const int64_t lengths[] = {1, 5, 15, 16, 48, 49, 100, 180, 330};
    const int64_t dims[] = {1, 2, 7, 8, 16, 24, 32, 34, 40, 64, 66, 72, 128, 192, 256};
    call.q_len = random.one_of(lengths);
    call.k_len = random.below(2) ? call.q_len : random.one_of(lengths);
    call.head_dim = random.one_of(dims);
    call.value_dim = random.below(2) ? call.head_dim : random.one_of(dims);
}

// Few queries at the end of many keys, through a summary of these more often than not.
void choose_decoding(Call& call, Random& random) {
    // Around the numbers of rows up to which keys are streamed once for each.
    const int64_t queries[] = {1, 1, 1, 2, 3, 4, 5, 6, 8, 9, 17, 50, 100}, keys[] = {70, 300, 1100, 1500, 1537};
    const int64_t groups[] = {1, 1, 2, 4, 8, 20};
    call.q_len = random.one_of(queries);
    call.k_len = call.q_len + random.one_of(keys);
    call.kv_heads = 1 + random.below(2);
    call.heads = call.kv_heads * (call.q_len > 9 ? 1 + random.below(2) : random.one_of(groups));
}

// A window that passes over many keys, whose gradients cannot hold sums: backward's ring goes round, on two threads
// too.
void choose_passing(Call& call, Random& random) {
    const int64_t dims[] = {8, 16, 34};
    call.type = 1 + random.below(2);
    call.batch = call.kv_heads = 1;
    call.heads = 1 + random.below(3);
    call.q_len = call.k_len = 1800 + random.below(1200);
    if (call.threads > 2) call.threads = 2;
    call.head_dim = random.one_of(dims);
    call.value_dim = random.one_of(dims);
}

void choose_ranges(Case& c, Random& random, bool causal) {
    Call& call = c.call;
    const bool shared = call.batch == 1 || random.below(2);
    call.range_stride = shared ? 0 : call.q_len;
    const int64_t sets = shared ? 1 : call.batch;
    for (int64_t set = 0; set < sets; ++set) {
        // Packed sequences: every row sees the keys of its own from the beginning, or some of them.
        int64_t first = 0;
        for (int64_t i = 0; i < call.q_len; ++i) {
            const int64_t position = i + call.offset;
            if (random.below(40) == 0) first = random.below(call.k_len);
            int64_t end = causal ? position + 1 : first + random.below(call.k_len);
            if (end > call.k_len) end = call.k_len;
            c.position.push_back(position);
            c.lower.push_back(first);
            c.upper.push_back(end < first ? first : end);
        }
    }
    call.position = c.position.data();
    call.lower = c.lower.data();
    call.upper = c.upper.data();
}

// All rows together, or in groups of a few or of many.
void choose_groups(Case& c, Random& random) {
    Call& call = c.call;
    c.blocks = (call.q_len + alibi::kBlock - 1) / alibi::kBlock;
    if (random.below(3) == 0) return;
    const int64_t most = random.below(2) ? 3 : 150;
    c.blocks = 0;
    for (int64_t row = 0; row < call.q_len;) {
        const int64_t rows = 1 + random.below(most);
        c.group_rows.push_back(row);
        c.group_blocks.push_back(c.blocks);
        const int64_t end = row + rows < call.q_len ? row + rows : call.q_len;
        c.blocks += (end - row + alibi::kBlock - 1) / alibi::kBlock;
        row = end;
    }
    call.groups = static_cast<int64_t>(c.group_rows.size());
    c.group_rows.push_back(call.q_len);
    call.group_rows = c.group_rows.data();
    call.group_blocks = c.group_blocks.data();
}

// What a cache would have kept, about some vector or other.
void summarize(Case& c, Random& random) {
    Call& call = c.call;
    const int64_t tiles = (call.k_len + alibi::kTile - 1) / alibi::kTile, pairs = call.batch * call.kv_heads;
    for (int64_t i = 0; i < pairs * call.head_dim; ++i) c.center.push_back(random.normal() * 0.2f);
    for (int64_t pair = 0; pair < pairs; ++pair)
        for (int64_t t = 0; t < tiles; ++t) {
            double most = 0.0;
            for (int64_t j = t * alibi::kTile; j < call.k_len && j < (t + 1) * alibi::kTile; ++j) {
                double square = 0.0;
                for (int64_t e = 0; e < call.head_dim; ++e) {
                    const double x = c.key.get(pair / call.kv_heads, pair % call.kv_heads, j, e) -
                                     static_cast<double>(c.center[static_cast<size_t>(pair * call.head_dim + e)]);
                    square += x * x;
                }
                most = square == square ? fmax(most, sqrt(square)) : INFINITY;
            }
            c.norms.push_back(most * 1.001 + 1e-17);
        }
    call.center = c.center.data();
    call.norms = c.norms.data();
    call.norms_batch_stride = call.kv_heads * tiles;
    call.norms_head_stride = tiles;
}

// Contents that make bounds by norms worthless, that keep a first tile apart, or that bring tiles back.
void choose_contents(Case& c, Random& random) {
    const int64_t half = c.call.head_dim / 2, keys = c.call.k_len, rows = c.call.q_len;
    switch (random.below(6)) {
        case 0:
            c.query.alter(0, rows, [&](int64_t e, float x) { return e < half ? 0.0f : 4.0f * x; });
            c.key.alter(0, keys, [&](int64_t e, float x) { return e < half ? 4.0f * x : 0.0f; });
            break;
        case 1:
            c.query.alter(0, rows, [](int64_t e, float x) { return e == 0 ? 3.0f : x; });
            c.key.alter(0, keys / 100 + 1, [](int64_t e, float x) { return e == 0 ? 20.0f : x; });
            break;
        case 2:
            c.query.alter(0, rows, [](int64_t e, float x) { return e == 0 ? 2.0f : x; });
            c.key.alter(0, keys / 2, [](int64_t e, float x) { return e == 0 ? x + 10.0f : x; });
            break;
        default:
            break;
    }
    c.is_finite = random.below(6) != 0;
    if (!c.is_finite) (random.below(3) == 0 ? c.query : random.below(2) ? c.key : c.value).spoil(random);
}

void make(Case& c, uint64_t number, int64_t threads) {
    Random random = {number * 7919 + 1};
    for (int i = 0; i < 8; ++i) random.next();
    Call& call = c.call;
    call = Call{};
    c.number = number;
    call.size = sizeof call;
    call.threads = threads ? threads : 2 + random.below(7);
    choose_shape(call, random);
    const bool passing = number % 16 == 11, decoding = !passing && random.below(3) == 0;
    if (decoding) choose_decoding(call, random);
    if (passing) choose_passing(call, random);
    const bool causal = random.below(2);
    call.two_sided = !causal;
    call.offset = call.k_len - call.q_len;
    call.window_left = !passing && random.below(3) ? -1 : random.below(80);
    call.window_right = causal ? 0 : !passing && random.below(3) ? -1 : random.below(80);
    call.sink = random.below(4) != 0;
    call.learned_slopes = random.below(2);
    call.scale = (random.below(8) == 0 ? -1.0 : 1.0) / sqrt(static_cast<double>(call.head_dim));
    call.tolerance = random.below(3) ? 5.9604644775390625e-08 : 0.0;
    call.dropout = !decoding && random.below(4) == 0 ? 0.3 : 0.0;
    c.seed = static_cast<int64_t>(number) << 32 | 12345;
    call.seed = &c.seed;
    if (!passing && random.below(3) == 0) choose_ranges(c, random, causal);
    choose_groups(c, random);
    const int64_t rows = call.batch * call.heads * call.q_len;
    c.query.make(random, call.type, call.batch, call.heads, call.q_len, call.head_dim);
    c.key.make(random, call.type, call.batch, call.kv_heads, call.k_len, call.head_dim);
    c.value.make(random, call.type, call.batch, call.kv_heads, call.k_len, call.value_dim);
    c.out.make(random, call.type, call.batch, call.heads, call.q_len, call.value_dim);
    c.grad_out.make(random, call.type, call.batch, call.heads, call.q_len, call.value_dim);
    c.grad_query.make(random, call.type, call.batch, call.heads, call.q_len, call.head_dim);
    c.grad_key.make(random, call.type, call.batch, call.kv_heads, call.k_len, call.head_dim);
    c.grad_value.make(random, call.type, call.batch, call.kv_heads, call.k_len, call.value_dim);
    c.query.fill(random, 1.0f);
    c.key.fill(random, random.below(3) ? 1.0f : 0.3f);
    c.value.fill(random, 1.0f);
    c.grad_out.fill(random, 1.0f);
    choose_contents(c, random);
    if (decoding && random.below(3)) summarize(c, random);
    const bool per_batch = random.below(2);
    for (int64_t i = 0; i < (per_batch ? call.batch : 1) * call.heads; ++i) {
        const float slope = ldexpf(1.0f, -1 - static_cast<int>(random.below(8)));
        const int64_t kind = random.below(12);
        c.slopes.push_back(kind == 0 ? 0.0f : kind == 1 ? -slope / 64.0f : slope);
    }
    for (int64_t i = 0; i < rows; ++i) c.grad_lse.push_back(random.normal());
    c.lse.assign(static_cast<size_t>(rows), NAN);
    c.plan.assign(static_cast<size_t>(call.batch * call.heads * c.blocks * alibi::kPlan), -7);
    c.grad_slopes.assign(static_cast<size_t>(call.batch * call.heads), NAN);
    call.slopes = c.slopes.data();
    call.slope_batch_stride = per_batch ? call.heads : 0;
    call.slope_head_stride = 1;
    call.query = c.query.place();
    call.key = c.key.place();
    call.value = c.value.place();
    call.out = c.out.place();
    call.lse = c.lse.data();
    call.plan = c.plan.data();
    call.grad_out = c.grad_out.place();
    call.grad_lse = random.below(3) ? c.grad_lse.data() : nullptr;
    call.grad_query = c.grad_query.place();
    call.grad_key = c.grad_key.place();
    call.grad_value = c.grad_value.place();
    call.grad_slopes = c.grad_slopes.data();
}

// Philox4x32-10, scalar: whether dropout keeps the weight of a row and a key.
bool keeps(const Call& call, int64_t stream, int64_t row, int64_t key) {
    if (!(call.dropout > 0.0)) return true;
    uint32_t c[4] = {static_cast<uint32_t>(key / 4), static_cast<uint32_t>(row), static_cast<uint32_t>(stream), 0};
    uint32_t key0 = static_cast<uint32_t>(*call.seed),
             key1 = static_cast<uint32_t>(static_cast<uint64_t>(*call.seed) >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t one = static_cast<uint64_t>(c[0]) * 0xD2511F53u, two = static_cast<uint64_t>(c[2]) * 0xCD9E8D57u;
        c[0] = static_cast<uint32_t>(two >> 32) ^ c[1] ^ key0;
        c[1] = static_cast<uint32_t>(two);
        c[2] = static_cast<uint32_t>(one >> 32) ^ c[3] ^ key1;
        c[3] = static_cast<uint32_t>(one);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c[key % 4] >= static_cast<uint32_t>(llrint(call.dropout * 4294967296.0));
}

typedef std::vector<double> Sums;

// The definition, in double: everything the kernels return, tensors (batch, head, row, element) without gaps.
// Sizes are those of what was summed: what cancels is rounded too.
struct Truth {
    Sums out, lse, grad_query, grad_key, grad_value, grad_slopes;
    Sums out_size, lse_size, query_size, key_size, value_size, slope_size;
};

void add_row(Truth& truth, const Case& c, int64_t b, int64_t h, int64_t i) {
    const Call& call = c.call;
    const int64_t kv = h / (call.heads / call.kv_heads), dim = call.head_dim, value_dim = call.value_dim;
    int64_t position = i + call.offset, lower = 0, upper = call.k_len;
    if (call.position) {
        lower = call.lower[b * call.range_stride + i];
        upper = call.upper[b * call.range_stride + i];
        position = call.position[b * call.range_stride + i];
    } else {
        if (call.window_left >= 0 && position - call.window_left > lower) lower = position - call.window_left;
        if (call.window_right >= 0 && position + call.window_right + 1 < upper)
            upper = position + call.window_right + 1;
    }
    const int64_t head = b * call.heads + h, row = head * call.q_len + i;
    const double slope = call.slopes[b * call.slope_batch_stride + h];
    if (upper <= lower) return;
    Sums query, flow, weight, rounding;
    for (int64_t e = 0; e < dim; ++e) query.push_back(c.query.get(b, h, i, e));
    for (int64_t e = 0; e < value_dim; ++e) flow.push_back(c.grad_out.get(b, h, i, e));
    double most = -INFINITY, sum = 0.0;
    for (int64_t j = lower; j < upper; ++j) {
        double dot = 0.0, size = 0.0;
        for (int64_t e = 0; e < dim; ++e) {
            dot += query[e] * c.key.get(b, kv, j, e);
            size += fabs(query[e] * c.key.get(b, kv, j, e));
        }
        const double away = slope * static_cast<double>(llabs(position - j));
        weight.push_back(dot * call.scale - away);
        // A score is rounded by what it is the sum of, and its weight with it.
        rounding.push_back(1.0 + (size * fabs(call.scale) + fabs(away)) / 16.0);
        most = fmax(most, weight.back());
    }
    for (double w : weight) sum += exp(w - most);
    const double lse = most + log(sum), grad_lse = call.grad_lse ? call.grad_lse[row] : 0.0;
    const double kept = 1.0 / (1.0 - call.dropout);
    double of_row = 0.0;
    for (size_t n = 0; n < weight.size(); ++n) of_row += exp(weight[n] - lse) * rounding[n];
    truth.lse[row] = lse;
    // Each score as far as it weighs: where they are sums that cancel, its size says little.
    truth.lse_size[row] = fabs(lse) + of_row;
    Sums flows, sizes;
    double mean = 0.0, mean_size = 0.0;
    for (int64_t j = lower; j < upper; ++j) {
        const double p = exp(weight[j - lower] - lse), share = keeps(call, head, i, j) ? kept : 0.0;
        const double grown = p * (rounding[j - lower] + of_row) / 2.0;
        double dot = 0.0;
        double size = 0.0;
        for (int64_t e = 0; e < value_dim; ++e) {
            const double v = c.value.get(b, kv, j, e);
            const int64_t at = ((b * call.kv_heads + kv) * call.k_len + j) * value_dim + e;
            truth.out[row * value_dim + e] += p * share * v;
            truth.out_size[row * value_dim + e] += grown * share * fabs(v);
            dot += flow[e] * v;
            size += fabs(flow[e] * v);
            truth.grad_value[at] += p * share * flow[e];
            truth.value_size[at] += grown * share * fabs(flow[e]);
        }
        flows.push_back(dot * share);
        sizes.push_back(size * share);
        mean += p * share * dot;
        mean_size += grown * share * size;
    }
    for (int64_t j = lower; j < upper; ++j) {
        const double ds = exp(weight[j - lower] - lse) * (flows[j - lower] - mean + grad_lse);
        const double size = exp(weight[j - lower] - lse) * (rounding[j - lower] + of_row) / 2.0 *
                            (sizes[j - lower] + mean_size + fabs(grad_lse));
        const double away = static_cast<double>(llabs(position - j)), scale = fabs(call.scale);
        for (int64_t e = 0; e < dim; ++e) {
            const double k = c.key.get(b, kv, j, e);
            const int64_t at = ((b * call.kv_heads + kv) * call.k_len + j) * dim + e;
            truth.grad_query[row * dim + e] += ds * call.scale * k;
            truth.query_size[row * dim + e] += size * scale * fabs(k);
            truth.grad_key[at] += ds * call.scale * query[e];
            truth.key_size[at] += size * scale * fabs(query[e]);
        }
        truth.grad_slopes[head] -= ds * away;
        truth.slope_size[head] += exp(weight[j - lower] - lse) * (fabs(flows[j - lower]) + fabs(mean)) * away;
    }
}

bool close(const Case& c, const char* name, double error, double limit) {
    if (error <= limit) return true;
    const Call& call = c.call;
    printf(
        "%s, case %llu: %s off by %g, above %g (type %d, %d x %d, %d of %d heads, dims %d and %d%s)\n", alibi_chosen(),
        static_cast<unsigned long long>(c.number), name, error, limit, static_cast<int>(call.type),
        static_cast<int>(call.q_len), static_cast<int>(call.k_len), static_cast<int>(call.kv_heads),
        static_cast<int>(call.heads), static_cast<int>(call.head_dim), static_cast<int>(call.value_dim),
        call.norms ? ", summary" : ""
    );
    return false;
}

bool agrees(
    const Case& c, const char* name, const Numbers& found, const Sums& truth, const Sums& sizes, int64_t heads,
    int64_t rows, int64_t dim
) {
    // Each element by what it is the sum of, with weights whose scores were rounded, out with its type's own rounding
    // among them; and what tiles left out may hold.
    const double unit = c.call.type == alibi::kFloat32 ? 2e-6 : c.call.type == alibi::kBFloat16 ? 4e-3 : 5e-4;
    double worst = 0.0;
    size_t at = 0;
    for (int64_t b = 0; b < c.call.batch; ++b)
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t e = 0; e < dim; ++e, ++at) {
                    const double error = fabs(found.get(b, h, row, e) - truth[at]) / (1e-2 + sizes[at]);
                    if (!(error <= worst)) worst = error;
                }
    if (!found.gaps_are_whole()) worst = INFINITY;
    return close(c, name, worst, 8.0 * unit);
}

bool agrees(const Case& c) {
    const Call& call = c.call;
    const int64_t rows = call.batch * call.heads * call.q_len, keys = call.batch * call.kv_heads * call.k_len;
    const int64_t heads = call.batch * call.heads;
    Truth truth = {Sums(rows * call.value_dim), Sums(rows, -INFINITY),
                   Sums(rows * call.head_dim),  Sums(keys * call.head_dim),
                   Sums(keys * call.value_dim), Sums(heads),
                   Sums(rows * call.value_dim), Sums(rows),
                   Sums(rows * call.head_dim),  Sums(keys * call.head_dim),
                   Sums(keys * call.value_dim), Sums(heads)};
    for (int64_t b = 0; b < call.batch; ++b)
        for (int64_t h = 0; h < call.heads; ++h)
            for (int64_t i = 0; i < call.q_len; ++i) add_row(truth, c, b, h, i);
    bool good = agrees(c, "out", c.out, truth.out, truth.out_size, call.heads, call.q_len, call.value_dim);
    const int64_t dim = call.head_dim, value_dim = call.value_dim;
    good &= agrees(c, "grad_query", c.grad_query, truth.grad_query, truth.query_size, call.heads, call.q_len, dim);
    good &= agrees(c, "grad_key", c.grad_key, truth.grad_key, truth.key_size, call.kv_heads, call.k_len, dim);
    good &=
        agrees(c, "grad_value", c.grad_value, truth.grad_value, truth.value_size, call.kv_heads, call.k_len, value_dim);
    double worst = 0.0;
    for (int64_t i = 0; i < rows; ++i) {
        if (truth.lse[i] == -INFINITY && c.lse[i] == -INFINITY) continue;
        const double error = fabs(c.lse[i] - truth.lse[i]) / fmax(1.0, truth.lse_size[i]);
        if (!(error <= worst)) worst = error;
    }
    good &= close(c, "lse", worst, 2e-6);
    const double unit = call.type == alibi::kFloat32 ? 1e-5 : call.type == alibi::kBFloat16 ? 2e-2 : 3e-3;
    for (int64_t i = 0; i < heads; ++i)
        good &=
            close(c, "grad_slopes", fabs(c.grad_slopes[i] - truth.grad_slopes[i]), unit * (1.0 + truth.slope_size[i]));
    for (int32_t x : c.plan) good &= x >= -1;
    return good;
}

bool same(double a, double b) {
    return a == b || (a != a && b != b);
}

// The keys of a case as tokens that come to a cache in two parts, behind some rows that are none of theirs; sometimes
// with heads in another order, and what is known of all keys carried on.
bool appends(Case& c) {
    Random random = {c.number * 104729 + 7};
    const Call& call = c.call;
    const int64_t before = random.below(100), room = before + call.k_len + random.below(3);
    const int64_t tiles = (room + alibi::kTile - 1) / alibi::kTile, pairs = call.batch * call.kv_heads;
    Numbers key, value;
    key.make(random, call.type, call.batch, call.kv_heads, room, call.head_dim);
    value.make(random, call.type, call.batch, call.kv_heads, room, call.value_dim);
    std::vector<float> center(static_cast<size_t>(pairs * call.head_dim));
    for (float& x : center) x = random.normal() * 0.2f;
    std::vector<double> norms(static_cast<size_t>(pairs * tiles), -INFINITY);
    const bool kept = random.below(3) != 0, asked = random.below(2), known = random.below(2);
    std::vector<int64_t> heads(static_cast<size_t>(call.kv_heads));
    for (int64_t h = 0; h < call.kv_heads; ++h) heads[static_cast<size_t>(h)] = known ? call.kv_heads - 1 - h : h;
    std::vector<double> center_norm(static_cast<size_t>(pairs), 2.0), longest(static_cast<size_t>(pairs), 0.0);
    std::vector<double> farther(static_cast<size_t>(pairs), -INFINITY);
    const int64_t first = random.below(call.k_len + 1), parts[2][2] = {{0, first}, {first, call.k_len}};
    std::vector<double> all(static_cast<size_t>(pairs * call.k_len), -1.0);
    for (const auto& part : parts) {
        const int64_t tokens = part[1] - part[0], element = call.type == alibi::kFloat32 ? 4 : 2;
        if (tokens == 0) continue;
        std::vector<double> radii(static_cast<size_t>(pairs * tokens));
        alibi::Append append = {};
        append.size = sizeof append;
        append.type = call.type;
        append.batch = call.batch;
        append.kv_heads = call.kv_heads;
        append.tokens = tokens;
        append.head_dim = call.head_dim;
        append.value_dim = call.value_dim;
        append.at = before + part[0];
        append.key = c.key.place();
        append.value = c.value.place();
        append.key.data = static_cast<char*>(append.key.data) + part[0] * append.key.row_stride * element;
        append.value.data = static_cast<char*>(append.value.data) + part[0] * append.value.row_stride * element;
        if (kept) {
            append.held_key = key.place();
            append.held_value = value.place();
            append.norms = norms.data();
            append.norms_batch_stride = call.kv_heads * tiles;
            append.norms_head_stride = tiles;
        }
        append.center = center.data();
        append.threads = 1 + random.below(3);
        append.radii = asked || !kept ? radii.data() : nullptr;
        if (known) {
            append.heads = heads.data();
            append.center_norm = center_norm.data();
            append.longest = longest.data();
            append.farther = farther.data();
            append.books_batch_stride = call.kv_heads;
        }
        if (alibi_append(&append) != alibi::kDone) return false;
        for (int64_t pair = 0; pair < pairs; ++pair)
            for (int64_t token = 0; token < tokens; ++token)
                all[static_cast<size_t>(pair * call.k_len + part[0] + token)] =
                    append.radii ? radii[static_cast<size_t>(pair * tokens + token)] : -1.0;
    }
    bool good = key.gaps_are_whole() && value.gaps_are_whole();
    for (int64_t pair = 0; pair < pairs; ++pair) {
        const int64_t b = pair / call.kv_heads, h = pair % call.kv_heads, from = heads[static_cast<size_t>(h)];
        Sums most(static_cast<size_t>(tiles), -INFINITY);
        double largest = 0.0, largest_finite = -1.0;
        for (int64_t row = 0; row < room; ++row) {
            const int64_t token = row - before;
            const bool theirs = token >= 0 && token < call.k_len;
            double square = 0.0;
            bool finite = true;
            for (int64_t e = 0; e < call.head_dim; ++e) {
                const double x = theirs ? c.key.get(b, from, token, e) : NAN;
                good &= same(key.get(b, h, row, e), kept ? x : NAN);
                const double away = x - static_cast<double>(center[static_cast<size_t>(pair * call.head_dim + e)]);
                square += away * away;
                finite &= isfinite(x) != 0;
            }
            for (int64_t e = 0; e < call.value_dim; ++e) {
                const double x = theirs ? c.value.get(b, from, token, e) : NAN;
                good &= same(value.get(b, h, row, e), kept ? x : NAN);
                finite &= isfinite(x) != 0;
            }
            if (!theirs) continue;
            const double radius = finite ? sqrt(square) : INFINITY;
            largest = fmax(largest, radius);
            if (finite) largest_finite = fmax(largest_finite, radius);
            most[static_cast<size_t>(row / alibi::kTile)] = fmax(most[static_cast<size_t>(row / alibi::kTile)], radius);
            const double found = all[static_cast<size_t>(pair * call.k_len + token)];
            if (found >= 0.0) good &= found >= radius && (found <= radius * 1.002 + 1e-9 || radius == INFINITY);
        }
        if (known) {
            const size_t book = static_cast<size_t>(b * call.kv_heads + from);
            good &= farther[book] >= largest && (farther[book] <= largest * 1.002 + 1e-9 || largest == INFINITY);
            // Where no key is finite none was entered.
            const double end = longest[book] - 2.0;
            good &= largest_finite < 0.0 ? longest[book] == 0.0 : end >= largest_finite;
            good &= end <= fmax(0.0, largest_finite) * 1.002 + 1e-9;
        }
        for (int64_t t = 0; t < tiles && kept; ++t) {
            const double found = norms[static_cast<size_t>(pair * tiles + t)], truth = most[static_cast<size_t>(t)];
            good &= found >= truth && (found <= truth * 1.002 + 1e-9 || same(found, truth));
        }
    }
    if (!good) printf("%s, case %llu: append\n", alibi_chosen(), static_cast<unsigned long long>(c.number));
    return good;
}

// The queries of a case held against keys that are gone, by lines at random.
bool audits(Case& c) {
    Random random = {c.number * 49999 + 3};
    const Call& call = c.call;
    const size_t heads = static_cast<size_t>(call.heads), pairs = static_cast<size_t>(call.batch * call.kv_heads);
    const size_t rows = static_cast<size_t>(call.batch * call.heads * call.q_len);
    const int64_t lines = 1 + random.below(9);
    const auto some = [&](size_t count, double size) {
        std::vector<double> list(count);
        for (double& x : list) x = size * static_cast<double>(random.normal());
        return list;
    };
    std::vector<float> center(pairs * static_cast<size_t>(call.head_dim));
    for (float& x : center) x = random.normal();
    const Sums longest(pairs, 9.0), farther(pairs, 4.0), series = some(heads, 1.0), least(heads, 300.0);
    const Sums at = some(static_cast<size_t>(call.batch * call.heads * lines), 3.0);
    const Sums rise = some(static_cast<size_t>(call.batch * call.heads * lines), 1.0);
    Sums slopes(heads), nats(heads, -INFINITY), largest(heads, 0.0), worst(heads, -INFINITY), excess(rows, NAN), two(2);
    Sums owns(heads);
    for (size_t h = 0; h < heads; ++h) slopes[h] = static_cast<double>(random.unit());
    const bool learns = random.below(2), gone = random.below(4) != 0, within = random.below(2);
    alibi::Audit audit = {};
    audit.size = sizeof audit;
    audit.type = call.type;
    audit.batch = call.batch;
    audit.heads = call.heads;
    audit.kv_heads = call.kv_heads;
    audit.q_len = call.q_len;
    audit.head_dim = call.head_dim;
    audit.query = c.query.place();
    audit.lse = c.lse.data();
    audit.center = center.data();
    audit.longest = longest.data();
    audit.scale = call.scale;
    audit.rounding = 1e-5;
    audit.slack = 0.02;
    audit.slopes = slopes.data();
    if (learns) {
        audit.farther = farther.data();
        audit.series = series.data();
        audit.nats = nats.data();
        audit.largest = largest.data();
    }
    if (gone) {
        audit.at = at.data();
        audit.rise = rise.data();
        audit.lines = lines;
        audit.place = 500;
        audit.position = 517;
        audit.least = least.data();
        audit.limit = within ? INFINITY : -INFINITY;
        audit.worst = worst.data();
        audit.excess = excess.data();
        audit.verdict = two.data();
    }
    if (alibi_audit(&audit) != alibi::kDone) return false;
    bool good = true, whole = true;
    double most = -INFINITY, coming = -INFINITY;
    const auto near = [&](double found, double truth) {
        return same(found, truth) || fabs(found - truth) <= 2e-3 * (20.0 + fabs(truth));
    };
    for (int64_t h = 0; h < call.heads; ++h) {
        const size_t head = static_cast<size_t>(h);
        double asked = -INFINITY, norms = 0.0, own = -INFINITY;
        for (int64_t b = 0; b < call.batch; ++b)
            for (int64_t i = 0; i < call.q_len; ++i) {
                const int64_t pair = b * call.kv_heads + h / (call.heads / call.kv_heads);
                double square = 0.0, dot = 0.0;
                for (int64_t e = 0; e < call.head_dim; ++e) {
                    const double x = c.query.get(b, h, i, e);
                    square += x * x;
                    dot += x * static_cast<double>(center[static_cast<size_t>(pair * call.head_dim + e)]);
                }
                const size_t row = static_cast<size_t>((b * call.heads + h) * call.q_len + i);
                const double rho = sqrt(square) * fabs(call.scale) * 1.001;
                const double kept = static_cast<double>(c.lse[row]) - call.scale * dot - 1e-5 * rho * 9.0 - 0.02;
                const double wanted = rho * 4.0 + series[head] - kept;
                if (isfinite(wanted)) asked = fmax(asked, wanted);
                if (isfinite(rho)) norms = fmax(norms, rho);
                if (!gone) continue;
                double mass = -INFINITY;
                for (int64_t n = 0; n < lines; ++n) {
                    const size_t line = static_cast<size_t>((b * call.heads + h) * lines + n);
                    const double x = at[line] + rho * rise[line];
                    mass = x != x || mass != mass ? NAN : fmax(mass, x);
                }
                const double truth = mass - slopes[head] * static_cast<double>(17 + i) - kept;
                // A kept mass without end leaves nothing that was lost.
                good &= truth < INFINITY ? near(excess[row], truth) : !(excess[row] < INFINITY);
                whole &= excess[row] < INFINITY;
                own = fmax(own, excess[row]);
            }
        most = fmax(most, own);
        coming = fmax(coming, own + slopes[head] * 217.0);
        if (learns) good &= near(nats[head], asked) && near(largest[head], norms);
        owns[head] = own;
    }
    if (gone) {
        good &= whole ? same(two[0], most) && near(two[1], coming) : !(two[0] < INFINITY);
        for (size_t h = 0; h < heads && whole; ++h) good &= same(worst[h], within ? owns[h] : -INFINITY);
    }
    if (!good) printf("%s, case %llu: audit\n", alibi_chosen(), static_cast<unsigned long long>(c.number));
    return good;
}

// By as many threads, or for 0 by 2 to 8 of them.
bool run(uint64_t first, uint64_t end, int64_t threads) {
    bool good = true;
    for (uint64_t number = first; number < end; ++number) {
        Case c;
        make(c, number, threads);
        if (alibi_forward(&c.call) != alibi::kDone || alibi_backward(&c.call) != alibi::kDone) return false;
        for (const Numbers* wrote : {&c.out, &c.grad_query, &c.grad_key, &c.grad_value})
            good &= wrote->gaps_are_whole();
        good &= !c.is_finite || agrees(c);
        good &= appends(c) && audits(c);
    }
    return good;
}

}  // namespace

int main(int count, char** arguments) {
    const uint64_t cases = count > 1 ? strtoull(arguments[1], nullptr, 10) : 60;
    // Where there are no threads: in an emulator.
    const bool alone = count > 2 && std::string(arguments[2]) == "alone";
    bool good = true;
    for (const char* isa : {"baseline", "avx2", "avx512", "avx512bf16", "amx"}) {
        if (alibi_choose(isa) != 0) continue;
        bool here = run(0, cases, 1);
        if (alone) {
            printf("%s: %s\n", alibi_chosen(), here ? "ok" : "FAILED");
            good &= here;
            continue;
        }
        here &= run(cases, cases + cases / 2, 0);
        // Two callers at once, each with a team of its own.
        bool one = false, two = false;
        std::thread first([&] { one = run(0, cases / 4, 2); }), second([&] { two = run(0, cases / 4, 2); });
        first.join();
        second.join();
        here &= one && two;
        printf("%s: %s\n", alibi_chosen(), here ? "ok" : "FAILED");
        good &= here;
    }
    return good ? 0 : 1;
}
