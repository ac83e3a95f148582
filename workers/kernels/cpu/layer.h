// One decoder layer over a packed batch, as one parallel region: a small step has a hundred pieces
// of work, and starting threads (or Python) for each would cost more than the work.
//
// Every member runs `forward`; a barrier stands wherever a piece reads what others wrote.
#pragma once
#include "adapters.h"
#include "attention.h"
#include "gemm.h"
#include "rows.h"

struct LinearWeights {
    const void* panels;
    int64_t is_narrow;  // panels in bf16
    const void* bias;
    AdaptedLinear adapted;
};

// x through a frozen linear, `inputs` to `outputs`: a member's share of the outputs.
template <class T>
void multiply(Member member, const LinearWeights& held, int64_t inputs, int64_t outputs, const T* x, int64_t rows,
              T* y, bool accumulate, const Addend<T>& more = {}) {
    Panels panels{held.panels, inputs, outputs};
    Output<T> out{y, outputs, static_cast<const T*>(held.bias), accumulate};
    if constexpr (sizeof(T) == sizeof(float)) {
        if (!held.is_narrow) return multiply<T, float>(member, x, rows, panels, out, more);
    }
    multiply<T, bf16>(member, x, rows, panels, out, more);
}

enum { QKV, OUT, GATE_UP, DOWN, NUM_LINEARS };

template <class T>
struct LayerWeights {
    const T *input_norm, *post_norm, *q_norm, *k_norm;  // the last two: null without head norms
    LinearWeights linears[NUM_LINEARS];
};

// Spans that attend to keys of one place.
template <class T>
struct SpanGroup {
    KeySource<T> source;
    const Span* spans;
    int64_t num_spans;
    int64_t next;  // tile that is taken next, among the members
};

// Rows of a training pack, and where its activations of this layer go; null: not kept.
template <class T>
struct Window {
    int64_t row, count;
    T *x, *heads, *q, *k, *v, *attn, *x_mid, *gate_up;
    float* lse;
};

// Rows of inference, and the pages that take their keys and values.
template <class T>
struct CacheRows {
    int64_t row, count;
    const int64_t *blocks, *offsets;
    T *keys, *values;
    int64_t page_tokens, page_stride;
};

// Rows of compressed sequences, and the slots (row, kv_head) that take their keys and values.
template <class T>
struct HeadRows {
    int64_t row, count;
    const int64_t* slots;
    T *keys, *values;
};

template <class T>
struct LayerBatch {
    int64_t rows, hidden, inner;
    Shape shape;  // of queries that lie among `heads`
    float eps;
    int32_t wants_lse;
    const T *cosine, *sine;
    const Run* runs;
    int64_t num_runs, shrunk_width;
    CacheRows<T> cache;
    HeadRows<T> compressed;
    SpanGroup<T>* groups;
    int64_t num_groups;
    const Window<T>* windows;
    int64_t num_windows;
    T *x, *normed, *qkv, *heads, *attn, *gate_up, *activated;  // x in and out; the rest is scratch
    float *shrunk, *lse;
};

template <class T>
struct LayerForward {
    const LayerWeights<T>& weights;
    const LayerBatch<T>& batch;
    Member member;

    int64_t num_heads() const { return batch.shape.heads + batch.shape.kv_heads; }
    int64_t dim() const { return batch.shape.head_dim; }

    void forward() const {
        norm(weights.input_norm, &Window<T>::x);
        member.barrier();
        linear(QKV, batch.normed, batch.qkv, false);
        member.barrier();
        turn_heads();
        member.barrier();
        for (int64_t g = 0; g < batch.num_groups; g++) {
            SpanGroup<T>& group = batch.groups[g];
            attend(group.source, group.spans, group.num_spans, batch.shape, batch.heads, batch.attn,
                   batch.wants_lse ? batch.lse : nullptr, &group.next);
        }
        member.barrier();
        keep(&Window<T>::attn, batch.attn, batch.shape.heads * dim());
        keep(&Window<T>::lse, batch.lse, batch.shape.heads);
        linear(OUT, batch.attn, batch.x, true);
        member.barrier();
        norm(weights.post_norm, &Window<T>::x_mid);
        member.barrier();
        linear(GATE_UP, batch.normed, batch.gate_up, false);
        member.barrier();
        keep(&Window<T>::gate_up, batch.gate_up, 2 * batch.inner);
        each_row([&](int64_t i) {
            silu_mul_row(batch.gate_up + 2 * i * batch.inner, batch.activated + i * batch.inner, batch.inner);
        });
        member.barrier();
        linear(DOWN, batch.activated, batch.x, true);
    }

    template <class Body>
    void each_row(Body body) const {
        for (int64_t i = member.first(batch.rows); i < member.last(batch.rows); i++) body(i);
    }

