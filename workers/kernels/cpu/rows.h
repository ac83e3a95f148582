// Row by row pieces of a decoder layer. Each row is computed alone, in the same order always.
#pragma once
#include <math.h>
#include "team.h"
#include "vector.h"

// Mean of the squares of a row, in whole vectors and a scalar rest.
template <class T>
float mean_square(const T* x, int64_t n) {
    Floats total = splat(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        Floats v = load(x + i);
        total = fma(v, v, total);
    }
    float rest = 0;
    for (; i < n; i++) rest += load_one(x + i) * load_one(x + i);
    return (sum(total) + rest) / float(n);
}

// y = weight * x / rms(x)
template <class T>
void rms_norm_row(const T* x, const T* weight, T* y, int64_t n, float eps) {
    float scale = 1.0f / sqrtf(mean_square(x, n) + eps);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
    for (; i < n; i++) store_one(y + i, load_one(x + i) * scale * load_one(weight + i));
}

// dx = rstd * (g - n * mean(g * n)) with g = grad * weight, n = x * rstd; added to dx if asked.
template <class T>
void rms_norm_backward_row(
    const T* grad, const T* x, const T* weight, T* dx, int64_t n, float eps, bool accumulate) {
    float rstd = 1.0f / sqrtf(mean_square(x, n) + eps);
    Floats products = splat(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        products = fma(load(grad + i) * load(weight + i), load(x + i), products);
    float rest = 0;
    for (; i < n; i++) rest += load_one(grad + i) * load_one(weight + i) * load_one(x + i);
    float mean = (sum(products) + rest) * rstd / float(n);
    for (i = 0; i + LANES <= n; i += LANES) {
        Floats value = (load(grad + i) * load(weight + i) - load(x + i) * (rstd * mean)) * rstd;
        store(dx + i, accumulate ? value + load(dx + i) : value);
    }
    for (; i < n; i++) {
        float value = (load_one(grad + i) * load_one(weight + i) - load_one(x + i) * rstd * mean) * rstd;
        store_one(dx + i, accumulate ? value + load_one(dx + i) : value);
    }
}

// RoPE: element j turns with element j + half.
template <class T>
void rotate_head(const T* x, const T* cosine, const T* sine, T* y, int64_t half, float direction) {
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        Floats a = load(x + i), b = load(x + half + i);
        Floats c = load(cosine + i), s = load(sine + i) * direction;
        store(y + i, a * c - b * s);
        store(y + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = load_one(x + i), b = load_one(x + half + i);
        float c = load_one(cosine + i), s = load_one(sine + i) * direction;
        store_one(y + i, a * c - b * s);
        store_one(y + half + i, b * c + a * s);
    }
}

inline Floats sigmoid(Floats x) { return splat(1.0f) / (exponential(-x) + 1.0f); }

// Up to LANES numbers; the rest of the vector is 0.
template <class T>
Floats load_some(const T* p, int64_t count) {
    if (count >= LANES) return load(p);
    float lanes[LANES] = {};
    for (int64_t i = 0; i < count; i++) lanes[i] = load_one(p + i);
    return load(lanes);
}

template <class T>
void store_some(T* p, Floats v, int64_t count) {
    if (count >= LANES) return store(p, v);
    float lanes[LANES];
    store(lanes, v);
    for (int64_t i = 0; i < count; i++) store_one(p + i, lanes[i]);
}

// y = silu(gate) * up
template <class T>
void silu_mul_row(const T* gate_up, T* y, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        Floats gate = load_some(gate_up + i, n - i), up = load_some(gate_up + n + i, n - i);
        store_some(y + i, gate * sigmoid(gate) * up, n - i);
    }
}

template <class T>
void silu_mul_backward_row(const T* grad, const T* gate_up, T* dx, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        Floats g = load_some(grad + i, n - i);
        Floats gate = load_some(gate_up + i, n - i), up = load_some(gate_up + n + i, n - i);
        Floats s = sigmoid(gate), silu = gate * s;
        store_some(dx + i, g * up * (s + silu * (1.0f - s)), n - i);
        store_some(dx + n + i, g * silu, n - i);
    }
}
