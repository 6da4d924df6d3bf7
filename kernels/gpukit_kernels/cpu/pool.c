/* Threads that share the parts of a job. One job at a time; who comes meanwhile is sent away.

   A worker waits for the next job awake for a while, since products follow each other within a
   millisecond and waking a thread takes as long as a small one; then it sleeps. A job does not wait
   for workers that have not come: they join while it is open, and it closes when no part is left. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

typedef void (*part_t)(const void *job, int64_t start, int64_t stop, int64_t thread);

#define MOST 256
/* Looks for a job before a worker sleeps: some milliseconds. */
#define LOOKS 20000

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_long turn, joined, next;
static atomic_int open, sleeping;
static int64_t workers, process;
static part_t part;
static const void *job;
static int64_t count, step;

static inline void breathe(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work(int64_t thread) {
    for (int64_t start; (start = atomic_fetch_add(&next, step)) < count;)
        part(job, start, start + step < count ? start + step : count, thread);
}

static void *worker(void *number) {
    long seen = 0;
    for (;;) {
        for (int looks = 0; atomic_load(&turn) == seen; looks++) {
            breathe();
            if (looks < LOOKS)
                continue;
            pthread_mutex_lock(&lock);
            atomic_fetch_add(&sleeping, 1);
            while (atomic_load(&turn) == seen)
                pthread_cond_wait(&wake, &lock);
            atomic_fetch_sub(&sleeping, 1);
            pthread_mutex_unlock(&lock);
        }
        seen = atomic_load(&turn);
        atomic_fetch_add(&joined, 1);
        if (atomic_load(&open))
            work((int64_t)(intptr_t)number);
        atomic_fetch_sub(&joined, 1);
    }
    return 0;
}

static void begin(int64_t threads) {
    if (process != getpid()) { /* a fork has none of its parent's threads */
        process = getpid();
        workers = 0;
        atomic_store(&joined, 0);
        atomic_store(&sleeping, 0);
        pthread_mutex_init(&lock, 0);
        pthread_cond_init(&wake, 0);
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for other threads */
    while (workers < threads - 1 && workers < MOST) {
        pthread_t thread;
        if (pthread_create(&thread, 0, worker, (void *)(intptr_t)(workers + 1)))
            break;
        pthread_detach(thread);
        workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

/* do_part(with, start, stop, thread) for each `by` of `of`, on up to `threads` threads, numbered from
   0, the caller's. 1, or 0 where another job is under way and nothing has been done. */
int64_t share(part_t do_part, const void *with, int64_t of, int64_t by, int64_t threads) {
    static int64_t held; /* by the process that forked, if by any */
    if (pthread_mutex_trylock(&owner)) {
        if (held == getpid())
            return 0;
        pthread_mutex_init(&owner, 0);
        if (pthread_mutex_trylock(&owner))
            return 0;
    }
    held = getpid();
    begin(threads);
    part = do_part, job = with, count = of, step = by;
    atomic_store(&next, 0);
    atomic_store(&open, 1);
    atomic_fetch_add(&turn, 1);
    if (atomic_load(&sleeping)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    work(0);
    atomic_store(&open, 0);
    for (int looks = 1; atomic_load(&joined); looks++)
        looks % 1000 ? breathe() : (void)sched_yield();
    pthread_mutex_unlock(&owner);
    return 1;
}
