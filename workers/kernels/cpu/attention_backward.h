// Gradients of causal attention from recomputed weights: one (span, KV head) at a time, so that no
// two threads add to the same keys.
//   P = exp(scale * S - lse);  dV += P^T dO;  dS = P * (dO V^T - rowsum(dO * O))
//   dQ = scale * dS K;  dK += scale * dS^T Q
// P and dS are rounded to the storage dtype, as the machine's products take them; sums are float32.
// Source: Dao 2023, arXiv:2307.08691, section 2.3.1.
#pragma once
#include "attention.h"

template <class T>
struct AttentionGrads {
    const T *q, *out, *grad;    // (rows, heads, dim)
    const float* lse;           // (rows, heads)
    T* grad_q;                  // (rows, heads, dim), written
    float *grad_k, *grad_v;     // like the keys, added to
};

// A tile's rows as panels (lanes, dim): what the sums over queries multiply.
template <class T>
void pack_rows(const T* rows, const Span& span, const Shape& shape, const Tile& tile, T* panels) {
    int64_t group = shape.group(), dim = shape.head_dim, used = tile.count * group;
    alignas(64) T heads[MAX_TILE * MAX_HEAD_DIM];
    for (int64_t i = 0; i < tile.count; i++) {
        const T* first = rows + ((span.row + tile.first + i) * shape.heads + tile.head * group) * dim;
        memcpy(heads + i * group * dim, first, size_t(group * dim) * sizeof(T));
    }
    for (int64_t d = 0; d < dim; d += PANEL) pack_panel(heads + d, dim, used, dim - d, panels + d * MAX_TILE);
}

// Keys of a block as rows of one matrix, bf16 in pairs of keys; a missing key is 0.
inline void pack_keys(const KeySource<float>& source, const Span& span, int64_t head, int64_t block, int64_t count,
                      int64_t dim, float* keys) {
    memset(keys + count * dim, 0, size_t((even(count) - count) * dim) * sizeof(float));
    for (int64_t i = 0; i < count; i++)
        memcpy(keys + i * dim, source.k + source.at(span, block + i, head), size_t(dim) * sizeof(float));
}

inline void pack_keys(const KeySource<bf16>& source, const Span& span, int64_t head, int64_t block, int64_t count,
                      int64_t dim, bf16* keys) {
    for (int64_t i = 0; i < count; i += 2) {
        const bf16* even_row = source.k + source.at(span, block + i, head);
        const bf16* odd_row = i + 1 < count ? source.k + source.at(span, block + i + 1, head) : nullptr;
        for (int64_t d = 0; d < dim; d += LANES) {
            Words pairs = __builtin_bit_cast(Words, load(even_row + d)) >> 16;
            if (odd_row) pairs |= __builtin_bit_cast(Words, load(odd_row + d));
            memcpy(keys + i * dim + 2 * d, &pairs, sizeof pairs);
        }
    }
}

template <class T>
struct TileGrads {
    static constexpr int64_t PAIR = sizeof(float) / sizeof(T);  // keys that lie side by side in pack_keys

    QueryTile<T> queries, grads;
    alignas(64) T q_panels[MAX_TILE * MAX_HEAD_DIM], grad_panels[MAX_TILE * MAX_HEAD_DIM];
    alignas(64) T keys[KEY_BLOCK * MAX_HEAD_DIM], slope_panel[KEY_BLOCK * PANEL];
    alignas(64) T weights[KEY_BLOCK * MAX_TILE], slopes[KEY_BLOCK * MAX_TILE];  // P and scale * dS
    alignas(64) float scores[KEY_BLOCK * MAX_TILE], products[KEY_BLOCK * MAX_TILE];
    alignas(64) float total[MAX_HEAD_DIM * MAX_TILE];
    alignas(64) float lse[MAX_TILE], delta[MAX_TILE];

    void run(const KeySource<T>& source, const Span& span, const Shape& shape, const Tile& tile,
             const AttentionGrads<T>& of) {
        int64_t dim = shape.head_dim;
        queries.pack(span, shape, tile, of.q);
        grads.pack(span, shape, tile, of.grad);
        pack_rows(of.q, span, shape, tile, q_panels);
        pack_rows(of.grad, span, shape, tile, grad_panels);
        load_rows(span, shape, tile, of);
        memset(total, 0, size_t(dim) * MAX_TILE * sizeof(float));
        int64_t stop = span.start + tile.first + tile.count, stride = shape.kv_heads * dim;
        int64_t used = even(tile.count * shape.group());
        for (int64_t block = first_block(span, shape, tile); block < stop; block += KEY_BLOCK) {
            int64_t count = stop - block < KEY_BLOCK ? stop - block : KEY_BLOCK;
            int64_t sums = (span.keys + block) * stride + tile.head * dim;
            block_grads(source, span, shape, tile, block, count);
            add_keys(weights, count, grad_panels, used, of.grad_v + sums, stride, dim);
            add_keys(slopes, count, q_panels, used, of.grad_k + sums, stride, dim);
            pack_keys(source, span, tile.head, block, count, dim, keys);
            add_queries(count, dim);
        }
        write(span, shape, tile, of.grad_q);
    }

