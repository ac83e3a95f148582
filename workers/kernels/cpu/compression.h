// What KV policies ask of a prompt: how much attention each key gets, and which kept token each other
// one is most like. A tile is up to MAX_TILE rows in the lanes of vectors; keys stream past it as in
// attention, and nothing as large as rows x keys is ever stored.
#pragma once
#include "attention.h"

// Rows packed as panels; the lanes after the last row repeat the first.
template <class T>
struct RowTile {
    alignas(64) T panels[MAX_TILE * MAX_HEAD_DIM];
    int64_t used, lanes;

    // `row(i)` is where row i begins.
    template <class Row>
    void pack(int64_t count, int64_t dim, Row row) {
        used = count;
        lanes = (count + PANEL - 1) / PANEL * PANEL;
        for (int64_t lane = 0; lane < lanes; lane++) pack_lane(panels, lane, row(lane < used ? lane : 0), dim);
    }

    // products (count, lanes) of `count` rows that lie `stride` apart.
    void products(const T* rows, int64_t stride, int64_t count, int64_t dim, float* out) const {
        score_rows<MAX_ROWS>(rows, stride, count, panels, dim, lanes / PANEL, out);
    }
};

// Queries (heads, num_queries, dim) that see the keys up to `positions`, keys `token_stride` and `head_stride`
// apart, what is added to their logits, and the attention that each key gets from all of a head's queries:
// sums (heads, num_keys).
template <class T>
struct AttendedKeys {
    const T *queries, *keys;
    const int32_t* positions;
    const float* log_counts;  // (kv_heads, num_keys), or null: nothing is added
    float *sums, *scratch;  // scratch (threads, num_keys, MAX_TILE)
    int64_t heads, kv_heads, dim, num_queries, num_keys, token_stride, head_stride;

    void add_head(Member member, int64_t head) const {
        float* scores = scratch + member.index * num_keys * MAX_TILE;
        memset(sums + head * num_keys, 0, size_t(num_keys) * sizeof(float));
        for (int64_t first = 0; first < num_queries; first += MAX_TILE) {
            int64_t left = num_queries - first;
            add_tile(head, first, left < MAX_TILE ? left : MAX_TILE, scores);
        }
    }

private:
    void add_tile(int64_t head, int64_t first, int64_t count, float* scores) const {
        RowTile<T> tile;
        alignas(64) int32_t at[MAX_TILE];
        tile.pack(count, dim, [&](int64_t i) { return queries + (head * num_queries + first + i) * dim; });
        int64_t stop = 0;
        for (int64_t lane = 0; lane < tile.lanes; lane++) {
            at[lane] = positions[first + (lane < count ? lane : 0)];
            if (at[lane] >= stop) stop = at[lane] + 1;
        }
        const T* own = keys + head / (heads / kv_heads) * head_stride;
        tile.products(own, token_stride, stop, dim, scores);
        const float* added = log_counts ? log_counts + head / (heads / kv_heads) * num_keys : nullptr;
        for (int64_t l = 0; l < tile.lanes; l += LANES) weigh(stop, at + l, count - l, added, scores + l);
        for (int64_t i = 0; i < stop; i++) {
            Floats total = splat(0);
            for (int64_t l = 0; l < tile.lanes; l += LANES) total += load(scores + i * MAX_TILE + l);
            sums[head * num_keys + i] += sum(total);
        }
    }

    // Turns the products of LANES queries with keys 0 .. stop into attention; lanes from `used` on are 0.
    void weigh(int64_t stop, const int32_t* at, int64_t used, const float* added, float* scores) const {
        Floats scale = splat(1.0f / sqrtf(float(dim))), top = splat(MASKED), mass = splat(0), share;
        Ints position;
        memcpy(&position, at, sizeof position);
        for (int64_t i = 0; i < stop; i++) {
            float* place = scores + i * MAX_TILE;
            Floats seen = fma(load(place), scale, splat(added ? added[i] : 0.0f));
            Floats logit = Ints(int32_t(i)) > position ? splat(MASKED) : larger(seen, splat(MASKED));
            store(place, logit);
            top = larger(top, logit);
        }
        for (int64_t i = 0; i < stop; i++) {
            Floats weight = exponential(load(scores + i * MAX_TILE) - top);
            store(scores + i * MAX_TILE, weight);
            mass += weight;
        }
        for (int lane = 0; lane < LANES; lane++) share[lane] = lane < used ? 1 / mass[lane] : 0;
        for (int64_t i = 0; i < stop; i++) store(scores + i * MAX_TILE, load(scores + i * MAX_TILE) * share);
    }
};

