// Causal attention of spans over keys in pages or in one buffer, with an online softmax.
//
// A tile is up to MAX_TILE queries of one KV head, with the query heads that share it. Queries lie
// in the lanes of vectors: a tile is packed once as panels, keys stream past it as the rows of the
// GEMM micro-kernel, and softmax needs no sum across lanes. A span of one query (decode) takes the
// heads that share a KV head, and dots them with the keys one by one.
// A query's result depends on its own span only. Source: Dao 2023, arXiv:2307.08691.
#pragma once
#include <math.h>
#include "adapters.h"

constexpr int64_t MAX_TILE = 2 * PANEL;
constexpr int64_t KEY_BLOCK = 64;
constexpr int64_t MAX_HEAD_DIM = 256;
constexpr int64_t MAX_GROUP = 16;  // query heads that share a KV head
constexpr float MASKED = -1e30f;   // finite, so that a tile without visible keys makes no NaN

struct Span {
    int64_t row, num_queries, start;  // first row in the batch, queries, position of the first
    int64_t keys;                     // first entry of its block table, or first row of its keys
};

// One KV head of a compressed span: how many slots come before the span's first query, where its table
// begins, and what is added to the logits of its first slots.
struct HeadSlots {
    int64_t start, keys;
    const float* log_counts;
    int64_t num_counts;
};

// Where keys and values lie: element (token t, head h) of a span, in elements.
template <class T>
struct KeySource {
    const T *k, *v;
    const int32_t* tables;  // null: one buffer
    int64_t page_tokens, page_stride, head_stride, token_stride;
    const HeadSlots* heads;  // (spans, kv_heads); null: every head holds the span's tokens

    int64_t at(const Span& span, int64_t token, int64_t head) const {
        if (!tables) return (span.keys + token) * token_stride + head * head_stride;
        int64_t page = tables[span.keys + token / page_tokens];
        return page * page_stride + token % page_tokens * token_stride + head * head_stride;
    }
    // Keys from `token` on that lie evenly spaced, at most `most`.
    int64_t adjacent(int64_t token, int64_t most) const {
        if (!tables) return most;
        int64_t left = page_tokens - token % page_tokens;
        return left < most ? left : most;
    }
};

struct Shape {
    int64_t heads, kv_heads, head_dim;
    int64_t window;    // how many keys a query sees; 0: all before it
    int64_t q_stride;  // elements from one row of queries to the next

    int64_t group() const { return heads / kv_heads; }
    float scale() const { return 1.0f / sqrtf(float(head_dim)); }
};

struct Tile {
    int64_t head, first, count;  // KV head, first query in the span, queries
};

// Queries of a tile packed as panels: for float (dim, lane), for bf16 in pairs along dim.
inline void pack_lane(float* panels, int64_t lane, const float* q, int64_t dim) {
    float* panel = panels + lane / PANEL * dim * PANEL + lane % PANEL;
    for (int64_t d = 0; d < dim; d++) panel[d * PANEL] = q[d];
}

inline void pack_lane(bf16* panels, int64_t lane, const bf16* q, int64_t dim) {
    bf16* panel = panels + lane / PANEL * dim * PANEL + lane % PANEL * 2;
    for (int64_t d = 0; d < dim; d += 2) memcpy(panel + d * PANEL, q + d, 2 * sizeof(bf16));
}

// scores (keys, lanes) = keys (count, dim) @ panels, `count` evenly spaced keys.
template <int ROWS, class T>
void score_rows(const T* k, int64_t stride, int64_t count, const T* panels, int64_t dim,
                int64_t num_panels, float* scores) {
    if constexpr (ROWS > 0) {
        if (count >= ROWS) {
            for (int64_t p = 0; p < num_panels; p++) {
                Floats sums[ROWS][2] = {};
                MicroKernel<T, T>::template run<ROWS>(k, stride, panels + p * dim * PANEL, dim, sums);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < 2; j++) store(scores + i * MAX_TILE + p * PANEL + j * LANES, sums[i][j]);
            }
            count -= ROWS;
            k += ROWS * stride;
            scores += ROWS * MAX_TILE;
        }
        if (count >= ROWS) return score_rows<ROWS>(k, stride, count, panels, dim, num_panels, scores);
        if (count > 0) return score_rows<ROWS - 1>(k, stride, count, panels, dim, num_panels, scores);
    }
}

// products (count, lanes) = rows of k (or v) in one key block @ panels.
template <class T>
void block_products(const T* rows, const KeySource<T>& source, const Span& span, int64_t head, int64_t dim,
                    const T* panels, int64_t lanes, int64_t block, int64_t count, float* products) {
    for (int64_t i = 0; i < count;) {
        int64_t run = source.adjacent(block + i, count - i);
        score_rows<MAX_ROWS>(rows + source.at(span, block + i, head), source.token_stride, run, panels, dim,
                             lanes / PANEL, products + i * MAX_TILE);
        i += run;
    }
}

