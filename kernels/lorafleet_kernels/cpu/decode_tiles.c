/* Attention of single tokens on matrix tiles: sixteen keys, as they lie in their page, by the query heads that share them.
 *
 * The weights are rounded to bfloat16 and multiply pairs of tokens, as in chunk.c. */
#include "decode.h"
#include "tiles.h"

#if LORAFLEET_TILES

enum { MOST_HEADS = 16, HEADS = 4, PAIR = 2, WIDTH = 2 * DEPTH, VECTORS = WIDTH / LANES };

typedef struct __attribute__((aligned(64))) {
    elem queries[MOST_HEAD_SIZE / DEPTH][TILE * DEPTH];
    float scores[BLOCK][TILE]; /* of a token, by head */
    elem weights[MOST_HEADS][BLOCK];
    float largest[MOST_HEADS], total[MOST_HEADS], shrink[MOST_HEADS];
    float out[MOST_HEADS][MOST_HEAD_SIZE]; /* features in the order that unpacking pairs of tokens leaves */
} scratch_t;

INLINE void score(scratch_t *s, const elem *keys, int64_t stride, int64_t size, int64_t first) {
    _tile_zero(0);
    for (int64_t d = 0; d < size; d += DEPTH) {
        _tile_loadd(4, keys + d, stride * (int64_t)sizeof(elem));
        _tile_loadd(6, s->queries[d / DEPTH], LINE);
        _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, s->scores[first], LINE);
}

/* Scores of one head to weights; those of tokens that are not there are zeros up to the page's end. */
INLINE void weigh(scratch_t *s, int head, int64_t begin, int64_t tokens, float scale) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i rows = (__m512i)(lane * TILE);
    vec scores[BLOCK / PAGE], best = splat(-INFINITY), total = {0};
    for (int64_t first = 0; first < tokens; first += PAGE) {
        const vec raw = (vec)_mm512_i32gather_ps(rows, &s->scores[first][head], sizeof(float));
        scores[first / PAGE] = choose(lane < (int32_t)(tokens - first), raw * scale, splat(-INFINITY));
        best = larger(best, scores[first / PAGE]);
    }
    const float most = largest(best), next = begin && s->largest[head] > most ? s->largest[head] : most;
    for (int64_t first = 0; first < tokens; first += PAGE) {
        const vec weight = exponential(scores[first / PAGE] - next);
        total += weight;
        store(s->weights[head] + first, weight);
    }
    s->shrink[head] = begin ? expf(s->largest[head] - next) : 0.0f;
    s->total[head] = (begin ? s->total[head] * s->shrink[head] : 0.0f) + sum(total);
    s->largest[head] = next;
}

INLINE vec pair_of(const elem *weights) {
    int32_t both;
    memcpy(&both, weights, sizeof both);
    return (vec)_mm512_set1_epi32(both);
}

/* 64 features of some heads (or 32, when `half`). */
INLINE void add_values(
    scratch_t *s, int first, const elem *const *pages, int64_t tokens, int64_t stride, int64_t d, const int heads, const int half
) {
    const int vectors = half ? VECTORS / 2 : VECTORS;
    vec total[HEADS][VECTORS];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++)
            total[h][v] = s->shrink[first + h] == 0.0f ? (vec){0} : load_floats(s->out[first + h] + d + v * LANES) * s->shrink[first + h];
    for (int64_t t = 0; t < tokens; t += PAIR) {
        const elem *const even = pages[t / PAGE] + t % PAGE * stride + d, *const odd = even + stride;
        __m512i value[VECTORS];
        for (int v = 0; v < vectors; v += 2) {
            const __m512i a = _mm512_loadu_si512(even + v * LANES), b = _mm512_loadu_si512(odd + v * LANES);
            value[v] = _mm512_unpacklo_epi16(a, b);
            value[v + 1] = _mm512_unpackhi_epi16(a, b);
        }
        for (int h = 0; h < heads; h++) {
            const vec weight = pair_of(s->weights[first + h] + t);
            for (int v = 0; v < vectors; v++)
                total[h][v] = (vec)_mm512_dpbf16_ps((__m512)total[h][v], (__m512bh)weight, (__m512bh)value[v]);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) store_floats(s->out[first + h] + d + v * LANES, total[h][v]);
}

INLINE void collect(scratch_t *s, int first, const elem *const *pages, int64_t tokens, int64_t stride, int64_t size, const int heads) {
    int64_t d = 0;
    for (; d + WIDTH <= size; d += WIDTH) add_values(s, first, pages, tokens, stride, d, heads, 0);
    if (d < size) add_values(s, first, pages, tokens, stride, d, heads, 1);
}

void decode_on_tiles(
    const step_t *step, const elem *q, const elem *pool, const place_t *here, int64_t length, elem *out, const place_t *after,
    int heads
) {
    const int64_t size = step->size, stride = step->kv_heads * size;
    const float scale = 1.0f / sqrtf((float)size);
    scratch_t s;
    for (int64_t d = 0; d < size; d += DEPTH) turn(q + d, size, heads, s.queries[d / DEPTH]);
    for (int64_t begin = 0; begin < length; begin += BLOCK) {
        const int64_t tokens = length - begin < BLOCK ? length - begin : BLOCK, pages = (tokens + PAGE - 1) / PAGE;
        const elem *values[BLOCK / PAGE];
        for (int64_t page = 0; page < pages; page++) {
            const elem *const keys =
                pool + page_at(step, here->sequence, begin + page * PAGE) + here->kv_head * size;
            prefetch_beside(step, pool, here, after, begin, length, page, pages);
            values[page] = keys + PAGE * stride;
            score(&s, keys, stride, size, page * PAGE);
        }
        for (int h = 0; h < heads; h++) weigh(&s, h, begin, tokens, scale);
        for (int first = 0; first < heads; first += HEADS)
            switch (heads - first) {
            case 1: collect(&s, first, values, pages * PAGE, stride, size, 1); break;
            case 2: collect(&s, first, values, pages * PAGE, stride, size, 2); break;
            case 3: collect(&s, first, values, pages * PAGE, stride, size, 3); break;
            default: collect(&s, first, values, pages * PAGE, stride, size, 4);
            }
    }
    for (int h = 0; h < heads; h++)
        for (int64_t d = 0; d < size; d += DEPTH) {
            vec low, high;
            packed_order(s.out[h] + d, &low, &high);
            store(out + h * size + d, low / s.total[h]);
            store(out + h * size + d + LANES, high / s.total[h]);
        }
}

#endif
