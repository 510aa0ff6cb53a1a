/* Attention of prompts' chunks, over the pages of what came before and of themselves, causally.
 *
 * A unit of work is some tokens of one chunk and one KV head. Keys are laid out anew, so that a vector holds one feature
 * of 16 keys, and values as pairs of tokens: many queries use them, and no sum crosses a vector. */
#include <stdlib.h>

#include "parts.h"
#include "tiles.h"

enum { QUERIES = 16, SPAN = 32, PAIR = WIDE / LANES };

typedef struct {
    elem *keys;   /* [tokens / 16][ceil(size / PAIR)][16][PAIR]: turned tiles, where there are tiles */
    elem *values; /* [tokens / PAIR][ceil(size / 16)][16][PAIR] */
    int64_t features, columns; /* size rounded up to PAIR and to 16 */
    int on_tiles;
} laid_t;

#if WIDE > LANES
INLINE wide broadcast_pair(const elem *from) {
    int32_t both;
    memcpy(&both, from, sizeof both);
    return (wide)_mm512_set1_epi32(both);
}
#else
INLINE wide broadcast_pair(const elem *from) { return splat(load_one(from)); }
#endif

static void lay_out(
    const step_t *step, const elem *pool, int64_t sequence, int64_t kv_head, int64_t length, const laid_t *laid
) {
    const int64_t size = step->size, stride = step->kv_heads * size;
    const int64_t padded = (length + SPAN - 1) / SPAN * SPAN;
    if (laid->features > size || padded > length) memset(laid->keys, 0, (size_t)(padded * laid->features) * sizeof(elem));
    if (laid->columns > size || padded > length) memset(laid->values, 0, (size_t)(padded * laid->columns) * sizeof(elem));
    for (int64_t page = 0; page < length; page += PAGE) {
        const elem *const keys = pool + page_at(step, sequence, page) + kv_head * size;
        const elem *const values = keys + PAGE * stride;
        const int64_t inside = length - page < PAGE ? length - page : PAGE;
        elem *const into = laid->keys + page * laid->features;
        for (int64_t d = 0; d + PAIR <= size; d += PAIR)
            for (int64_t t = 0; t < PAGE; t++) memcpy(into + d * PAGE + t * PAIR, keys + t * stride + d, PAIR * sizeof(elem));
        if (size % PAIR)
            for (int64_t t = 0; t < PAGE; t++) into[(size - 1) * PAGE + t * PAIR] = keys[t * stride + size - 1];
        for (int64_t t = 0; t < inside; t++) {
            elem *const to = laid->values + (page + t) / PAIR * PAIR * laid->columns + (page + t) % PAIR;
            for (int64_t d = 0; d < size; d++) to[d * PAIR] = values[t * stride + d];
        }
    }
}

/* Rows of one head; each has its position, and its scores and running sums in scratch. */
typedef struct {
    float scores[QUERIES][BLOCK];
    elem weights[QUERIES][BLOCK];
    float largest[QUERIES], total[QUERIES];
    float out[QUERIES][MOST_HEAD_SIZE];
    elem queries[QUERIES][MOST_HEAD_SIZE];
} rows_t;

static void score(rows_t *rows, const elem *keys, int64_t features, int64_t keys_count) {
    for (int64_t page = 0; page < keys_count; page += PAGE) {
        vec total[QUERIES] = {{0}};
        const elem *const from = keys + page * features;
        for (int64_t d = 0; d < features; d += PAIR) {
            const wide key = load_wide(from + d * PAGE);
            for (int r = 0; r < QUERIES; r++) total[r] = multiply_add(total[r], broadcast_pair(rows->queries[r] + d), key);
        }
        for (int r = 0; r < QUERIES; r++) store_floats(rows->scores[r] + page, total[r]);
    }
}

