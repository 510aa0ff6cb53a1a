/* Matrix tiles (Intel AMX) for bfloat16: what the products on them share. LORAFLEET_TILES is 1 where they can be compiled.
 *
 * A product multiplies tiles of 16 rows by 32 features with "turned" tiles: pairs of features, then 16 rows, two by two. */
#ifndef LORAFLEET_TILES_H
#define LORAFLEET_TILES_H

#include "vector.h"

#if LORAFLEET_BF16 && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__linux__)
#define LORAFLEET_TILES 1

/* Whether the processor has tiles and the kernel lets this process use them; see lorafleet_tiles_ready. */
extern int lorafleet_tiles_allowed;

enum { TILE = 16, DEPTH = 32, ROWS_AT_ONCE = 2 * TILE, LINE = 64 };

typedef struct __attribute__((packed)) {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tiles_t;

/* A constant: gcc's _tile_loadconfig names only the first bytes as its input, so it may drop the writing of the others. */
static const tiles_t full_tiles = {
    .palette = 1,
    .bytes = {LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE},
    .rows = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE},
};

INLINE void use_full_tiles(void) { _tile_loadconfig(&full_tiles); }

/* After what tiles will load has been written: gcc's _tile_loadd does not say that it reads memory. */
INLINE void written(void) { __asm__ volatile("" ::: "memory"); }

/* A matrix of 16 by 16 words. */
INLINE void transpose(__m512i v[TILE]) {
    __m512i a[TILE], b[TILE];
    for (int i = 0; i < TILE; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < TILE; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
    }
}

/* into [16 pairs of features][16 rows][2] of a tile of x; zeros for rows that are not there. */
INLINE void turn(const elem *x, int64_t inputs, int64_t rows, elem *into) {
    __m512i v[TILE];
    for (int r = 0; r < TILE; r++) v[r] = r < rows ? _mm512_loadu_si512(x + r * inputs) : _mm512_setzero_si512();
    transpose(v);
    for (int r = 0; r < TILE; r++) _mm512_storeu_si512(into + r * DEPTH, v[r]);
    written();
}

INLINE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Lines of what comes next, while this is multiplied: a decode step is bound by memory. */
INLINE void fetch_lines(const elem *next, int64_t first, int count) {
    for (int line = 0; line < count; line++) __builtin_prefetch((const char *)next + (first + line) * LINE, 0, 2);
}

#endif
#endif
