/* The operations, each as one thread's part of it. Shapes in elements; a row is one token. */
#ifndef LORAFLEET_PARTS_H
#define LORAFLEET_PARTS_H

#include "attention.h"
#include "lora.h"
#include "share.h"

/* x [rows, width] += delta, where there is one; out = x / rms(x) · weight, where it is wanted. Rounds where the reference
 * rounds. */
void add_rms_norm_part(
    const share_t *share, elem *x, const elem *delta, const elem *weight, elem *out, int64_t rows, int64_t width, float eps
);

/* out [rows, width] = silu(gate) · up, of x [rows, 2 · width] = gate, up. */
void silu_and_mul_part(const share_t *share, const elem *x, elem *out, int64_t rows, int64_t width);

/* y [rows, outputs] = x [rows, inputs] wᵀ + bias, of turned weights; `inputs` in 32s, `outputs` in 16s. */
typedef struct {
    const elem *x, *turned, *bias;
    elem *y;
    int64_t rows, inputs, outputs;
} product_t;

/* Without `rest`, x must be readable up to a whole number of 32 rows. */
void product_part(const share_t *share, const product_t *product, const elem *rest);

/* y [T, outputs] += the deltas of x [T, inputs]; `group` counts layers and their groups. */
void lora_part(
    const share_t *share, const segment_t *segments, int64_t count, int64_t group, const elem *x, elem *y, int64_t inputs,
    int64_t outputs
);

/* qkv [tokens, (heads + 2 · kv_heads) · size]. The norms may be null. */
void heads_part(
    const share_t *share, const step_t *step, elem *qkv, elem *pool, const elem *q_norm, const elem *k_norm
);

/* The first `decodes` tokens: qkv, rotated → out [tokens, heads · size]. */
void decode_part(const share_t *share, const step_t *step, const elem *qkv, const elem *pool, elem *out);

/* The tokens after them: every sequence there is a chunk. Returns 1 when memory ran out, else 0. */
int chunks_part(const share_t *share, const step_t *step, const elem *qkv, const elem *pool, elem *out);

#endif
