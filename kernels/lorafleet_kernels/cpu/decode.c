/* Attention of single tokens over their own pages, read where they lie [FlashAttention: one pass, running maximum].
 *
 * The query heads of one KV head go together, so that its keys and values are read once for up to four of them. */
#include "decode.h"
#include "parts.h"
#include "tiles.h"

enum { HEADS = 4 };

typedef struct {
    float largest, total;
    float out[MOST_HEAD_SIZE];
} running_t;

/* Scores of one query head against the 16 keys of a page. */
INLINE vec page_scores(const elem *q, const elem *keys, int64_t stride, int64_t size) {
    vec total[PAGE] = {{0}};
    int64_t d = 0;
    for (; d + WIDE <= size; d += WIDE) {
        const wide query = load_wide(q + d);
        for (int t = 0; t < PAGE; t++) total[t] = multiply_add(total[t], query, load_wide(keys + t * stride + d));
    }
    if (d < size) {
        const wide query = load_wide_some(q + d, size - d);
        for (int t = 0; t < PAGE; t++)
            total[t] = multiply_add(total[t], query, load_wide_some(keys + t * stride + d, size - d));
    }
    return sums(total);
}

/* running.out[d .. d + vectors · 16] = shrunk + weights · values, over the block's tokens. */
INLINE void add_values(
    running_t *running, const float weights[HEADS][BLOCK], const float *shrink, const elem *const *pages, int64_t tokens,
    int64_t stride, int64_t d, int64_t count, const int heads, const int vectors
) {
    vec total[HEADS][4];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) total[h][v] = load_floats(running[h].out + d + v * LANES) * shrink[h];
    for (int64_t t = 0; t < tokens; t++) {
        const elem *const from = pages[t / PAGE] + t % PAGE * stride + d;
        vec value[4];
        for (int v = 0; v < vectors; v++) value[v] = count < LANES ? load_some(from, count) : load(from + v * LANES);
        for (int h = 0; h < heads; h++)
            for (int v = 0; v < vectors; v++) total[h][v] += weights[h][t] * value[v];
    }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) store_floats(running[h].out + d + v * LANES, total[h][v]);
}

INLINE void some_heads(
    const step_t *step, const elem *q, const elem *pool, const place_t *here, int64_t length, elem *out,
    const place_t *after, const int heads
) {
    const int64_t size = step->size, stride = step->kv_heads * size;
    const float scale = 1.0f / sqrtf((float)size);
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    running_t running[HEADS];
    for (int h = 0; h < heads; h++) {
        running[h].largest = -INFINITY;
        running[h].total = 0;
        memset(running[h].out, 0, (size_t)((size + LANES - 1) / LANES * LANES) * sizeof(float));
    }
    for (int64_t begin = 0; begin < length; begin += BLOCK) {
        const int64_t tokens = length - begin < BLOCK ? length - begin : BLOCK;
        const int64_t pages = (tokens + PAGE - 1) / PAGE;
        const elem *values[BLOCK / PAGE];
        float weights[HEADS][BLOCK], shrink[HEADS];
        vec best[HEADS];
        for (int h = 0; h < heads; h++) best[h] = splat(-INFINITY);
        for (int64_t page = 0; page < pages; page++) {
            const elem *const keys = pool + page_at(step, here->sequence, begin + page * PAGE) + here->kv_head * size;
            prefetch_beside(step, pool, here, after, begin, length, page, pages);
            values[page] = keys + PAGE * stride;
            const ivec inside = lane < (int32_t)(tokens - page * PAGE);
            for (int h = 0; h < heads; h++) {
                const vec scores = page_scores(q + h * size, keys, stride, size) * scale;
                const vec masked = choose(inside, scores, splat(-INFINITY));
                best[h] = larger(best[h], masked);
                store_floats(weights[h] + page * PAGE, masked);
            }
        }
        for (int h = 0; h < heads; h++) {
            const float most = largest(best[h]), next = most > running[h].largest ? most : running[h].largest;
            vec total = {0};
            for (int64_t page = 0; page < pages; page++) {
                const vec weight = exponential(load_floats(weights[h] + page * PAGE) - next);
                total += weight;
                store_floats(weights[h] + page * PAGE, weight);
            }
            shrink[h] = begin ? expf(running[h].largest - next) : 0.0f;
            running[h].total = running[h].total * shrink[h] + sum(total);
            running[h].largest = next;
        }
        int64_t d = 0;
        for (; d + 4 * LANES <= size; d += 4 * LANES)
            add_values(running, weights, shrink, values, tokens, stride, d, LANES, heads, 4);
        for (; d < size; d += LANES) add_values(running, weights, shrink, values, tokens, stride, d, size - d, heads, 1);
    }
    for (int h = 0; h < heads; h++)
        for (int64_t d = 0; d < size; d += LANES) {
            const vec v = load_floats(running[h].out + d) / running[h].total;
            if (size - d >= LANES)
                store(out + h * size + d, v);
            else
                store_some(out + h * size + d, v, size - d);
        }
}

