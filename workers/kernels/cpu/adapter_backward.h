// Gradients of an adapter over the rows of one unit, and what it adds to the gradient of its input.
//   s = x @ shrink.T;  m = s @ middle.T;  d_expand += m.T @ grad
//   dm = grad @ expand.T;  d_middle += dm.T @ s;  ds = dm @ middle;  d_shrink += ds.T @ x
//   grad_x += ds @ shrink
// All four are kept in the storage dtype, as the machine's products take them; sums are float32.
// Without a middle m is s, and ds is dm.
#pragma once
#include "adapters.h"

// Where one linear's gradients are summed; null: they are not wanted.
struct TermSums {
    float* shrink;
    float* expand[MAX_PROJECTIONS];
    float* middle[MAX_PROJECTIONS];
};

template <class T>
struct AdapterScratch {
    T *shrunk, *grad_middled;  // s.T and dm.T, (ranks, rows)
    T *middled, *grad_shrunk;  // m.T and ds.T, likewise; the same memory where there is no middle
    T* grad_rows;              // ds, (rows, ranks)
    T* panels;                 // of shrink
};

constexpr int64_t PACKED_ROWS = 256;  // rows of one packed panel: it stays in L1

template <class T>
struct AdapterBackward {
    Member member;
    const AdaptedLinear& linear;
    const Run& run;
    const AdapterScratch<T>& scratch;
    const T *x, *grad;  // (rows, in_features), (rows, out_features)

    int64_t rows() const { return run.stop - run.start; }
    int64_t ranks() const { return linear.num_projections * run.rank; }
    const T* own_shrink() const {
        return static_cast<const T*>(linear.shrink) + linear.num_projections * run.column * linear.in_features;
    }

    // A member's rows of s and ds.
    void shrink_rows() const {
        int64_t first = member.first(rows()), last = member.last(rows());
        for (int64_t i = first; i < last; i += SHRINK_ROWS) {
            int64_t count = last - i < SHRINK_ROWS ? last - i : SHRINK_ROWS;
            dot(own_shrink(), ranks(), x + i * linear.in_features, linear.in_features, linear.in_features, i, count,
                scratch.shrunk);
            for (int64_t j = 0; j < linear.num_projections; j++) {
                shrink_grads(j, i, count);
                if (run.middle) join_rows(j, i, count);
            }
        }
        if (last == rows()) pad();
        for (int64_t i = first; i < last; i++) {
            for (int64_t c = 0; c < ranks(); c++)
                scratch.grad_rows[i * even(ranks()) + c] = scratch.grad_shrunk[c * even(rows()) + i];
            if (ranks() % 2) store_one(scratch.grad_rows + i * even(ranks()) + ranks(), 0);
        }
    }

    void shrink_grads(int64_t j, int64_t row, int64_t count) const {
        T* out = scratch.grad_middled + j * run.rank * even(rows());
        int64_t width = linear.width(j);
        if (linear.has(run, j)) {
            dot(static_cast<const T*>(linear.expand[j]) + run.column * width, run.rank,
                grad + row * linear.out_features + linear.first_output[j], linear.out_features, width, row, count, out);
        } else {
            for (int64_t c = 0; c < run.rank; c++) memset(out + c * even(rows()) + row, 0, size_t(count) * sizeof(T));
        }
    }

    // m and ds of one projection, from s and dm.
    void join_rows(int64_t j, int64_t row, int64_t count) const {
        const T* middle = linear.template middle<T>(run, j);
        int64_t at = j * run.rank * even(rows()) + row, diagonal = run.middle == 1;
        for (int64_t c = 0; c < run.rank; c++) {
            int64_t out = at + c * even(rows());
            int64_t first = diagonal ? c : 0, last = diagonal ? c + 1 : run.rank;
            for (int64_t i = 0; i < count; i += LANES) {
                Floats sum = {}, grad_sum = {};
                for (int64_t k = first; k < last; k++) {
                    int64_t in = at + k * even(rows()) + i;
                    Floats value = splat(load_one(middle + (diagonal ? c : c * run.rank + k)));
                    Floats back = splat(load_one(middle + (diagonal ? c : k * run.rank + c)));
                    sum = fma(value, load_some(scratch.shrunk + in, count - i), sum);
                    grad_sum = fma(back, load_some(scratch.grad_middled + in, count - i), grad_sum);
                }
                store_some(scratch.middled + out + i, sum, count - i);
                store_some(scratch.grad_shrunk + out + i, grad_sum, count - i);
            }
        }
    }

