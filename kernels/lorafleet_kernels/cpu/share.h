/* How the threads of a team share an operation.
 *
 * Every operation is written as one thread's part of it. The entry points call the part from a team of their own; a
 * whole step (forward.c) calls all of them from one team, with a barrier between. */
#ifndef LORAFLEET_SHARE_H
#define LORAFLEET_SHARE_H

#include <omp.h>

#include "vector.h"

typedef struct {
    int me, size;
    int64_t *taken; /* units that somebody has taken, where units go to whoever is free; zero before */
} share_t;

INLINE share_t shared(int64_t *taken) { return (share_t){omp_get_thread_num(), omp_get_num_threads(), taken}; }

/* The next unit that nobody has taken: a thread that is held up leaves the others' work to them. */
INLINE int64_t next_unit(const share_t *share) { return __atomic_fetch_add(share->taken, 1, __ATOMIC_RELAXED); }

INLINE int64_t first_of(const share_t *share, int64_t count) { return count * share->me / share->size; }

INLINE int64_t end_of(const share_t *share, int64_t count) { return count * (share->me + 1) / share->size; }

/* Units in a row, `first` to `end`, with about as much to do as every other thread has: so that who is next is known, and
 * can be fetched. `all` is what all units cost; then each is offered, in order. */
typedef struct {
    int64_t all, before, unit, first, end;
} range_t;

INLINE void offer(range_t *range, const share_t *share, int64_t cost) {
    if (range->before * share->size < range->all * share->me) range->first = range->unit + 1;
    if (range->before * share->size < range->all * (share->me + 1)) range->end = range->unit + 1;
    range->before += cost;
    range->unit++;
}

#endif
