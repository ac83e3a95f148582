// Vectors of the machine's width, and bf16 as 16-bit storage: every sum is float32.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Floats __attribute__((ext_vector_type(LANES)));
typedef uint32_t Words __attribute__((ext_vector_type(LANES)));
typedef int32_t Ints __attribute__((ext_vector_type(LANES)));
typedef uint16_t Halves __attribute__((ext_vector_type(LANES)));

struct bf16 {
    uint16_t bits;
};

inline Floats splat(float x) { return Floats(x); }

inline Floats load(const float* p) {
    Floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }

inline Floats load(const bf16* p) {
    Halves h;
    memcpy(&h, p, sizeof h);
    return __builtin_bit_cast(Floats, __builtin_convertvector(h, Words) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, Floats v) {
#if defined(__AVX512BF16__)
    auto h = _mm512_cvtneps_pbh(__builtin_bit_cast(__m512, v));
#else
    Words w = __builtin_bit_cast(Words, v);
    Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    Words is_nan = __builtin_bit_cast(Words, Ints((w & 0x7fffffff) > 0x7f800000));
    Halves h = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Halves);
#endif
    static_assert(sizeof h == sizeof(Halves));
    memcpy(p, &h, sizeof h);
}

inline float load_one(const float* p) { return *p; }

inline float load_one(const bf16* p) {
    uint32_t w = uint32_t(p->bits) << 16;
    return __builtin_bit_cast(float, w);
}

inline void store_one(float* p, float x) { *p = x; }

inline void store_one(bf16* p, float x) {
    uint32_t w = __builtin_bit_cast(uint32_t, x);
    bool is_nan = (w & 0x7fffffff) > 0x7f800000;
    p->bits = is_nan ? 0x7fc0 : uint16_t((w + 0x7fff + ((w >> 16) & 1)) >> 16);
}

inline Floats fma(Floats a, Floats b, Floats c) { return __builtin_elementwise_fma(a, b, c); }

inline float sum(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(__builtin_bit_cast(__m512, v));
#else
    float lanes[LANES];
    store(lanes, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
#endif
}

// v with lanes l and l ^ H exchanged.
template <int H>
Floats exchange(Floats v) {
#if defined(__AVX512F__)
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H, 4 ^ H, 5 ^ H, 6 ^ H, 7 ^ H, 8 ^ H, 9 ^ H,
                                   10 ^ H, 11 ^ H, 12 ^ H, 13 ^ H, 14 ^ H, 15 ^ H);
#else
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H, 4 ^ H, 5 ^ H, 6 ^ H, 7 ^ H);
#endif
}

// Vectors of a square, turned about its diagonal.
template <int H = LANES / 2>
void transpose(Floats* v) {
    if constexpr (H > 0) {
        Ints lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        Ints is_upper = (lanes & H) != 0;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            if (i & H) continue;
            Floats low = v[i], high = v[i + H];
            v[i] = is_upper ? exchange<H>(high) : low;
            v[i + H] = is_upper ? high : exchange<H>(low);
        }
        transpose<H / 2>(v);
    }
}

// Lane i of the result is the sum of vector i: a transpose whose steps add.
template <int H = LANES / 2>
Floats sums_of(Floats* v) {
    if constexpr (H == 0) {
        return v[0];
    } else {
        Ints lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        Ints is_upper = (lanes & H) != 0;
#pragma unroll
        for (int i = 0; i < H; i++)
            v[i] = (is_upper ? v[i + H] : v[i]) + exchange<H>(is_upper ? v[i] : v[i + H]);
        return sums_of<H / 2>(v);
    }
}

inline Floats larger(Floats a, Floats b) { return __builtin_elementwise_max(a, b); }

// e^x to about 2 units in the last place; 0 below -87, infinity above 88, NaN of NaN.
// Cody and Waite 1980: x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial of degree 6 in r.
inline Floats exponential(Floats x) {
    Floats bounded = __builtin_elementwise_min(__builtin_elementwise_max(x, splat(-104.0f)), splat(89.0f));
    Floats n = __builtin_elementwise_roundeven(bounded * 1.44269504f);
    Floats r = fma(n, splat(-0.693359375f), bounded);
    r = fma(n, splat(2.12194440e-4f), r);
    Floats p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
    Ints exponent = __builtin_convertvector(n, Ints);
    Ints half = exponent >> 1;  // in two factors: 2^n alone may not be representable
    Floats low = __builtin_bit_cast(Floats, (half + 127) << 23);
    Floats high = __builtin_bit_cast(Floats, (exponent - half + 127) << 23);
    Floats result = p * low * high;
    return x != x ? x : result;
}