#if LORAFLEET_TILES
static void score_on_tiles(rows_t *rows, const elem *keys, int64_t features, int64_t keys_count) {
    for (int64_t page = 0; page < keys_count; page += PAGE) {
        _tile_zero(0);
        for (int64_t d = 0; d < features; d += DEPTH) {
            _tile_loadd(4, rows->queries[0] + d, sizeof rows->queries[0]);
            _tile_loadd(6, keys + page * features + d * PAGE, LINE);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, rows->scores[0] + page, sizeof rows->scores[0]);
    }
}

static void collect_on_tiles(rows_t *rows, const elem *values, int64_t columns, int64_t count) {
    for (int64_t d = 0; d < columns; d += DEPTH) {
        _tile_loadd(0, rows->out[0] + d, sizeof rows->out[0]);
        _tile_loadd(1, rows->out[0] + d + LANES, sizeof rows->out[0]);
        for (int64_t t = 0; t < count; t += SPAN) {
            const elem *const from = values + t * columns + d * PAIR;
            _tile_loadd(4, rows->weights[0] + t, sizeof rows->weights[0]);
            _tile_loadd(6, from, columns * PAIR * (int64_t)sizeof(elem));
            _tile_loadd(7, from + LANES * PAIR, columns * PAIR * (int64_t)sizeof(elem));
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, rows->out[0] + d, sizeof rows->out[0]);
        _tile_stored(1, rows->out[0] + d + LANES, sizeof rows->out[0]);
    }
}
#endif

/* Softmax weights of one block; `begin` is its first position. */
static void weigh(
    rows_t *rows, int64_t begin, int64_t count, const int64_t *positions, int64_t used, int64_t columns, float scale
) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int r = 0; r < used; r++) {
        vec best = splat(-INFINITY);
        for (int64_t page = 0; page < count; page += PAGE) {
            const ivec inside = lane <= (int32_t)(positions[r] - begin - page);
            const vec v = choose(inside, load_floats(rows->scores[r] + page) * scale, splat(-INFINITY));
            store_floats(rows->scores[r] + page, v);
            best = larger(best, v);
        }
        const float most = largest(best), next = most > rows->largest[r] ? most : rows->largest[r];
        vec total = {0};
        for (int64_t page = 0; page < count; page += PAGE) {
            const vec v = exponential(load_floats(rows->scores[r] + page) - next);
            total += v;
            store(rows->weights[r] + page, v);
        }
        const float shrink = begin ? expf(rows->largest[r] - next) : 0.0f;
        for (int64_t d = 0; d < columns && shrink != 1.0f; d += LANES)
            store_floats(rows->out[r] + d, load_floats(rows->out[r] + d) * shrink);
        rows->total[r] = rows->total[r] * shrink + sum(total);
        rows->largest[r] = next;
    }
}

static void collect(rows_t *rows, const elem *values, int64_t columns, int64_t count) {
    for (int64_t d = 0; d < columns; d += LANES) {
        vec total[QUERIES];
        for (int r = 0; r < QUERIES; r++) total[r] = load_floats(rows->out[r] + d);
        for (int64_t t = 0; t < count; t += PAIR) {
            const wide value = load_wide(values + t * columns + d * PAIR);
            for (int r = 0; r < QUERIES; r++) total[r] = multiply_add(total[r], broadcast_pair(rows->weights[r] + t), value);
        }
        for (int r = 0; r < QUERIES; r++) store_floats(rows->out[r] + d, total[r]);
    }
}

