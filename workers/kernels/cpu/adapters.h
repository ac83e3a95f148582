// What each row's own adapter adds to a linear.
//
// Rows of one adapter form a run. A linear of several projections has one shrink matrix, where an
// adapter of rank r at column c holds rows [n * c, n * (c + r)), a block of r for each projection,
// and one expand matrix (columns, outputs) for each projection, where it holds rows [c, c + r). Its
// middles, if it has any, are (projections of all layers, r, 1) diagonals or (.., r, r) matrices.
#pragma once
#include "gemm.h"

constexpr int MAX_PROJECTIONS = 3;

struct Run {
    int64_t start, stop;  // rows of the batch
    int64_t column, rank;
    int64_t targets;  // bit j of linear i: 1 << (MAX_PROJECTIONS * i + j)
    int64_t middle;   // numbers in a row of a projection's middle: 1 or rank; 0: it has none
    const void* middles;
};

struct AdaptedLinear {
    int64_t index;  // of the linear in its layer
    int64_t first_middle;  // projections of all layers before its own
    int64_t num_projections;
    int64_t in_features, out_features;
    const void* shrink;
    const void* expand[MAX_PROJECTIONS];
    int64_t first_output[MAX_PROJECTIONS + 1];

    bool has(const Run& run, int64_t projection) const {
        return run.targets >> (MAX_PROJECTIONS * index + projection) & 1;
    }
    bool is_adapted(const Run& run) const {
        return run.targets >> (MAX_PROJECTIONS * index) & ((1 << MAX_PROJECTIONS) - 1);
    }
    int64_t width(int64_t projection) const {
        return first_output[projection + 1] - first_output[projection];
    }
    template <class T>
    const T* middle(const Run& run, int64_t projection) const {
        return static_cast<const T*>(run.middles) + (first_middle + projection) * run.rank * run.middle;
    }
};

inline Floats dot_step(const float* a, const float* b, Floats total) {
    total = fma(load(a), load(b), total);
    return fma(load(a + LANES), load(b + LANES), total);
}

inline Floats dot_step(const bf16* a, const bf16* b, Floats total) {
#if defined(__AVX512BF16__)
    auto left = __builtin_bit_cast(__m512bh, load_pairs(a));
    auto right = __builtin_bit_cast(__m512bh, load_pairs(b));
    return (Floats)_mm512_dpbf16_ps((__m512)total, left, right);
#else
    total = fma(load(a), load(b), total);
    return fma(load(a + LANES), load(b + LANES), total);
#endif
}

// out[i][j] = dot(a row i, b row j) over n, for a small block of rows.
template <int M, int N, class T>
void dot_block(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t n, float* out, int64_t ldo) {
    Floats totals[M][N] = {};
    int64_t k = 0;
    for (; k + PANEL <= n; k += PANEL)
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
                totals[i][j] = dot_step(a + i * lda + k, b + j * ldb + k, totals[i][j]);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float rest = 0;
            for (int64_t t = k; t < n; t++) rest += load_one(a + i * lda + t) * load_one(b + j * ldb + t);
            out[i * ldo + j] = sum(totals[i][j]) + rest;
        }
}

constexpr int DOT_ROWS = 4;

// out (rows, columns) = a (rows, n) @ b (columns, n).T, for some rows.
template <class T>
void dot_rows(
    const T* a, int64_t lda, int64_t rows, const T* b, int64_t ldb, int64_t columns, int64_t n,
    float* out, int64_t ldo) {
    int64_t i = 0;
    for (; i + DOT_ROWS <= rows; i += DOT_ROWS) {
        int64_t j = 0;
        for (; j + DOT_ROWS <= columns; j += DOT_ROWS)
            dot_block<DOT_ROWS, DOT_ROWS>(a + i * lda, lda, b + j * ldb, ldb, n, out + i * ldo + j, ldo);
        for (; j < columns; j++)
            dot_block<DOT_ROWS, 1>(a + i * lda, lda, b + j * ldb, ldb, n, out + i * ldo + j, ldo);
    }
    for (; i < rows; i++) {
        int64_t j = 0;
        for (; j + DOT_ROWS <= columns; j += DOT_ROWS)
            dot_block<1, DOT_ROWS>(a + i * lda, lda, b + j * ldb, ldb, n, out + i * ldo + j, ldo);
        for (; j < columns; j++)
            dot_block<1, 1>(a + i * lda, lda, b + j * ldb, ldb, n, out + i * ldo + j, ldo);
    }
}

// y[i][o] += sum over r of s[i][r] * e[r][o], for ROWS rows.
template <int ROWS, class T, class Y>
void expand_block(
    const float* s, int64_t row_stride, int64_t rank_stride, const T* e, int64_t lde, int64_t rank,
    Y* y, int64_t ldy, int64_t outputs) {
    int64_t o = 0;
    for (; o + PANEL <= outputs; o += PANEL) {
        Floats sums[ROWS][2] = {};
        for (int64_t r = 0; r < rank; r++) {
            Floats left = load(e + r * lde + o), right = load(e + r * lde + o + LANES);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                Floats value = splat(s[i * row_stride + r * rank_stride]);
                sums[i][0] = fma(value, left, sums[i][0]);
                sums[i][1] = fma(value, right, sums[i][1]);
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < 2; j++) {
                Y* place = y + i * ldy + o + j * LANES;
                store(place, load(place) + sums[i][j]);
            }
    }
    for (; o < outputs; o++)
        for (int i = 0; i < ROWS; i++) {
            float total = 0;
            for (int64_t r = 0; r < rank; r++)
                total += s[i * row_stride + r * rank_stride] * load_one(e + r * lde + o);
            store_one(y + i * ldy + o, load_one(y + i * ldy + o) + total);
        }
}

