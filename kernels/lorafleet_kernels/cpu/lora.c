/* Low-rank deltas of a ragged batch: y += (x aᵀ) b for every segment, rank-exact, straight from the pool.
 *
 * The unit of work is a few rows of one segment, through all of its adapter's parts: nothing is shared between units, so
 * nothing waits, and a row's result does not depend on what else is in the batch. The rank-long rows in between stay in
 * float32. */
#include "parts.h"

enum { FEW = 16, MANY = 64 };

/* What the thread will probably need next, fetched line by line while it computes: decode steps wait for memory. */
typedef struct {
    const char *at, *end;
    int lines; /* for every line that is used now */
} ahead_t;

INLINE void fetch_ahead(ahead_t *ahead, int used) {
    for (int i = 0; i < used * ahead->lines && ahead->at < ahead->end; i++, ahead->at += 64)
        __builtin_prefetch(ahead->at, 0, 2);
}

/* From a group's first row of a to the end of its last b: they lie one after the other. */
INLINE int64_t group_bytes(const group_t *group) {
    if (!group->parts) return 0;
    const part_t *const last = &group->part[group->parts - 1];
    return (const char *)(last->b + (int64_t)last->rank * (last->end - last->begin)) - (const char *)group->a;
}

/* h[row][rank] for a block of `rows` × `ranks`, both known when it is compiled. */
INLINE void shrink_block(const elem *x, const elem *a, int64_t inputs, float *h, ahead_t *ahead, const int rows, const int ranks) {
    vec total[LANES] = {{0}};
    int64_t k = 0;
    for (; k < inputs; k += WIDE) {
        const int64_t left = inputs - k;
        wide input[4], weight[4];
        for (int r = 0; r < rows; r++)
            input[r] = left >= WIDE ? load_wide(x + r * inputs + k) : load_wide_some(x + r * inputs + k, left);
        fetch_ahead(ahead, ranks);
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
    elem *y, int64_t outputs, const float *h, const elem *b, int64_t width, int rank, ahead_t *ahead, const int rows,
    const int vectors
) {
    vec total[4][4] = {{{0}}};
    for (int n = 0; n < rank; n++) {
        vec weight[4];
        if (vectors > 1) fetch_ahead(ahead, 2);
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

INLINE void shrink(const elem *x, const elem *a, int64_t inputs, float *h, int rank, ahead_t *ahead, const int rows) {
    int n = 0;
    for (; n + 4 <= rank; n += 4) shrink_block(x, a + n * inputs, inputs, h + n, ahead, rows, 4);
    for (; n < rank; n++) shrink_block(x, a + n * inputs, inputs, h + n, ahead, rows, 1);
}

INLINE void expand(
    elem *y, int64_t outputs, const float *h, const elem *b, int64_t width, int rank, ahead_t *ahead, const int rows
) {
    int64_t column = 0;
    for (; column + 4 * LANES <= width; column += 4 * LANES)
        expand_block(y + column, outputs, h, b + column, width, rank, ahead, rows, 4);
    for (; column + LANES <= width; column += LANES)
        expand_block(y + column, outputs, h, b + column, width, rank, ahead, rows, 1);
    for (; column < width; column++)
        for (int r = 0; r < rows; r++) {
            float total = load_one(y + r * outputs + column);
            for (int n = 0; n < rank; n++) total += h[r * RANKS + n] * load_one(b + n * width + column);
            store_one(y + r * outputs + column, total);
        }
}

INLINE void four_rows(
    const group_t *group, const elem *a, const part_t *part, int first, int rank, const elem *x, elem *y, int64_t outputs,
    ahead_t *ahead, const int rows
) {
    float h[4 * RANKS];
    const int64_t width = part->end - part->begin;
    shrink(x, a + (int64_t)first * group->inputs, group->inputs, h, rank, ahead, rows);
    expand(y + part->begin, outputs, h, part->b + first * width, width, rank, ahead, rows);
}

static void some_rows(const group_t *group, const elem *x, elem *y, int64_t outputs, int64_t rows, ahead_t *ahead) {
    const int64_t done = rows < FEW ? 0 : lorafleet_lora_on_tiles(group, x, y, outputs, rows);
    x += done * group->inputs;
    y += done * outputs;
    rows -= done;
    const elem *a = group->a;
    for (int p = 0; p < group->parts; p++) {
        const part_t *const part = &group->part[p];
        for (int first = 0; first < part->rank; first += RANKS) {
            const int rank = part->rank - first < RANKS ? part->rank - first : RANKS;
            for (int64_t row = 0; row < rows; row += 4) {
                const elem *const from = x + row * group->inputs;
                elem *const to = y + row * outputs;
                switch (rows - row) {
                case 1: four_rows(group, a, part, first, rank, from, to, outputs, ahead, 1); break;
                case 2: four_rows(group, a, part, first, rank, from, to, outputs, ahead, 2); break;
                case 3: four_rows(group, a, part, first, rank, from, to, outputs, ahead, 3); break;
                default: four_rows(group, a, part, first, rank, from, to, outputs, ahead, 4);
                }
            }
        }
        a += (int64_t)part->rank * group->inputs;
    }
}

/* The units of one call: some rows of a segment each, in order; and which of them are a thread's. */
typedef struct {
    const segment_t *segments;
    int64_t count, group, size;
} units_t;

INLINE int64_t units_in(const units_t *units, const segment_t *segment) {
    return (segment->end - segment->begin + units->size - 1) / units->size;
}

/* Of a row of one unit, to the others'; reading the matrices costs as much as `FEW` rows of work. */
INLINE int64_t cost_of(const units_t *units, const segment_t *segment) {
    int64_t ranks = 0;
    const group_t *const group = &segment->groups[units->group];
    for (int p = 0; p < group->parts; p++) ranks += group->part[p].rank;
    return ranks;
}

static range_t range_of(const units_t *units, const share_t *share) {
    range_t mine = {0};
    for (int64_t s = 0; s < units->count; s++) {
        const segment_t *const segment = &units->segments[s];
        mine.all += (units_in(units, segment) * FEW + segment->end - segment->begin) * cost_of(units, segment);
    }
    for (int64_t s = 0; s < units->count; s++) {
        const segment_t *const segment = &units->segments[s];
        const int64_t cost = cost_of(units, segment);
        for (int64_t row = segment->begin; row < segment->end; row += units->size)
            offer(&mine, share, (FEW + (segment->end - row < units->size ? segment->end - row : units->size)) * cost);
    }
    return mine;
}

/* The segment of a unit, and its rows. */
static const segment_t *unit_at(const units_t *units, int64_t unit, int64_t *begin, int64_t *end) {
    for (const segment_t *segment = units->segments;; segment++) {
        const int64_t here = units_in(units, segment);
        if (unit < here) {
            *begin = segment->begin + unit * units->size;
            *end = *begin + units->size < segment->end ? *begin + units->size : segment->end;
            return segment;
        }
        unit -= here;
    }
}

static int64_t rows_of(const segment_t *segments, int64_t count) {
    int64_t rows = 0;
    for (int64_t s = 0; s < count; s++) rows += segments[s].end - segments[s].begin;
    return rows;
}

void lora_part(
    const share_t *share, const segment_t *segments, int64_t count, int64_t group, const elem *x, elem *y, int64_t inputs,
    int64_t outputs
) {
    const units_t units = {segments, count, group, rows_of(segments, count) > share->size * MANY ? MANY : FEW};
    const range_t mine = range_of(&units, share);
    int64_t begin = 0, end = 0, unused = 0;
    for (int64_t unit = mine.first; unit < mine.end; unit++) {
        const group_t *const here = &unit_at(&units, unit, &begin, &end)->groups[group];
        /* Behind the last unit comes the first one of the next call: an adapter's groups end with an empty one. */
        const int more = unit + 1 < mine.end;
        const group_t *const next = &unit_at(&units, more ? unit + 1 : mine.first, &unused, &unused)->groups[group + !more];
        ahead_t ahead = {0};
        if (next != here && group_bytes(here)) {
            const int64_t bytes = group_bytes(next);
            ahead.at = (const char *)next->a;
            ahead.end = ahead.at + bytes;
            ahead.lines = (int)((bytes + group_bytes(here) - 1) / group_bytes(here));
        }
        some_rows(here, x + begin * inputs, y + begin * outputs, outputs, end - begin, &ahead);
    }
}

void lorafleet_lora(
    const segment_t *segments, int64_t count, int64_t group, const elem *x, elem *y, int64_t inputs, int64_t outputs,
    int threads
) {
#pragma omp parallel num_threads(team(threads, 16 * rows_of(segments, count) * (inputs + outputs)))
    {
        const share_t share = shared(0);
        lora_part(&share, segments, count, group, x, y, inputs, outputs);
    }
}
