// Threads that share the tasks of one job at a time.
//
// Each thread has its part of a job's tasks, in order, so that it reads memory from one end to the other; one that is
// done takes the last ones of others, so that a thread which the system holds up costs the task that it has and no
// more. A worker that finds nothing to do spins for some hundred microseconds, since jobs follow each other within a
// step, and then sleeps, since the cores belong to others between steps. While it spins it does what was put off, and
// fetches what it will read.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

inline void pause_thread() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

class Pool {
public:
    using Task = void (*)(void* job, int task, int thread);

    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return total; }

    // Call `task` with every number below `count`, each once, in any order, and return when all are done. From one
    // thread at a time; `thread` is below threads(), and 0 is the caller.
    void run(Task task, void* job, int count);

    // Have `task` called with every number below `count`, in order, by threads that would have nothing to do, while the
    // caller goes on. Of one such job at a time: the last one's tasks are begun before. Below 2**20 tasks; the job itself
    // tells when they are done. Where the caller is the only thread it does them here.
    void put_off(Task task, void* job, int count);

    // The caller does the next task that was put off. False if each is begun.
    bool help() { return take_put_off(0); }

    // Which of a job's tasks are a thread's own: from part(t) to part(t + 1).
    int part(int thread, int count) const { return (int)((int64_t)count * thread / threads()); }

    // This memory is what a thread will read next: in its idle moments it brings the beginning of it into its cache.
    void expect(int thread, const void* begin, int64_t bytes);

private:
    void run_in_turns(Task task, void* job, int count);
    void work(int thread);
    bool take(int thread);
    bool take_put_off(int thread);
    bool has_tasks() const;
    void wake_up();
    bool fetch_expected(int thread);

    struct alignas(64) Own {
        std::atomic<uint64_t> tasks{0};     // that are left of its part: the job's number, the first and the end
        std::atomic<uint64_t> expected{0};  // memory that is not fetched yet: where, and how much
    };

    const int total;
    std::vector<std::thread> workers;
    std::unique_ptr<Own[]> own;  // by thread
    uint64_t number = 0;         // of jobs
    std::atomic<uint64_t> later{0};  // tasks that are put off and not begun, told like those of a part
    std::atomic<Task> later_task{nullptr};
    std::atomic<void*> later_job{nullptr};
    std::atomic<Task> task{nullptr};
    std::atomic<void*> job{nullptr};
    std::atomic<int> done{0};
    std::atomic<bool> caller_asleep{false};
    std::atomic<int> asleep{0};
    std::atomic<uint32_t> wake{0};
    std::atomic<bool> stopping{false};
};

// A job of any callable: void(int task, int thread).
template <class Function>
void parallel(Pool& pool, int count, Function&& function) {
    auto call = [](void* job, int task, int thread) { (*static_cast<Function*>(job))(task, thread); };
    pool.run(call, &function, count);
}
