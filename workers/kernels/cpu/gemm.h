// y = x @ W.T from weights in panels; the micro-kernel keeps up to MAX_ROWS x 2 vectors of sums.
//
// A panel is 2 * LANES outputs. bf16 weights lie in pairs along k, (panel, k / 2, output, 2), which
// is what the machine's bf16 dot product reads; float32 weights lie as (panel, k, output).
// A row's sums run in the same order however many rows there are, so its result does not depend
// on the rows beside it, to the last bit.
#pragma once
#include "team.h"
#include "vector.h"

#if defined(__AVX512F__)
constexpr int MAX_ROWS = 10;  // more rows than a set of L1 has ways would evict each other
#else
constexpr int MAX_ROWS = 6;  // 12 sums, 2 weights and a broadcast of 16
#endif
constexpr int PANEL = 2 * LANES;
constexpr int64_t CHUNK_BYTES = 384 << 10;  // inputs that stream past each panel stay in a core's L2

struct Panels {
    const void* data;
    int64_t in_features;
    int64_t out_features;

    int64_t count() const { return (out_features + PANEL - 1) / PANEL; }
};

// sums += x (ROWS, k) @ one panel. Rows of x lie `stride` apart, and what meets the next row of the
// panel `step` further on; bf16 x is read in pairs.
template <class X, class W>
struct MicroKernel;

template <class W>
struct MicroKernel<float, W> {
    template <int ROWS>
    [[gnu::always_inline]] static void run(
        const float* x, int64_t stride, const W* w, int64_t k, Floats (&sums)[ROWS][2], int64_t step = 1);
};

template <>
template <int ROWS>
[[gnu::always_inline]] inline void MicroKernel<float, float>::run(
    const float* x, int64_t stride, const float* w, int64_t k, Floats (&sums)[ROWS][2], int64_t step) {
    for (int64_t i = 0; i < k; i++) {
        Floats left = load(w + i * PANEL), right = load(w + i * PANEL + LANES);
#pragma unroll
        for (int m = 0; m < ROWS; m++) {
            Floats value = splat(x[m * stride + i * step]);
            sums[m][0] = fma(value, left, sums[m][0]);
            sums[m][1] = fma(value, right, sums[m][1]);
        }
    }
}

inline Words load_pairs(const bf16* p) {
    Words w;
    memcpy(&w, p, sizeof w);
    return w;
}

template <>
template <int ROWS>
[[gnu::always_inline]] inline void MicroKernel<float, bf16>::run(
    const float* x, int64_t stride, const bf16* w, int64_t k, Floats (&sums)[ROWS][2], int64_t step) {
    for (int64_t i = 0; i < k; i += 2) {
        Words left = load_pairs(w + i * PANEL), right = load_pairs(w + i * PANEL + 2 * LANES);
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            Floats l = __builtin_bit_cast(Floats, odd ? left & 0xffff0000u : left << 16);
            Floats r = __builtin_bit_cast(Floats, odd ? right & 0xffff0000u : right << 16);
#pragma unroll
            for (int m = 0; m < ROWS; m++) {
                Floats value = splat(x[m * stride + (i + odd) * step]);
                sums[m][0] = fma(value, l, sums[m][0]);
                sums[m][1] = fma(value, r, sums[m][1]);
            }
        }
    }
}

#if defined(__AVX512BF16__)
template <>
struct MicroKernel<bf16, bf16> {
    template <int ROWS>
    [[gnu::always_inline]] static void run(
        const bf16* x, int64_t stride, const bf16* w, int64_t k, Floats (&sums)[ROWS][2], int64_t step = 1) {
        for (int64_t i = 0; i < k; i += 2) {
            auto left = __builtin_bit_cast(__m512bh, load_pairs(w + i * PANEL));
            auto right = __builtin_bit_cast(__m512bh, load_pairs(w + i * PANEL + 2 * LANES));
#pragma unroll
            for (int m = 0; m < ROWS; m++) {
                int pair;
                memcpy(&pair, x + m * stride + i * step, sizeof pair);
                auto value = (__m512bh)_mm512_set1_epi32(pair);
                sums[m][0] = (Floats)_mm512_dpbf16_ps((__m512)sums[m][0], value, left);
                sums[m][1] = (Floats)_mm512_dpbf16_ps((__m512)sums[m][1], value, right);
            }
        }
    }
};
#endif

