/* All layers of a step in one call, by one team of threads.
 *
 * What is computed, and in which order, is what the decoder does operation by operation; between two of them the threads
 * wait for each other here, not for the caller, and intermediates stay where they are from layer to layer. */
#include <sched.h>
#include <stdlib.h>

#include "parts.h"

enum { COUNTER = 8, PADDING = 32, PATIENCE = 1 << 18 };

/* Where the threads meet. Each on a cache line of its own. */
typedef struct {
    _Alignas(64) int64_t arrived;
    _Alignas(64) int64_t meetings;
} meeting_t;

typedef struct {
    const elem *turned, *bias;
} linear_t;

typedef struct {
    const elem *input_norm, *q_norm, *k_norm, *post_norm;
    linear_t qkv, o, gate_up, down;
} layer_t;

typedef struct {
    const layer_t *layer;
    int64_t layers, width, inner;
    float eps;
} decoder_t;

typedef struct {
    const decoder_t *decoder;
    const step_t *step;
    const segment_t *segments;
    int64_t count;
    elem *x, *h, *qkv, *attended, *delta, *gate_up, *active;
    meeting_t *meeting;
} run_t;

INLINE void pause_a_little(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Everybody has done their part.
 *
 * Whoever waits stays awake: a thread that sleeps here has to be woken, and beside a busy core it is woken when that core's
 * other work has had its turn, hundreds of times a step (measured: steps of 12 times their length; so 4 times). Who has
 * waited for long lets others run. */
INLINE void done(const run_t *run, const share_t *share) {
    meeting_t *const meeting = run->meeting;
    const int64_t now = __atomic_load_n(&meeting->meetings, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&meeting->arrived, 1, __ATOMIC_ACQ_REL) == share->size) {
        __atomic_store_n(&meeting->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&meeting->meetings, now + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int waited = 0; __atomic_load_n(&meeting->meetings, __ATOMIC_ACQUIRE) == now; waited++)
        if (waited < PATIENCE)
            pause_a_little();
        else
            sched_yield();
}

INLINE void adapted_product(
    const run_t *run, const share_t *share, const linear_t *linear, int64_t group, const elem *x, elem *y, int64_t inputs,
    int64_t outputs
) {
    const product_t product = {x, linear->turned, linear->bias, y, run->step->tokens, inputs, outputs};
    product_part(share, &product, 0);
    done(run, share);
    if (!run->count) return;
    lora_part(share, run->segments, run->count, group, x, y, inputs, outputs);
    done(run, share);
}

static int one_layer(const run_t *run, const share_t *share, int64_t index, elem *pool) {
    const step_t *const step = run->step;
    const decoder_t *const decoder = run->decoder;
    const layer_t *const layer = &decoder->layer[index];
    const int64_t rows = step->tokens, width = decoder->width, inner = decoder->inner;
    const int64_t q_width = step->heads * step->size, qkv_width = q_width + 2 * step->kv_heads * step->size;
    adapted_product(run, share, &layer->qkv, 4 * index, run->h, run->qkv, width, qkv_width);
    heads_part(share, step, run->qkv, pool, layer->q_norm, layer->k_norm);
    done(run, share);
    decode_part(share, step, run->qkv, pool, run->attended);
    const int failed = chunks_part(share, step, run->qkv, pool, run->attended);
    done(run, share);
    adapted_product(run, share, &layer->o, 4 * index + 1, run->attended, run->delta, q_width, width);
    add_rms_norm_part(share, run->x, run->delta, layer->post_norm, run->h, rows, width, decoder->eps);
    done(run, share);
    adapted_product(run, share, &layer->gate_up, 4 * index + 2, run->h, run->gate_up, width, 2 * inner);
    silu_and_mul_part(share, run->gate_up, run->active, rows, inner);
    done(run, share);
    adapted_product(run, share, &layer->down, 4 * index + 3, run->active, run->delta, inner, width);
    const int last = index + 1 == decoder->layers;
    add_rms_norm_part(
        share, run->x, run->delta, last ? 0 : layer[1].input_norm, last ? 0 : run->h, rows, width, decoder->eps
    );
    done(run, share);
    return failed;
}

/* x [tokens, width] becomes the hidden states before the last norm. `pool` is the first layer's, `layer_elements` from one
 * layer to the next. `work` has room for `tokens`, rounded up to 32, of all intermediates. Returns 1 when memory ran out. */
int lorafleet_forward(
    const decoder_t *decoder, const step_t *step, const segment_t *segments, int64_t count, elem *pool,
    int64_t layer_elements, elem *x, elem *work
) {
    const int64_t rows = (step->tokens + PADDING - 1) / PADDING * PADDING;
    const int64_t q_width = step->heads * step->size, qkv_width = q_width + 2 * step->kv_heads * step->size;
    meeting_t meeting = {0};
    run_t run = {.decoder = decoder, .step = step, .segments = segments, .count = count, .x = x, .h = work, .meeting = &meeting};
    run.qkv = run.h + rows * decoder->width;
    run.attended = run.qkv + rows * qkv_width;
    run.delta = run.attended + rows * q_width;
    run.gate_up = run.delta + rows * decoder->width;
    run.active = run.gate_up + rows * 2 * decoder->inner;
    int64_t *const counters = calloc((size_t)(decoder->layers * COUNTER), sizeof *counters); /* of chunks, by layer */
    if (!counters) return 1;
    int failed = 0;
#pragma omp parallel num_threads(step->threads) reduction(| : failed)
    {
        const share_t share = shared(0);
        add_rms_norm_part(&share, x, 0, decoder->layer->input_norm, run.h, step->tokens, decoder->width, decoder->eps);
        done(&run, &share);
        for (int64_t index = 0; index < decoder->layers; index++) {
            const share_t of_layer = {share.me, share.size, counters + index * COUNTER};
            failed |= one_layer(&run, &of_layer, index, pool + index * layer_elements);
        }
    }
    free(counters);
    return failed;
}