    // A member's share of the window rows into their pack.
    template <class Number>
    void keep(Number* Window<T>::* place, const Number* rows, int64_t width) const {
        for (int64_t n = 0; n < batch.num_windows; n++) {
            const Window<T>& window = batch.windows[n];
            if (!(window.*place)) continue;
            int64_t first = member.first(window.count), count = member.last(window.count) - first;
            memcpy(window.*place + first * width, rows + (window.row + first) * width,
                   size_t(count * width) * sizeof(Number));
        }
    }

    void norm(const T* weight, T* Window<T>::* place) const {
        keep(place, batch.x, batch.hidden);
        each_row([&](int64_t i) {
            rms_norm_row(batch.x + i * batch.hidden, weight, batch.normed + i * batch.hidden, batch.hidden, batch.eps);
        });
    }

    void linear(int index, const T* x, T* y, bool accumulate) const {
        const LinearWeights& held = weights.linears[index];
        multiply(member, held, held.adapted.in_features, held.adapted.out_features, x, batch.rows, y, accumulate);
        if (!batch.num_runs) return;
        add_adapters(member, held.adapted, batch.runs, batch.num_runs, x, batch.shrunk, batch.shrunk_width, y);
    }

    // Queries and keys normalised and turned to their positions; keys and values where they belong.
    void turn_heads() const {
        int64_t queries = batch.shape.heads, keys = batch.shape.kv_heads;
        int64_t fused = (queries + 2 * keys) * dim(), width = num_heads() * dim();
        each_row([&](int64_t i) {
            const T* row = batch.qkv + i * fused;
            T* out = batch.heads + i * width;
            const T* turned = row;
            if (weights.q_norm) {
                for (int64_t h = 0; h < num_heads(); h++)
                    rms_norm_row(row + h * dim(), h < queries ? weights.q_norm : weights.k_norm, out + h * dim(), dim(), batch.eps);
                turned = out;
            }
            for (int64_t h = 0; h < num_heads(); h++)
                rotate_head(turned + h * dim(), batch.cosine + i * (dim() / 2), batch.sine + i * (dim() / 2),
                            out + h * dim(), dim() / 2, 1.0f);
        });
        for (int64_t n = 0; n < batch.num_windows; n++) keep_heads(batch.windows[n]);
        store_keys();
        store_slots();
    }

    // Rows of this member only: it reads what it has just written.
    void keep_heads(const Window<T>& window) const {
        int64_t queries = batch.shape.heads * dim(), keys = batch.shape.kv_heads * dim();
        each_row([&](int64_t i) {
            int64_t at = i - window.row;
            if (at < 0 || at >= window.count) return;
            const T *fused = batch.qkv + i * (queries + 2 * keys), *turned = batch.heads + i * (queries + keys);
            if (window.heads) memcpy(window.heads + at * (queries + keys), fused, size_t(queries + keys) * sizeof(T));
            if (window.q) memcpy(window.q + at * queries, turned, size_t(queries) * sizeof(T));
            memcpy(window.k + at * keys, turned + queries, size_t(keys) * sizeof(T));
            memcpy(window.v + at * keys, fused + queries + keys, size_t(keys) * sizeof(T));
        });
    }

    void store_keys() const {
        const CacheRows<T>& cache = batch.cache;
        int64_t queries = batch.shape.heads * dim(), keys = batch.shape.kv_heads * dim();
        each_row([&](int64_t i) {
            int64_t at = i - cache.row;
            if (at < 0 || at >= cache.count) return;
            const T* k = batch.heads + i * (queries + keys) + queries;
            const T* v = batch.qkv + i * (queries + 2 * keys) + queries + keys;
            for (int64_t h = 0; h < batch.shape.kv_heads; h++) {
                int64_t page = cache.blocks[at] * cache.page_stride;
                int64_t place = page + (h * cache.page_tokens + cache.offsets[at]) * dim();
                memcpy(cache.keys + place, k + h * dim(), size_t(dim()) * sizeof(T));
                memcpy(cache.values + place, v + h * dim(), size_t(dim()) * sizeof(T));
            }
        });
    }

    void store_slots() const {
        const HeadRows<T>& rows = batch.compressed;
        int64_t queries = batch.shape.heads * dim(), keys = batch.shape.kv_heads * dim();
        each_row([&](int64_t i) {
            int64_t at = i - rows.row;
            if (at < 0 || at >= rows.count) return;
            const T* k = batch.heads + i * (queries + keys) + queries;
            const T* v = batch.qkv + i * (queries + 2 * keys) + queries + keys;
            for (int64_t h = 0; h < batch.shape.kv_heads; h++) {
                int64_t place = rows.slots[at * batch.shape.kv_heads + h] * dim();
                memcpy(rows.keys + place, k + h * dim(), size_t(dim()) * sizeof(T));
                memcpy(rows.values + place, v + h * dim(), size_t(dim()) * sizeof(T));
            }
        });
    }
};
