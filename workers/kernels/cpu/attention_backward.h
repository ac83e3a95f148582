// Gradients of causal attention from recomputed weights: one (span, KV head) at a time, so that no
// two threads add to the same keys.
//   P = exp(scale * S - lse);  dV += P^T dO;  dS = P * (dO V^T - rowsum(dO * O))
//   dQ = scale * dS K;  dK += scale * dS^T Q
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

// A tile's rows as float32 (lanes, dim): what the sums over queries multiply.
template <class T>
void widen_tile(const T* rows, const Span& span, const Shape& shape, const Tile& tile, float factor, float* wide) {
    int64_t group = shape.group(), dim = shape.head_dim;
    for (int64_t lane = 0; lane < tile.count * group; lane++) {
        int64_t row = span.row + tile.first + lane / group;
        const T* head = rows + (row * shape.heads + tile.head * group + lane % group) * dim;
        for (int64_t d = 0; d < dim; d += LANES) store(wide + lane * dim + d, load(head + d) * factor);
    }
}

template <class T>
struct TileGrads {
    QueryTile<T> queries, grads;
    alignas(64) float wide_q[MAX_TILE * MAX_HEAD_DIM], wide_grad[MAX_TILE * MAX_HEAD_DIM];
    alignas(64) float keys[KEY_BLOCK * MAX_HEAD_DIM], total[MAX_HEAD_DIM * MAX_TILE];
    alignas(64) float weights[KEY_BLOCK * MAX_TILE], products[KEY_BLOCK * MAX_TILE];
    alignas(64) float lse[MAX_TILE], delta[MAX_TILE];

    void run(const KeySource<T>& source, const Span& span, const Shape& shape, const Tile& tile,
             const AttentionGrads<T>& of) {
        int64_t dim = shape.head_dim, used = tile.count * shape.group();
        float scale = shape.scale();
        queries.pack(span, shape, tile, of.q);
        grads.pack(span, shape, tile, of.grad);
        widen_tile(of.q, span, shape, tile, scale, wide_q);
        widen_tile(of.grad, span, shape, tile, 1.0f, wide_grad);
        load_rows(span, shape, tile, of);
        memset(total, 0, size_t(dim) * MAX_TILE * sizeof(float));
        int64_t stop = span.start + tile.first + tile.count, stride = shape.kv_heads * dim;
        for (int64_t block = first_block(span, shape, tile); block < stop; block += KEY_BLOCK) {
            int64_t count = stop - block < KEY_BLOCK ? stop - block : KEY_BLOCK;
            int64_t sums = (span.keys + block) * stride + tile.head * dim;
            block_grads(source, span, shape, tile, block, count, scale);
            widen(source.k, source, span, tile.head, block, count, dim, keys);
            expand_rows(weights, MAX_TILE, 1, count, wide_grad, dim, used, of.grad_v + sums, stride, dim);
            expand_rows(products, MAX_TILE, 1, count, wide_q, dim, used, of.grad_k + sums, stride, dim);
            mix(keys, dim, count, products, queries.lanes, total);
        }
        write(span, shape, tile, scale, of.grad_q);
    }

    // Weights P and score gradients dS of one key block.
    void block_grads(const KeySource<T>& source, const Span& span, const Shape& shape, const Tile& tile,
                     int64_t block, int64_t count, float scale) {
        int64_t lanes = queries.lanes, dim = shape.head_dim;
        block_products(source.k, source, span, tile.head, dim, queries.panels, lanes, block, count, weights);
        mask(span, shape, tile, queries.positions, lanes, block, count, weights);
        block_products(source.v, source, span, tile.head, dim, grads.panels, lanes, block, count, products);
        for (int64_t i = 0; i < count; i++)
            for (int64_t l = 0; l < lanes; l += LANES) {
                float *w = weights + i * MAX_TILE + l, *p = products + i * MAX_TILE + l;
                Floats weight = exponential(fma(load(w), splat(scale), -load(lse + l)));
                store(w, weight);
                store(p, weight * (load(p) - load(delta + l)));
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

    void write(const Span& span, const Shape& shape, const Tile& tile, float scale, T* grad_q) const {
        int64_t group = shape.group(), dim = shape.head_dim;
        for (int64_t lane = 0; lane < tile.count * group; lane++) {
            int64_t row = span.row + tile.first + lane / group;
            T* head = grad_q + (row * shape.heads + tile.head * group + lane % group) * dim;
            for (int64_t d = 0; d < dim; d++) store_one(head + d, total[d * MAX_TILE + lane] * scale);
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
