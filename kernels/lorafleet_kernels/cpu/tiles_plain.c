/* Products of few rows with weights as they lie: for an output matrix that is the embedding too, and is held once.
 *
 * y = x wᵀ is computed as yᵀ = w xᵀ, where sixteen rows of w are a tile; x, which is small, is turned. */
#include "tiles.h"

#if LORAFLEET_TILES
#include <stdlib.h>

/* Sums of 16 outputs by 16 rows to y [rows, outputs], with the bias. */
INLINE void put(const float *sums, const elem *bias, elem *y, int64_t outputs, int64_t rows) {
    __m512i v[TILE];
    for (int r = 0; r < TILE; r++) v[r] = _mm512_loadu_si512(sums + r * TILE);
    transpose(v);
    const vec more = bias ? load(bias) : (vec){0};
    for (int r = 0; r < TILE; r++)
        if (r < rows) store(y + r * outputs, (vec)v[r] + more);
}

/* 32 outputs (or 16, when `single`) by up to 32 rows. `turned`: this block's tiles of x, `deep` of them per 16 rows. */
INLINE void block(
    const elem *w, const elem *turned, int64_t deep, int64_t inputs, const elem *next, const elem *bias, elem *y,
    int64_t outputs, int64_t rows, int single
) {
    const int64_t stride = inputs * (int64_t)sizeof(elem), second = single ? 0 : TILE * inputs;
    const int wide = rows > TILE;
    float sums[4][TILE * TILE];
    zero_sums();
    for (int64_t k = 0; k < deep; k++) {
        const elem *const x = turned + k * TILE * DEPTH;
        _tile_loadd(4, w + k * DEPTH, stride);
        _tile_loadd(5, w + second + k * DEPTH, stride);
        _tile_loadd(6, x, LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (wide) {
            _tile_loadd(7, x + deep * TILE * DEPTH, LINE);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        if (next) fetch_lines(next, k * 2 * TILE, 2 * TILE);
    }
    _tile_stored(0, sums[0], LINE);
    _tile_stored(1, sums[1], LINE);
    put(sums[0], bias, y, outputs, rows);
    if (!single) put(sums[1], bias ? bias + TILE : 0, y + TILE, outputs, rows);
    if (!wide) return;
    _tile_stored(2, sums[2], LINE);
    _tile_stored(3, sums[3], LINE);
    put(sums[2], bias, y + TILE * outputs, outputs, rows - TILE);
    if (!single) put(sums[3], bias ? bias + TILE : 0, y + TILE * outputs + TILE, outputs, rows - TILE);
}

/* y [rows, outputs] = x [rows, inputs] wᵀ + bias; `inputs` in 32s, `outputs` in 16s. Returns 1 when memory ran out. */
int lorafleet_tiles_plain(
    const elem *x, const elem *w, const elem *bias, elem *y, int64_t rows, int64_t inputs, int64_t outputs, int threads
) {
    const int64_t deep = inputs / DEPTH, row_tiles = (rows + TILE - 1) / TILE;
    const int64_t blocks = (outputs + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    elem *turned = 0;
    if (posix_memalign((void **)&turned, LINE, (size_t)(row_tiles * deep * TILE * DEPTH) * sizeof(elem))) return 1;
#pragma omp parallel num_threads(team(threads, inputs * outputs))
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < row_tiles * deep; t++) {
            const int64_t first = t / deep * TILE;
            turn(x + first * inputs + t % deep * DEPTH, inputs, rows - first, turned + t * TILE * DEPTH);
        }
        use_full_tiles();
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t output = b * ROWS_AT_ONCE;
            const int single = outputs - output < ROWS_AT_ONCE;
            const elem *const next = outputs - output >= 2 * ROWS_AT_ONCE ? w + (output + ROWS_AT_ONCE) * inputs : 0;
            for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE)
                block(
                    w + output * inputs, turned + row * inputs, deep, inputs, row ? 0 : next, bias ? bias + output : 0,
                    y + row * outputs + output, outputs, rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE, single
                );
        }
        _tile_release();
    }
    free(turned);
    return 0;
}

#else

int lorafleet_tiles_plain(
    const elem *x, const elem *w, const elem *bias, elem *y, int64_t rows, int64_t inputs, int64_t outputs, int threads
) {
    (void)x, (void)w, (void)bias, (void)y, (void)rows, (void)inputs, (void)outputs, (void)threads;
    return 1;
}

#endif
