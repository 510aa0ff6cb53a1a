/* Where an adapter's matrices lie, and which rows of a batch they change. */
#ifndef LORAFLEET_LORA_H
#define LORAFLEET_LORA_H

#include "vector.h"

enum { RANKS = 256, MOST_PARTS = 3 };

typedef struct {
    int32_t begin, end, rank, unused;
    const elem *b; /* [rank, end - begin] */
} part_t;

typedef struct {
    const elem *a; /* [sum of ranks, inputs] */
    int32_t inputs, parts;
    part_t part[MOST_PARTS];
} group_t;

typedef struct {
    int64_t begin, end;
    const group_t *groups;
} segment_t;

/* The first of `rows` rows of a segment, by matrix tiles: how many were done; 0 where tiles do not fit. */
int64_t lorafleet_lora_on_tiles(const group_t *group, const elem *x, elem *y, int64_t outputs, int64_t rows);

#endif
