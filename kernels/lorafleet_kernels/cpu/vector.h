/* Sixteen floats at a time, over float32 or bfloat16 memory; arithmetic is always float32.
 *
 * Written with the vector extension of gcc and clang, which lower it to what the processor has. Only the product of two
 * bfloat16 rows has an instruction of its own. Compiled once per element type: LORAFLEET_BF16 is 0 or 1. */
#ifndef LORAFLEET_VECTOR_H
#define LORAFLEET_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t half_vec __attribute__((vector_size(32)));

#if LORAFLEET_BF16
typedef uint16_t elem;
#else
typedef float elem;
#endif

INLINE vec splat(float value) { return value - (vec){0}; }

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

INLINE vec larger(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE vec load_floats(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store_floats(float *into, vec v) { memcpy(into, &v, sizeof v); }

INLINE vec load(const elem *from) {
#if LORAFLEET_BF16 && defined(__AVX512F__)
    const __m256i raw = _mm256_loadu_si256((const __m256i *)from);
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
#elif LORAFLEET_BF16
    half_vec raw;
    memcpy(&raw, from, sizeof raw);
    return (vec)(__builtin_convertvector(raw, uvec) << 16);
#else
    return load_floats(from);
#endif
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
INLINE void store(elem *into, vec v) {
#if LORAFLEET_BF16 && defined(__AVX512BF16__)
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
    memcpy(into, &rounded, sizeof rounded);
#elif LORAFLEET_BF16
    uvec bits = (uvec)v;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec nan = (uvec)(v != v);
    half_vec narrow = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), half_vec);
    memcpy(into, &narrow, sizeof narrow);
#else
    store_floats(into, v);
#endif
}

/* As if stored and loaded again: what the model's own code rounds between two steps, this rounds too. */
INLINE vec rounded(vec v) {
#if LORAFLEET_BF16
    elem memory[LANES];
    store(memory, v);
    return load(memory);
#else
    return v;
#endif
}

/* The last `count` < 16 elements of a row, zeros behind them. */
INLINE vec load_some(const elem *from, int64_t count) {
    elem memory[LANES] = {0};
    memcpy(memory, from, (size_t)count * sizeof(elem));
    return load(memory);
}

INLINE void store_some(elem *into, vec v, int64_t count) {
    elem memory[LANES];
    store(memory, v);
    memcpy(into, memory, (size_t)count * sizeof(elem));
}

INLINE float load_one(const elem *from) { return load_some(from, 1)[0]; }

INLINE void store_one(elem *into, float value) { store_some(into, splat(value), 1); }

INLINE float sum(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float lanes[LANES], total = 0;
    store_floats(lanes, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    total = lanes[0];
    return total;
#endif
}

INLINE float largest(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
#endif
}

#if defined(__AVX512F__)
/* Each lane pair of a, then of b, added. */
INLINE vec pair_sums(vec a, vec b) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return (vec)_mm512_permutex2var_ps((__m512)a, even, (__m512)b) + (vec)_mm512_permutex2var_ps((__m512)a, odd, (__m512)b);
}

INLINE vec four_sums(const vec *v) { return pair_sums(pair_sums(v[0], v[1]), pair_sums(v[2], v[3])); }
#endif

/* Lane i is the sum of v[i]. */
INLINE vec sums(const vec v[LANES]) {
#if defined(__AVX512F__)
    return pair_sums(pair_sums(four_sums(v), four_sums(v + 4)), pair_sums(four_sums(v + 8), four_sums(v + 12)));
#else
    vec out;
    for (int i = 0; i < LANES; i++) out[i] = sum(v[i]);
    return out;
#endif
}

/* e^x to 2 ulp, by 2^n times a polynomial (Cephes expf); 0 below -87, so that e^-inf is 0. */
INLINE vec exponential(vec x) {
    const ivec tiny = x < -87.0f;
    x = choose(x > 88.0f, splat(88.0f), choose(tiny, splat(-87.0f), x));
    const vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 · 2^23: the sum's low bits are the rounded integer */
    const vec n = shifted - 12582912.0f;
    const vec f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    const ivec power = __builtin_convertvector(n, ivec) << 23;
    return choose(tiny, splat(0.0f), (vec)((ivec)p + power));
}

/* A step of a dot product: WIDE elements of each side. */
#if LORAFLEET_BF16 && defined(__AVX512BF16__)
#define WIDE 32
typedef __m512bh wide;
INLINE wide load_wide(const elem *from) {
    wide w;
    memcpy(&w, from, sizeof w);
    return w;
}
INLINE vec multiply_add(vec total, wide a, wide b) { return (vec)_mm512_dpbf16_ps((__m512)total, a, b); }
#else
#define WIDE 16
typedef vec wide;
INLINE wide load_wide(const elem *from) { return load(from); }
INLINE vec multiply_add(vec total, wide a, wide b) { return total + a * b; }
#endif

#if WIDE > LANES
/* Two vectors whose features are in the order that unpacking pairs of rows leaves, in their own. */
INLINE void packed_order(const float *from, vec *low, vec *high) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const __m512 a = (__m512)load_floats(from), b = (__m512)load_floats(from + LANES);
    *low = (vec)_mm512_permutex2var_ps(a, first, b);
    *high = (vec)_mm512_permutex2var_ps(a, second, b);
}
#endif

INLINE wide load_wide_some(const elem *from, int64_t count) {
    elem memory[WIDE] = {0};
    memcpy(memory, from, (size_t)count * sizeof(elem));
    return load_wide(memory);
}

/* Threads that are worth waking for so many element steps. */
INLINE int team(int threads, int64_t work) {
    const int64_t useful = work >> 15;
    return useful < 1 ? 1 : useful < threads ? (int)useful : threads;
}

#endif