// What one KV head of a span attends to: slots in place of tokens, where its head holds its own.
struct HeadView {
    Span span;
    const float* log_counts;
    int64_t num_counts;

    // Of the pair span x kv_heads + head.
    template <class T>
    static HeadView of(const KeySource<T>& source, const Span& span, int64_t pair) {
        if (!source.heads) return {span, nullptr, 0};
        const HeadSlots& slots = source.heads[pair];
        return {{span.row, span.num_queries, slots.start, slots.keys}, slots.log_counts, slots.num_counts};
    }

    // How many of the `count` slots from `block` on have a log-count.
    int64_t counted(int64_t block, int64_t count) const {
        int64_t left = num_counts - block;
        return left < 0 ? 0 : left < count ? left : count;
    }
};

// Hides keys after a query, and before its window.
inline void mask(const Span& span, const Shape& shape, const Tile& tile, const int32_t* positions,
                 int64_t lanes, int64_t block, int64_t count, float* scores) {
    int64_t first = span.start + tile.first, last = first + tile.count - 1;
    bool is_visible = block + count - 1 <= first && (!shape.window || block > last - shape.window);
    if (is_visible) return;
    for (int64_t i = 0; i < count; i++)
        for (int64_t l = 0; l < lanes; l += LANES) {
            Ints at, key = Ints(int32_t(block + i));
            memcpy(&at, positions + l, sizeof at);
            Ints hidden = key > at;
            if (shape.window) hidden |= key <= at - int32_t(shape.window);
            float* place = scores + i * MAX_TILE + l;
            store(place, hidden ? splat(MASKED) : load(place));
        }
}

// Rows of a block's values (or keys) as float32, (count, dim).
template <class T>
void widen(const T* data, const KeySource<T>& source, const Span& span, int64_t head, int64_t block,
           int64_t count, int64_t dim, float* out) {
    for (int64_t i = 0; i < count; i++) {
        const T* row = data + source.at(span, block + i, head);
        for (int64_t d = 0; d < dim; d += LANES) store(out + i * dim + d, load(row + d));
    }
}

// out (dim, lanes) += values.T (dim, keys) @ weights (keys, lanes), over lanes of whole panels.
template <int ROWS>
void mix_block(const float* values, int64_t dim, int64_t keys, const float* weights, float* out) {
    Floats sums[ROWS][2];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < 2; j++) sums[i][j] = load(out + i * MAX_TILE + j * LANES);
    for (int64_t t = 0; t < keys; t++) {
        Floats left = load(weights + t * MAX_TILE), right = load(weights + t * MAX_TILE + LANES);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            Floats value = splat(values[t * dim + i]);
            sums[i][0] = fma(value, left, sums[i][0]);
            sums[i][1] = fma(value, right, sums[i][1]);
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < 2; j++) store(out + i * MAX_TILE + j * LANES, sums[i][j]);
}

inline void mix(const float* values, int64_t dim, int64_t keys, const float* weights, int64_t lanes, float* out) {
    constexpr int ROWS = 8;
    for (int64_t p = 0; p < lanes; p += PANEL)
        for (int64_t d = 0; d < dim; d += ROWS)
            mix_block<ROWS>(values + d, dim, keys, weights + p, out + d * MAX_TILE + p);
}

// The first key block that any query of the tile sees.
inline int64_t first_block(const Span& span, const Shape& shape, const Tile& tile) {
    int64_t oldest = shape.window ? span.start + tile.first - shape.window + 1 : 0;
    return oldest > 0 ? oldest / KEY_BLOCK * KEY_BLOCK : 0;
}

template <class T>
struct QueryTile {
    alignas(64) T panels[MAX_TILE * MAX_HEAD_DIM];
    alignas(64) int32_t positions[MAX_TILE];
    int64_t lanes;  // whole panels

    // Lane q * group + g is query head g of query q.
    void pack(const Span& span, const Shape& shape, const Tile& tile, const T* q) {
        int64_t group = shape.group(), used = tile.count * group;
        lanes = (used + PANEL - 1) / PANEL * PANEL;
        for (int64_t lane = 0; lane < lanes; lane++) {
            int64_t source = lane < used ? lane : 0;
            int64_t row = span.row + tile.first + source / group;
            const T* head = q + row * shape.q_stride + (tile.head * group + source % group) * shape.head_dim;
            pack_lane(panels, lane, head, shape.head_dim);
            positions[lane] = int32_t(span.start + tile.first + source / group);
        }
    }
};

