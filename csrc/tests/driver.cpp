// Runs the kernels without Python, for the sanitizers: every buffer is of exactly the size it needs, inputs are random
// calls over the whole surface, and the results are held to a plain loop in double.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <thread>
#include <vector>

#include "../call.h"

extern "C" {
int alibi_choose(const char* name);
const char* alibi_chosen();
int64_t alibi_forward(const alibi::Call* call);
int64_t alibi_backward(const alibi::Call* call);
}

namespace {

struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 33);
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(next()) % n; }
    float unit() { return static_cast<float>(next() % 65536) / 65536.0f; }
    float normal() { return 3.4f * ((unit() + unit() + unit() + unit()) / 2.0f - 1.0f); }
};

struct Case {
    alibi::Call call;
    std::vector<float> query, key, value, slopes, out, lse, grad_out, grad_lse, grad_query, grad_key, grad_value,
        grad_slopes;
    std::vector<int32_t> plan;
    std::vector<int64_t> position, lower, upper;
    int64_t seed;
};

alibi::Tensor place(std::vector<float>& data, int64_t heads, int64_t rows, int64_t dim) {
    return {data.data(), heads * rows * dim, rows * dim, dim};
}

void make(Case& c, uint64_t number, int64_t threads) {
    Random random = {number * 7919 + 1};
    for (int i = 0; i < 8; ++i) random.next();
    alibi::Call& call = c.call;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    call.threads = threads;
    call.type = alibi::kFloat32;
    call.batch = 1 + random.below(2);
    call.kv_heads = 1 + random.below(2);
    call.heads = call.kv_heads * (1 + random.below(3));
    const int64_t lengths[] = {1, 5, 16, 48, 49, 100, 300, 700};
    call.q_len = lengths[random.below(8)];
    call.k_len = random.below(2) ? call.q_len : lengths[random.below(8)];
    const int64_t dims[] = {1, 7, 16, 32, 40, 64};
    call.head_dim = dims[random.below(6)];
    call.value_dim = random.below(2) ? call.head_dim : dims[random.below(6)];
    const bool causal = random.below(2);
    call.two_sided = !causal;
    call.offset = call.k_len - call.q_len;
    call.window_left = random.below(3) ? -1 : random.below(80);
    call.window_right = causal ? 0 : random.below(3) ? -1 : random.below(80);
    call.sink = 1;
    call.scale = 1.0 / sqrt(static_cast<double>(call.head_dim));
    call.tolerance = random.below(2) ? 5.9604644775390625e-08 : 0.0;
    if (random.below(3) == 0) {
        c.position.resize(call.q_len);
        c.lower.resize(call.q_len);
        c.upper.resize(call.q_len);
        for (int64_t i = 0; i < call.q_len; ++i) {
            c.position[i] = i + call.offset;
            c.lower[i] = random.below(call.k_len);
            c.upper[i] = causal ? c.position[i] + 1 : c.lower[i] + random.below(call.k_len);
            if (c.upper[i] > call.k_len) c.upper[i] = call.k_len;
            if (c.upper[i] < c.lower[i]) c.upper[i] = c.lower[i];
        }
        call.position = c.position.data();
        call.lower = c.lower.data();
        call.upper = c.upper.data();
    }
    auto fill = [&](std::vector<float>& data, int64_t size, float scale) {
        data.resize(size);
        for (float& x : data) x = random.normal() * scale;
    };
    const int64_t rows = call.batch * call.heads * call.q_len, keys = call.batch * call.kv_heads * call.k_len;
    fill(c.query, rows * call.head_dim, 1);
    fill(c.key, keys * call.head_dim, 1);
    fill(c.value, keys * call.value_dim, 1);
    fill(c.grad_out, rows * call.value_dim, 1);
    fill(c.grad_lse, rows, 1);
    c.slopes.resize(call.heads);
    for (int64_t h = 0; h < call.heads; ++h) c.slopes[h] = ldexpf(1.0f, -1 - 2 * static_cast<int>(h));
    c.out.assign(rows * call.value_dim, NAN);
    c.lse.assign(rows, NAN);
    c.plan.assign(call.batch * call.heads * ((call.q_len + 47) / 48) * 3, -7);
    c.grad_query.assign(c.query.size(), NAN);
    c.grad_key.assign(c.key.size(), NAN);
    c.grad_value.assign(c.value.size(), NAN);
    c.grad_slopes.assign(call.batch * call.heads, NAN);
    call.slopes = c.slopes.data();
    call.slope_head_stride = 1;
    call.seed = &c.seed;
    call.query = place(c.query, call.heads, call.q_len, call.head_dim);
    call.key = place(c.key, call.kv_heads, call.k_len, call.head_dim);
    call.value = place(c.value, call.kv_heads, call.k_len, call.value_dim);
    call.out = place(c.out, call.heads, call.q_len, call.value_dim);
    call.lse = c.lse.data();
    call.plan = c.plan.data();
    call.grad_out = place(c.grad_out, call.heads, call.q_len, call.value_dim);
    call.grad_lse = c.grad_lse.data();
    call.grad_query = place(c.grad_query, call.heads, call.q_len, call.head_dim);
    call.grad_key = place(c.grad_key, call.kv_heads, call.k_len, call.head_dim);
    call.grad_value = place(c.grad_value, call.kv_heads, call.k_len, call.value_dim);
    call.grad_slopes = c.grad_slopes.data();
}

