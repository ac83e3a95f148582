// y = x @ W.T, or x @ W, where W lies in codes of few bits: each panel is widened to bf16 once, into
// a cache, and all rows then stream past it. What it is widened to is the same to the last bit as
// what Python dequantizes.
#pragma once
#include "gemm.h"

#if defined(__AVX512BF16__)

// Rows are of whole PANELs of inputs, and so are the groups that share a scale.
struct CodedMatrix {
    const void* codes;     // (outputs, inputs), in int4 two to a byte
    const float* scales;   // (outputs, groups)
    const uint8_t* zeros;  // of int4, like scales
    int64_t outputs, inputs, groups;
    int64_t group_bits;  // a group is 2^group_bits inputs; more than a row has: the row is one group

    int64_t group_of(int64_t output, int64_t input) const { return output * groups + (input >> group_bits); }
};

template <int CODES_PER_BYTE>
const char* place_of(const CodedMatrix& w, int64_t output, int64_t input) {
    return static_cast<const char*>(w.codes) + (output * w.inputs + input) / CODES_PER_BYTE;
}

inline PanelHalves narrowed(__m512 low, __m512 high) {
    return __builtin_bit_cast(PanelHalves, _mm512_cvtne2ps_pbh(high, low));
}

// PANEL weights of one output, from an input on.
struct Int8Codes {
    static constexpr auto place = place_of<1>;

    static PanelHalves widen(const CodedMatrix& w, int64_t output, int64_t input) {
        __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place(w, output, input)));
        __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(all)));
        __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(all, 1)));
        __m512 scale = _mm512_set1_ps(w.scales[w.group_of(output, input)]);
        return narrowed(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale));
    }
};

struct Int4Codes {
    static constexpr auto place = place_of<2>;

    static PanelHalves widen(const CodedMatrix& w, int64_t output, int64_t input) {
        __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(place(w, output, input)));
        __m128i nibble = _mm_set1_epi8(15);
        __m128i even = _mm_and_si128(pairs, nibble), odd = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
        int64_t group = w.group_of(output, input);
        __m512 scale = _mm512_set1_ps(w.scales[group]);
        __m512i zero = _mm512_set1_epi32(w.zeros[group]);
        __m512i low = _mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(even, odd)), zero);
        __m512i high = _mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_unpackhi_epi8(even, odd)), zero);
        return narrowed(_mm512_mul_ps(_mm512_cvtepi32_ps(low), scale), _mm512_mul_ps(_mm512_cvtepi32_ps(high), scale));
    }
};

// An e4m3 is a half of the same bits, moved, times 2^8; halves below the normal ones included.
struct Fp8Codes {
    static constexpr auto place = place_of<1>;

    static PanelHalves widen(const CodedMatrix& w, int64_t output, int64_t input) {
        __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place(w, output, input)));
        __m512i wide = _mm512_cvtepi8_epi16(all);
        __m512i halves = _mm512_and_si512(_mm512_slli_epi16(wide, 7), _mm512_set1_epi16(int16_t(0xbf80)));
        __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
        __m512 scale = _mm512_set1_ps(w.scales[w.group_of(output, input)] * 256.0f);
        return narrowed(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale));
    }
};

// Rows lie far apart, so memory is asked in time for what is widened AHEAD rows later.
constexpr int64_t AHEAD = 16;

template <class Codes>
PanelHalves widen(const CodedMatrix& w, int64_t output, int64_t input) {
    __builtin_prefetch(Codes::place(w, output + AHEAD, input), 0, 2);
    return Codes::widen(w, output, input);
}

// PANEL outputs and all inputs as a panel; outputs beyond the last are 0.
template <class Codes>
void widen_outputs(const CodedMatrix& w, int64_t first, bf16* panel) {
    for (int64_t half = 0; half < PANEL; half += LANES)
        for (int64_t k = 0; k < w.inputs; k += PANEL) {
            Floats pairs[LANES];
            for (int64_t i = 0; i < LANES; i++) {
                int64_t output = first + half + i;
                PanelHalves weights = 0;
                if (output < w.outputs) weights = widen<Codes>(w, output, k);
                pairs[i] = __builtin_bit_cast(Floats, weights);
            }
            transpose(pairs);
            for (int64_t i = 0; i < LANES; i++)
                memcpy(panel + (k + 2 * i) * PANEL + 2 * half, &pairs[i], sizeof pairs[i]);
        }
}

// PANEL inputs and all outputs, whose number is even, as a panel of the transposed matrix.
template <class Codes>
void widen_inputs(const CodedMatrix& w, int64_t first, bf16* panel) {
    for (int64_t output = 0; output < w.outputs; output += 2) {
        PanelPairs pairs = paired(widen<Codes>(w, output, first), widen<Codes>(w, output + 1, first));
        memcpy(panel + output * PANEL, &pairs, sizeof pairs);
    }
}

// A member's share of the product; `panels` has room for one panel of each member.
template <class Codes>
void multiply_codes(Member member, const CodedMatrix& w, const bf16* x, int64_t rows, bool is_transposed, bf16* panels,
                    bf16* y) {
    int64_t k = is_transposed ? w.outputs : w.inputs, columns = is_transposed ? w.inputs : w.outputs;
    int64_t count = (columns + PANEL - 1) / PANEL;
    bf16* panel = panels + member.index * k * PANEL;
    for (int64_t p = member.first(count); p < member.last(count); p++) {
        int64_t first = p * PANEL;
        if (is_transposed) widen_inputs<Codes>(w, first, panel);
        else widen_outputs<Codes>(w, first, panel);
        Output<bf16> out{y + first, columns, nullptr, false};
        multiply_panel(Rows<bf16>{x, rows, k}, panel, k, out, columns - first);
    }
}

#endif