template <class T>
void attend_tile(const KeySource<T>& source, const HeadView& view, const Shape& shape, const Tile& tile,
                 const T* q, T* out, float* lse) {
    const Span& span = view.span;
    QueryTile<T> queries;
    alignas(64) float scores[KEY_BLOCK * MAX_TILE], values[KEY_BLOCK * MAX_HEAD_DIM];
    alignas(64) float total[MAX_HEAD_DIM * MAX_TILE], peak[MAX_TILE], mass[MAX_TILE];
    int64_t dim = shape.head_dim, group = shape.group();
    float scale = shape.scale();
    queries.pack(span, shape, tile, q);
    int64_t lanes = queries.lanes;
    memset(total, 0, size_t(dim) * MAX_TILE * sizeof(float));
    for (int64_t l = 0; l < lanes; l++) peak[l] = MASKED, mass[l] = 0;
    int64_t stop = span.start + tile.first + tile.count;
    for (int64_t block = first_block(span, shape, tile); block < stop; block += KEY_BLOCK) {
        int64_t count = stop - block < KEY_BLOCK ? stop - block : KEY_BLOCK;
        block_products(source.k, source, span, tile.head, dim, queries.panels, lanes, block, count, scores);
        for (int64_t i = 0; i < view.counted(block, count); i++)
            for (int64_t l = 0; l < lanes; l++) scores[i * MAX_TILE + l] += view.log_counts[block + i] / scale;
        mask(span, shape, tile, queries.positions, lanes, block, count, scores);
        widen(source.v, source, span, tile.head, block, count, dim, values);
        for (int64_t l = 0; l < lanes; l += LANES) {
            Floats top = splat(MASKED);
            for (int64_t i = 0; i < count; i++) top = larger(top, load(scores + i * MAX_TILE + l));
            top = larger(load(peak + l), top * scale);
            Floats shift = exponential(load(peak + l) - top), added = splat(0);
            for (int64_t i = 0; i < count; i++) {
                Floats weight = exponential(fma(load(scores + i * MAX_TILE + l), splat(scale), -top));
                store(scores + i * MAX_TILE + l, weight);
                added += weight;
            }
            store(mass + l, load(mass + l) * shift + added);
            store(peak + l, top);
            for (int64_t d = 0; d < dim; d++)
                store(total + d * MAX_TILE + l, load(total + d * MAX_TILE + l) * shift);
        }
        mix(values, dim, count, scores, lanes, total);
    }
    for (int64_t lane = 0; lane < tile.count * group; lane++) {
        int64_t row = span.row + tile.first + lane / group;
        int64_t head = row * shape.heads + tile.head * group + lane % group;
        for (int64_t d = 0; d < dim; d++)
            store_one(out + head * dim + d, total[d * MAX_TILE + lane] / mass[lane]);
        if (lse) lse[head] = peak[lane] + logf(mass[lane]);
    }
}

// Dots of LANES keys that lie `stride` apart; a constant stride makes every address an immediate.
template <class T>
[[gnu::always_inline]] inline Floats dot_lanes(const T* query, const T* keys, int64_t stride, int64_t dim) {
    Floats totals[LANES] = {};
    int64_t d = 0;
#pragma unroll
    for (; d + PANEL <= dim; d += PANEL) {
#pragma unroll
        for (int j = 0; j < LANES; j++) totals[j] = dot_step(query + d, keys + j * stride + d, totals[j]);
    }
    if (d < dim)
        for (int j = 0; j < LANES; j++) totals[j] = fma(load(query + d), load(keys + j * stride + d), totals[j]);
    return sums_of(totals);
}

// scores[i] = dot(query, key i) for `count` keys.
template <class T>
void dot_keys(const T* query, const T* keys, int64_t stride, int64_t count, int64_t dim, float* scores) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const T* first = keys + i * stride;
        if (dim == 64 && stride == 64) store(scores + i, dot_lanes(query, first, 64, 64));
        else if (dim == 128 && stride == 128) store(scores + i, dot_lanes(query, first, 128, 128));
        else store(scores + i, dot_lanes(query, first, stride, dim));
    }
    if (i < count) dot_rows(query, dim, 1, keys + i * stride, stride, count - i, dim, scores + i, count);
}

// Starts loading what comes next: pages lie scattered, so the hardware cannot foresee them.
template <class T>
void prefetch(const T* rows, int64_t stride, int64_t count, int64_t dim) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t d = 0; d < dim; d += 64 / int64_t(sizeof(T))) __builtin_prefetch(rows + i * stride + d);
}

constexpr int64_t SINGLE_BLOCK = 256;  // keys that one query takes before it rescales its sums

// One head's running softmax over blocks of keys.
struct RunningSoftmax {
    float peak = MASKED, mass = 0;

