// What the kernels need of the process around them. Implemented once, in library.cpp, compiled for the oldest machine.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace alibi {

// The sanitizers' builds leave this many bytes behind each buffer that is cut from a block, where nobody may step, and
// fill memory whose contents are undefined with NaNs.
#if defined(ALIBI_GUARDED)
constexpr int64_t kGap = 64;
void guard(void* gap);
#else
constexpr int64_t kGap = 0;
inline void guard(void*) {}
#endif

// Runs body(context, member) on up to `threads` threads and waits. Denormals are flushed while a body runs.
// How many threads take part is the runtime's affair, so work is drawn from a shared counter, never by member count.
// Regions of a process are to be of one thread or of all: at a team smaller than the last GNU's runtime ends the
// threads that are left over, and makes them anew for the next.
void run_team(int64_t threads, void (*body)(void* context, int64_t member), void* context);

// Memory aligned to a cache line, kept by the calling thread for its next call; slots do not overlap. Null if refused.
// The contents are undefined.
void* scratch(int slot, size_t bytes);

// Memory aligned to a cache line for one call; released with release_block(). Null if refused.
void* take_block(size_t bytes);
void release_block(void* block);

}  // namespace alibi