    // Weights P and score gradients scale * dS of one key block.
    void block_grads(const KeySource<T>& source, const Span& span, const Shape& shape, const Tile& tile,
                     int64_t block, int64_t count) {
        int64_t lanes = queries.lanes, dim = shape.head_dim;
        float scale = shape.scale();
        block_products(source.k, source, span, tile.head, dim, queries.panels, lanes, block, count, scores);
        mask(span, shape, tile, queries.positions, lanes, block, count, scores);
        block_products(source.v, source, span, tile.head, dim, grads.panels, lanes, block, count, products);
        for (int64_t i = 0; i < count; i++)
            for (int64_t l = 0; l < lanes; l += LANES) {
                int64_t at = i * MAX_TILE + l;
                Floats weight = exponential(fma(load(scores + at), splat(scale), -load(lse + l)));
                store(weights + at, weight);
                store(slopes + at, weight * (load(products + at) - load(delta + l)) * scale);
            }
    }

    // total (keys, dim) += factors (keys, lanes) @ panels (lanes, dim)
    static void add_keys(const T* factors, int64_t count, const T* panels, int64_t lanes, float* total, int64_t stride,
                         int64_t dim) {
        for (int64_t d = 0; d < dim; d += PANEL)
            multiply_panel<T>({factors, count, MAX_TILE}, panels + d * MAX_TILE, lanes,
                              Output<float>{total + d, stride, nullptr, true}, dim - d);
    }

    // total (dim, lanes) += keys.T @ slopes
    void add_queries(int64_t count, int64_t dim) {
        for (int64_t l = 0; l < queries.lanes; l += PANEL) {
            pack_panel(slopes + l, MAX_TILE, count, PANEL, slope_panel);
            multiply_panel<T>({keys, dim, PAIR, dim}, slope_panel, even(count),
                              Output<float>{total + l, MAX_TILE, nullptr, true}, PANEL);
        }
    }

    void load_rows(const Span& span, const Shape& shape, const Tile& tile, const AttentionGrads<T>& of) {
        int64_t group = shape.group(), dim = shape.head_dim, used = tile.count * group;
        for (int64_t lane = 0; lane < queries.lanes; lane++) {
            int64_t source = lane < used ? lane : 0, row = span.row + tile.first + source / group;
            int64_t head = row * shape.heads + tile.head * group + source % group;
            Floats products = splat(0);
            for (int64_t d = 0; d < dim; d += LANES)
                products = fma(load(of.grad + head * dim + d), load(of.out + head * dim + d), products);
            delta[lane] = sum(products);
            lse[lane] = of.lse[head];
        }
    }

    void write(const Span& span, const Shape& shape, const Tile& tile, T* grad_q) const {
        int64_t group = shape.group(), dim = shape.head_dim, used = tile.count * group;
        for (int64_t first = 0; first < used; first += LANES)
            for (int64_t d = 0; d < dim; d += LANES) {
                Floats square[LANES];
                for (int64_t i = 0; i < LANES; i++) square[i] = load(total + (d + i) * MAX_TILE + first);
                transpose(square);
                for (int64_t lane = first; lane < used && lane < first + LANES; lane++) {
                    int64_t row = span.row + tile.first + lane / group;
                    store(grad_q + (row * shape.heads + tile.head * group + lane % group) * dim + d, square[lane - first]);
                }
            }
    }
};

// A member's part of all spans; pairs of span and KV head are taken from `next` by whichever is free.
template <class T>
void attend_backward(const KeySource<T>& source, const Span* spans, int64_t num_spans, const Shape& shape,
                     const AttentionGrads<T>& of, int64_t* next) {
    int64_t most = MAX_TILE / shape.group(), items = num_spans * shape.kv_heads, item;
    TileGrads<T> grads;
    while ((item = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < items) {
        const Span& span = spans[item / shape.kv_heads];
        int64_t tiles = (span.num_queries + most - 1) / most;
        for (int64_t t = 0; t < tiles; t++) {
            int64_t first = span.num_queries * t / tiles;
            Tile tile{item % shape.kv_heads, first, span.num_queries * (t + 1) / tiles - first};
            grads.run(source, span, shape, tile, of);
        }
    }
}
