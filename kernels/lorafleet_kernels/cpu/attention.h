/* Where the keys and values of a step's tokens lie: one description for all layers. */
#ifndef LORAFLEET_ATTENTION_H
#define LORAFLEET_ATTENTION_H

#include "vector.h"

enum { PAGE = 16, MOST_HEAD_SIZE = 256, BLOCK = 128 };

typedef struct {
    int64_t tokens, decodes, sequences;
    int64_t heads, kv_heads, size;
    const int32_t *positions; /* [tokens] */
    const int32_t *owners;    /* [tokens]: the token's sequence */
    const int32_t *starts;    /* [sequences + 1]: first token of each */
    const int32_t *tables;    /* [sequences + 1]: where its page ids begin in `pages` */
    const int32_t *pages;
    const elem *cosines, *sines; /* [positions, size] */
    float eps;
    int32_t threads;
} step_t;

/* Keys of a page of one layer; its values follow after PAGE · kv_heads · size elements. */
INLINE int64_t page_at(const step_t *step, int64_t sequence, int64_t position) {
    return step->pages[step->tables[sequence] + position / PAGE] * 2 * PAGE * step->kv_heads * step->size;
}

#endif