// Of tokens (heads, num_rows), each a key and a value, the centre of (heads, num_centres) with the
// largest relu(cos of keys) * relu(cos of values), the first of equals; those below `floor` find none:
// slot 0, likeness 0. Few values are as much alike as that, so keys are multiplied for their centres only.
template <class T>
struct LikestCentres {
    const T *row_keys, *row_values, *centre_keys, *centre_values;  // (heads, rows or centres, dim)
    const float *row_key_scales, *row_value_scales, *centre_key_scales, *centre_value_scales;  // 1 / norm
    int64_t* slots;  // (heads, num_rows)
    float* likeness;
    int64_t heads, dim, num_rows, num_centres;
    float floor;

    int64_t tiles() const { return (num_rows + MAX_TILE - 1) / MAX_TILE; }

    void find(int64_t head, int64_t tile) const {
        int64_t first = head * num_rows + tile * MAX_TILE, left = num_rows - tile * MAX_TILE;
        int64_t used = left < MAX_TILE ? left : MAX_TILE;
        Side near, alike;
        near.pack(row_keys + first * dim, row_key_scales + first, used, dim);
        alike.pack(row_values + first * dim, row_value_scales + first, used, dim);
        Floats best[MAX_TILE / LANES] = {};
        Ints slot[MAX_TILE / LANES] = {};
        for (int64_t block = 0; block < num_centres; block += KEY_BLOCK) {
            int64_t size = num_centres - block < KEY_BLOCK ? num_centres - block : KEY_BLOCK;
            search(near, alike, head * num_centres + block, size, block, best, slot);
        }
        for (int64_t lane = 0; lane < used; lane++) {
            bool is_found = best[lane / LANES][lane % LANES] >= floor;
            slots[first + lane] = is_found ? slot[lane / LANES][lane % LANES] : 0;
            likeness[first + lane] = is_found ? best[lane / LANES][lane % LANES] : 0;
        }
    }

private:
    static constexpr float ROUNDING = 1e-3f;  // cosines are at most so much above 1

    // Keys or values of a tile's rows, and 1 / norm of each.
    struct Side {
        RowTile<T> tile;
        alignas(64) float scales[MAX_TILE];

        void pack(const T* rows, const float* row_scales, int64_t used, int64_t dim) {
            tile.pack(used, dim, [&](int64_t i) { return rows + i * dim; });
            for (int64_t lane = 0; lane < tile.lanes; lane++) scales[lane] = row_scales[lane < used ? lane : 0];
        }

        Floats cosine(const float* products, int64_t row, int64_t vector, float scale) const {
            return load(products + row * MAX_TILE + vector * LANES) * load(scales + vector * LANES) * scale;
        }
    };

    // Takes in the centres from `start` on, counted over all heads; `block` is the first one's slot.
    void search(const Side& near, const Side& alike, int64_t start, int64_t size, int64_t block, Floats* best,
                Ints* slot) const {
        alignas(64) float by_key[KEY_BLOCK * MAX_TILE], by_value[KEY_BLOCK * MAX_TILE];
        alignas(64) T keys[KEY_BLOCK * MAX_HEAD_DIM];
        int64_t chosen[KEY_BLOCK], count = 0, vectors = alike.tile.lanes / LANES;
        alike.tile.products(centre_values + start * dim, dim, size, dim, by_value);
        for (int64_t i = 0; i < size; i++)
            if (is_alike(alike, by_value, i, centre_value_scales[start + i], vectors)) chosen[count++] = i;
        for (int64_t n = 0; n < count; n++)
            memcpy(keys + n * dim, centre_keys + (start + chosen[n]) * dim, size_t(dim) * sizeof(T));
        near.tile.products(keys, dim, count, dim, by_key);
        for (int64_t n = 0; n < count; n++) {
            int64_t i = chosen[n], centre = start + i;
            for (int64_t j = 0; j < vectors; j++) {
                Floats by_keys = larger(near.cosine(by_key, n, j, centre_key_scales[centre]), splat(0));
                Floats both = by_keys * larger(alike.cosine(by_value, i, j, centre_value_scales[centre]), splat(0));
                slot[j] = both > best[j] ? Ints(int32_t(block + i)) : slot[j];
                best[j] = larger(best[j], both);
            }
        }
    }

    // Whether the value of any row is so much like a centre's that the two could reach `floor`.
    bool is_alike(const Side& alike, const float* by_value, int64_t i, float scale, int64_t vectors) const {
        Ints any = {};
        for (int64_t j = 0; j < vectors; j++)
            any |= alike.cosine(by_value, i, j, scale) >= floor * (1 - ROUNDING);
        return __builtin_reduce_or(any) != 0;
    }
};
