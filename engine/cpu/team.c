/* How a team's threads wait for each other. */

#include "team.h"

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { POLLED_CYCLES = 1 << 17, ALIGNMENT = 64, HUGE_PAGE = 1 << 21 };

static void wait_while(Team *team, atomic_uint *counter, unsigned value) {
    for (uint64_t begin = __rdtsc(); __rdtsc() - begin < POLLED_CYCLES; _mm_pause())
        if (atomic_load(counter) != value) return;
    atomic_fetch_add(&team->sleeping, 1); /* before the system compares the counter, as `advance` does it the other way round */
    while (atomic_load(counter) == value) syscall(SYS_futex, counter, FUTEX_WAIT_PRIVATE, value, NULL);
    atomic_fetch_sub(&team->sleeping, 1);
}

static void advance(Team *team, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (atomic_load(&team->sleeping)) syscall(SYS_futex, counter, FUTEX_WAKE_PRIVATE, INT_MAX);
}

void meet(Team *team) {
    if (team->threads == 1) return;
    unsigned meeting = atomic_load(&team->meetings);
    if ((int)atomic_fetch_add(&team->arrived, 1) < team->threads - 1) {
        wait_while(team, &team->meetings, meeting);
        return;
    }
    atomic_store(&team->arrived, 0);
    advance(team, &team->meetings);
}

int do_together(Team *team, int64_t n_bytes, Work *work, const void *call) {
    if (team->n_bytes < n_bytes) {
        int64_t unit = n_bytes < HUGE_PAGE ? ALIGNMENT : HUGE_PAGE, rounded = (n_bytes + unit - 1) / unit * unit;
        free(team->memory);
        team->memory = aligned_alloc(unit, rounded);
        team->n_bytes = team->memory ? rounded : 0;
        if (!team->memory) return 0;
        if (unit == HUGE_PAGE) madvise(team->memory, rounded, MADV_HUGEPAGE); /* lines of a row lie pages apart */
    }
    team->work = work, team->call = call;
    if (team->threads > 1) advance(team, &team->calls);
    work(team, 0, call);
    meet(team);
    return 1;
}

typedef struct { Team *team; int thread; } Member;

static void *be_member(void *given) {
    Member member = *(Member *)given;
    free(given);
    for (unsigned call = 0;; call++) {
        wait_while(member.team, &member.team->calls, call);
        if (!member.team->work) return NULL;
        member.team->work(member.team, member.thread, member.team->call);
        meet(member.team);
    }
}

/* Returns a team of so many threads, or of fewer if the system gives no more; NULL if there is no memory for it. */
Team *make_team(int threads) {
    Team *team = calloc(1, sizeof(Team) + threads * sizeof(pthread_t));
    if (!team) return NULL;
    sigset_t all, before; /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (team->threads = 1; team->threads < threads; team->threads++) {
        Member *member = malloc(sizeof(Member));
        if (!member) break;
        *member = (Member){team, team->threads};
        if (pthread_create(team->others + team->threads, NULL, be_member, member)) {
            free(member);
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return team;
}

/* Ends a team's threads. */
void end_team(Team *team) {
    team->work = NULL;
    advance(team, &team->calls);
    for (int thread = 1; thread < team->threads; thread++) pthread_join(team->others[thread], NULL);
    free(team->memory);
    free(team);
}
