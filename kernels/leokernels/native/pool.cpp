#include "pool.h"

#include <sched.h>

static inline void pause_thread() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

constexpr int SPINS = 5000;    // some hundred microseconds: longer than what lies between two products of a step
constexpr int PATIENCE = 400;  // spins of the caller before it lets a worker have its core

static inline uint32_t number_of(uint64_t ticket) { return (uint32_t)(ticket >> 32); }
static inline int task_of(uint64_t ticket) { return (int)(uint32_t)ticket; }

Pool::Pool(int threads) {
    for (int thread = 1; thread < threads; thread++) workers.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    stopping = true;
    wake.fetch_add(1);
    wake.notify_all();
    for (auto& worker : workers) worker.join();
}

// One task of the present job, if any is left. A ticket is only taken if nothing was changed since it was looked at, so
// that a thread which was held up never takes one job's task with another's function.
bool Pool::take(int thread) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    for (;;) {
        Task function = task.load(std::memory_order_relaxed);
        void* argument = job.load(std::memory_order_relaxed);
        int tasks = count.load(std::memory_order_relaxed);
        if (task_of(seen) >= tasks) return false;
        if (ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            function(argument, task_of(seen), thread);
            done.fetch_add(1, std::memory_order_release);
            return true;
        }
    }
}

void Pool::run(Task function, void* argument, int tasks) {
    if (workers.empty() || tasks <= 1) {
        for (int number = 0; number < tasks; number++) function(argument, number, 0);
        return;
    }
    // Until the new ticket is out, the old one has no task left: nobody uses what is written here.
    uint32_t number = number_of(ticket.load(std::memory_order_relaxed)) + 1;
    ticket.store((uint64_t)number << 32 | 0x7FFFFFFFu, std::memory_order_seq_cst);
    done.store(0, std::memory_order_relaxed);
    task.store(function, std::memory_order_relaxed);
    job.store(argument, std::memory_order_relaxed);
    count.store(tasks, std::memory_order_relaxed);
    ticket.store((uint64_t)(number + 1) << 32, std::memory_order_seq_cst);
    if (asleep.load(std::memory_order_seq_cst)) {
        wake.fetch_add(1, std::memory_order_seq_cst);
        wake.notify_all();
    }
    while (take(0)) {
    }
    for (int spins = 0; done.load(std::memory_order_acquire) < tasks; spins++) {
        if (spins < PATIENCE)
            pause_thread();
        else
            sched_yield();
    }
}

void Pool::work(int thread) {
    while (!stopping.load(std::memory_order_relaxed)) {
        int spins = 0;
        while (spins < SPINS) {
            if (take(thread)) {
                spins = 0;
            } else {
                pause_thread();
                spins++;
            }
        }
        uint32_t seen = wake.load(std::memory_order_seq_cst);
        asleep.fetch_add(1, std::memory_order_seq_cst);
        // A job that was put up before this thread counted as asleep has not woken it: look once more.
        uint64_t now = ticket.load(std::memory_order_seq_cst);
        if (task_of(now) >= count.load(std::memory_order_seq_cst) && !stopping) wake.wait(seen);
        asleep.fetch_sub(1, std::memory_order_seq_cst);
    }
}
