/* Products with weights that were turned once, when the model was loaded. x is read as it lies. */
#include "parts.h"
#include "tiles.h"

#if LORAFLEET_TILES
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int lorafleet_tiles_allowed = 0;

/* Asks the kernel for the tiles' registers; before that, using them ends the process. */
int lorafleet_tiles_ready(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    lorafleet_tiles_allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return lorafleet_tiles_allowed;
}

/* Weights [outputs, inputs] to [outputs / 32, rounded up][2][inputs / 32] turned tiles. */
void lorafleet_tiles_turn(const elem *w, elem *turned, int64_t inputs, int64_t outputs) {
    const int64_t deep = inputs / DEPTH, count = (outputs + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * 2;
    for (int64_t t = 0; t < count * deep; t++) {
        const int64_t first = t / deep * TILE;
        turn(w + first * inputs + t % deep * DEPTH, inputs, outputs - first, turned + t * TILE * DEPTH);
    }
}

/* Sums of 16 rows by 32 outputs (or 16) to y. */
INLINE void put_rows(const float *left, const float *right, const elem *bias, elem *y, int64_t outputs, int64_t rows, int single) {
    const vec first = bias ? load(bias) : (vec){0}, second = bias && !single ? load(bias + TILE) : (vec){0};
    for (int64_t r = 0; r < rows && r < TILE; r++) {
        store(y + r * outputs, load_floats(left + r * TILE) + first);
        if (!single) store(y + r * outputs + TILE, load_floats(right + r * TILE) + second);
    }
}

/* Up to 32 rows of x by the turned tiles of 32 outputs (or 16, when `single`). */
INLINE void block(
    const elem *x, const elem *turned, int64_t deep, int64_t inputs, const elem *next, const elem *bias, elem *y,
    int64_t outputs, int64_t rows, int single
) {
    const int64_t stride = inputs * (int64_t)sizeof(elem);
    const int wide = rows > TILE;
    float sums[4][TILE * TILE];
    zero_sums();
    for (int64_t k = 0; k < deep; k++) {
        _tile_loadd(6, turned + k * TILE * DEPTH, LINE);
        _tile_loadd(7, turned + (deep + k) * TILE * DEPTH, LINE);
        _tile_loadd(4, x + k * DEPTH, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (wide) {
            _tile_loadd(5, x + TILE * inputs + k * DEPTH, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        if (next) fetch_lines(next, k * 2 * TILE, 2 * TILE);
    }
    _tile_stored(0, sums[0], LINE);
    _tile_stored(1, sums[1], LINE);
    put_rows(sums[0], sums[1], bias, y, outputs, rows, single);
    if (!wide) return;
    _tile_stored(2, sums[2], LINE);
    _tile_stored(3, sums[3], LINE);
    put_rows(sums[2], sums[3], bias, y + TILE * outputs, outputs, rows - TILE, single);
}

enum { CHUNK_BYTES = 512 << 10 };

/* The rows `begin .. end` by 32 outputs. A tile may not read past the end of x: `rest` has the last rows, and zeros. */
INLINE void rows_by_block(const product_t *p, const elem *rest, int64_t b, int64_t begin, int64_t end, const elem *next) {
    const int64_t output = b * ROWS_AT_ONCE;
    for (int64_t row = begin; row < end; row += ROWS_AT_ONCE)
        block(
            rest && p->rows - row < ROWS_AT_ONCE ? rest : p->x + row * p->inputs, p->turned + output * p->inputs,
            p->inputs / DEPTH, p->inputs, row > begin ? 0 : next, p->bias ? p->bias + output : 0,
            p->y + row * p->outputs + output, p->outputs, p->rows - row, p->outputs - output < ROWS_AT_ONCE
        );
}

/* A thread has a range of the weights, always the same one: few rows are bound by how fast that is read, and it is read
 * fastest from one end to the other. Many are bound by how often x is read: some of its rows, which stay near, go through
 * the whole range before others do. */
void product_part(const share_t *share, const product_t *p, const elem *rest) {
    const int64_t blocks = (p->outputs + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, end = end_of(share, blocks);
    const int64_t near = CHUNK_BYTES / (p->inputs * (int64_t)sizeof(elem)) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    const int64_t rows = near < ROWS_AT_ONCE ? ROWS_AT_ONCE : near;
    use_full_tiles();
    for (int64_t row = 0; row < p->rows; row += rows)
        for (int64_t b = first_of(share, blocks); b < end; b++)
            rows_by_block(
                p, rest, b, row, p->rows - row < rows ? p->rows : row + rows,
                b + 1 < end ? p->turned + (b + 1) * ROWS_AT_ONCE * p->inputs : 0
            );
    _tile_release();
}

int lorafleet_tiles_turned(
    const elem *x, const elem *turned, const elem *bias, elem *y, int64_t rows, int64_t inputs, int64_t outputs, int threads
) {
    const product_t product = {x, turned, bias, y, rows, inputs, outputs};
    elem *rest = 0;
    if (rows % TILE) {
        const size_t bytes = (size_t)(ROWS_AT_ONCE * inputs) * sizeof(elem);
        if (posix_memalign((void **)&rest, LINE, bytes)) return 1;
        memset(rest, 0, bytes);
        const int64_t from = rows / ROWS_AT_ONCE * ROWS_AT_ONCE;
        memcpy(rest, x + from * inputs, (size_t)((rows - from) * inputs) * sizeof(elem));
    }
#pragma omp parallel num_threads(team(threads, inputs * outputs))
    {
        const share_t share = shared(0);
        product_part(&share, &product, rest);
    }
    free(rest);
    return 0;
}

#else

int lorafleet_tiles_ready(void) { return 0; }

void product_part(const share_t *share, const product_t *p, const elem *rest) { (void)share, (void)p, (void)rest; }

void lorafleet_tiles_turn(const elem *w, elem *turned, int64_t inputs, int64_t outputs) {
    (void)w, (void)turned, (void)inputs, (void)outputs;
}

int lorafleet_tiles_turned(
    const elem *x, const elem *turned, const elem *bias, elem *y, int64_t rows, int64_t inputs, int64_t outputs, int threads
) {
    (void)x, (void)turned, (void)bias, (void)y, (void)rows, (void)inputs, (void)outputs, (void)threads;
    return 1;
}

#endif