// What becomes of a tile's sums: y = sums + bias, or y += sums.
template <class Y>
struct Output {
    Y* y;
    int64_t stride;
    const Y* bias;
    bool accumulate;

    void put(int64_t row, int64_t column, Floats value) const {
        Y* place = y + row * stride + column;
        if (bias) value += load(bias + column);
        if (accumulate) value += load(place);
        store(place, value);
    }

    void put_some(int64_t row, int64_t column, Floats value, int64_t count) const {
        float lanes[LANES];
        store(lanes, value);
        for (int64_t i = 0; i < count; i++) {
            Y* place = y + row * stride + column + i;
            float total = lanes[i];
            if (bias) total += load_one(bias + column + i);
            if (accumulate) total += load_one(place);
            store_one(place, total);
        }
    }

    // Sums of a whole tile, as far as there are columns.
    template <int ROWS>
    [[gnu::always_inline]] void put_tile(int64_t row, int64_t column, int64_t columns, const Floats (&sums)[ROWS][2]) const {
#pragma unroll
        for (int m = 0; m < ROWS; m++)
            for (int j = 0; j < 2; j++) {
                int64_t first = column + j * LANES, count = columns - first;
                if (count >= LANES) put(row + m, first, sums[m][j]);
                else if (count > 0) put_some(row + m, first, sums[m][j], count);
            }
    }
};

// A product of few inputs, an adapter's, that joins the sums of each tile: (rows, k) @ panels.
template <class X>
struct Addend {
    const X* x = nullptr;
    const X* panels = nullptr;  // like those of weights
    int64_t k = 0;              // none: no addend
};

// What a tile asks memory for while it multiplies: a line of the next panel for every `every` inputs.
struct Fetch {
    const char* data;
    int64_t every;  // 0: nothing
};

template <int ROWS, class X, class W, class Y>
void tile(const X* x, int64_t row, int64_t panel, const Panels& weights, const Output<Y>& out, const Addend<X>& more,
          const Fetch& fetch) {
    int64_t k = weights.in_features, i = 0;
    Floats sums[ROWS][2] = {};
    const W* w = static_cast<const W*>(weights.data) + panel * k * PANEL;
    if (fetch.every)
        for (const char* line = fetch.data; i + fetch.every <= k; i += fetch.every, line += 64) {
            __builtin_prefetch(line, 0, 2);
            MicroKernel<X, W>::template run<ROWS>(x + row * k + i, k, w + i * PANEL, fetch.every, sums);
        }
    MicroKernel<X, W>::template run<ROWS>(x + row * k + i, k, w + i * PANEL, k - i, sums);
    if (more.k)
        MicroKernel<X, X>::template run<ROWS>(
            more.x + row * more.k, more.k, more.panels + panel * more.k * PANEL, more.k, sums);
    out.template put_tile<ROWS>(row, panel * PANEL, weights.out_features, sums);
}

template <int ROWS, class X, class W, class Y>
void tile_of(int64_t rows, const X* x, int64_t row, int64_t panel, const Panels& weights, const Output<Y>& out,
             const Addend<X>& more, const Fetch& fetch) {
    if (rows == ROWS) tile<ROWS, X, W>(x, row, panel, weights, out, more, fetch);
    else if constexpr (ROWS > 1) tile_of<ROWS - 1, X, W>(rows, x, row, panel, weights, out, more, fetch);
}

// A tile's share of the next panel. Few tiles leave memory no time for it.
template <class W>
Fetch fetch_of(const Panels& weights, int64_t panel, int64_t t, int64_t tiles) {
    constexpr int64_t INPUT_BYTES = PANEL * sizeof(W), LINE_BYTES = 64;
    if (tiles < 4 || panel >= weights.count()) return {nullptr, 0};
    int64_t bytes = weights.in_features * INPUT_BYTES;
    const char* data = static_cast<const char*>(weights.data) + panel * bytes;
    return {data + bytes * t / tiles, tiles * LINE_BYTES / INPUT_BYTES / 2 * 2};
}