/* `next`: the token whose turn it is when this one is done, or -1. */
static void one_kv_head(
    const step_t *step, const elem *qkv, const elem *pool, elem *out, int64_t token, int64_t kv_head, int64_t next
) {
    const int64_t group = step->heads / step->kv_heads, size = step->size;
    const int64_t sequence = step->owners[token], length = step->positions[token] + 1;
    const int over = kv_head + 1 == step->kv_heads && next >= 0;
    const place_t here = {sequence, 0, kv_head};
    const place_t after = {over ? step->owners[next] : sequence, 0, over ? 0 : (kv_head + 1) % step->kv_heads};
    const elem *const row = qkv + token * (step->heads + 2 * step->kv_heads) * size;
    int64_t first = 0;
#if LORAFLEET_TILES
    for (; lorafleet_tiles_allowed && size % DEPTH == 0 && first < group; first += TILE) {
        const int64_t head = kv_head * group + first, heads = group - first < TILE ? group - first : TILE;
        elem *const to = out + (token * step->heads + head) * size;
        decode_on_tiles(step, row + head * size, pool, &here, length, to, &after, (int)heads);
    }
#endif
    for (; first < group; first += HEADS) {
        const int64_t head = kv_head * group + first;
        const elem *const q = row + head * size;
        elem *const to = out + (token * step->heads + head) * size;
        switch (group - first) {
        case 1: some_heads(step, q, pool, &here, length, to, &after, 1); break;
        case 2: some_heads(step, q, pool, &here, length, to, &after, 2); break;
        case 3: some_heads(step, q, pool, &here, length, to, &after, 3); break;
        default: some_heads(step, q, pool, &here, length, to, &after, 4);
        }
    }
}

/* Tokens that all of them look at. */
static int64_t seen(const step_t *step) {
    int64_t all = 0;
    for (int64_t token = 0; token < step->decodes; token++) all += step->positions[token] + 1;
    return all;
}

void decode_part(const share_t *share, const step_t *step, const elem *qkv, const elem *pool, elem *out) {
    range_t mine = {.all = seen(step)};
    for (int64_t token = 0; token < step->decodes; token++) offer(&mine, share, step->positions[token] + 1);
#if LORAFLEET_TILES
    if (lorafleet_tiles_allowed && mine.first < mine.end) use_full_tiles();
#endif
    for (int64_t token = mine.first; token < mine.end; token++)
        for (int64_t kv_head = 0; kv_head < step->kv_heads; kv_head++)
            one_kv_head(step, qkv, pool, out, token, kv_head, token + 1 < mine.end ? token + 1 : -1);
#if LORAFLEET_TILES
    if (lorafleet_tiles_allowed && mine.first < mine.end) _tile_release();
#endif
}

void lorafleet_decode(const step_t *step, const elem *qkv, const elem *pool, elem *out) {
#pragma omp parallel num_threads(team(step->threads, 2 * seen(step) * step->heads * step->size))
    {
        const share_t share = shared(0);
        decode_part(&share, step, qkv, pool, out);
    }
}
