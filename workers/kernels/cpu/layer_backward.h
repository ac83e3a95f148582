// One decoder layer's backward over a token range of a training pack, as one parallel region.
//
// The gradient of the layer's output becomes that of its input, in place. A linear takes two phases:
// members shrink their own rows for the adapter, then multiply their own columns.
#pragma once
#include "adapter_backward.h"
#include "attention_backward.h"
#include "layer.h"
#include "rows.h"

template <class T>
struct BackwardRange {
    int64_t hidden, inner;
    Shape shape;  // of queries that lie alone
    float eps;
    int32_t is_first;          // layer: nobody reads the gradient of its input
    const T *cosine, *sine;    // of all positions
    const int64_t* positions;  // of the rows
    Run run;                   // all rows, with their adapter
    TermSums sums[NUM_LINEARS];
    KeySource<T> source;
    const Span* spans;
    int64_t num_spans;
    int64_t next;   // span and KV head that is taken next, among the members
    int64_t first;  // token of the pack in the first row
    const T *x, *heads, *q, *attn, *x_mid, *gate_up;  // what forward kept of the rows
    const float* lse;
    T* grad;                 // (rows, hidden), in and out
    float *grad_k, *grad_v;  // of all tokens of the pack, added to
    T *activated, *grad_activated, *grad_gate_up, *normed, *grad_normed, *grad_attn, *grad_q, *grad_qkv;  // scratch
    AdapterScratch<T> adapter;
};

template <class T>
struct LayerBackward {
    const LayerWeights<T>& weights;  // panels of the transposed linears, without biases
    BackwardRange<T>& range;
    Member member;

    int64_t rows() const { return range.run.stop; }
    int64_t dim() const { return range.shape.head_dim; }
    int64_t q_size() const { return range.shape.heads * dim(); }
    int64_t kv_size() const { return range.shape.kv_heads * dim(); }

    void backward() const {
        activate();
        linear(DOWN, range.activated, range.grad, range.grad_activated);
        member.barrier();
        activate_backward();
        linear(GATE_UP, range.normed, range.grad_gate_up, range.grad_normed);
        member.barrier();
        norm_backward(weights.post_norm, range.x_mid);
        linear(OUT, range.attn, range.grad, range.grad_attn);
        member.barrier();
        attend_backward(range.source, range.spans, range.num_spans, range.shape,
                        {range.q, range.attn, range.grad_attn, range.lse, range.grad_q, range.grad_k, range.grad_v},
                        &range.next);
        member.barrier();
        turn_back();
        norm(QKV, weights.input_norm, range.x);
        linear(QKV, range.normed, range.grad_qkv, range.is_first ? nullptr : range.grad_normed);
        if (range.is_first) return;
        member.barrier();
        norm_backward(weights.input_norm, range.x);
    }

    bool is_adapted(int index) const { return weights.linears[index].adapted.is_adapted(range.run); }

    template <class Body>
    void each_row(Body body) const {
        for (int64_t i = member.first(rows()); i < member.last(rows()); i++) body(i);
    }

    // Gradient of a linear's input, unless nobody wants it, and of its adapter. The member's own rows
    // of x and grad_y are enough to begin with; x is read only where there is an adapter.
    void linear(int index, const T* x, const T* grad_y, T* grad_x) const {
        const LinearWeights& held = weights.linears[index];
        AdapterBackward<T> adapter{member, held.adapted, range.run, range.adapter, x, grad_y};
        if (is_adapted(index)) adapter.shrink_rows();
        member.barrier();
        if (grad_x)
            multiply(member, held, held.adapted.out_features, held.adapted.in_features, grad_y, rows(), grad_x, false,
                     is_adapted(index) ? adapter.addend() : Addend<T>{});
        if (is_adapted(index)) adapter.add_weights(range.sums[index]);
    }

    // What DOWN's adapter read.
    void activate() const {
        if (!is_adapted(DOWN)) return;
        int64_t inner = range.inner;
        each_row([&](int64_t i) { silu_mul_row(range.gate_up + 2 * i * inner, range.activated + i * inner, inner); });
    }

    void activate_backward() const {
        int64_t inner = range.inner;
        each_row([&](int64_t i) {
            silu_mul_backward_row(range.grad_activated + i * inner, range.gate_up + 2 * i * inner,
                                  range.grad_gate_up + 2 * i * inner, inner);
        });
        norm(GATE_UP, weights.post_norm, range.x_mid);
    }

    // What a linear's adapter read.
    void norm(int index, const T* weight, const T* x) const {
        if (!is_adapted(index)) return;
        int64_t hidden = range.hidden;
        each_row([&](int64_t i) {
            rms_norm_row(x + i * hidden, weight, range.normed + i * hidden, hidden, range.eps);
        });
    }

    void norm_backward(const T* weight, const T* x) const {
        int64_t hidden = range.hidden;
        each_row([&](int64_t i) {
            rms_norm_backward_row(range.grad_normed + i * hidden, x + i * hidden, weight, range.grad + i * hidden,
                                  hidden, range.eps, true);
        });
    }

    // Gradients of queries, keys and values as the fused linear made them.
    void turn_back() const {
        each_row([&](int64_t i) {
            T* out = range.grad_qkv + i * (q_size() + 2 * kv_size());
            const float* grad_k = range.grad_k + (range.first + i) * kv_size();
            const float* grad_v = range.grad_v + (range.first + i) * kv_size();
            memcpy(out, range.grad_q + i * q_size(), size_t(q_size()) * sizeof(T));
            for (int64_t d = 0; d < kv_size(); d += LANES) {
                store(out + q_size() + d, load(grad_k + d));
                store(out + q_size() + kv_size() + d, load(grad_v + d));
            }
            turn_row_back(i, out);
        });
    }

    void turn_row_back(int64_t i, T* grads) const {
        int64_t half = dim() / 2, turn = range.positions[i] * half, heads = range.shape.heads + range.shape.kv_heads;
        for (int64_t h = 0; h < heads; h++) {
            T* grad = grads + h * dim();
            rotate_head(grad, range.cosine + turn, range.sine + turn, grad, half, -1.0f);
            if (weights.q_norm)
                rms_norm_backward_row(grad, range.heads + (i * heads + h) * dim(),
                                      h < range.shape.heads ? weights.q_norm : weights.k_norm, grad, dim(), range.eps,
                                      false);
        }
    }
};
