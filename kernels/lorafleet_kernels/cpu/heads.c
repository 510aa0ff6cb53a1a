/* From a layer's fused q, k, v to rotated queries in place, and keys and values in their pages. */
#include "parts.h"

INLINE void norm_head(elem *head, const elem *weight, int64_t size, float eps) {
    float squares = 0;
    for (int64_t i = 0; i < size; i++) {
        const float v = load_one(head + i);
        squares += v * v;
    }
    const float scale = 1.0f / sqrtf(squares / (float)size + eps);
    for (int64_t i = 0; i < size; i++) {
        elem narrow;
        store_one(&narrow, load_one(head + i) * scale);
        store_one(head + i, load_one(&narrow) * load_one(weight + i));
    }
}

/* Halves rotated, as in Llama's published weights. `into` may be `from`. */
INLINE void rotate(const elem *from, elem *into, const elem *cosines, const elem *sines, int64_t size) {
    const int64_t half = size / 2;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const vec low = load(from + i), high = load(from + half + i);
        const vec first = rounded(low * load(cosines + i)) - high * load(sines + i);
        const vec second = rounded(high * load(cosines + half + i)) + low * load(sines + half + i);
        store(into + i, first);
        store(into + half + i, second);
    }
    if (i < half) {
        const int64_t left = half - i;
        const vec low = load_some(from + i, left), high = load_some(from + half + i, left);
        const vec first = rounded(low * load_some(cosines + i, left)) - high * load_some(sines + i, left);
        const vec second =
            rounded(high * load_some(cosines + half + i, left)) + low * load_some(sines + half + i, left);
        store_some(into + i, first, left);
        store_some(into + half + i, second, left);
    }
}

void heads_part(
    const share_t *share, const step_t *step, elem *qkv, elem *pool, const elem *q_norm, const elem *k_norm
) {
    const int64_t size = step->size, heads = step->heads, kv_heads = step->kv_heads;
    const int64_t width = (heads + 2 * kv_heads) * size, kv_width = kv_heads * size;
    for (int64_t token = first_of(share, step->tokens); token < end_of(share, step->tokens); token++) {
        const int64_t position = step->positions[token];
        const elem *const cosines = step->cosines + position * size, *const sines = step->sines + position * size;
        elem *const row = qkv + token * width;
        elem *const keys = pool + page_at(step, step->owners[token], position) + position % PAGE * kv_width;
        for (int64_t head = 0; head < heads + kv_heads; head++) {
            elem *const at = row + head * size;
            if (q_norm) norm_head(at, head < heads ? q_norm : k_norm, size, step->eps);
            rotate(at, head < heads ? at : keys + (head - heads) * size, cosines, sines, size);
        }
        memcpy(keys + PAGE * kv_width, row + (heads + kv_heads) * size, (size_t)kv_width * sizeof(elem));
    }
}

void lorafleet_heads(const step_t *step, elem *qkv, elem *pool, const elem *q_norm, const elem *k_norm) {
    const int64_t work = 2 * step->tokens * (step->heads + 2 * step->kv_heads) * step->size;
#pragma omp parallel num_threads(team(step->threads, work))
    {
        const share_t share = shared(0);
        heads_part(&share, step, qkv, pool, q_norm, k_norm);
    }
}
