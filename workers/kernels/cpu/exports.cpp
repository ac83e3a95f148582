// What Python calls: every kernel for float32 and, where the machine multiplies it, bf16.
#include "adapters.h"
#include "attention.h"
#include "attention_backward.h"
#include "codes.h"
#include "compression.h"
#include "gemm.h"
#include "layer.h"
#include "layer_backward.h"
#include "rows.h"

namespace {

template <class X, class W>
void linear(const X* x, const W* w, X* y, const X* bias, int64_t rows, int64_t in_features,
            int64_t out_features, bool accumulate, int num_threads) {
    Panels panels{w, in_features, out_features};
    Output<X> out{y, out_features, bias, accumulate};
    on_team(num_threads, [&](Member member) { multiply<X, W>(member, x, rows, panels, out); });
}

}  // namespace

#define KERNELS(T, NAME) \
    extern "C" void rms_norm_##NAME(const T* x, const T* weight, T* y, int64_t rows, int64_t n, float eps, int threads) { \
        share(threads, rows, rows * n, [&](int64_t i) { rms_norm_row(x + i * n, weight, y + i * n, n, eps); }); \
    } \
    extern "C" void rms_norm_backward_##NAME(const T* grad, const T* x, const T* weight, T* dx, int64_t rows, int64_t n, \
                                             float eps, bool accumulate, int threads) { \
        share(threads, rows, rows * n, [&](int64_t i) { \
            rms_norm_backward_row(grad + i * n, x + i * n, weight, dx + i * n, n, eps, accumulate); \
        }); \
    } \
    extern "C" void rotate_##NAME(const T* x, int64_t x_stride, const T* cosine, const T* sine, T* y, int64_t rows, \
                                  int64_t heads, int64_t dim, float direction, int threads) { \
        share(threads, rows, rows * heads * dim, [&](int64_t i) { \
            for (int64_t h = 0; h < heads; h++) \
                rotate_head(x + i * x_stride + h * dim, cosine + i * (dim / 2), sine + i * (dim / 2), \
                            y + (i * heads + h) * dim, dim / 2, direction); \
        }); \
    } \
    extern "C" void silu_mul_##NAME(const T* gate_up, T* y, int64_t rows, int64_t n, int threads) { \
        share(threads, rows, rows * n, [&](int64_t i) { silu_mul_row(gate_up + 2 * i * n, y + i * n, n); }); \
    } \
    extern "C" void silu_mul_backward_##NAME(const T* grad, const T* gate_up, T* dx, int64_t rows, int64_t n, int threads) { \
        share(threads, rows, rows * n, [&](int64_t i) { \
            silu_mul_backward_row(grad + i * n, gate_up + 2 * i * n, dx + 2 * i * n, n); \
        }); \
    } \
    extern "C" void add_adapters_##NAME(const AdaptedLinear* linear, const Run* runs, int64_t num_runs, const T* x, \
                                        float* shrunk, int64_t ld, T* y, int threads) { \
        on_team(threads, [&](Member member) { add_adapters(member, *linear, runs, num_runs, x, shrunk, ld, y); }); \
    } \
    extern "C" void attend_##NAME(const KeySource<T>* source, const Span* spans, int64_t num_spans, const Shape* shape, \
                                  const T* q, T* out, float* lse, int threads) { \
        int64_t next = 0; \
        on_team(threads, [&](Member) { attend(*source, spans, num_spans, *shape, q, out, lse, &next); }); \
    } \
    extern "C" void attend_backward_##NAME(const KeySource<T>* source, const Span* spans, int64_t num_spans, \
                                           const Shape* shape, const AttentionGrads<T>* of, int threads) { \
        int64_t next = 0; \
        on_team(threads, [&](Member) { attend_backward(*source, spans, num_spans, *shape, *of, &next); }); \
    } \
    extern "C" void attended_keys_##NAME(const AttendedKeys<T>* of, int threads) { \
        on_team(threads, [&](Member member) { \
            for (int64_t i = member.index; i < of->heads; i += member.size) of->add_head(member, i); \
        }); \
    } \
    extern "C" void likest_centres_##NAME(const LikestCentres<T>* of, int threads) { \
        int64_t tiles = of->tiles(); \
        on_team(threads, [&](Member member) { \
            for (int64_t i = member.index; i < of->heads * tiles; i += member.size) of->find(i / tiles, i % tiles); \
        }); \
    } \
    extern "C" void forward_layer_##NAME(const LayerWeights<T>* weights, const LayerBatch<T>* batch, int threads) { \
        on_team(threads, [&](Member member) { LayerForward<T>{*weights, *batch, member}.forward(); }); \
    } \
    extern "C" void backward_layer_##NAME(const LayerWeights<T>* weights, BackwardRange<T>* range, int threads) { \
        on_team(threads, [&](Member member) { LayerBackward<T>{*weights, *range, member}.backward(); }); \
    }

#define LINEAR(X, W, NAME) \
    extern "C" void linear_##NAME(const X* x, const W* w, X* y, const X* bias, int64_t rows, int64_t in_features, \
                                  int64_t out_features, bool accumulate, int threads) { \
        linear(x, w, y, bias, rows, in_features, out_features, accumulate, threads); \
    }

KERNELS(float, f32)
LINEAR(float, float, f32_f32)
LINEAR(float, bf16, f32_bf16)
#if defined(__AVX512BF16__)
KERNELS(bf16, bf16)
LINEAR(bf16, bf16, bf16_bf16)

#define CODES(CODES, NAME) \
    extern "C" void multiply_##NAME(const CodedMatrix* w, const bf16* x, int64_t rows, bool is_transposed, bf16* panels, \
                                    bf16* y, int threads) { \
        on_team(threads, [&](Member member) { multiply_codes<CODES>(member, *w, x, rows, is_transposed, panels, y); }); \
    }

CODES(Int8Codes, int8)
CODES(Int4Codes, int4)
CODES(Fp8Codes, fp8)
#endif
