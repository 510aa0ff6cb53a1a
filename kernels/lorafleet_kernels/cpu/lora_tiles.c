/* Low-rank deltas of many rows of one adapter, on matrix tiles. A's rows are turned as they are used; so are b's, in pairs.
 * The rank-long rows in between are rounded to bfloat16, as the reference rounds them. */
#include "lora.h"
#include "tiles.h"

#if LORAFLEET_TILES

enum { ROW_TILES = 4 };

typedef struct __attribute__((aligned(64))) {
    float sums[ROW_TILES][TILE * TILE];
    elem h[ROW_TILES * TILE][RANKS]; /* zeros behind the last rank, up to a multiple of 32 */
    elem turned[2][TILE * DEPTH];
    elem pairs[RANKS / DEPTH][2][TILE * DEPTH];
} scratch_t;

/* Sixteen ranks of h for up to 64 rows. */
INLINE void shrink(scratch_t *s, const elem *x, const elem *a, int64_t inputs, int ranks, int tiles, int first) {
    const int64_t stride = inputs * (int64_t)sizeof(elem);
    zero_sums();
    for (int64_t k = 0; k < inputs; k += DEPTH) {
        elem *const turned = s->turned[k / DEPTH % 2];
        turn(a + k, inputs, ranks, turned);
        _tile_loadd(6, turned, LINE);
        _tile_loadd(4, x + k, stride);
        _tile_dpbf16ps(0, 4, 6);
        if (tiles > 1) {
            _tile_loadd(5, x + TILE * inputs + k, stride);
            _tile_dpbf16ps(1, 5, 6);
        }
        if (tiles > 2) {
            _tile_loadd(4, x + 2 * TILE * inputs + k, stride);
            _tile_dpbf16ps(2, 4, 6);
        }
        if (tiles > 3) {
            _tile_loadd(5, x + 3 * TILE * inputs + k, stride);
            _tile_dpbf16ps(3, 5, 6);
        }
    }
    _tile_stored(0, s->sums[0], LINE);
    _tile_stored(1, s->sums[1], LINE);
    _tile_stored(2, s->sums[2], LINE);
    _tile_stored(3, s->sums[3], LINE);
    for (int row = 0; row < tiles * TILE; row++) store(s->h[row] + first, load_floats(s->sums[0] + row * TILE));
}

/* 32 columns of b, as tiles of pairs of ranks. */
INLINE void pair_up(scratch_t *s, const elem *b, int64_t width, int rank) {
    __attribute__((aligned(64))) uint16_t low[32], high[32];
    for (int i = 0; i < 16; i++) {
        low[2 * i] = (uint16_t)i;
        low[2 * i + 1] = (uint16_t)(i + 32);
        high[2 * i] = (uint16_t)(i + 16);
        high[2 * i + 1] = (uint16_t)(i + 48);
    }
    const __m512i to_low = _mm512_load_si512(low), to_high = _mm512_load_si512(high), none = _mm512_setzero_si512();
    for (int n = 0; n < (rank + DEPTH - 1) / DEPTH * DEPTH; n += 2) {
        const __m512i even = n < rank ? _mm512_loadu_si512(b + n * width) : none;
        const __m512i odd = n + 1 < rank ? _mm512_loadu_si512(b + (n + 1) * width) : none;
        elem *const left = s->pairs[n / DEPTH][0] + n % DEPTH / 2 * DEPTH;
        elem *const right = s->pairs[n / DEPTH][1] + n % DEPTH / 2 * DEPTH;
        _mm512_store_si512(left, _mm512_permutex2var_epi16(even, to_low, odd));
        _mm512_store_si512(right, _mm512_permutex2var_epi16(even, to_high, odd));
    }
    written();
}

INLINE void expand(scratch_t *s, elem *y, int64_t outputs, const elem *b, int64_t width, int rank, int tiles) {
    for (int64_t column = 0; column < width; column += DEPTH) {
        pair_up(s, b + column, width, rank);
        for (int t = 0; t < tiles; t++) {
            _tile_zero(0);
            _tile_zero(1);
            for (int n = 0; n < rank; n += DEPTH) {
                _tile_loadd(4, s->h[t * TILE] + n, sizeof s->h[0]);
                _tile_loadd(6, s->pairs[n / DEPTH][0], LINE);
                _tile_loadd(7, s->pairs[n / DEPTH][1], LINE);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
            }
            _tile_stored(0, s->sums[0], LINE);
            _tile_stored(1, s->sums[1], LINE);
            for (int r = 0; r < TILE; r++) {
                elem *const to = y + (t * TILE + r) * outputs + column;
                store(to, load(to) + load_floats(s->sums[0] + r * TILE));
                store(to + TILE, load(to + TILE) + load_floats(s->sums[1] + r * TILE));
            }
        }
    }
}

int64_t lorafleet_lora_on_tiles(const group_t *group, const elem *x, elem *y, int64_t outputs, int64_t rows) {
    const int64_t inputs = group->inputs;
    const int tiles = (int)(rows / TILE < ROW_TILES ? rows / TILE : ROW_TILES);
    if (!lorafleet_tiles_allowed || inputs % DEPTH) return 0;
    for (int p = 0; p < group->parts; p++)
        if ((group->part[p].end - group->part[p].begin) % DEPTH) return 0;
    scratch_t s;
    const elem *a = group->a;
    use_full_tiles();
    for (int p = 0; p < group->parts; p++) {
        const part_t *const part = &group->part[p];
        const int64_t width = part->end - part->begin;
        for (int first = 0; first < part->rank; first += RANKS) {
            const int rank = part->rank - first < RANKS ? part->rank - first : RANKS;
            const int padded = (rank + DEPTH - 1) / DEPTH * DEPTH;
            for (int n = 0; n < rank; n += TILE)
                shrink(&s, x, a + (first + n) * inputs, inputs, rank - n, tiles, n);
            if (padded - rank >= TILE)
                for (int row = 0; row < tiles * TILE; row++) store(s.h[row] + padded - TILE, (vec){0});
            written();
            expand(&s, y + part->begin, outputs, part->b + first * width, width, rank, tiles);
        }
        a += part->rank * inputs;
    }
    _tile_release();
    return (int64_t)tiles * TILE;
}

#else

int64_t lorafleet_lora_on_tiles(const group_t *group, const elem *x, elem *y, int64_t outputs, int64_t rows) {
    (void)group, (void)x, (void)y, (void)outputs, (void)rows;
    return 0;
}

#endif