// A member's share of the panels, all rows: in chunks that fit a cache, tiles evenly filled.
template <class X, class W, class Y>
void multiply(Member member, const X* x, int64_t rows, const Panels& weights, const Output<Y>& out,
              const Addend<X>& more = {}) {
    int64_t row_bytes = weights.in_features * int64_t(sizeof(X));
    int64_t limit = CHUNK_BYTES / row_bytes > MAX_ROWS ? CHUNK_BYTES / row_bytes : MAX_ROWS;
    int64_t chunks = (rows + limit - 1) / limit;
    for (int64_t c = 0; c < chunks; c++) {
        int64_t begin = rows * c / chunks, count = rows * (c + 1) / chunks - begin;
        int64_t tiles = (count + MAX_ROWS - 1) / MAX_ROWS;
        for (int64_t p = member.first(weights.count()); p < member.last(weights.count()); p++)
            for (int64_t t = 0; t < tiles; t++) {
                int64_t row = begin + count * t / tiles;
                int64_t size = begin + count * (t + 1) / tiles - row;
                tile_of<MAX_ROWS, X, W>(size, x, row, p, weights, out, more, fetch_of<W>(weights, p + 1, t, tiles));
            }
    }
}

// As many inputs as a bf16 panel holds: they come in pairs.
inline int64_t even(int64_t count) { return (count + 1) / 2 * 2; }

// Rows of a matrix as one panel of even(count) rows; what is missing is 0.
inline void pack_panel(const float* rows, int64_t stride, int64_t count, int64_t columns, float* panel) {
    for (int64_t i = 0; i < even(count); i++)
        for (int64_t c = 0; c < PANEL; c++) panel[i * PANEL + c] = i < count && c < columns ? rows[i * stride + c] : 0;
}

typedef uint16_t PanelHalves __attribute__((ext_vector_type(PANEL)));
typedef uint32_t PanelPairs __attribute__((ext_vector_type(PANEL)));

inline PanelHalves load_halves(const bf16* row, int64_t columns) {
    PanelHalves halves = 0;
    if (columns >= PANEL) memcpy(&halves, row, sizeof halves);
    else memcpy(&halves, row, size_t(columns) * sizeof(bf16));
    return halves;
}

inline PanelPairs paired(PanelHalves even_row, PanelHalves odd_row) {
    return __builtin_convertvector(odd_row, PanelPairs) << 16 | __builtin_convertvector(even_row, PanelPairs);
}

inline void pack_panel(const bf16* rows, int64_t stride, int64_t count, int64_t columns, bf16* panel) {
    for (int64_t i = 0; i < count; i += 2) {
        PanelHalves odd_row = 0;
        if (i + 1 < count) odd_row = load_halves(rows + (i + 1) * stride, columns);
        PanelPairs pairs = paired(load_halves(rows + i * stride, columns), odd_row);
        memcpy(panel + i * PANEL, &pairs, sizeof pairs);
    }
}

// A matrix (rows, k) that meets a panel; see MicroKernel.
template <class X>
struct Rows {
    const X* x;
    int64_t count, stride, step = 1;
};

template <int ROWS, class X, class Y>
void multiply_rows(const Rows<X>& left, int64_t row, int64_t count, const X* panel, int64_t k, const Output<Y>& out,
                   int64_t columns) {
    if (count == ROWS) {
        Floats sums[ROWS][2] = {};
        if (left.step == 1) MicroKernel<X, X>::template run<ROWS>(left.x + row * left.stride, left.stride, panel, k, sums);
        else MicroKernel<X, X>::template run<ROWS>(left.x + row * left.stride, left.stride, panel, k, sums, left.step);
        out.template put_tile<ROWS>(row, 0, columns, sums);
    } else if constexpr (ROWS > 1) {
        multiply_rows<ROWS - 1>(left, row, count, panel, k, out, columns);
    }
}

// out (rows, columns) of a matrix @ one panel.
template <class X, class Y>
void multiply_panel(const Rows<X>& left, const X* panel, int64_t k, const Output<Y>& out, int64_t columns) {
    int64_t tiles = (left.count + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        int64_t row = left.count * t / tiles, count = left.count * (t + 1) / tiles - row;
        multiply_rows<MAX_ROWS>(left, row, count, panel, k, out, columns);
    }
}
