// Threads that share the tasks of one job at a time.
//
// Tasks are taken one by one, so that a thread which the system holds up costs the task that it has and no more. A
// worker that finds nothing to do spins for some hundred microseconds, since jobs follow each other within a step, and
// then sleeps, since the cores belong to others between steps.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

class Pool {
public:
    using Task = void (*)(void* job, int task, int thread);

    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return 1 + (int)workers.size(); }

    // Call `task` with every number below `count`, each once, in any order, and return when all are done. From one
    // thread at a time; `thread` is below threads(), and 0 is the caller.
    void run(Task task, void* job, int count);

private:
    void work(int thread);
    bool take(int thread);

    std::vector<std::thread> workers;
    std::atomic<uint64_t> ticket{0};  // the job's number, above the number of the next task
    std::atomic<Task> task{nullptr};
    std::atomic<void*> job{nullptr};
    std::atomic<int> count{0};
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
