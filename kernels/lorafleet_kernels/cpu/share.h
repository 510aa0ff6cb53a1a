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

#endif