    // out (columns, rows): dots of `columns` rows of a matrix with `count` rows of the batch.
    void dot(const T* matrix, int64_t columns, const T* batch, int64_t stride, int64_t width, int64_t row,
             int64_t count, T* out) const {
        alignas(64) float products[SHRINK_COLUMNS * SHRINK_ROWS];
        for (int64_t c = 0; c < columns; c += SHRINK_COLUMNS) {
            int64_t some = columns - c < SHRINK_COLUMNS ? columns - c : SHRINK_COLUMNS;
            dot_rows(matrix + c * width, width, some, batch, stride, count, width, products, SHRINK_ROWS);
            for (int64_t k = 0; k < some; k++)
                for (int64_t i = 0; i < count; i += LANES)
                    store_some(out + (c + k) * even(rows()) + row + i, load(products + k * SHRINK_ROWS + i), count - i);
        }
    }

    // The row that makes their number even.
    void pad() const {
        if (rows() % 2 == 0) return;
        for (int64_t c = 0; c < ranks(); c++) {
            store_one(scratch.middled + c * even(rows()) + rows(), 0);
            store_one(scratch.grad_shrunk + c * even(rows()) + rows(), 0);
        }
    }

    // A member's columns of d_expand and d_shrink, and its rows of d_middle.
    void add_weights(const TermSums& sums) const {
        for (int64_t j = 0; j < linear.num_projections; j++) {
            if (linear.has(run, j) && sums.expand[j])
                add_columns(scratch.middled + j * run.rank * even(rows()), run.rank, grad + linear.first_output[j],
                            linear.out_features, linear.width(j), sums.expand[j]);
            if (linear.has(run, j) && sums.middle[j]) add_middle(j, sums.middle[j]);
        }
        if (sums.shrink)
            add_columns(scratch.grad_shrunk, ranks(), x, linear.in_features, linear.in_features, sums.shrink);
    }

    // total (rank, rank or 1) += dm.T @ s of one projection
    void add_middle(int64_t j, float* total) const {
        const T *grads = scratch.grad_middled + j * run.rank * even(rows());
        const T *shrunk = scratch.shrunk + j * run.rank * even(rows());
        for (int64_t c = member.first(run.rank); c < member.last(run.rank); c++)
            for (int64_t k = 0; k < run.middle; k++) {
                float product;
                const T* row = shrunk + (run.middle == 1 ? c : k) * even(rows());
                dot_block<1, 1>(grads + c * even(rows()), 0, row, 0, rows(), &product, 1);
                total[c * run.middle + k] += product;
            }
    }

    // total (ranks, width) += factors (ranks, rows) @ matrix (rows, width)
    void add_columns(const T* factors, int64_t ranks, const T* matrix, int64_t stride, int64_t width,
                     float* total) const {
        alignas(64) T panel[PACKED_ROWS * PANEL];
        int64_t panels = (width + PANEL - 1) / PANEL;
        for (int64_t p = member.first(panels); p < member.last(panels); p++) {
            Output<float> out{total + p * PANEL, width, nullptr, true};
            for (int64_t i = 0; i < rows(); i += PACKED_ROWS) {
                int64_t count = rows() - i < PACKED_ROWS ? rows() - i : PACKED_ROWS;
                pack_panel(matrix + i * stride + p * PANEL, stride, count, width - p * PANEL, panel);
                multiply_panel<T>({factors + i, ranks, even(rows())}, panel, even(count), out, width - p * PANEL);
            }
        }
    }

    // ds @ shrink, for the columns that are this member's in the product with the weights.
    Addend<T> addend() const {
        int64_t panels = (linear.in_features + PANEL - 1) / PANEL, k = even(ranks());
        for (int64_t p = member.first(panels); p < member.last(panels); p++)
            pack_panel(own_shrink() + p * PANEL, linear.in_features, ranks(), linear.in_features - p * PANEL,
                       scratch.panels + p * k * PANEL);
        return {scratch.grad_rows, scratch.panels, k};
    }
};
