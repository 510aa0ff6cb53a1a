/* Attention of single tokens over their own pages: where a unit of work lies, and what is fetched beside it. */
#ifndef LORAFLEET_DECODE_H
#define LORAFLEET_DECODE_H

#include "attention.h"

typedef struct {
    int64_t sequence, position, kv_head;
} place_t;

INLINE void prefetch_page(const step_t *step, const elem *pool, const place_t *next, int64_t page) {
    const int64_t stride = step->kv_heads * step->size;
    const elem *const keys =
        pool + page_at(step, next->sequence, next->position + page * PAGE) + next->kv_head * step->size;
    for (int64_t t = 0; t < 2 * PAGE; t++)
        for (int64_t d = 0; d < step->size; d += 64 / (int64_t)sizeof(elem))
            __builtin_prefetch(keys + t * stride + d, 0, 2);
}

/* While page `page` of `pages` of the block at `begin` is used, the same page of the next block, or of the unit `after`:
 * what a token's heads leave out between them hides the pattern from the processor's own prefetcher. */
INLINE void prefetch_beside(
    const step_t *step, const elem *pool, const place_t *here, const place_t *after, int64_t begin, int64_t length,
    int64_t page, int64_t pages
) {
    const place_t further = {here->sequence, begin + BLOCK, here->kv_head};
    const place_t *const next = begin + BLOCK < length ? &further : after;
    const int64_t last = step->tables[next->sequence + 1] - step->tables[next->sequence] - next->position / PAGE;
    for (int64_t p = page; p < last && p < BLOCK / PAGE && (p == page || page == pages - 1); p++)
        prefetch_page(step, pool, next, p);
}

/* Up to 16 heads of one KV head, where there are tiles and `size` is in 32s: q [heads, size] → out [heads, size]. */
void decode_on_tiles(
    const step_t *step, const elem *q, const elem *pool, const place_t *here, int64_t length, elem *out, const place_t *after,
    int heads
);

#endif
