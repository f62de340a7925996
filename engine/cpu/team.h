/* Threads that do a call's work together, and the memory that they need: the caller, and others that wait for its next
call. Whoever waits polls for some 50 us and then sleeps: polling for longer would keep a core from threads that have work,
such as the other direction's. OpenMP's threads poll for milliseconds. */

#ifndef TEAM_H
#define TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct Team Team;
typedef void Work(Team *team, int thread, const void *call);

struct Team {
    int threads;
    uint8_t *memory; /* `n_bytes`, aligned to 64 */
    int64_t n_bytes;
    Work *work; /* of this call; NULL to end */
    const void *call;
    atomic_uint calls, meetings, arrived, sleeping; /* the first two are counters that threads wait for */
    pthread_t others[];
};

/* Returns when all threads are here. */
void meet(Team *team);

/* Does a call's work with so many bytes of memory. Returns whether there is that much. */
int do_together(Team *team, int64_t n_bytes, Work *work, const void *call);

/* The first of a thread's share of n things; that of the next thread is the end. */
static inline int share(Team *team, int thread, int n) { return (int64_t)n * thread / team->threads; }

#define EACH(i, n) int i = share(team, thread, n), i##_end = share(team, thread + 1, n); i < i##_end; i++

#endif