// The largest error of out, and whether every number was written.
bool agrees(const Case& c, uint64_t number) {
    const alibi::Call& call = c.call;
    const int64_t group = call.heads / call.kv_heads;
    double worst = 0.0;
    std::vector<double> weights(call.k_len), total(call.value_dim);
    for (int64_t b = 0; b < call.batch; ++b)
        for (int64_t h = 0; h < call.heads; ++h)
            for (int64_t i = 0; i < call.q_len; ++i) {
                int64_t position = i + call.offset, lower = 0, upper = call.k_len;
                if (call.position) {
                    lower = call.lower[i];
                    upper = call.upper[i];
                } else {
                    if (call.window_left >= 0 && position - call.window_left > lower)
                        lower = position - call.window_left;
                    if (call.window_right >= 0 && position + call.window_right + 1 < upper)
                        upper = position + call.window_right + 1;
                }
                const int64_t row = (b * call.heads + h) * call.q_len + i,
                              keys = (b * call.kv_heads + h / group) * call.k_len;
                double most = -INFINITY, sum = 0.0;
                for (int64_t j = lower; j < upper; ++j) {
                    double dot = 0.0;
                    for (int64_t e = 0; e < call.head_dim; ++e)
                        dot += static_cast<double>(c.query[row * call.head_dim + e]) *
                               c.key[(keys + j) * call.head_dim + e];
                    weights[j] = dot * call.scale - static_cast<double>(c.slopes[h]) * llabs(position - j);
                    most = fmax(most, weights[j]);
                }
                total.assign(call.value_dim, 0.0);
                for (int64_t j = lower; j < upper; ++j) {
                    const double weight = exp(weights[j] - most);
                    sum += weight;
                    for (int64_t e = 0; e < call.value_dim; ++e)
                        total[e] += weight * c.value[(keys + j) * call.value_dim + e];
                }
                for (int64_t e = 0; e < call.value_dim; ++e) {
                    const double error = fabs(c.out[row * call.value_dim + e] - (sum > 0.0 ? total[e] / sum : 0.0));
                    if (!(error <= worst)) worst = error;
                }
            }
    bool written = true;
    for (const std::vector<float>* data : {&c.grad_query, &c.grad_key, &c.grad_value, &c.grad_slopes})
        for (float x : *data) written &= isfinite(x) != 0;
    for (int32_t x : c.plan) written &= x >= -1;
    if (worst < 2e-5 && written) return true;
    printf(
        "case %llu: error %g%s\n", static_cast<unsigned long long>(number), worst, written ? "" : ", not all written"
    );
    return false;
}

bool run(uint64_t first, uint64_t end, int64_t threads) {
    bool good = true;
    for (uint64_t number = first; number < end; ++number) {
        Case c;
        make(c, number, threads);
        if (alibi_forward(&c.call) != alibi::kDone || alibi_backward(&c.call) != alibi::kDone) return false;
        good &= agrees(c, number);
    }
    return good;
}

}  // namespace

int main(int count, char** arguments) {
    const uint64_t cases = count > 1 ? strtoull(arguments[1], nullptr, 10) : 60;
    bool good = true;
    for (const char* isa : {"baseline", "avx2", "avx512"}) {
        if (alibi_choose(isa) != 0) continue;
        good &= run(0, cases, 1);
        good &= run(cases, cases + cases / 4, 3);
        // Two callers at once, each with a team of its own.
        bool one = false, two = false;
        std::thread first([&] { one = run(0, cases / 4, 2); }), second([&] { two = run(0, cases / 4, 2); });
        first.join();
        second.join();
        good &= one && two;
        printf("%s: %s\n", alibi_chosen(), good ? "ok" : "FAILED");
    }
    return good ? 0 : 1;
}
