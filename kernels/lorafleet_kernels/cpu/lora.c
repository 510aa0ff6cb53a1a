/* Low-rank deltas of a ragged batch: y += (x aᵀ) b for every segment, rank-exact, straight from the pool.
 *
 * The unit of work is a few rows of one segment, through all of its adapter's parts: nothing is shared between units, so
 * nothing waits, and a row's result does not depend on what else is in the batch. The rank-long rows in between stay in
 * float32. */
#include "vector.h"

enum { ROWS = 16, RANKS = 256, MOST_PARTS = 3 };

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

/* h[row][rank] for a block of `rows` × `ranks`, both known when it is compiled. */
INLINE void shrink_block(const elem *x, const elem *a, int64_t inputs, float *h, const int rows, const int ranks) {
    vec total[LANES] = {{0}};
    int64_t k = 0;
    for (; k < inputs; k += WIDE) {
        const int64_t left = inputs - k;
        wide input[4], weight[4];
        for (int r = 0; r < rows; r++)
            input[r] = left >= WIDE ? load_wide(x + r * inputs + k) : load_wide_some(x + r * inputs + k, left);
        for (int n = 0; n < ranks; n++)
            weight[n] = left >= WIDE ? load_wide(a + n * inputs + k) : load_wide_some(a + n * inputs + k, left);
        for (int r = 0; r < rows; r++)
            for (int n = 0; n < ranks; n++) total[r * 4 + n] = multiply_add(total[r * 4 + n], input[r], weight[n]);
    }
    if (rows * ranks > 4) {
        const vec all = sums(total);
        for (int r = 0; r < rows; r++)
            for (int n = 0; n < ranks; n++) h[r * RANKS + n] = all[r * 4 + n];
    } else {
        for (int r = 0; r < rows; r++)
            for (int n = 0; n < ranks; n++) h[r * RANKS + n] = sum(total[r * 4 + n]);
    }
}

/* y[:, columns] += h b for a block of `rows` × `vectors` · 16 columns. `b` and `y` point at the first column. */
INLINE void expand_block(
    elem *y, int64_t outputs, const float *h, const elem *b, int64_t width, int rank, const int rows, const int vectors
) {
    vec total[4][4] = {{{0}}};
    for (int n = 0; n < rank; n++) {
        vec weight[4];
        for (int v = 0; v < vectors; v++) weight[v] = load(b + n * width + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) total[r][v] += h[r * RANKS + n] * weight[v];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            elem *const to = y + r * outputs + v * LANES;
            store(to, load(to) + total[r][v]);
        }
}

INLINE void shrink(const elem *x, const elem *a, int64_t inputs, float *h, int rank, const int rows) {
    int n = 0;
    for (; n + 4 <= rank; n += 4) shrink_block(x, a + n * inputs, inputs, h + n, rows, 4);
    for (; n < rank; n++) shrink_block(x, a + n * inputs, inputs, h + n, rows, 1);
}

INLINE void expand(
    elem *y, int64_t outputs, const float *h, const elem *b, int64_t width, int rank, const int rows
) {
    int64_t column = 0;
    for (; column + 4 * LANES <= width; column += 4 * LANES)
        expand_block(y + column, outputs, h, b + column, width, rank, rows, 4);
    for (; column + LANES <= width; column += LANES)
        expand_block(y + column, outputs, h, b + column, width, rank, rows, 1);
    for (; column < width; column++)
        for (int r = 0; r < rows; r++) {
            float total = load_one(y + r * outputs + column);
            for (int n = 0; n < rank; n++) total += h[r * RANKS + n] * load_one(b + n * width + column);
            store_one(y + r * outputs + column, total);
        }
}

INLINE void four_rows(
    const group_t *group, const elem *a, const part_t *part, int first, int rank, const elem *x, elem *y, int64_t outputs,
    const int rows
) {
    float h[4 * RANKS];
    const int64_t width = part->end - part->begin;
    shrink(x, a + (int64_t)first * group->inputs, group->inputs, h, rank, rows);
    expand(y + part->begin, outputs, h, part->b + first * width, width, rank, rows);
}

static void some_rows(const group_t *group, const elem *x, elem *y, int64_t outputs, int64_t rows) {
    const elem *a = group->a;
    for (int p = 0; p < group->parts; p++) {
        const part_t *const part = &group->part[p];
        for (int first = 0; first < part->rank; first += RANKS) {
            const int rank = part->rank - first < RANKS ? part->rank - first : RANKS;
            for (int64_t row = 0; row < rows; row += 4) {
                const elem *const from = x + row * group->inputs;
                elem *const to = y + row * outputs;
                switch (rows - row) {
                case 1: four_rows(group, a, part, first, rank, from, to, outputs, 1); break;
                case 2: four_rows(group, a, part, first, rank, from, to, outputs, 2); break;
                case 3: four_rows(group, a, part, first, rank, from, to, outputs, 3); break;
                default: four_rows(group, a, part, first, rank, from, to, outputs, 4);
                }
            }
        }
        a += (int64_t)part->rank * group->inputs;
    }
}

/* x [T, inputs], y [T, outputs]; `group` counts layers and their groups. */
void lorafleet_lora(
    const segment_t *segments, int64_t count, int64_t group, const elem *x, elem *y, int64_t inputs, int64_t outputs,
    int threads
) {
    int64_t rows = 0, units = 0;
    for (int64_t s = 0; s < count; s++) {
        rows += segments[s].end - segments[s].begin;
        units += (segments[s].end - segments[s].begin + ROWS - 1) / ROWS;
    }
#pragma omp parallel for num_threads(units > 1 ? team(threads, 16 * rows * (inputs + outputs)) : 1) schedule(dynamic, 1)
    for (int64_t unit = 0; unit < units; unit++) {
        int64_t s = 0, before = unit;
        for (;; s++) {
            const int64_t here = (segments[s].end - segments[s].begin + ROWS - 1) / ROWS;
            if (before < here) break;
            before -= here;
        }
        const int64_t begin = segments[s].begin + before * ROWS;
        const int64_t end = begin + ROWS < segments[s].end ? begin + ROWS : segments[s].end;
        some_rows(&segments[s].groups[group], x + begin * inputs, y + begin * outputs, outputs, end - begin);
    }
}