static void some_queries(
    const step_t *step, const elem *qkv, elem *out, const laid_t *laid, int64_t token, int64_t used, int64_t head
) {
    const int64_t size = step->size, width = (step->heads + 2 * step->kv_heads) * size;
    rows_t rows;
    int64_t positions[QUERIES];
    for (int64_t r = 0; r < QUERIES; r++) {
        memset(rows.out[r], 0, (size_t)laid->columns * sizeof(float));
        if (r >= used || laid->features > size) memset(rows.queries[r], 0, (size_t)laid->features * sizeof(elem));
        if (r >= used) {
            memset(rows.weights[r], 0, sizeof rows.weights[r]);
            continue;
        }
        positions[r] = step->positions[token + r];
        rows.largest[r] = -INFINITY;
        rows.total[r] = 0;
        memcpy(rows.queries[r], qkv + (token + r) * width + head * size, (size_t)size * sizeof(elem));
    }
    const int64_t length = positions[used - 1] + 1;
    for (int64_t begin = 0; begin < length; begin += BLOCK) {
        const int64_t left = length - begin < BLOCK ? length - begin : BLOCK, count = (left + SPAN - 1) / SPAN * SPAN;
        const elem *const keys = laid->keys + begin * laid->features, *const values = laid->values + begin * laid->columns;
        const float scale = 1.0f / sqrtf((float)size);
#if LORAFLEET_TILES
        if (laid->on_tiles) {
            written();
            score_on_tiles(&rows, keys, laid->features, count);
            weigh(&rows, begin, count, positions, used, laid->columns, scale);
            written();
            collect_on_tiles(&rows, values, laid->columns, count);
            continue;
        }
#endif
        score(&rows, keys, laid->features, count);
        weigh(&rows, begin, count, positions, used, laid->columns, scale);
        collect(&rows, values, laid->columns, count);
    }
    for (int64_t r = 0; r < used; r++)
        for (int64_t d = 0; d < size; d += LANES) {
            elem *const to = out + ((token + r) * step->heads + head) * size + d;
            const vec v = load_floats(rows.out[r] + d) / rows.total[r];
            if (size - d >= LANES)
                store(to, v);
            else
                store_some(to, v, size - d);
        }
}

int chunks_part(const share_t *share, const step_t *step, const elem *qkv, const elem *pool, elem *out) {
    const int64_t chunks = step->sequences - step->decodes, group = step->heads / step->kv_heads;
    for (int64_t unit; (unit = next_unit(share)) < chunks * step->kv_heads;) {
        const int64_t sequence = step->decodes + unit / step->kv_heads, kv_head = unit % step->kv_heads;
        const int64_t first = step->starts[sequence], last = step->starts[sequence + 1];
        const int64_t length = step->positions[last - 1] + 1, padded = (length + SPAN - 1) / SPAN * SPAN;
        laid_t laid = {.features = (step->size + PAIR - 1) / PAIR * PAIR, .columns = (step->size + LANES - 1) / LANES * LANES};
        laid.keys = malloc((size_t)(padded * (laid.features + laid.columns)) * sizeof(elem));
        if (!laid.keys) return 1;
        laid.values = laid.keys + padded * laid.features;
        lay_out(step, pool, sequence, kv_head, length, &laid);
#if LORAFLEET_TILES
        laid.on_tiles = lorafleet_tiles_allowed && step->size % DEPTH == 0;
        if (laid.on_tiles) use_full_tiles();
#endif
        for (int64_t token = first; token < last; token += QUERIES)
            for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
                some_queries(step, qkv, out, &laid, token, last - token < QUERIES ? last - token : QUERIES, head);
#if LORAFLEET_TILES
        if (laid.on_tiles) _tile_release();
#endif
        free(laid.keys);
    }
    return 0;
}

int lorafleet_chunks(const step_t *step, const elem *qkv, const elem *pool, elem *out) {
    int64_t work = 0, taken = 0;
    for (int64_t s = step->decodes; s < step->sequences; s++)
        work += (int64_t)(step->starts[s + 1] - step->starts[s]) * (step->positions[step->starts[s + 1] - 1] + 1);
    int failed = 0;
#pragma omp parallel num_threads(team(step->threads, 2 * work * step->heads * step->size)) reduction(| : failed)
    {
        const share_t share = shared(&taken);
        failed |= chunks_part(&share, step, qkv, pool, out);
    }
    return failed;
}