constexpr int EXPAND_ROWS = 8;

// y (rows, outputs) += s (rows, rank) @ e (rank, outputs); s by its two strides.
template <int ROWS = EXPAND_ROWS, class T, class Y>
void expand_rows(
    const float* s, int64_t row_stride, int64_t rank_stride, int64_t rows, const T* e, int64_t lde,
    int64_t rank, Y* y, int64_t ldy, int64_t outputs) {
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        expand_block<ROWS>(
            s + i * row_stride, row_stride, rank_stride, e, lde, rank, y + i * ldy, ldy, outputs);
    if constexpr (ROWS > 1)
        if (i < rows)
            expand_rows<ROWS - 1>(
                s + i * row_stride, row_stride, rank_stride, rows - i, e, lde, rank, y + i * ldy, ldy,
                outputs);
}

constexpr int64_t SHRINK_ROWS = 32;     // rows of one piece of work
constexpr int64_t SHRINK_COLUMNS = 16;  // shrunk columns of one piece of work

// A member's share of x @ shrink.T for all runs, into shrunk (rows, ld).
template <class T>
void shrink(Member member, const AdaptedLinear& linear, const Run* runs, int64_t num_runs,
            const T* x, float* shrunk, int64_t ld) {
    int64_t piece = 0;
    for (int64_t n = 0; n < num_runs; n++) {
        const Run& run = runs[n];
        if (!linear.is_adapted(run)) continue;
        int64_t width = linear.num_projections * run.rank;
        const T* a = static_cast<const T*>(linear.shrink)
            + linear.num_projections * run.column * linear.in_features;
        for (int64_t i = run.start; i < run.stop; i += SHRINK_ROWS)
            for (int64_t c = 0; c < width; c += SHRINK_COLUMNS) {
                if (piece++ % member.size != member.index) continue;
                int64_t rows = run.stop - i < SHRINK_ROWS ? run.stop - i : SHRINK_ROWS;
                int64_t columns = width - c < SHRINK_COLUMNS ? width - c : SHRINK_COLUMNS;
                dot_rows(
                    x + i * linear.in_features, linear.in_features, rows, a + c * linear.in_features,
                    linear.in_features, columns, linear.in_features, shrunk + i * ld + c, ld);
            }
    }
}

constexpr int64_t MAX_RANK = 512;  // of an adapter with a matrix

// One row of shrunk columns of one projection through a middle, in place.
template <class T>
void join_row(const T* middle, int64_t numbers, int64_t rank, float* shrunk) {
    if (numbers == 1) {
        for (int64_t r = 0; r < rank; r++) shrunk[r] *= load_one(middle + r);
        return;
    }
    float row[MAX_RANK];
    memcpy(row, shrunk, size_t(rank) * sizeof(float));
    for (int64_t r = 0; r < rank; r++) {
        float total = 0;
        for (int64_t k = 0; k < rank; k++) total += load_one(middle + r * rank + k) * row[k];
        shrunk[r] = total;
    }
}

inline bool have_middles(const AdaptedLinear& linear, const Run* runs, int64_t num_runs) {
    for (int64_t n = 0; n < num_runs; n++)
        if (runs[n].middle && linear.is_adapted(runs[n])) return true;
    return false;
}

// A member's share of shrunk through the middles of the runs: its own rows.
template <class T>
void join(Member member, const AdaptedLinear& linear, const Run* runs, int64_t num_runs, float* shrunk, int64_t ld) {
    for (int64_t n = 0; n < num_runs; n++) {
        const Run& run = runs[n];
        if (!run.middle || !linear.is_adapted(run)) continue;
        int64_t rows = run.stop - run.start;
        for (int64_t i = run.start + member.first(rows); i < run.start + member.last(rows); i++)
            for (int64_t j = 0; j < linear.num_projections; j++)
                join_row(linear.middle<T>(run, j), run.middle, run.rank, shrunk + i * ld + j * run.rank);
    }
}

// A member's share of y += shrunk @ expand: its own range of outputs, all rows.
template <class T>
void expand(Member member, const AdaptedLinear& linear, const Run* runs, int64_t num_runs,
            const float* shrunk, int64_t ld, T* y) {
    for (int64_t j = 0; j < linear.num_projections; j++) {
        int64_t panels = (linear.width(j) + PANEL - 1) / PANEL;
        int64_t first = member.first(panels) * PANEL, last = member.last(panels) * PANEL;
        if (last > linear.width(j)) last = linear.width(j);
        if (first >= last) continue;
        for (int64_t n = 0; n < num_runs; n++) {
            const Run& run = runs[n];
            if (!linear.has(run, j)) continue;
            const T* e = static_cast<const T*>(linear.expand[j]) + run.column * linear.width(j) + first;
            expand_rows(
                shrunk + run.start * ld + j * run.rank, ld, 1, run.stop - run.start, e, linear.width(j),
                run.rank, y + run.start * linear.out_features + linear.first_output[j] + first,
                linear.out_features, last - first);
        }
    }
}

// y += what each run's adapter adds, by a team whose members all come here.
template <class T>
void add_adapters(Member member, const AdaptedLinear& linear, const Run* runs, int64_t num_runs, const T* x,
                  float* shrunk, int64_t ld, T* y) {
    shrink(member, linear, runs, num_runs, x, shrunk, ld);
    member.barrier();
    if (have_middles(linear, runs, num_runs)) {
        join<T>(member, linear, runs, num_runs, shrunk, ld);
        member.barrier();
    }
    expand(member, linear, runs, num_runs, shrunk, ld, y);
}