    // Turns scores into weights, in place; returns what earlier sums must be multiplied with.
    float take(float* scores, int64_t count, float scale) {
        for (int64_t i = count; i % LANES; i++) scores[i] = MASKED;
        Floats top = splat(MASKED), added = splat(0);
        for (int64_t i = 0; i < count; i += LANES) top = larger(top, load(scores + i));
        float best = peak;
        for (int i = 0; i < LANES; i++) best = top[i] * scale > best ? top[i] * scale : best;
        for (int64_t i = 0; i < count; i += LANES) {
            Floats weight = exponential(fma(load(scores + i), splat(scale), splat(-best)));
            store(scores + i, weight);
            added += weight;
        }
        float shift = exponential(splat(peak - best))[0];
        mass = mass * shift + sum(added);
        peak = best;
        return shift;
    }
};

// One query: the heads that share a KV head, against each key in turn.
template <class T>
void attend_single(const KeySource<T>& source, const HeadView& view, const Shape& shape, int64_t head,
                   const T* q, T* out, float* lse) {
    const Span& span = view.span;
    int64_t dim = shape.head_dim, group = shape.group(), stop = span.start + 1;
    const T* queries = q + span.row * shape.q_stride + head * group * dim;
    alignas(64) float total[MAX_GROUP * MAX_HEAD_DIM], scores[MAX_GROUP * SINGLE_BLOCK];
    RunningSoftmax softmax[MAX_GROUP];
    memset(total, 0, size_t(group * dim) * sizeof(float));
    int64_t oldest = shape.window && stop > shape.window ? stop - shape.window : 0;
    for (int64_t block = oldest; block < stop; block += SINGLE_BLOCK) {
        int64_t count = stop - block < SINGLE_BLOCK ? stop - block : SINGLE_BLOCK;
        for (int64_t i = 0, run; i < count; i += run) {
            run = source.adjacent(block + i, count - i);
            const T* keys = source.k + source.at(span, block + i, head);
            prefetch(source.v + source.at(span, block + i, head), source.token_stride, run, dim);
            if (int64_t next = block + i + run; next < stop)
                prefetch(source.k + source.at(span, next, head), source.token_stride,
                         source.adjacent(next, stop - next < KEY_BLOCK ? stop - next : KEY_BLOCK), dim);
            for (int64_t g = 0; g < group; g++)
                dot_keys(queries + g * dim, keys, source.token_stride, run, dim, scores + g * SINGLE_BLOCK + i);
        }
        for (int64_t g = 0; g < group; g++) {
            for (int64_t i = 0; i < view.counted(block, count); i++)
                scores[g * SINGLE_BLOCK + i] += view.log_counts[block + i] / shape.scale();
            Floats shift = splat(softmax[g].take(scores + g * SINGLE_BLOCK, count, shape.scale()));
            for (int64_t d = 0; d < dim; d += LANES)
                store(total + g * dim + d, load(total + g * dim + d) * shift);
        }
        for (int64_t i = 0, run; i < count; i += run) {
            run = source.adjacent(block + i, count - i);
            const T* values = source.v + source.at(span, block + i, head);
            expand_rows(scores + i, SINGLE_BLOCK, 1, group, values, source.token_stride, run, total, dim, dim);
        }
    }
    for (int64_t g = 0; g < group; g++) {
        T* place = out + (span.row * shape.heads + head * group + g) * dim;
        for (int64_t d = 0; d < dim; d += LANES) store(place + d, load(total + g * dim + d) / softmax[g].mass);
        if (lse) lse[span.row * shape.heads + head * group + g] = softmax[g].peak + logf(softmax[g].mass);
    }
}

// A member's part of all spans; tiles are taken from `next` by whichever thread is free.
template <class T>
void attend(const KeySource<T>& source, const Span* spans, int64_t num_spans, const Shape& shape,
            const T* q, T* out, float* lse, int64_t* next) {
    int64_t most = MAX_TILE / shape.group(), piece = 0;
    int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    for (int64_t s = 0; s < num_spans; s++) {
        const Span& span = spans[s];
        int64_t tiles = (span.num_queries + most - 1) / most, pieces = tiles * shape.kv_heads;
        for (; mine < piece + pieces; mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) {
            int64_t head = (mine - piece) % shape.kv_heads, t = tiles - 1 - (mine - piece) / shape.kv_heads;
            HeadView view = HeadView::of(source, span, s * shape.kv_heads + head);
            if (span.num_queries == 1) {
                attend_single(source, view, shape, head, q, out, lse);
                continue;
            }
            int64_t first = span.num_queries * t / tiles;
            Tile tile{head, first, span.num_queries * (t + 1) / tiles - first};
            attend_tile(source, view, shape, tile, q, out, lse);
        }
        piece += pieces;
    }
}
